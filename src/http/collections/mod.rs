//! Collections: what is stored, and what is near to what.
//!
//! | route | file |
//! | --- | --- |
//! | `/collections`, `/collections/{c}`, `…/recall` | here |
//! | `…/map` | `map` |
//! | `…/duplicates` | `duplicates`; what was found is kept by `duplicates/finder` |
//! | `…/items` and below | `items`; what an upsert holds: `upsert`; its patches: `patches`, and their bounds: `patch_bounds` |
//! | `…/anomaly` | `anomaly`; the patches in memory: `patch_banks` |
//! | `…/search` | `search` |
//! | `…/snapshot`, `…/restore` | `transfer` |

mod anomaly;
mod duplicates;
mod items;
mod map;
pub(super) mod patch_banks;
pub(super) mod patch_bounds;
pub(super) mod patches;
mod search;
mod transfer;
mod upsert;

use std::{io, sync::Arc, time::Duration};

use aide::axum::{
    ApiRouter,
    routing::{get_with, post_with},
};
use axum::{extract::State, response::NoContent};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(super) use self::{duplicates::DuplicateFinder, map::MapBuilder, patch_banks::PatchBanks, transfer::Transfers};
use super::{
    App,
    answer::Encoder,
    json::Strict,
    openapi::operation::{Tag, describe},
    parameters::{CollectionPath, PathOf, QueryOf},
    problem::{Code, Problem},
    response::{Ensured, JsonBody},
};
use crate::{
    index::{Collection, CollectionName, DEFAULT_EF, Error, Info, Kind, KindName, ModelTag, PatchOptions, Recall, Spec, Store},
    serving::{COLLECTION_POOLING, Pool, Served},
};

/// Most neighbours: an answer lists them all.
const MAX_K: usize = 10_000;
/// Widest search of the graph; wider is better asked for with `exact`.
const MAX_EF: usize = 100_000;
/// Most queries of a recall measurement: each is searched for twice.
const MAX_QUERIES: usize = 1000;
/// Most candidates that all queries of a request look at together: the number of queries times the width of each.
const MAX_CANDIDATES: usize = 1_000_000;
/// Most neighbours that all queries of a request are answered with together.
const MAX_NEIGHBOURS: usize = 100_000;

/// When to try again after the database did not answer.
const UNREACHABLE: Duration = Duration::from_secs(5);

/// When to try again after a collection was not loaded yet.
pub(super) const LOADING: Duration = Duration::from_secs(2);

/// Errors of reading or changing a collection.
const ERRORS: &[Code] = &[Code::UnknownCollection, Code::QueueFull, Code::ItemDamaged, Code::StoreFailed];
/// Errors of reading or changing an item.
const ITEM_ERRORS: &[Code] = &[Code::UnknownItem, Code::QueueFull, Code::ItemDamaged, Code::StoreFailed];

/// All routes under `/collections`.
pub(super) fn routes() -> ApiRouter<App> {
    use Tag::{Collections, Items};

    ApiRouter::new()
        .api_route(
            "/collections",
            get_with(list, describe("list_collections", Collections, "All collections, by name", &[Code::StoreFailed])),
        )
        .api_route(
            "/collections/{collection}",
            get_with(one, describe("get_collection", Collections, "One collection", ERRORS))
                .put_with(
                    create,
                    describe("create_collection", Collections, "Make a collection, or find that it is there already", CREATE_ERRORS),
                )
                .delete_with(remove, describe("delete_collection", Collections, "Delete a collection with all its items", ERRORS)),
        )
        .api_route(
            "/collections/{collection}/recall",
            get_with(recall, describe("measure_recall", Collections, "Recall of the index against exact search", ERRORS)),
        )
        .api_route(
            "/collections/{collection}/map",
            get_with(map::handle, describe("map_collection", Collections, "Items on a plane, like beside like (t-SNE)", ERRORS)),
        )
        .api_route(
            "/collections/{collection}/duplicates",
            get_with(
                duplicates::handle,
                describe("find_duplicates", Collections, "Groups of items with the same pixels, or of the same scene", duplicates::ERRORS),
            ),
        )
        .api_route(
            "/collections/{collection}/search",
            post_with(search::handle, describe("search", Collections, "The nearest items to pictures or to a vector", search::ERRORS)),
        )
        .api_route(
            "/collections/{collection}/anomaly",
            post_with(
                anomaly::handle,
                describe("detect_anomalies", Collections, "How far pictures are from good ones, and where", anomaly::ERRORS),
            ),
        )
        .api_route(
            "/collections/{collection}/snapshot",
            post_with(transfer::snapshot, describe("snapshot_collection", Collections, "A collection as one file", ERRORS)),
        )
        .api_route(
            "/collections/{collection}/restore",
            post_with(
                transfer::restore,
                describe("restore_collection", Collections, "Make a collection of a snapshot", transfer::RESTORE_ERRORS),
            ),
        )
        .api_route(
            "/collections/{collection}/items",
            get_with(items::page, describe("list_items", Items, "Items in the order of their ids, page by page", ERRORS)).post_with(
                items::upsert,
                describe("upsert_items", Items, "Store items, all or none; the answer comes once they are durable", items::UPSERT_ERRORS),
            ),
        )
        // `POST …/items/delete` is met here too: a route of its own would hide the item of that name.
        .api_route(
            "/collections/{collection}/items/{id}",
            get_with(items::one, describe("get_item", Items, "One item with its vector", ITEM_ERRORS))
                .delete_with(items::remove, describe("delete_item", Items, "Delete one item", ITEM_ERRORS))
                .post_with(items::remove_where, describe("delete_items", Items, "Delete all items that pass a filter", ERRORS)),
        )
        .api_route(
            "/collections/{collection}/items/{id}/image",
            get_with(items::image, describe("get_item_image", Items, "The stored picture of an item", ITEM_ERRORS)),
        )
}

