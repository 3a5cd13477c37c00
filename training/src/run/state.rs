//! The trainer's own checkpoint: everything that a run needs to go on as if it had not stopped.
//!
//! A safetensors file of float32 tensors: `student.…`, `teacher.…` (names of the public code, running statistics of batch norms
//! included; of a student with low-rank adapters those with the adapters merged, and its own as `lora.…`), `optimizer.first.…`,
//! `optimizer.second.…` and, where there are such, `center`, `queue`, `ibot_center`, and `gram_anchor.…` of an anchor that was the teacher of
//! this run. The metadata entry `dino` is JSON: sizes and transform for the exporter, progress, steps per
//! parameter and the recipe. Random numbers need no state: they follow from the seed and the step.
//!
//! ```
//! use candle_core::Device;
//! use dino_train::dino::{learner::Learner, network::Network};
//! use dino_train::run::{recipe::Recipe, state::{Description, Stored, file_name, list, save}};
//! use dino_train::{data::loader::generator, exchange::alone};
//!
//! let recipe: Recipe = toml::from_str("dim = 16\ndepth = 1\nheads = 2\nout-dim = 64\nhead-hidden-dim = 32\nglobal-crops-size = 32")?;
//! let student = Network::new(recipe.backbone(), recipe.head(), &mut generator(0, 0, 0, 0), &Device::Cpu)?;
//! let mut learner = Learner::new(student, recipe.optimizer, alone())?;
//!
//! let run = tempfile::tempdir()?;
//! save(&run.path().join(file_name(1200)), &learner, &Description::new(&recipe, &learner, 1200, 100))?;
//! let stored = Stored::open(&list(run.path())?[0])?;
//! stored.restore(&mut learner)?;
//! assert_eq!((stored.description.step, stored.description.dim), (1200, 16));
//! # Ok::<(), anyhow::Error>(())
//! ```

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use dino_vision::transform::Transform;
use safetensors::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};

use crate::backbone::BackboneConfig;
use crate::backbone::parameters::{Entry, Group};
use crate::dino::learner::Learner;
use crate::dino::optimizer::{Algorithm, Moments};
use crate::files::write_atomically;
use crate::log::{Measured, Sums};
use crate::run::recipe::Recipe;

/// Pixels by positions of a convolutional network's last map.
const STRIDE: usize = 32;

/// What the metadata says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// Format of the file, now 1.
    pub format: u32,
    /// Name of the backbone.
    pub arch: String,
    /// Side of a patch in pixels; of a convolutional network, pixels by positions of its last map.
    pub patch_size: usize,
    /// Dimension of the features.
    pub dim: usize,
    /// Number of blocks, or of residual units.
    pub depth: usize,
    /// Attention heads; 0 without attention.
    pub heads: usize,
    /// Side of the global crops, which a position table is made for.
    pub img_size: usize,
    /// Evaluation transform.
    pub transform: Transform,
    /// Steps taken.
    pub step: usize,
    /// Steps of an epoch.
    pub steps_per_epoch: usize,
    /// Steps that each parameter has taken in the optimiser.
    pub optimizer_steps: BTreeMap<String, u64>,
    /// Settings of the run.
    pub recipe: Recipe,
    /// Processes of the run.
    #[serde(default = "one")]
    pub processes: usize,
    /// SHA-256 over the names of the pictures: another order of pictures would follow from other names.
    #[serde(default)]
    pub pictures: Option<String>,
    /// The part of the epoch that is done.
    #[serde(default)]
    pub epoch_so_far: Sums,
    /// What the weights that the run began with could do.
    #[serde(default)]
    pub baseline: Option<Measured>,
    /// Names of the pictures that they were measured on by k-NN, as one hash.
    #[serde(default)]
    pub measured: Option<String>,
    /// SHA-256 of the file of `--gram-anchor`.
    #[serde(default)]
    pub gram_anchor: Option<String>,
}

fn one() -> usize {
    1
}

impl Description {
    /// Of a run at a step.
    pub fn new(recipe: &Recipe, learner: &Learner, step: usize, steps_per_epoch: usize) -> Self {
        let backbone = learner.student.backbone.config();
        let (patch_size, heads, img_size) = match backbone {
            BackboneConfig::Vit(vit) => (vit.patch_size, vit.heads, vit.img_size),
            BackboneConfig::Resnet(_) | BackboneConfig::Convnext(_) => (STRIDE, 0, recipe.global_crops_size),
        };
        Self {
            format: 1,
            arch: serde_json::to_value(recipe.arch).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default(),
            patch_size,
            dim: backbone.dim(),
            depth: backbone.depth(),
            heads,
            img_size,
            transform: recipe.transform(step.saturating_sub(1) / steps_per_epoch.max(1)),
            step,
            steps_per_epoch,
            optimizer_steps: learner.optimizer.steps().map(|(name, steps)| (name.clone(), steps)).collect(),
            recipe: recipe.clone(),
            processes: 1,
            pictures: None,
            epoch_so_far: Sums::default(),
            baseline: None,
            measured: None,
            gram_anchor: None,
        }
    }
}

