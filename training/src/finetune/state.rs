//! The checkpoint of a fine-tuning run: one that `export` reads, with what is needed to go on.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use candle_core::Tensor;
use dino_vision::transform::Transform;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::{Classifier, Settings};
use crate::dino::optimizer::Moments;
use crate::files::write_atomically;
use crate::run::state::Values;

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
    /// Steps that each parameter has taken.
    pub optimizer_steps: BTreeMap<String, u64>,
}

/// What the metadata says, in the words that the exporter reads.
#[derive(Serialize, Deserialize)]
struct Description {
    format: u32,
    dim: usize,
    depth: usize,
    heads: usize,
    transform: Transform,
    finetune: Progress,
}

/// Writes a checkpoint; a file of that name is whole or not there.
///
/// # Errors
/// When the file cannot be written.
pub fn save(path: &Path, classifier: &Classifier, transform: &Transform, progress: &Progress) -> Result<()> {
    let mut tensors = Vec::new();
    for group in classifier.groups() {
        let flat: Vec<f32> = group.var().flatten_all()?.to_vec1()?;
        for entry in group.entries() {
            // What evaluates is called the teacher, as in training.
            let name = if entry.name.starts_with("backbone.") { format!("teacher.{}", entry.name) } else { entry.name.clone() };
            tensors.push((name, Values::new(&entry.shape, &flat[entry.offset..entry.offset + entry.len()])));
        }
    }
    let moments = classifier.optimizer.moments()?;
    for (name, moments) in &moments {
        tensors.push((format!("optimizer.first.{name}"), Values::new(&[moments.first.len()], &moments.first)));
        tensors.push((format!("optimizer.second.{name}"), Values::new(&[moments.second.len()], &moments.second)));
    }
    let config = classifier.backbone.config();
    let mut progress = progress.clone();
    progress.optimizer_steps = classifier.optimizer.steps().map(|(name, steps)| (name.clone(), steps)).collect();
    let description = Description {
        format: 1,
        dim: config.dim,
        depth: config.depth,
        heads: config.heads,
        transform: transform.clone(),
        finetune: progress,
    };
    let metadata = HashMap::from([("dino".to_owned(), serde_json::to_string(&description)?)]);
    write_atomically(path, &safetensors::serialize(tensors, Some(metadata))?)
}

/// A checkpoint read back.
pub struct Stored {
    bytes: Vec<u8>,
    /// How far the run was.
    pub progress: Progress,
}

impl Stored {
    /// Reads a file.
    ///
    /// # Errors
    /// When it is no whole checkpoint of a fine-tuning run.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = fs_err::read(path)?;
        SafeTensors::deserialize(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let text = header.metadata().as_ref().and_then(|metadata| metadata.get("dino"));
        let text = text.with_context(|| format!("{} was not written by dino-train", path.display()))?;
        let description: Description =
            serde_json::from_str(text).with_context(|| format!("{} is no checkpoint of a fine-tuning run", path.display()))?;
        Ok(Self { bytes, progress: description.finetune })
    }

    /// Copies everything into a classifier of the same sizes.
    ///
    /// # Errors
    /// When a tensor is missing or of another size.
    pub fn restore(&self, classifier: &mut Classifier) -> Result<()> {
        let tensors = SafeTensors::deserialize(&self.bytes)?;
        let values = |name: &str| -> Result<Vec<f32>> {
            let tensor = tensors.tensor(name).with_context(|| format!("tensor {name} is missing"))?;
            Ok(tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
        };
        for group in classifier.groups() {
            let mut flat = Vec::with_capacity(group.var().elem_count());
            for entry in group.entries() {
                let own = if entry.name.starts_with("backbone.") { format!("teacher.{}", entry.name) } else { entry.name.clone() };
                flat.extend(values(&own)?);
            }
            ensure!(flat.len() == group.var().elem_count(), "the checkpoint is of a backbone of another size");
            group.var().set(&Tensor::from_vec(flat, group.var().elem_count(), group.var().device())?)?;
        }
        for (name, &steps) in &self.progress.optimizer_steps {
            let moments =
                Moments { steps, first: values(&format!("optimizer.first.{name}"))?, second: values(&format!("optimizer.second.{name}"))? };
            classifier.optimizer.set_moments(name, moments);
        }
        Ok(())
    }
}