/// Finds a collection by the name that a client gave.
pub(super) async fn find(app: &App, name: &str) -> Result<Arc<dyn Collection>, Problem> {
    let name: CollectionName = name.parse()?;
    let store = store(app, &name)?;
    if store.connections().is_none() {
        return Ok(store.collection(&name)?);
    }
    let store = store.clone();
    Ok(app.disk.run(move || store.collection(&name)).await??)
}

/// Finds a collection whose items have a vector of their picture.
pub(super) async fn find_pictures(app: &App, name: &str) -> Result<Arc<dyn Collection>, Problem> {
    let collection = find(app, name).await?;
    match collection.spec().kind {
        Kind::Pictures => Ok(collection),
        Kind::Patches(_) => {
            let name = collection.name();
            let detail = format!(
                "collection {name} holds patches, which have no classes and are not searched: ask POST /collections/{name}/anomaly, or \
                 use a collection of pictures"
            );
            Err(Problem::new(Code::BadParameter, detail))
        }
    }
}

/// Where searches run: among those that wait, or among those that compute.
pub(super) fn search_pool(app: &App) -> &Pool {
    if app.store.as_ref().is_some_and(|store| store.connections().is_some()) { &app.disk } else { &app.searches }
}

fn store<'a>(app: &'a App, name: &CollectionName) -> Result<&'a Arc<dyn Store>, Problem> {
    app.store.as_ref().ok_or_else(|| {
        let detail = format!("there is no collection \"{name}\": this server was started without --data-dir and without --index");
        Problem::new(Code::UnknownCollection, detail)
    })
}

/// The model that a request names, else the served one that made the collection.
pub(super) fn model_of(app: &App, collection: &dyn Collection, name: Option<&str>) -> Result<Arc<Served>, Problem> {
    let made_by = |served: &&Arc<Served>| collection.check_model(served.fingerprint()).is_ok();
    let served = match name {
        Some(name) => app.registry.get(Some(name))?,
        None => app.registry.all().iter().find(made_by).cloned().unwrap_or_else(|| app.registry.default()),
    };
    collection.check_model(served.fingerprint())?;
    Ok(served.clone())
}

/// Refuses searches that are wider than an answer may be.
pub(super) fn check_search_bounds(k: usize, ef: usize) -> Result<(), Problem> {
    for (name, value, most) in [("k", k, MAX_K), ("ef", ef, MAX_EF)] {
        if !(1..=most).contains(&value) {
            return Err(Problem::new(Code::BadParameter, format!("{name}: must lie between 1 and {most}, not {value}")));
        }
    }
    Ok(())
}

/// Refuses requests whose queries are each within bounds, and too much together.
pub(super) fn check_total_bounds(queries: usize, k: usize, ef: usize) -> Result<(), Problem> {
    let refused = |name: &str, each: usize, most: usize, what: &str| {
        let detail = format!(
            "{name}: {queries} queries with {name} {each} come to {} {what}, and a request may ask for {most}: \
             with {queries} queries {name} is at most {}, with {name} {each} there are at most {} queries",
            queries.saturating_mul(each),
            most / queries.max(1),
            (most / each.max(1)).max(1),
        );
        Err(Problem::new(Code::BadParameter, detail))
    };
    if queries.saturating_mul(k) > MAX_NEIGHBOURS {
        return refused("k", k, MAX_NEIGHBOURS, "neighbours");
    }
    if queries.saturating_mul(ef) > MAX_CANDIDATES {
        return refused("ef", ef, MAX_CANDIDATES, "candidates");
    }
    Ok(())
}

