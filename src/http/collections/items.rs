//! `…/items`: upsert, get, page through, delete.

use aide::OperationOutput;
use std::sync::Arc;

use axum::{
    extract::State,
    http::{HeaderName, HeaderValue, Method, Uri, header},
    response::{IntoResponse, NoContent, Response},
};
use image::RgbImage;
use ndarray::Array3;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    super::{
        App, StoreImages,
        answer::Encoder,
        body::Meter,
        infer::infer_indexed,
        json::Strict,
        method_not_allowed,
        parameters::{CollectionPath, ItemPath, PathOf, QueryOf},
        problem::{Code, Problem},
        remote::{self, ImageSource},
        response::{FileBody, JsonBody, MediaTypes, Timed},
        submission::{Content, Lease, Upload},
    },
    find, model_of, patches,
    upsert::{Body, ItemContent, Kept, Query, Upsert},
};
use crate::{
    index::{Collection, Filter, Item, MAX_PAGE, NewItem, PatchOptions, checksum},
    serving::{Inferred, Served},
    traces::timed,
};
use dino_vision::media;

/// The ids of the items that were stored, in their order.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "UpsertResponse")]
pub(in crate::http) struct Ids {
    ids: Vec<String>,
}

/// Errors beside those of the body.
pub(super) const UPSERT_ERRORS: &[Code] =
    &[Code::UnknownModel, Code::UnknownCollection, Code::ModelMismatch, Code::DimensionMismatch, Code::ModelLacksOutput, Code::StoreFailed];

/// Stores items, all of them or, after an error, none; the answer comes once they are durable.
pub(super) async fn upsert(
    State(app): State<App>,
    PathOf(path): PathOf<CollectionPath>,
    upload: Upload<Query, Body<'static>>,
) -> Result<Timed<JsonBody<Ids>>, Problem> {
    let collection = find(&app, &path.collection).await?;
    let most = app.limits.pictures;
    let (mut upsert, memory) = match upload.content {
        Content::Pictures(pictures, query) => (Upsert::of_pictures(pictures, query)?, upload.memory),
        Content::Json(request) => {
            let mut meter = Meter::new(app.bodies.clone(), upload.memory, app.limits.body.bytes);
            let parse = move || -> Result<_, Problem> { Ok((Upsert::from_json(&request, most, &mut meter)?, meter.into_permit())) };
            app.pool.run(parse).await??
        }
    };
    let pictures = upsert.items.iter().filter(|(_, content)| matches!(content, ItemContent::Picture(_))).count();
    let turns = patches::turns(&upsert);
    // What was checked here is what runs: the model may be reloaded while pictures are fetched.
    let patches = match collection.spec().patches() {
        Some(options) => {
            let served = model_of(&app, &*collection, upsert.model.as_deref())?;
            patches::check(&app, &upsert, &served, collection.spec(), options)?;
            Some((served, options))
        }
        None if upsert.rotations => {
            return Err(Problem::new(Code::BadParameter, "rotations: belongs to collections of patches; leave it out"));
        }
        None if !upsert.masks.is_empty() => {
            return Err(Problem::new(Code::BadParameter, "mask: belongs to collections of patches; leave it out"));
        }
        None => None,
    };
    let mut lease = Lease::take(&app, pictures * turns, memory)?;
    // For vectors that came ready made these say which model made them.
    if let Some(model) = &upsert.model {
        collection.check_model(&app.registry.fingerprint(model)?)?;
    }
    for (model, &index) in &upsert.named {
        let fingerprint = app.registry.fingerprint(model).map_err(|error| Problem::from(error).at(index))?;
        collection.check_model(&fingerprint).map_err(|error| Problem::from(error).at(index))?;
    }
    remote::fetch(&app, upsert.pictures_mut(), &mut lease).await?;
    let embedded = match patches {
        Some((served, options)) => embed_patches(&app, served, upsert, options).await?,
        None if pictures > 0 => embed(&app, &*collection, upsert).await?,
        None => Embedded::ready_made(upsert),
    };
    let Embedded { items, timing } = embedded;
    let ids = items.iter().map(|new| new.item.id.clone()).collect();
    timed("store", app.disk.run(move || collection.upsert(items))).await??;
    drop(lease);
    Ok(Timed { timing, body: JsonBody::from(&Ids { ids }) })
}

