//! `GET /healthz` and `GET /readyz`.

use axum::{Json, extract::State, response::IntoResponse};
use serde::Serialize;

use super::{
    App,
    problem::{Code, Problem},
};
use crate::manuals::COMMIT;
use crate::serving::Served;

#[derive(Serialize)]
struct Health {
    status: &'static str,
    version: &'static str,
    /// Commit that the program was built from, where its build was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<&'static str>,
    uptime_seconds: u64,
    pictures_inside: usize,
    models: Vec<Model>,
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
        models: app.registry.all().iter().map(|served| Model::of(served)).collect(),
    })
}

/// Requests can be answered: every worker of every model has run a picture, and none was lost since.
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
    Ok(Json(serde_json::json!({ "status": "ready" })))
}