/// All collections, by name.
#[derive(Serialize, JsonSchema)]
struct CollectionList {
    collections: Vec<Info>,
    /// Whether this server keeps collections: false without `--data-dir` and without `--index`.
    kept: bool,
    /// Those that are not loaded yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    loading: Vec<CollectionName>,
}

async fn list(State(app): State<App>) -> Result<JsonBody<CollectionList>, Problem> {
    let Some(store) = app.store.clone() else {
        return Ok(JsonBody::from(&CollectionList { collections: Vec::new(), kept: false, loading: Vec::new() }));
    };
    let encoder = Encoder::new(&app);
    let listing = move || {
        let loading = store.loading().map_or_else(Vec::new, |loading| loading.collections);
        encoder.json(&CollectionList { collections: store.list()?, kept: true, loading })
    };
    app.disk.run(listing).await?
}

async fn info(app: &App, collection: Arc<dyn Collection>) -> Result<JsonBody<Info>, Problem> {
    Ok(JsonBody::from(&app.disk.run(move || collection.info()).await??))
}

/// Count, dimension, model and state of the index of one collection.
async fn one(State(app): State<App>, PathOf(path): PathOf<CollectionPath>) -> Result<JsonBody<Info>, Problem> {
    let collection = find(&app, &path.collection).await?;
    info(&app, collection).await
}

/// A collection to make.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "CreateCollectionRequest")]
pub(super) struct NewCollection {
    /// Model whose vectors it will hold; the default one if left out.
    model: Option<String>,
    /// What is stored of each item.
    kind: KindName,
    /// Of patches, the most that are kept to compare pictures with: a coreset, which leaves no other patch far from a kept one. 100000 if
    /// left out, at most 1000000, and at most 1 GiB.
    max_patches: Option<usize>,
    /// Of patches, the block whose tokens they are, from 1; the last one without it.
    layer: Option<u32>,
    /// Of patches, the longer side in pixels at which the model sees pictures, at most `--segment-size`, which it is without it.
    size: Option<u32>,
}

impl NewCollection {
    /// What is stored of each item. Refuses what no model could fill, and what would take too much memory.
    fn kind(&self, served: &Served, segment_size: u32) -> Result<Kind, Problem> {
        let refused = |why: String| Err(Problem::new(Code::BadParameter, why));
        let patch_options = [("max_patches", self.max_patches.is_some()), ("layer", self.layer.is_some()), ("size", self.size.is_some())];
        if self.kind == KindName::Pictures {
            return match patch_options.iter().find(|(_, given)| *given) {
                Some((name, _)) => {
                    refused(format!("{name}: belongs to collections of patches; add \"kind\": \"patches\", or leave it out"))
                }
                None => Ok(Kind::Pictures),
            };
        }
        let layer = patch_bounds::check_outputs(served, self.layer)?;
        let size = self.size.unwrap_or(segment_size);
        let dim = COLLECTION_POOLING.dim(served.manifest().dim as usize);
        let max_patches = self.max_patches.unwrap_or(PatchOptions::MAX_PATCHES.min(patch_bounds::most_patches(dim)));
        let options = PatchOptions { max_patches, layer, size };
        patch_bounds::check_memory(options, dim, Some(served), segment_size)?;
        Ok(Kind::Patches(options))
    }
}

/// Errors of making a collection.
const CREATE_ERRORS: &[Code] = &[Code::UnknownModel, Code::ModelMismatch, Code::ModelLacksOutput, Code::StoreFailed];

/// Makes a collection, or finds that it is there already.
async fn create(
    State(app): State<App>,
    PathOf(path): PathOf<CollectionPath>,
    Strict(new): Strict<NewCollection>,
) -> Result<Ensured<JsonBody<Info>>, Problem> {
    let name: CollectionName = path.collection.parse()?;
    let store = store(&app, &name)?.clone();
    let served = app.registry.get(new.model.as_deref())?;
    let model = ModelTag { fingerprint: served.fingerprint().into(), precision: Some(served.precision().to_string()) };
    let kind = new.kind(&served, app.segment_size)?;
    // Tokens of patches are as long as that of a picture.
    let spec = Spec { dim: COLLECTION_POOLING.dim(served.manifest().dim as usize), model, kind };
    let (collection, new) = app.disk.run(move || store.create(&name, spec)).await??;
    let info = info(&app, collection).await?;
    Ok(if new { Ensured::Created(info) } else { Ensured::Found(info) })
}

