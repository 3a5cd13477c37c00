//! Loading the models that the settings name, and finding them by name.

use std::{sync::Arc, thread::available_parallelism};

use ndarray::Array3;

use super::{COLLECTION_POOLING, HeadsError, Served, SessionEngine, UnknownHead, heads};
use crate::{
    batch::{Batcher, Budget},
    config::{NamedModel, Settings},
    model::{Device, Manifest, Model, ModelError, OUTPUTS, SessionOptions},
};

/// Pictures in one batch on an accelerator.
const ACCELERATOR_PICTURES: usize = 64;
/// Patches in one batch on an accelerator: that many pictures of 224 pixels in patches of 16.
const ACCELERATOR_PATCHES: usize = ACCELERATOR_PICTURES * 196;

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
    /// Its manifest does not say what size its input has.
    #[error("model `{name}`: {reason}")]
    Transform {
        /// What requests would have called it.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A classifier cannot be used.
    #[error(transparent)]
    Head(#[from] HeadsError),
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
        let mut models = settings.models.iter().map(|model| load(model, settings)).collect::<Result<Vec<_>, _>>()?;
        heads::attach(&mut models, &settings.heads)?;
        Ok(Self(models.into_iter().map(Arc::new).collect()))
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

    /// The model that has a head of that name: the one that is named, else the first.
    ///
    /// # Errors
    /// When there is no such head; one that asks for a model that is not there hears that no model has it.
    pub fn with_head(&self, head: &str, model: Option<&str>) -> Result<Arc<Served>, UnknownHead> {
        let candidates = || self.iter().filter(|served| model.is_none_or(|model| served.name() == model));
        let found = candidates().find(|served| served.heads().contains_key(head));
        found.cloned().ok_or_else(|| UnknownHead::new(head, candidates().map(Arc::as_ref)))
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
    let failed = |source| LoadError::Model { name: name.clone(), source: Box::new(source) };
    let model = Model::open(path).map_err(failed)?;
    let manifest = model.manifest().clone();
    let (height, width) = input_size(&manifest).map_err(|reason| LoadError::Transform { name: name.clone(), reason })?;
    let precision = model.precision(settings.precision);
    if let Some(understood) = model.understood() {
        tracing::info!(model = name, "{understood}");
    }
    let mut options = SessionOptions { device: settings.device, precision, threads: settings.threads };
    let mut sessions = model.sessions(&options, 1).map_err(failed)?;
    // What `auto` came to, so that all sessions of a model run in one place.
    let device = sessions[0].device();
    options.device = device;
    let workers = settings.sessions.unwrap_or_else(|| default_sessions(device, settings.threads));
    sessions.extend(model.sessions(&options, workers - 1).map_err(failed)?);
    let outputs = OUTPUTS.into_iter().filter(|output| sessions[0].has_output(output)).collect();

    let fingerprint = model.fingerprint(COLLECTION_POOLING);
    let budget = budget(device, manifest.patch_size, model.only_batch());
    let engines = sessions.into_iter().map(SessionEngine).collect();
    let rehearsal = Array3::zeros((3, height as usize, width as usize));
    let batcher = Batcher::start(name, engines, budget, &rehearsal).map_err(|source| LoadError::Thread { name: name.clone(), source })?;
    tracing::info!(model = name, architecture = manifest.architecture, %device, %precision, workers, "loaded");
    Ok(Served {
        name: name.clone(),
        heads: heads::of_folder(path, &manifest, &fingerprint)?,
        fingerprint,
        manifest,
        device,
        precision,
        outputs,
        only_size: model.only_size(),
        on_the_way: 2 * workers * budget.pictures,
        batcher,
    })
}

/// (height, width) of what the transform makes of any picture, which must be whole patches.
fn input_size(manifest: &Manifest) -> Result<(u32, u32), String> {
    let patch = manifest.patch_size;
    match manifest.transform.output_size() {
        None => Err("its transform keeps all of a picture of any shape: set `crop` in its manifest.json".into()),
        Some((height, width)) if height == 0 || width == 0 || height % patch != 0 || width % patch != 0 => {
            Err(format!("its transform makes inputs of {height} x {width} pixels, which are no whole patches of {patch}"))
        }
        Some(size) => Ok(size),
    }
}

/// On a CPU one session per core: two sessions of one thread answer more pictures than one session of two.
fn default_sessions(device: Device, threads: usize) -> usize {
    let cores = available_parallelism().map_or(1, usize::from);
    match device {
        Device::Cpu => (cores / threads).max(1),
        _ => 1,
    }
}

/// `only_batch` is the number of pictures that the graph takes, where it takes no other.
fn budget(device: Device, patch_size: u32, only_batch: Option<usize>) -> Budget {
    let (pictures, patches) = match device {
        Device::Cpu => (1, usize::MAX),
        // Of a graph that gives nothing for the parts of a picture, the size of its patches is not known.
        _ if patch_size == 1 => (ACCELERATOR_PICTURES, usize::MAX),
        _ => (ACCELERATOR_PICTURES, ACCELERATOR_PATCHES),
    };
    Budget { pictures: only_batch.unwrap_or(pictures), patches, patch_size: patch_size as usize }
}
