//! `GET /healthz` and `GET /readyz`.

use std::{collections::BTreeMap, time::Duration};

use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::timeout;

use super::{
    App,
    collections::LOADING,
    problem::{Code, Problem},
    response::JsonBody,
};
use crate::{
    index::{Connections, Error},
    serving::{Panicked, Served},
};
use dino_program::manuals::COMMIT;

/// How long an answer about the collections is good for.
pub(super) const STORE_FRESHNESS: Duration = Duration::from_secs(1);
/// Longest wait for one: probes give up by themselves after about three seconds.
const STORE_TIMEOUT: Duration = Duration::from_millis(2500);

/// The state of the process.
#[derive(Serialize, JsonSchema)]
pub(super) struct Health {
    status: &'static str,
    version: &'static str,
    /// Commit that the program was built from, where its build was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<&'static str>,
    uptime_seconds: u64,
    /// Pictures that wait, are decoded or run.
    pictures_inside: usize,
    /// Whether other routes ask for an API key.
    api_keys: bool,
    models: Vec<Model>,
    /// Connections to the database of the collections, where that is another's.
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<Connections>,
}

/// One model and its workers.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ModelHealth")]
struct Model {
    name: String,
    /// Where it really runs.
    device: String,
    precision: String,
    /// How near this device is to ONNX Runtime's CPU, on two pictures at the start; absent on that CPU itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    agreement: Option<Agreement>,
    workers: usize,
    /// Workers that have run a picture.
    workers_ready: usize,
    /// Workers that have failed.
    workers_lost: usize,
}

/// How near the outputs of a device are to those of ONNX Runtime's CPU.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DeviceAgreement")]
struct Agreement {
    /// Whether the cosines are as high as this precision has to reach. Where they are not, the device was trusted by `--trust-device`.
    agrees: bool,
    /// Lowest cosine of each output over the pictures; null where a number is not finite.
    cosines: BTreeMap<String, Option<f64>>,
}

/// Requests can be answered.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Ready")]
pub(super) struct Ready {
    status: &'static str,
}

impl Model {
    fn of(served: &Served) -> Self {
        let health = served.health();
        Self {
            name: served.name().into(),
            device: served.device().to_string(),
            precision: served.precision().to_string(),
            agreement: served.agreement().map(|agreement| Agreement {
                agrees: agreement.check().is_ok(),
                cosines: agreement
                    .outputs()
                    .iter()
                    .map(|output| (output.name.to_string(), Some(output.cosine).filter(|cosine| cosine.is_finite())))
                    .collect(),
            }),
            workers: health.workers,
            workers_ready: health.ready,
            workers_lost: health.lost,
        }
    }
}

/// The process lives: version, the device that is really used, models.
pub(super) async fn healthz(State(app): State<App>) -> JsonBody<Health> {
    JsonBody::from(&Health {
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
/// they can be read and written.
pub(super) async fn readyz(State(app): State<App>) -> Result<JsonBody<Ready>, Problem> {
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
    Ok(JsonBody::from(&Ready { status: "ready" }))
}

/// Checks whether the collections can be read and written: one check for all requests at a time, and at most one a second. Not on the
/// threads that serve requests, which may all be waiting for the store.
pub(super) async fn check_store(app: &App) -> Result<(), Problem> {
    let Some(store) = app.store.clone() else { return Ok(()) };
    let checked = app.store_check.get(|| async move {
        let checked = tokio::task::spawn_blocking(move || store.check().map_err(unready)).await;
        checked.unwrap_or_else(|_| Err(Panicked.into()))
    });
    let Ok(outcome) = timeout(STORE_TIMEOUT, checked).await else {
        let seconds = STORE_TIMEOUT.as_secs_f64();
        return Err(Problem::new(Code::StoreUnreachable, format!("the collections have not answered for {seconds} s")));
    };
    outcome.unwrap_or_else(|| Err(Panicked.into()))
}

/// Why nothing can be stored.
fn unready(error: Error) -> Problem {
    match error {
        Error::Unwritable { cause, .. } => {
            Problem::new(Code::StoreFailed, format!("the collections cannot be written: {cause}; make room on the disk, or delete items"))
        }
        error => error.into(),
    }
}