/// A float32 tensor that is written to a file.
pub(crate) struct Values {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Values {
    pub(crate) fn new(shape: &[usize], values: &[f32]) -> Self {
        Self { shape: shape.to_vec(), bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }
}

impl View for Values {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Where the weights of a student are that its adapters are added to, and the adapters.
const LORA: &str = "lora";
/// Where the teacher is that Gram anchoring holds patches to.
const ANCHOR: &str = "gram_anchor";

/// Adds the parameters of a group, whose flat values are given.
fn add_group(tensors: &mut Vec<(String, Values)>, network: &str, group: &Group, values: &Tensor) -> Result<()> {
    let flat: Vec<f32> = values.flatten_all()?.to_vec1()?;
    for entry in group.entries() {
        let values = &flat[entry.offset..entry.offset + entry.len()];
        tensors.push((format!("{network}.{}", entry.name), Values::new(&entry.shape, values)));
    }
    Ok(())
}

/// Writes a checkpoint so that a file of that name is whole or not there: a temporary file, synchronised, then renamed.
///
/// # Errors
/// When the file cannot be written.
pub fn save(path: &Path, learner: &Learner, description: &Description) -> Result<()> {
    let mut tensors = Vec::new();
    for (network, name) in [(&learner.student, "student"), (&learner.teacher, "teacher")] {
        let buffers = network.buffers().map(|group| (group, group.flat(false)));
        for (group, value) in network.groups().zip(network.merged()?).chain(buffers) {
            add_group(&mut tensors, name, group, &value)?;
        }
    }
    if let Some(gram) = learner.gram.as_ref().filter(|gram| gram.is_own) {
        for group in gram.anchor.groups() {
            add_group(&mut tensors, ANCHOR, group, &group.flat(false))?;
        }
    }
    for group in learner.student.own_groups() {
        add_group(&mut tensors, LORA, group, &group.flat(false))?;
    }
    let moments = learner.optimizer.moments()?;
    for (name, moments) in &moments {
        tensors.push((format!("optimizer.first.{name}"), Values::new(&[moments.first.len()], &moments.first)));
        if !moments.second.is_empty() {
            tensors.push((format!("optimizer.second.{name}"), Values::new(&[moments.second.len()], &moments.second)));
        }
    }
    if learner.lejepa.is_none() {
        let centre = learner.loss.centre();
        tensors.push(("center".to_owned(), Values::new(centre.dims(), &centre.flatten_all()?.to_vec1::<f32>()?)));
    }
    if let Some(queue) = learner.loss.queue.logits() {
        tensors.push(("queue".to_owned(), Values::new(queue.dims(), &queue.flatten_all()?.to_vec1::<f32>()?)));
    }
    if let Some(ibot) = &learner.ibot {
        let centre = ibot.patches.centre();
        tensors.push(("ibot_center".to_owned(), Values::new(centre.dims(), &centre.flatten_all()?.to_vec1::<f32>()?)));
    }
    let metadata = HashMap::from([("dino".to_owned(), serde_json::to_string(description)?)]);
    let bytes = safetensors::serialize(tensors, Some(metadata))?;
    write_atomically(path, &bytes)
}

/// A checkpoint read back.
pub struct Stored {
    bytes: Vec<u8>,
    /// Its metadata.
    pub description: Description,
}

impl Stored {
    /// Reads a file and its description.
    ///
    /// # Errors
    /// When it is no whole checkpoint of this trainer.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_bytes(fs_err::read(path)?, path)
    }

