//! Loading the models that the options name, finding them by name, and loading them again while they serve.

use std::{path::PathBuf, sync::Arc, thread, time::Duration};

use arc_swap::ArcSwap;
use ndarray::Array3;
use parking_lot::Mutex;

use super::{COLLECTION_POOLING, HeadsError, Named, Options, Served, UnknownHead, heads};
use dino_hub::{Location, Want};
use dino_vision::{
    batch::{Batcher, Budget},
    head::Task,
    model::{Accelerator, Manifest, Model, ModelError, OUTPUTS, SessionOptions, Shapes},
    placement::{Placement, Workload},
    workers::{budget, usual_size},
};

/// Length of a fingerprint.
const FINGERPRINT_DIGITS: usize = 32;
/// Between two looks at something that takes longer.
const PAUSE: Duration = Duration::from_millis(5);

/// The models of a server; the first is the default.
pub struct Registry {
    /// Replaced as a whole: a request that holds a model keeps it until it is answered.
    models: ArcSwap<Vec<Arc<Served>>>,
    options: Options,
    /// Path of each model on this machine; those of a hub were fetched at the start, and are not fetched again.
    places: Vec<Named<PathBuf>>,
    /// Held while a model is loaded again: one copy of one model at a time.
    reloading: Mutex<()>,
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It was not fetched from its hub.
    #[error("model `{name}`: {source}")]
    Fetch {
        /// What requests would have called it.
        name: String,
        /// What is wrong.
        source: Box<dino_hub::Error>,
    },
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

/// Why a model was not loaded again.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// There is none of that name.
    #[error(transparent)]
    Unknown(#[from] UnknownModel),
    /// It cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Another one is being loaded.
    #[error("another model is being loaded: try again when that is done")]
    Busy,
    /// It can be loaded, but does not run.
    #[error("model `{name}` was loaded, but failed on its first picture; the log says more")]
    Unwell {
        /// Its name.
        name: String,
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
    /// Fetches those models that are named on a hub, loads all, and starts their workers.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(options: Options) -> Result<Self, LoadError> {
        let places = options.models.iter().map(|model| fetch(model, &options)).collect::<Result<Vec<_>, _>>()?;
        let mut models = places.iter().map(|model| load(model, &options)).collect::<Result<Vec<_>, _>>()?;
        heads::attach(&mut models, &heads::load(&options.heads)?)?;
        let models = models.into_iter().map(Arc::new).collect();
        Ok(Self { models: ArcSwap::from_pointee(models), options, places, reloading: Mutex::default() })
    }

    /// Loads a model again from where it lies, and puts it into the place of the old one when it has run its first picture.
    /// Requests that the old one has are answered by it. Gives the new one, and whether its vectors are others than before.
    ///
    /// # Errors
    /// When it cannot be loaded; then the old one stays.
    pub fn reload(&self, name: &str) -> Result<(Arc<Served>, bool), ReloadError> {
        self.get(Some(name))?;
        let _alone = self.reloading.try_lock().ok_or(ReloadError::Busy)?;
        // What another reload has put there in the meantime.
        let old = self.get(Some(name))?;
        let Some(named) = self.places.iter().find(|model| model.name == name) else { return Err(self.unknown(name).into()) };
        let mut new = load(named, &self.options)?;
        // The others belong to other models, or to what this one was before.
        let heads = heads::load(&self.options.heads).map_err(LoadError::from)?;
        let (fitting, others): (Vec<_>, Vec<_>) = heads.into_iter().partition(|head| head.fits(&new));
        for head in others.iter().filter(|head| old.heads().contains_key(&head.name)) {
            tracing::warn!(head = head.name, model = name, "left out: it was trained on other weights than those that are loaded now");
        }
        heads::attach(std::slice::from_mut(&mut new), &fitting).map_err(LoadError::from)?;
        while !new.health().is_ready() {
            if new.health().lost > 0 {
                return Err(ReloadError::Unwell { name: name.to_owned() });
            }
            thread::sleep(PAUSE);
        }
        let new = Arc::new(new);
        let replaced = |served: &Arc<Served>| if served.name() == name { new.clone() } else { served.clone() };
        self.models.store(Arc::new(self.all().iter().map(replaced).collect()));
        let changed = new.fingerprint() != old.fingerprint();
        retire(old);
        Ok((new, changed))
    }

    /// The model of that name, or the default for none.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn get(&self, name: Option<&str>) -> Result<Arc<Served>, UnknownModel> {
        let Some(name) = name else {
            return Ok(self.default());
        };
        self.all().iter().find(|served| served.name() == name).cloned().ok_or_else(|| self.unknown(name))
    }

    /// The fingerprint that vectors of a model have: that of a served model's name, or the name itself where it is one (32 hex digits), so
    /// that vectors of a model that is not served can say where they come from.
    ///
    /// # Errors
    /// When it is neither.
    pub fn fingerprint(&self, name: &str) -> Result<String, UnknownModel> {
        let is_fingerprint = name.len() == FINGERPRINT_DIGITS && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        match self.get(Some(name)) {
            Err(_) if is_fingerprint => Ok(name.to_ascii_lowercase()),
            served => Ok(served?.fingerprint().to_owned()),
        }
    }

    fn unknown(&self, name: &str) -> UnknownModel {
        UnknownModel {
            name: name.chars().take(128).collect(),
            known: self.all().iter().map(|served| served.name()).collect::<Vec<_>>().join(", "),
        }
    }

