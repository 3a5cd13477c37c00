//! Collections: what is stored, and what is near to what.
//!
//! | route | file |
//! | --- | --- |
//! | `/collections`, `/collections/{c}`, `…/recall` | here |
//! | `…/map` | `map` |
//! | `…/items` and below | `items`; what an upsert holds: `draft` |
//! | `…/search` | `search` |
//! | `…/snapshot`, `…/restore` | `transfer` |

mod draft;
mod items;
mod map;
mod search;
mod transfer;

use std::{io, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, State, rejection::PathRejection},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use schemars::JsonSchema;
use serde::Deserialize;

pub(super) use self::map::Maps;
pub(super) use self::{
    draft::{Body as ItemsBody, Query as ItemQuery},
    items::{Deleted, Ids, Page, PageOptions, Shown, Which},
    map::{Map, Options as MapOptions},
    search::{Answer as SearchAnswer, Options as SearchOptions},
    transfer::{Options as RestoreOptions, Transfers},
};
use super::{
    App,
    json::Strict,
    problem::{Code, Problem},
    submission::from_query,
};
use crate::{
    index::{Collection, CollectionName, DEFAULT_EF, Error, Info, ModelTag, Recall, Spec, Store},
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

/// The name of a collection in a path.
type Name = Result<Path<String>, PathRejection>;

/// All routes under `/collections`.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/collections", get(list))
        .route("/collections/{collection}", get(one).put(create).delete(remove))
        .route("/collections/{collection}/recall", get(recall))
        .route("/collections/{collection}/map", get(map::handle))
        .route("/collections/{collection}/search", post(search::handle))
        .route("/collections/{collection}/snapshot", post(transfer::snapshot))
        .route("/collections/{collection}/restore", post(transfer::restore))
        .route("/collections/{collection}/items", get(items::page).post(items::upsert))
        // `POST …/items/delete` is met here too: a route of its own would hide the item of that name.
        .route("/collections/{collection}/items/{id}", get(items::one).delete(items::remove).post(items::remove_where))
        .route("/collections/{collection}/items/{id}/image", get(items::image))
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

/// Where searches run: among those that wait, or among those that compute.
pub(super) fn searchers(app: &App) -> &Pool {
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
pub(super) fn check_reach(k: usize, ef: usize) -> Result<(), Problem> {
    for (name, value, most) in [("k", k, MAX_K), ("ef", ef, MAX_EF)] {
        if !(1..=most).contains(&value) {
            return Err(Problem::new(Code::BadParameter, format!("{name}: must lie between 1 and {most}, not {value}")));
        }
    }
    Ok(())
}

/// Refuses requests whose queries are each within bounds, and too much together.
pub(super) fn check_together(queries: usize, k: usize, ef: usize) -> Result<(), Problem> {
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

/// All collections, by name, and whether there is a place to keep any; those that are not loaded yet by name alone.
async fn list(State(app): State<App>) -> Result<impl IntoResponse, Problem> {
    let loading = app.store.as_ref().and_then(|store| store.loading()).map_or_else(Vec::new, |loading| loading.collections);
    let collections = match app.store.clone() {
        Some(store) => app.disk.run(move || store.list()).await??,
        None => Vec::new(),
    };
    let mut answer = serde_json::json!({ "collections": collections, "kept": app.store.is_some() });
    if !loading.is_empty() {
        answer["loading"] = serde_json::json!(loading);
    }
    Ok(Json(answer))
}

async fn info(app: &App, collection: Arc<dyn Collection>) -> Result<Info, Problem> {
    Ok(app.disk.run(move || collection.info()).await??)
}

/// Count, dimension, model and state of the index of one collection.
async fn one(State(app): State<App>, name: Name) -> Result<impl IntoResponse, Problem> {
    let collection = find(&app, &name?).await?;
    Ok(Json(info(&app, collection).await?))
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NewCollection {
    /// Model whose vectors it will hold; the default one if left out.
    model: Option<String>,
}

/// Makes a collection, or finds that it is there already.
async fn create(State(app): State<App>, name: Name, Strict(new): Strict<NewCollection>) -> Result<Response, Problem> {
    let name: CollectionName = name?.parse()?;
    let store = store(&app, &name)?.clone();
    let served = app.registry.get(new.model.as_deref())?;
    let model = ModelTag { fingerprint: served.fingerprint().into(), precision: Some(served.precision().to_string()) };
    let spec = Spec { dim: COLLECTION_POOLING.dim(served.manifest().dim as usize), model };
    let (collection, new) = app.disk.run(move || store.create(&name, spec)).await??;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(info(&app, collection).await?)).into_response())
}

/// Deletes a collection with all its items.
async fn remove(State(app): State<App>, name: Name) -> Result<StatusCode, Problem> {
    let name: CollectionName = name?.parse()?;
    let store = store(&app, &name)?.clone();
    app.disk.run(move || store.remove(&name)).await??;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RecallOptions {
    k: usize,
    ef: usize,
    queries: usize,
}

impl Default for RecallOptions {
    fn default() -> Self {
        Self { k: 10, ef: DEFAULT_EF, queries: 100 }
    }
}

/// Measures the index against exact search.
async fn recall(State(app): State<App>, name: Name, uri: Uri) -> Result<Json<Recall>, Problem> {
    let collection = find(&app, &name?).await?;
    let RecallOptions { k, ef, queries } = from_query(&uri)?;
    check_reach(k, ef)?;
    if !(1..=MAX_QUERIES).contains(&queries) {
        return Err(Problem::new(Code::BadParameter, format!("queries: must lie between 1 and {MAX_QUERIES}, not {queries}")));
    }
    let (name, number) = (collection.name().to_string(), collection.number());
    check_together(queries, k, ef)?;
    let recall = app.measuring.run(move || collection.recall(k, ef, queries)).await??;
    app.metrics.measured(&name, number, &recall);
    Ok(Json(recall))
}

impl From<PathRejection> for Problem {
    /// A part of the path that is no text.
    fn from(rejection: PathRejection) -> Self {
        Self::new(Code::BadParameter, rejection.body_text())
    }
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
