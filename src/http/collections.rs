//! `GET /collections`, `GET /collections/{c}` and `GET /collections/{c}/items/{id}/image`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::header,
    response::IntoResponse,
};

use super::{
    App,
    problem::{Code, Problem},
};
use crate::index::{Collection, CollectionName, Error};

/// Finds a collection by the name that a client gave.
pub(super) fn find(app: &App, name: &str) -> Result<Arc<Collection>, Problem> {
    let name: CollectionName = name.parse()?;
    let Some(store) = &app.store else {
        return Err(Problem::new(
            Code::UnknownCollection,
            format!("there is no collection \"{name}\": this server was started without --data-dir"),
        ));
    };
    Ok(store.collection(&name)?)
}

/// All collections, by name.
pub(super) async fn list(State(app): State<App>) -> impl IntoResponse {
    let collections: Vec<_> = app.store.iter().flat_map(|store| store.collections()).map(|collection| collection.info()).collect();
    Json(serde_json::json!({ "collections": collections }))
}

/// Count, dimension, model and state of the index of one collection.
pub(super) async fn one(State(app): State<App>, name: Result<Path<String>, PathRejection>) -> Result<impl IntoResponse, Problem> {
    Ok(Json(find(&app, &name?)?.info()))
}

/// The stored thumbnail of an item.
pub(super) async fn image(
    State(app): State<App>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<impl IntoResponse, Problem> {
    let Path((name, id)) = path?;
    let collection = find(&app, &name)?;
    // The store reads from the disk.
    let thumbnail = app.pool.run(move || collection.thumbnail(&id)).await??;
    Ok(([(header::CONTENT_TYPE, "image/jpeg")], thumbnail))
}

impl From<PathRejection> for Problem {
    /// A part of the path that is no text.
    fn from(rejection: PathRejection) -> Self {
        Self::new(Code::BadParameter, rejection.body_text())
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let code = match error {
            Error::InvalidName(_) | Error::InvalidItem { .. } | Error::InvalidVector { .. } | Error::InvalidParameter(_) => {
                Code::BadParameter
            }
            Error::NoCollection(_) => Code::UnknownCollection,
            Error::NoItem { .. } => Code::UnknownItem,
            Error::Conflict(_) => Code::ModelMismatch,
            Error::InUse(_) | Error::Damaged { .. } | Error::Unsupported { .. } | Error::Io(_) | Error::Database { .. } => {
                // Paths of this machine are for whoever runs it.
                tracing::error!(%error, "the store failed");
                return Self::new(Code::StoreFailed, "the collections cannot be read or written; the server's log says why");
            }
        };
        Self::new(code, error.to_string())
    }
}
