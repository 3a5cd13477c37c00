//! `…/items`: upsert, get, page through, delete.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
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
        infer::infer_placed,
        json::Strict,
        method_not_allowed,
        problem::{Code, Problem},
        remote::{self, Sent},
        submission::{Content, Room, Upload, from_query},
    },
    Name,
    draft::{Draft, Query, Subject},
    find, model_of,
};
use crate::{
    index::{Collection, Filter, Item, MAX_PAGE, MAX_THUMBNAIL, NewItem, checksum},
    serving::{COLLECTION_POOLING, Seen, Served},
    traces::timed,
};
use dino_vision::{embedding, media};

type NameAndId = Result<Path<(String, String)>, PathRejection>;

#[derive(Serialize, JsonSchema)]
pub(in crate::http) struct Ids {
    ids: Vec<String>,
}

/// Stores items, all of them or, after an error, none; the answer comes once they are durable.
pub(super) async fn upsert(State(app): State<App>, name: Name, upload: Upload<Query>) -> Result<Response, Problem> {
    let collection = find(&app, &name?).await?;
    let most = app.limits.pictures;
    let (mut draft, memory) = match upload.content {
        Content::Pictures(pictures, query) => (Draft::of_pictures(pictures, query)?, upload.memory),
        Content::Json(body) => {
            let mut meter = Meter::new(app.bodies.clone(), upload.memory, app.limits.body.bytes);
            let parse = move || -> Result<_, Problem> { Ok((Draft::from_json(&body, most, &mut meter)?, meter.into_share())) };
            app.pool.run(parse).await??
        }
    };
    let pictures = draft.items.iter().filter(|(_, subject)| matches!(subject, Subject::Picture(_))).count();
    let mut room = Room::take(&app, pictures, memory)?;
    // For vectors that came ready made these say which model made them.
    if let Some(model) = &draft.model {
        collection.check_model(&app.registry.fingerprint(model)?)?;
    }
    for (model, &index) in &draft.named {
        let fingerprint = app.registry.fingerprint(model).map_err(|error| Problem::from(error).at(index))?;
        collection.check_model(&fingerprint).map_err(|error| Problem::from(error).at(index))?;
    }
    remote::fetch(&app, draft.pictures_mut(), &mut room).await?;
    let timing = if pictures > 0 { embed(&app, &*collection, draft).await? } else { Embedded::ready_made(draft) };
    let Embedded { items, header } = timing;
    let ids = items.iter().map(|new| new.item.id.clone()).collect();
    timed("store", app.disk.run(move || collection.upsert(items))).await??;
    drop(room);
    Ok((header, Json(Ids { ids })).into_response())
}

/// Items with their vectors, and where the time went.
struct Embedded {
    items: Vec<NewItem>,
    header: Option<[(header::HeaderName, HeaderValue); 1]>,
}

impl Embedded {
    fn ready_made(draft: Draft) -> Self {
        let item = |(item, subject)| match subject {
            Subject::Vector(vector) => Some(NewItem { item, vector, thumbnail: None }),
            Subject::Picture(_) => None,
        };
        Self { items: draft.items.into_iter().filter_map(item).collect(), header: None }
    }
}

/// Embeds the pictures of a draft with the collection's model.
async fn embed(app: &App, collection: &dyn Collection, draft: Draft) -> Result<Embedded, Problem> {
    let served = model_of(app, collection, draft.model.as_deref())?;
    let mut pictures = Vec::new();
    for (position, (_, subject)) in draft.items.iter().enumerate() {
        if let Subject::Picture(sent) = subject {
            pictures.push((position, sent.bytes.clone()));
        }
    }
    let keep = app.store_images;
    let shrink = match keep {
        StoreImages::None => false,
        StoreImages::Thumbnail => true,
        StoreImages::Original => pictures.iter().any(|(_, bytes)| bytes.len() > MAX_THUMBNAIL),
    };
    let transform = served.manifest().transform.clone();
    let prepare = move |picture: &RgbImage| -> (Array3<f32>, Option<Vec<u8>>) {
        (transform.apply(picture), shrink.then(|| media::thumbnail(picture)))
    };
    let (inference, small) = infer_placed(app, &served, pictures, prepare).await?;
    let header = Some(inference.timing.header());
    let seen = inference.seen.into_iter().zip(small);
    let items = app.pool.run(move || finish(&served, draft, seen, keep)).await??;
    Ok(Embedded { items, header })
}

