//! `GET /healthz` and `GET /readyz`.

use axum::{Json, extract::State, response::IntoResponse};
use serde::Serialize;

use super::{
    App,
    collections::LOADING,
    problem::{Code, Problem},
};
use crate::{
    index::Connections,
    manuals::COMMIT,
    serving::{Panicked, Served},
};

#[derive(Serialize)]
struct Health {
    status: &'static str,
    version: &'static str,
    /// Commit that the program was built from, where its build was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<&'static str>,
    uptime_seconds: u64,
    pictures_inside: usize,
    /// Whether other routes ask for an API key.
    api_keys: bool,
    models: Vec<Model>,
    /// Connections to the database of the collections, where that is another's.
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<Connections>,
}

#[derive(Serialize)]
struct Model {
    name: String,
    device: String,
    precision: String,
    workers: usize,
    workers_ready: usize,
    workers_lost: usize,
}

impl Model {
    fn of(served: &Served) -> Self {
        let health = served.health();
        Self {
            name: served.name().into(),
            device: served.device().to_string(),
            precision: served.precision().to_string(),
            workers: health.workers,
            workers_ready: health.ready,
            workers_lost: health.lost,
        }
    }
}

/// The process lives: version, the device that is really used, models.
pub(super) async fn healthz(State(app): State<App>) -> impl IntoResponse {
    Json(Health {
        status: "ok",
        version: env!("CARGO_PKG_VERSION"),
        commit: COMMIT,
        uptime_seconds: app.started.elapsed().as_secs(),
        pictures_inside: app.admission.inside(),
        api_keys: !app.keys.is_empty(),
        models: app.registry.all().iter().map(|served| Model::of(served)).collect(),
        store: app.store.as_ref().and_then(|store| store.connections()),
    })
}

/// Requests can be answered: every worker of every model has run a picture, none was lost since, all collections are loaded, and
/// a database that holds the collections answers.
pub(super) async fn readyz(State(app): State<App>) -> Result<impl IntoResponse, Problem> {
    for served in app.registry.all().iter() {
        let health = served.health();
        let (name, workers) = (served.name(), health.workers);
        if health.lost > 0 {
            let lost = health.lost;
            return Err(Problem::new(
                Code::NotReady,
                format!(
                    "model `{name}` has lost {lost} of its {workers} workers; the log says why; POST /v1/models/{name}/reload, or restart the server"
                ),
            ));
        }
        if !health.is_ready() {
            let ready = health.ready;
            return Err(Problem::new(
                Code::NotReady,
                format!("model `{name}` is starting: {ready} of {workers} workers have run their first picture"),
            ));
        }
    }
    if let Some(loading) = app.store.as_ref().and_then(|store| store.loading()) {
        return Err(Problem { retry_after: Some(LOADING), ..Problem::new(Code::NotReady, loading.to_string()) });
    }
    check_store(&app).await?;
    Ok(Json(serde_json::json!({ "status": "ready" })))
}

/// Asks a database that is elsewhere. Not among the threads that serve requests: those may all be waiting for it.
async fn check_store(app: &App) -> Result<(), Problem> {
    match app.store.clone() {
        Some(store) if store.connections().is_some() => {
            let checked = tokio::task::spawn_blocking(move || store.check()).await;
            Ok(checked.map_err(|_| Problem::from(Panicked))??)
        }
        _ => Ok(()),
    }
}