/// Deletes a collection with all its items.
async fn remove(State(app): State<App>, PathOf(path): PathOf<CollectionPath>) -> Result<NoContent, Problem> {
    let name: CollectionName = path.collection.parse()?;
    let store = store(&app, &name)?.clone();
    let removed = name.clone();
    app.disk.run(move || store.remove(&removed)).await??;
    app.patch_banks.forget(&name);
    Ok(NoContent)
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RecallOptions {
    /// Number of neighbours, 1 to 10000.
    k: usize,
    /// Width of the search in the index, 1 to 100000.
    ef: usize,
    /// Stored vectors that are searched for, 1 to 1000.
    queries: usize,
}

impl Default for RecallOptions {
    fn default() -> Self {
        Self { k: 10, ef: DEFAULT_EF, queries: 100 }
    }
}

/// Measures the index against exact search.
async fn recall(
    State(app): State<App>,
    PathOf(path): PathOf<CollectionPath>,
    QueryOf(options): QueryOf<RecallOptions>,
) -> Result<JsonBody<Recall>, Problem> {
    let collection = find(&app, &path.collection).await?;
    let RecallOptions { k, ef, queries } = options;
    check_search_bounds(k, ef)?;
    if !(1..=MAX_QUERIES).contains(&queries) {
        return Err(Problem::new(Code::BadParameter, format!("queries: must lie between 1 and {MAX_QUERIES}, not {queries}")));
    }
    let (name, number) = (collection.name().to_string(), collection.number());
    check_total_bounds(queries, k, ef)?;
    let recall = app.measuring.run(move || collection.recall(k, ef, queries)).await??;
    app.metrics.measured(&name, number, &recall);
    Ok(JsonBody::from(&recall))
}

/// Whether there is no room, on the disk or in a quota.
fn is_full(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let code = match error {
            Error::InvalidName(_)
            | Error::InvalidItem { .. }
            | Error::InvalidVector { .. }
            | Error::InvalidFilter(_)
            | Error::InvalidParameter(_) => Code::BadParameter,
            Error::NoCollection(_) => Code::UnknownCollection,
            Error::NoItem { .. } => Code::UnknownItem,
            Error::Conflict(_) => Code::ModelMismatch,
            Error::Dimension { .. } => Code::DimensionMismatch,
            Error::Exists(_) => Code::CollectionExists,
            Error::Cancelled(_) => Code::DeadlinePassed,
            Error::Busy => {
                return Self { retry_after: Some(UNREACHABLE), ..Self::new(Code::QueueFull, error.to_string()) };
            }
            Error::Unreachable(_) => {
                let detail = "the database of the collections does not answer: try again in a while; a write that was under way may have happened or not";
                return Self { retry_after: Some(UNREACHABLE), ..Self::new(Code::StoreUnreachable, detail) };
            }
            Error::PartUnreachable { ref database, .. } => {
                let detail = format!(
                    "the database {database} of the collections does not answer: try again in a while; a write that was under way may have \
                     happened, in part or as a whole, or not: send it again"
                );
                return Self { retry_after: Some(UNREACHABLE), ..Self::new(Code::StoreUnreachable, detail) };
            }
            Error::Slow { .. } => {
                return Self { retry_after: Some(UNREACHABLE), ..Self::new(Code::StoreBusy, format!("{error}: try again in a while")) };
            }
            Error::Loading(_) => {
                return Self { retry_after: Some(LOADING), ..Self::new(Code::NotReady, error.to_string()) };
            }
            Error::DamagedItem { .. } => Code::ItemDamaged,
            Error::Unwritable { ref cause, .. } => {
                tracing::error!(%error, "the store failed");
                let detail = format!(
                    "the collections cannot be written: {cause}; nothing of this was stored. Deleting goes on, and writing once there is room"
                );
                return Self { retry_after: Some(UNREACHABLE), ..Self::new(Code::StoreFailed, detail) };
            }
            Error::Moved(_) => {
                tracing::error!(%error, "the store failed");
                let detail = "the server's data folder was removed or replaced while it ran: nothing is stored until it is put back, or the server is restarted";
                return Self::new(Code::StoreFailed, detail);
            }
            Error::Io(ref cause) if is_full(cause.kind()) => {
                tracing::error!(%error, "the store failed");
                let cause = cause.kind();
                return Self {
                    retry_after: Some(UNREACHABLE),
                    ..Self::new(Code::StoreFailed, format!("the server's disk has no room for this: {cause}"))
                };
            }
            Error::InUse(_)
            | Error::Damaged { .. }
            | Error::Unsupported { .. }
            | Error::Unsuitable(_)
            | Error::Sql(_)
            | Error::Io(_)
            | Error::Database { .. } => {
                // Paths of this machine are for its operator.
                tracing::error!(%error, "the store failed");
                return Self::new(Code::StoreFailed, "the collections cannot be read or written; the server's log says why");
            }
        };
        Self::new(code, error.to_string())
    }
}