fn finish(
    served: &Served,
    draft: Draft,
    mut seen: impl Iterator<Item = (Seen, Option<Vec<u8>>)>,
    keep: StoreImages,
) -> Result<Vec<NewItem>, Problem> {
    let registers = served.manifest().registers as usize;
    let finish = |(mut item, subject): (Item, Subject)| match subject {
        Subject::Vector(vector) => Ok(NewItem { item, vector, thumbnail: None }),
        Subject::Picture(Sent { bytes, .. }) => {
            let (seen, small) = seen.next().ok_or_else(|| Problem::new(Code::Internal, "a picture has no answer of the model"))?;
            let vector = embedding::pool(&seen.outputs, registers, COLLECTION_POOLING)?.into_iter().collect();
            item.source = Some(checksum::of_bytes(&bytes));
            let original = keep == StoreImages::Original && bytes.len() <= MAX_THUMBNAIL;
            let thumbnail = if original { Some(bytes.to_vec()) } else { small };
            Ok(NewItem { item, vector, thumbnail })
        }
    };
    draft.items.into_iter().map(finish).collect()
}

/// An item as answers show it.
#[derive(Serialize, JsonSchema)]
pub(in crate::http) struct Shown {
    id: String,
    labels: Vec<String>,
    metadata: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vector: Option<Vec<f32>>,
}

impl Shown {
    fn new(item: Item, vector: Option<Vec<f32>>) -> Self {
        let Item { id, labels, metadata, source } = item;
        Self { id, labels, metadata, source, vector }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(in crate::http) struct PageOptions {
    limit: usize,
    cursor: Option<String>,
}

impl Default for PageOptions {
    fn default() -> Self {
        Self { limit: 100, cursor: None }
    }
}

#[derive(Serialize, JsonSchema)]
pub(in crate::http) struct Page {
    items: Vec<Shown>,
    /// What to pass as `cursor` for the next page; null at the end.
    next: Option<String>,
}

/// Items in the order of their ids, page by page. A page ends early where its items take much memory.
pub(super) async fn page(State(app): State<App>, name: Name, uri: Uri) -> Result<Response, Problem> {
    let collection = find(&app, &name?).await?;
    let PageOptions { limit, cursor } = from_query(&uri)?;
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Problem::new(Code::BadParameter, format!("limit: must lie between 1 and {MAX_PAGE}, not {limit}")));
    }
    let encoder = Encoder::new(&app);
    let page = move || {
        let page = collection.page(cursor.as_deref(), limit)?;
        encoder.json(&Page { items: page.items.into_iter().map(|item| Shown::new(item, None)).collect(), next: page.next })
    };
    app.disk.run(page).await?
}

/// One item with its vector.
pub(super) async fn one(State(app): State<App>, path: NameAndId) -> Result<impl IntoResponse, Problem> {
    let Path((name, id)) = path?;
    let collection = find(&app, &name).await?;
    let stored = app.disk.run(move || collection.get(&id)).await??;
    Ok(Json(Shown::new(stored.item, Some(stored.vector))))
}

/// The stored picture of an item: a thumbnail, or the file as it was sent.
pub(super) async fn image(State(app): State<App>, path: NameAndId) -> Result<impl IntoResponse, Problem> {
    let Path((name, id)) = path?;
    let collection = find(&app, &name).await?;
    let picture = app.disk.run(move || collection.thumbnail(&id)).await??;
    let kind = media::Format::sniff(&picture).map_or("application/octet-stream", media::Format::mime);
    Ok(([(header::CONTENT_TYPE, kind), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")], picture))
}

/// Deletes one item.
pub(super) async fn remove(State(app): State<App>, path: NameAndId) -> Result<StatusCode, Problem> {
    let Path((name, id)) = path?;
    let collection = find(&app, &name).await?;
    app.disk.run(move || collection.delete(&id)).await??;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Which {
    filter: Filter,
}

#[derive(Serialize, JsonSchema)]
pub(in crate::http) struct Deleted {
    deleted: usize,
}

/// `POST …/items/delete`: deletes all items that pass a filter, at once.
pub(super) async fn remove_where(
    State(app): State<App>,
    path: NameAndId,
    method: Method,
    uri: Uri,
    body: Result<Strict<Which>, Problem>,
) -> Result<Response, Problem> {
    let Path((name, action)) = path?;
    if action != "delete" {
        let refused = method_not_allowed(method, uri).await;
        return Ok(([(header::ALLOW, "GET,HEAD,DELETE")], refused).into_response());
    }
    let collection = find(&app, &name).await?;
    let Strict(Which { filter }) = body?;
    let deleted = app.disk.run(move || collection.delete_where(&filter)).await??;
    Ok(Json(Deleted { deleted }).into_response())
}
