//! The checkpoint of a run that trains one transformer with heads on it, by labels or after a teacher: one that `export` reads, with what is
//! needed to go on.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use candle_core::Tensor;
use dino_vision::transform::Transform;
use safetensors::SafeTensors;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Settings, Start};
use crate::backbone::parameters::Group;
use crate::backbone::vit::Vit;
use crate::dino::optimizer::{Moments, Optimizer};
use crate::files::write_atomically;
use crate::run::state::{self, Values};

pub use crate::run::state::file_name;

/// How far a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Its settings.
    pub settings: Settings,
    /// Epochs that are done.
    pub epochs_done: usize,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// SHA-256 over the names of the training pictures.
    pub pictures: String,
    /// What it began with; checkpoints of earlier versions do not say it.
    #[serde(default)]
    pub start: Option<Start>,
}

/// What is trained: a backbone, heads on it, and their optimiser.
pub trait Trained {
    /// The backbone.
    fn backbone(&self) -> &Vit;
    /// Heads on it.
    fn head(&self) -> &Group;
    /// Holds the moments.
    fn optimizer(&mut self) -> &mut Optimizer;
}

/// What the metadata says, in the words that the exporter reads.
#[derive(Serialize, Deserialize)]
struct Description<P> {
    format: u32,
    dim: usize,
    depth: usize,
    heads: usize,
    transform: Transform,
    /// Steps that each parameter has taken.
    optimizer_steps: BTreeMap<String, u64>,
    progress: P,
}

/// Checkpoints that are kept.
const KEPT: usize = 2;

/// Writes the checkpoint behind an epoch into a run's folder, whole or not at all, then removes all but the newest.
///
/// # Errors
/// When the file cannot be written.
pub fn save<P: Serialize>(out: &Path, epochs: usize, trained: &mut impl Trained, transform: &Transform, progress: &P) -> Result<()> {
    let mut tensors = Vec::new();
    for group in trained.backbone().groups().iter().chain([trained.head()]) {
        let flat: Vec<f32> = group.var().flatten_all()?.to_vec1()?;
        for entry in group.entries() {
            // What evaluates is called the teacher, as in training.
            let name = if entry.name.starts_with("backbone.") { format!("teacher.{}", entry.name) } else { entry.name.clone() };
            tensors.push((name, Values::new(&entry.shape, &flat[entry.offset..entry.offset + entry.len()])));
        }
    }
    let moments = trained.optimizer().moments()?;
    for (name, moments) in &moments {
        tensors.push((format!("optimizer.first.{name}"), Values::new(&[moments.first.len()], &moments.first)));
        tensors.push((format!("optimizer.second.{name}"), Values::new(&[moments.second.len()], &moments.second)));
    }
    drop(moments);
    let optimizer_steps = trained.optimizer().steps().map(|(name, steps)| (name.clone(), steps)).collect();
    let config = trained.backbone().config();
    let description = Description {
        format: 1,
        dim: config.dim,
        depth: config.depth,
        heads: config.heads,
        transform: transform.clone(),
        optimizer_steps,
        progress,
    };
    let metadata = HashMap::from([("dino".to_owned(), serde_json::to_string(&description)?)]);
    write_atomically(&out.join(file_name(epochs)), &safetensors::serialize(tensors, Some(metadata))?)?;
    for old in state::list(out)?.iter().rev().skip(KEPT) {
        fs_err::remove_file(old)?;
    }
    Ok(())
}

/// A checkpoint read back.
pub struct Stored<P> {
    bytes: Vec<u8>,
    optimizer_steps: BTreeMap<String, u64>,
    /// Attention heads of a block, which no tensor shows.
    pub heads: usize,
    /// Evaluation transform.
    pub transform: Transform,
    /// How far the run was.
    pub progress: P,
}

impl<P: DeserializeOwned> Stored<P> {
    /// Reads a file.
    ///
    /// # Errors
    /// When it is no whole checkpoint of such a run.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = fs_err::read(path)?;
        SafeTensors::deserialize(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let text = header.metadata().as_ref().and_then(|metadata| metadata.get("dino"));
        let text = text.with_context(|| format!("{} was not written by dino-train", path.display()))?;
        let description: Description<P> =
            serde_json::from_str(text).with_context(|| format!("{} is a checkpoint of another kind of run", path.display()))?;
        let Description { heads, transform, optimizer_steps, progress, .. } = description;
        Ok(Self { bytes, optimizer_steps, heads, transform, progress })
    }

    /// Copies everything into networks of the same sizes.
    ///
    /// # Errors
    /// When a tensor is missing or of another size.
    pub fn restore(&self, trained: &mut impl Trained) -> Result<()> {
        let tensors = SafeTensors::deserialize(&self.bytes)?;
        let values = |name: &str| -> Result<Vec<f32>> {
            let tensor = tensors.tensor(name).with_context(|| format!("tensor {name} is missing"))?;
            Ok(tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
        };
        for group in trained.backbone().groups().iter().chain([trained.head()]) {
            let mut flat = Vec::with_capacity(group.var().elem_count());
            for entry in group.entries() {
                let own = if entry.name.starts_with("backbone.") { format!("teacher.{}", entry.name) } else { entry.name.clone() };
                flat.extend(values(&own)?);
            }
            ensure!(flat.len() == group.var().elem_count(), "the checkpoint is of a backbone of another size");
            group.var().set(&Tensor::from_vec(flat, group.var().elem_count(), group.var().device())?)?;
        }
        for (name, &steps) in &self.optimizer_steps {
            let moments =
                Moments { steps, first: values(&format!("optimizer.first.{name}"))?, second: values(&format!("optimizer.second.{name}"))? };
            trained.optimizer().set_moments(name, moments);
        }
        Ok(())
    }
}