    /// What a file of this path holds.
    ///
    /// # Errors
    /// When it is no whole checkpoint of this trainer.
    pub fn from_bytes(bytes: Vec<u8>, path: &Path) -> Result<Self> {
        let (_, header) = SafeTensors::read_metadata(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
        SafeTensors::deserialize(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
        let text = header
            .metadata()
            .as_ref()
            .and_then(|m| m.get("dino"))
            .with_context(|| format!("{} was not written by dino-train", path.display()))?;
        let description = serde_json::from_str(text).with_context(|| format!("{} holds settings of another version", path.display()))?;
        Ok(Self { bytes, description })
    }

    /// Reads the description of a file alone.
    ///
    /// # Errors
    /// When it is no checkpoint of this trainer.
    pub fn describe(path: &Path) -> Result<Description> {
        let store = crate::weights::open(path)?;
        let text = store.scalar("dino").and_then(serde_json::Value::as_str);
        let text = text.with_context(|| format!("{} was not written by dino-train", path.display()))?;
        serde_json::from_str(text).with_context(|| format!("{} holds settings of another version", path.display()))
    }

    /// The bytes of the file.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Whether it holds an anchor of Gram anchoring, as it does from the first that the run made of its teacher on.
    pub fn has_anchor(&self) -> bool {
        SafeTensors::read_metadata(&self.bytes)
            .is_ok_and(|(_, header)| header.tensors().keys().any(|name| name.starts_with(&format!("{ANCHOR}."))))
    }

    /// Copies everything into a learner of the same sizes.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn restore(&self, learner: &mut Learner) -> Result<()> {
        let tensors = SafeTensors::deserialize(&self.bytes)?;
        let values = |name: &str, shape: Option<&[usize]>| -> Result<Vec<f32>> {
            let view = tensors.tensor(name).with_context(|| format!("tensor {name} is missing"))?;
            ensure!(view.dtype() == Dtype::F32, "tensor {name} is {:?}, not F32", view.dtype());
            if let Some(shape) = shape
                && view.shape() != shape
            {
                bail!("tensor {name} is {:?}, not {shape:?}", view.shape());
            }
            Ok(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
        };
        for (network, name) in [(&learner.student, "student"), (&learner.teacher, "teacher")] {
            for group in network.groups().chain(network.buffers()) {
                restore_group(group, |entry| values(&format!("{name}.{}", entry.name), Some(&entry.shape)))?;
            }
        }
        for group in learner.gram.iter().filter(|gram| gram.is_own).flat_map(|gram| gram.anchor.groups()) {
            restore_group(group, |entry| values(&format!("{ANCHOR}.{}", entry.name), Some(&entry.shape)))?;
        }
        for group in learner.student.own_groups() {
            restore_group(group, |entry| values(&format!("{LORA}.{}", entry.name), Some(&entry.shape)))?;
        }
        let has_second = learner.optimizer.algorithm() == Algorithm::Adamw;
        for (name, &steps) in &self.description.optimizer_steps {
            let moments = Moments {
                steps,
                first: values(&format!("optimizer.first.{name}"), None)?,
                second: if has_second { values(&format!("optimizer.second.{name}"), None)? } else { Vec::new() },
            };
            learner.optimizer.set_moments(name, moments);
        }
        if learner.lejepa.is_some() {
            return Ok(());
        }
        let shape = learner.loss.centre().dims().to_vec();
        let device = learner.loss.centre().device().clone();
        learner.loss.set_centre(Tensor::from_vec(values("center", Some(&shape))?, shape.as_slice(), &device)?);
        if tensors.names().contains(&"queue") {
            let queue = values("queue", None)?;
            learner.loss.queue.push(&Tensor::from_vec(queue, ((), shape[1]), &device)?)?;
        }
        if let Some(ibot) = &mut learner.ibot {
            let shape = ibot.patches.centre().dims().to_vec();
            ibot.patches.set_centre(Tensor::from_vec(values("ibot_center", Some(&shape))?, shape, &device)?);
        }
        Ok(())
    }
}

fn restore_group(group: &Group, values: impl Fn(&Entry) -> Result<Vec<f32>>) -> Result<()> {
    let mut flat = Vec::with_capacity(group.var().elem_count());
    for entry in group.entries() {
        flat.extend(values(entry)?);
    }
    let flat = Tensor::from_vec(flat, group.var().elem_count(), &Device::Cpu)?;
    group.var().set(&flat.to_device(group.var().device())?)?;
    Ok(())
}

/// File name of the checkpoint after a number of steps.
pub fn file_name(step: usize) -> String {
    format!("checkpoint-{step:08}.safetensors")
}

/// The newest checkpoint of a run's folder that `open` finds whole, with its path; none where it holds none. Newer ones that are not whole
/// get another name, so that they are neither tried again nor counted.
///
/// # Errors
/// When there are checkpoints although the run is not to go on, or none of them is whole.
pub fn newest<T>(run: &Path, goes_on: bool, open: impl Fn(&Path) -> Result<T>) -> Result<Option<(PathBuf, T)>> {
    let (out, found) = (run.display(), list(run)?);
    ensure!(goes_on || found.is_empty(), "{out} already holds checkpoints: add --resume to go on, or choose another --out");
    if found.is_empty() {
        if goes_on {
            tracing::info!("{out} holds no checkpoint: the run starts at its beginning");
        }
        return Ok(None);
    }
    let mut damaged: Vec<PathBuf> = Vec::new();
    for path in found.into_iter().rev() {
        match open(&path) {
            Ok(opened) => {
                for path in damaged {
                    fs_err::rename(&path, path.with_extension("damaged"))?;
                }
                return Ok(Some((path, opened)));
            }
            Err(error) => {
                tracing::warn!("{error:#}: an older checkpoint is tried");
                damaged.push(path);
            }
        }
    }
    bail!("none of the {} checkpoints in {out} can be used: move them away to start anew", damaged.len())
}

/// The description of the newest checkpoint that can be read in a run's folder, which is what a run goes on from; none without one.
///
/// # Errors
/// When the folder cannot be read.
pub fn newest_description(run: &Path) -> Result<Option<Description>> {
    Ok(list(run)?.iter().rev().find_map(|path| Stored::describe(path).ok()))
}

/// The run's checkpoints, oldest first.
///
/// # Errors
/// When the folder cannot be read.
pub fn list(run: &Path) -> Result<Vec<PathBuf>> {
    if !run.exists() {
        return Ok(Vec::new());
    }
    let mut found: Vec<PathBuf> = fs_err::read_dir(run)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            name.strip_prefix("checkpoint-").and_then(|n| n.strip_suffix(".safetensors")).is_some_and(|n| n.parse::<usize>().is_ok())
        })
        .collect();
    found.sort();
    Ok(found)
}