    /// The model that has a head of that name and task: the one that is named, else the first. Where none has the task, the first that has
    /// the name: models may have heads of one name for different tasks.
    ///
    /// # Errors
    /// When there is no such head. Where the model itself is missing, the error says that no model has the head.
    pub fn with_head(&self, head: &str, model: Option<&str>, task: Task) -> Result<Arc<Served>, UnknownHead> {
        let all = self.all();
        let candidates = || all.iter().filter(|served| model.is_none_or(|model| served.name() == model));
        let has_task = |served: &&Arc<Served>| served.head(head).is_some_and(|found| found.description().task == task);
        let found = candidates().find(has_task).or_else(|| candidates().find(|served| served.head(head).is_some()));
        found.cloned().ok_or_else(|| UnknownHead::new(head, candidates().map(Arc::as_ref)))
    }

    /// Longer side in pixels that whole pictures are brought to.
    pub fn segment_size(&self) -> u32 {
        self.options.segment_size
    }

    /// The model of requests that name none.
    pub fn default(&self) -> Arc<Served> {
        self.all()[0].clone()
    }

    /// All models, the default first.
    pub fn all(&self) -> Arc<Vec<Arc<Served>>> {
        self.models.load_full()
    }
}

/// Ends a model's workers when its last request is answered, on a thread of its own: that takes time, and must not be a connection's.
fn retire(model: Arc<Served>) {
    thread::spawn(move || {
        while Arc::strong_count(&model) > 1 {
            thread::sleep(PAUSE);
        }
    });
}

fn fetch(named: &Named<Location>, options: &Options) -> Result<Named<PathBuf>, LoadError> {
    let want = Want::Graph { precision: options.precision.to_string() };
    let found = named.path.fetch(&want).map_err(|source| LoadError::Fetch { name: named.name.clone(), source: Box::new(source) })?;
    Ok(Named { name: named.name.clone(), path: found.path })
}

fn load(named: &Named<PathBuf>, options: &Options) -> Result<Served, LoadError> {
    let Named { name, path } = named;
    let failed = |source| LoadError::Model { name: name.clone(), source: Box::new(source) };
    let model = Model::open(path).map_err(failed)?;
    let manifest = model.manifest().clone();
    let (height, width) = input_size(&manifest).map_err(|reason| LoadError::Transform { name: name.clone(), reason })?;
    let precision = model.precision(options.precision);
    if let Some(summary) = model.summary() {
        tracing::info!(model = name, "{summary}");
    }
    let device = options.device;
    let shapes = shapes(&model, &budget(device, &model, options.max_batch), options.segment_size);
    let accelerator = Accelerator { shapes, ..options.accelerator() };
    let session = SessionOptions { device, precision, threads: options.threads, accelerator, trust_device: options.trust_device };
    let workload = Workload { sessions: options.sessions, batch: options.max_batch };
    let Placement { sessions, device, agreement, budget } = Placement::of(&model, &session, workload).map_err(failed)?;
    let workers = sessions.len();
    let outputs = OUTPUTS.into_iter().filter(|output| sessions[0].0.has_output(output)).collect();

    let layers = sessions[0].0.layers();
    let fingerprint = model.fingerprint(COLLECTION_POOLING);
    let budget = Budget { delay: options.max_batch_delay, ..budget };
    let warm_up = Array3::zeros((3, height as usize, width as usize));
    let batcher = Batcher::start(name, sessions, budget, &warm_up).map_err(|source| LoadError::Thread { name: name.clone(), source })?;
    tracing::info!(model = name, architecture = manifest.architecture, %device, %precision, workers, "loaded");
    Ok(Served {
        name: name.clone(),
        heads: heads::of_folder(path, &manifest, &fingerprint)?,
        fingerprint,
        manifest,
        device,
        agreement,
        precision,
        outputs,
        layers,
        only_size: model.only_size(),
        max_in_flight: workers.saturating_mul(budget.pictures).saturating_mul(2),
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

/// The batches that may come: of pictures as the transform makes them, and of whole ones whose longer side is `longer_side`.
/// Unknown of a model that leaves every picture its size.
fn shapes(model: &Model, budget: &Budget, longer_side: u32) -> Option<Shapes> {
    let (height, width) = usual_size(model).map(|(height, width)| (height as usize, width as usize))?;
    let patch = budget.patch_size;
    let most = budget.pictures;
    let fewest = model.only_batch().unwrap_or(1);
    let usual = [budget.pictures_of(height, width), height, width];
    if model.only_size().is_some() {
        return Some(Shapes { smallest: [fewest, height, width], usual, largest: [most, height, width] });
    }
    let longest = (longer_side as usize).next_multiple_of(patch);
    Some(Shapes { smallest: [fewest, patch, patch], usual, largest: [most, height.max(longest), width.max(longest)] })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use dino_vision::model::Device;

    use super::*;

    #[test]
    fn tensorrt_is_told_of_every_batch_that_may_come() {
        let model = Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-model")).unwrap();
        let patch = model.manifest().patch_size as usize;
        for most in [None, Some(1), Some(7), Some(500)] {
            let budget = budget(Device::TensorRt(0), &model, most);
            let Shapes { smallest, usual, largest } = shapes(&model, &budget, 100).unwrap();
            assert_eq!(usual[0], most.unwrap_or(usual[0]));
            assert!(largest[1..].iter().all(|side| *side >= 100 && side.is_multiple_of(patch)));
            for height in (patch..=largest[1]).step_by(patch) {
                for width in (patch..=largest[2]).step_by(patch) {
                    let pictures = budget.pictures_of(height, width);
                    assert!(pictures <= largest[0] && smallest <= [1, height, width], "{pictures} of {height} x {width}");
                }
            }
        }
    }
}
