//! `GET /v1/models` and `POST /v1/models/{name}/reload`.

use std::time::Instant;

use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    App, embed, heads,
    parameters::{ModelPath, PathOf},
    problem::{Code, Problem},
    response::JsonBody,
};
use crate::serving::{Panicked, ReloadError};
use dino_vision::head::Task;

/// The list that the `openai` client reads, with what a client of ours wants to know beside it.
#[derive(Serialize, JsonSchema)]
pub(super) struct ModelList {
    object: &'static str,
    data: Vec<ModelInfo>,
}

/// One model.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Model")]
struct ModelInfo {
    id: String,
    object: &'static str,
    owned_by: &'static str,
    architecture: String,
    /// Length of a vector of one token.
    dim: u32,
    patch_size: u32,
    depth: u32,
    heads: u32,
    registers: u32,
    /// Blocks that `/embed?layer=` takes, from 1.
    layers: Vec<u32>,
    precision: String,
    device: String,
    /// Hash of the file that the weights come from.
    source_sha256: String,
    /// Heads that `/classify` takes.
    classifiers: Vec<String>,
    /// Heads that `/segment` takes.
    segmentation_heads: Vec<String>,
    /// Heads that `/depth` takes.
    depth_heads: Vec<String>,
}

/// The models that are served; the first is the one that requests without `model` get.
pub(super) async fn list(State(app): State<App>) -> JsonBody<ModelList> {
    let data = app
        .registry
        .all()
        .iter()
        .map(|served| {
            let manifest = served.manifest();
            ModelInfo {
                id: served.name().into(),
                object: "model",
                owned_by: "dino-server",
                architecture: manifest.architecture.clone(),
                dim: manifest.dim,
                patch_size: manifest.patch_size,
                depth: manifest.depth,
                heads: manifest.heads,
                registers: manifest.registers,
                layers: embed::layers(served),
                precision: served.precision().to_string(),
                device: served.device().to_string(),
                source_sha256: manifest.source.sha256.clone(),
                classifiers: heads::of_task(served, Task::Classes),
                segmentation_heads: heads::of_task(served, Task::Segmentation),
                depth_heads: heads::of_task(served, Task::Depth),
            }
        })
        .collect();
    JsonBody::from(&ModelList { object: "list", data })
}

/// The model as it was loaded again.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ReloadResponse")]
pub(super) struct Reloaded {
    model: String,
    fingerprint: String,
    /// Whether collections of the model have to be embedded anew (`dino-server reembed`).
    changed: bool,
    seconds: f64,
}

/// Errors of a reload.
pub(super) const RELOAD_ERRORS: &[Code] = &[Code::UnknownModel, Code::ReloadRunning, Code::ModelNotLoaded];

/// Loads a model again from its folder, without a request being lost: the old one answers until the new one has run.
pub(super) async fn reload(State(app): State<App>, PathOf(path): PathOf<ModelPath>) -> Result<JsonBody<Reloaded>, Problem> {
    let ModelPath { name } = path;
    let began = Instant::now();
    let task = app.clone();
    // Not among the threads of collections, which it would hold for long.
    let reload = tokio::task::spawn_blocking(move || task.registry.reload(&name)).await;
    let (served, changed) = reload.map_err(|_| Problem::from(Panicked))??;
    let seconds = began.elapsed().as_secs_f64();
    tracing::info!(model = served.name(), changed, seconds, "reloaded");
    if changed {
        super::report_unmatched_collections(&app);
    }
    Ok(JsonBody::from(&Reloaded { model: served.name().to_owned(), fingerprint: served.fingerprint().to_owned(), changed, seconds }))
}

impl From<ReloadError> for Problem {
    fn from(error: ReloadError) -> Self {
        match error {
            ReloadError::Unknown(error) => error.into(),
            ReloadError::Busy => Self::new(Code::ReloadRunning, error.to_string()),
            ReloadError::Load(_) | ReloadError::Unwell { .. } => {
                tracing::error!(%error, "a model was not loaded again; the one before goes on");
                Self::new(Code::ModelNotLoaded, format!("{error}; the model as it was goes on"))
            }
        }
    }
}