/// Items with their vectors, and where the time went.
struct Embedded {
    items: Vec<NewItem>,
    timing: Option<(HeaderName, HeaderValue)>,
}

impl Embedded {
    fn ready_made(upsert: Upsert) -> Self {
        let item = |(item, content)| match content {
            ItemContent::Vector(vector) => Some(NewItem { item, vector, thumbnail: None, patches: None }),
            ItemContent::Picture(_) => None,
        };
        Self { items: upsert.items.into_iter().filter_map(item).collect(), timing: None }
    }
}

/// Embeds the pictures of an upsert with the collection's model.
async fn embed(app: &App, collection: &dyn Collection, upsert: Upsert) -> Result<Embedded, Problem> {
    let served = model_of(app, collection, upsert.model.as_deref())?;
    let mut pictures = Vec::new();
    for (position, (_, content)) in upsert.items.iter().enumerate() {
        if let ItemContent::Picture(source) = content {
            pictures.push((position, source.bytes.clone()));
        }
    }
    let keep = app.store_images;
    let shrink = pictures.iter().any(|(_, bytes)| keep.shrinks(bytes));
    let transform = served.manifest().transform.clone();
    let prepare = move |picture: &RgbImage| -> (Array3<f32>, Kept) { (transform.apply(picture), Kept::of(picture, shrink)) };
    let (inference, kept) = infer_indexed(app, &served, pictures, prepare).await?;
    let timing = Some(inference.timing.header());
    let inferred = inference.inferred.into_iter().zip(kept);
    let items = app.pool.run(move || finish(&served, upsert, inferred, keep)).await??;
    Ok(Embedded { items, timing })
}

/// Makes patches of the pictures of an upsert.
async fn embed_patches(app: &App, served: Arc<Served>, upsert: Upsert, options: PatchOptions) -> Result<Embedded, Problem> {
    let (inference, kept) = patches::infer(app, &served, &upsert, options).await?;
    let (timing, keep) = (Some(inference.timing.header()), app.store_images);
    let inferred: Vec<_> = inference.inferred.into_iter().zip(kept).collect();
    let limits = app.limits.media;
    let items = app.drawing.run(move || patches::finish(&served, upsert, &inferred, options, keep, &limits)).await??;
    Ok(Embedded { items, timing })
}

fn finish(
    served: &Served,
    upsert: Upsert,
    mut inferred: impl Iterator<Item = (Inferred, Kept)>,
    keep: StoreImages,
) -> Result<Vec<NewItem>, Problem> {
    let finish = |(mut item, content): (Item, ItemContent)| match content {
        ItemContent::Vector(vector) => Ok(NewItem { item, vector, thumbnail: None, patches: None }),
        ItemContent::Picture(ImageSource { bytes, .. }) => {
            let (inferred, kept) = inferred.next().ok_or_else(|| Problem::new(Code::Internal, "a picture has no answer of the model"))?;
            let vector = served.collection_vector(&inferred)?;
            item.source = Some(checksum::of_bytes(&bytes));
            item.fingerprint = Some(kept.fingerprint);
            Ok(NewItem { item, vector, thumbnail: keep.kept(&bytes, kept.thumbnail), patches: None })
        }
    };
    upsert.items.into_iter().map(finish).collect()
}

/// An item as it is stored.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Item")]
pub(in crate::http) struct ItemResponse {
    id: String,
    labels: Vec<String>,
    metadata: Map<String, Value>,
    /// Hash of the picture that it was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    /// Not in lists of items.
    #[serde(skip_serializing_if = "Option::is_none")]
    vector: Option<Vec<f32>>,
}

