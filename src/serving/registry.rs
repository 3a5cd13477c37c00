//! Loading the models that the settings name, and finding them by name.

use std::{path::PathBuf, sync::Arc, thread::available_parallelism};

use ndarray::Array3;

use super::{COLLECTION_POOLING, SessionEngine, Served};
use crate::{
    batch::{Batcher, Budget},
    config::{NamedModel, Settings},
    model::{Device, Model, ModelError, SessionOptions},
};

/// Patches in one batch on an accelerator: 64 pictures of 224 pixels in patches of 16.
const ACCELERATOR_PATCHES: usize = 64 * 196;
/// Side in pixels of the first picture that a worker runs, where the transform leaves the size open.
const REHEARSAL_SIDE: u32 = 224;

/// The models of a server; the first is the default.
pub struct Registry(Vec<Arc<Served>>);

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The folder, the device or ONNX Runtime is at fault.
    #[error("model `{name}`: {source}")]
    Model {
        /// What requests would have called it.
        name: String,
        /// What is wrong.
        source: Box<ModelError>,
    },
    /// The system gives no threads.
    #[error("cannot start a thread for model `{name}`: {source}")]
    Thread {
        /// What requests would have called it.
        name: String,
        /// What the system says.
        source: std::io::Error,
    },
}

/// No model of that name is served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no model `{name}`; this server has {known}")]
pub struct UnknownModel {
    /// The name that was asked for, cut where it is long.
    pub name: String,
    /// The names there are.
    pub known: String,
}

impl Registry {
    /// Loads all models and starts their workers.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(settings: &Settings) -> Result<Self, LoadError> {
        settings.models.iter().map(|model| load(model, settings).map(Arc::new)).collect::<Result<_, _>>().map(Self)
    }

    /// The model of that name, or the default for none.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn get(&self, name: Option<&str>) -> Result<&Arc<Served>, UnknownModel> {
        let Some(name) = name else {
            return Ok(self.default());
        };
        self.iter().find(|served| served.name() == name).ok_or_else(|| UnknownModel {
            name: name.chars().take(128).collect(),
            known: self.iter().map(|served| served.name()).collect::<Vec<_>>().join(", "),
        })
    }

    /// The model of requests that name none.
    pub fn default(&self) -> &Arc<Served> {
        &self.0[0]
    }

    /// All models, the default first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.0.iter()
    }
}

fn load(named: &NamedModel, settings: &Settings) -> Result<Served, LoadError> {
    let NamedModel { name, path } = named;
    let failed = |source| LoadError::Model {
        name: name.clone(),
        source: Box::new(source),
    };
    let model = Model::open(path).map_err(failed)?;
    let options = SessionOptions {
        precision: settings.precision,
        device: settings.device,
        threads: settings.threads,
    };
    let cores = available_parallelism().map_or(1, usize::from);
    todo!()
}