impl ItemResponse {
    fn new(item: Item, vector: Option<Vec<f32>>) -> Self {
        let Item { id, labels, metadata, source, fingerprint: _ } = item;
        Self { id, labels, metadata, source, vector }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(in crate::http) struct PageOptions {
    /// Most items of the page, 1 to 1000.
    limit: usize,
    /// `next` of the page before.
    cursor: Option<String>,
}

impl Default for PageOptions {
    fn default() -> Self {
        Self { limit: 100, cursor: None }
    }
}

/// Items in the order of their ids.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ItemPage")]
pub(in crate::http) struct Page {
    items: Vec<ItemResponse>,
    /// What to pass as `cursor` for the next page; null at the end.
    next: Option<String>,
}

/// Items in the order of their ids, page by page. A page ends early where its items take much memory.
pub(super) async fn page(
    State(app): State<App>,
    PathOf(path): PathOf<CollectionPath>,
    QueryOf(options): QueryOf<PageOptions>,
) -> Result<JsonBody<Page>, Problem> {
    let collection = find(&app, &path.collection).await?;
    let PageOptions { limit, cursor } = options;
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Problem::new(Code::BadParameter, format!("limit: must lie between 1 and {MAX_PAGE}, not {limit}")));
    }
    let encoder = Encoder::new(&app);
    let page = move || {
        let page = collection.page(cursor.as_deref(), limit)?;
        encoder.json(&Page { items: page.items.into_iter().map(|item| ItemResponse::new(item, None)).collect(), next: page.next })
    };
    app.disk.run(page).await?
}

/// One item with its vector.
pub(super) async fn one(State(app): State<App>, PathOf(path): PathOf<ItemPath>) -> Result<JsonBody<ItemResponse>, Problem> {
    let ItemPath { collection, id } = path;
    let collection = find(&app, &collection).await?;
    let stored = app.disk.run(move || collection.get(&id)).await??;
    Ok(JsonBody::from(&ItemResponse::new(stored.item, Some(stored.vector))))
}

/// A stored picture.
pub(super) struct PictureFile;

const UNKNOWN_FORMAT: &str = "application/octet-stream";

impl MediaTypes for PictureFile {
    const NAMES: &'static [&'static str] =
        &["image/jpeg", "image/png", "image/gif", "image/webp", "image/bmp", "image/tiff", UNKNOWN_FORMAT];
}

/// The stored picture of an item: a thumbnail, or the file as it was sent.
pub(super) async fn image(State(app): State<App>, PathOf(path): PathOf<ItemPath>) -> Result<FileBody<PictureFile>, Problem> {
    let ItemPath { collection, id } = path;
    let collection = find(&app, &collection).await?;
    let picture = app.disk.run(move || collection.thumbnail(&id)).await??;
    let kind = media::Format::sniff(&picture).map_or(UNKNOWN_FORMAT, media::Format::mime);
    Ok(FileBody::new(kind, ([(header::X_CONTENT_TYPE_OPTIONS, "nosniff")], picture)))
}

/// Deletes one item.
pub(super) async fn remove(State(app): State<App>, PathOf(path): PathOf<ItemPath>) -> Result<NoContent, Problem> {
    let ItemPath { collection, id } = path;
    let collection = find(&app, &collection).await?;
    app.disk.run(move || collection.delete(&id)).await??;
    Ok(NoContent)
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "DeleteRequest")]
pub(in crate::http) struct DeleteRequest {
    filter: Filter,
}

/// What was deleted.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DeleteResponse")]
pub(in crate::http) struct Deleted {
    /// Number of items.
    deleted: usize,
}

/// `POST …/items/delete`: deletes all items that pass a filter, at once.
pub(super) async fn remove_where(
    State(app): State<App>,
    PathOf(path): PathOf<ItemPath>,
    method: Method,
    uri: Uri,
    body: Result<Strict<DeleteRequest>, Problem>,
) -> Result<JsonBody<Deleted>, NotDeleted> {
    let ItemPath { collection, id: action } = path;
    if action != "delete" {
        return Err(NotDeleted::Method(method_not_allowed(method, uri).await));
    }
    let collection = find(&app, &collection).await?;
    let Strict(DeleteRequest { filter }) = body?;
    let delete = move || -> Result<_, Problem> { Ok(collection.delete_where(&filter)?) };
    let deleted = app.disk.run(delete).await.map_err(Problem::from)??;
    Ok(JsonBody::from(&Deleted { deleted }))
}

/// Why nothing was deleted.
pub(super) enum NotDeleted {
    /// The path is that of an item, which has other methods.
    Method(Problem),
    Problem(Problem),
}

impl From<Problem> for NotDeleted {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl IntoResponse for NotDeleted {
    fn into_response(self) -> Response {
        match self {
            Self::Method(problem) => ([(header::ALLOW, "GET,HEAD,DELETE")], problem).into_response(),
            Self::Problem(problem) => problem.into_response(),
        }
    }
}

impl OperationOutput for NotDeleted {
    type Inner = Self;
}
