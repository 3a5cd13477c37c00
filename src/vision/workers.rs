//! The workers of a model: an ONNX session as the queue's engine, how many of them, and how much one run may take.
//!
//! ```
//! use dino_vision::model::{Device, Model};
//! use dino_vision::workers::{budget, default_sessions};
//!
//! let model = Model::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/tiny-model").as_ref())?;
//! assert_eq!(budget(Device::Cpu, &model, None).pictures, 1);
//! assert_eq!(budget(Device::Cuda(0), &model, Some(32)).pictures, 32);
//! assert_eq!(default_sessions(Device::Cuda(0), 1), 1);
//! # Ok::<(), dino_vision::model::ModelError>(())
//! ```

use std::time::Duration;

use ndarray::{ArrayView4, Axis};

use crate::{
    batch::{Budget, Engine, EngineError},
    cores,
    model::{Device, Model, ModelError, Outputs, Session},
};

/// Pictures in one batch on an accelerator.
const ACCELERATOR_PICTURES: usize = 64;
/// Patches of each picture that such a batch has room for: 224 pixels in patches of 16.
const USUAL_PATCHES: usize = 14 * 14;

/// A session that runs batches of pictures.
pub struct SessionEngine(pub Session);

impl Engine for SessionEngine {
    /// Outputs with B = 1.
    type Output = Outputs;

    fn run(&mut self, pictures: ArrayView4<'_, f32>) -> Result<Vec<Outputs>, EngineError> {
        let count = pictures.len_of(Axis(0));
        let outputs = self.0.run(pictures).map_err(|error| match error {
            // The report of the failure says already that the model failed.
            ModelError::Run(reason) => EngineError(reason),
            other => EngineError(other.to_string()),
        })?;
        Ok(if count == 1 { vec![outputs] } else { (0..count).map(|index| outputs.of(index..index + 1)).collect() })
    }
}

/// On a CPU one session per core: two sessions of one thread answer more pictures than one session of two.
pub fn default_sessions(device: Device, threads: usize) -> usize {
    let cores = cores::available();
    if device.is_cpu() { (cores / threads).max(1) } else { 1 }
}

/// What one run may take: what the graph takes, where it takes nothing else; else `most` pictures of the size that the model's
/// transform makes, or as many as the device runs fastest with. It waits for no further pictures.
pub fn budget(device: Device, model: &Model, most: Option<usize>) -> Budget {
    let patch = model.manifest().patch_size;
    let patches_of = |(height, width)| ((height / patch) * (width / patch)) as usize;
    let (pictures, patches) = match (model.only_batch(), most) {
        // A run costs the same however few of its pictures are real.
        (Some(only), _) => (only, usize::MAX),
        (None, Some(most)) => (most, most.saturating_mul(usual_size(model).map_or(USUAL_PATCHES, patches_of))),
        (None, None) if device.is_cpu() => (1, usize::MAX),
        (None, None) => (ACCELERATOR_PICTURES, ACCELERATOR_PICTURES * USUAL_PATCHES),
    };
    // Of a graph that gives nothing for the parts of a picture, the size of its patches is not known.
    let patches = if patch == 1 { usize::MAX } else { patches };
    let budget = Budget { pictures, patches, patch_size: patch as usize, delay: Duration::ZERO };
    match (device, usual_size(model)) {
        // Small pictures would make longer batches than TensorRT is to set memory aside for.
        (Device::TensorRt(_), Some((height, width))) => Budget { pictures: budget.pictures_of(height as usize, width as usize), ..budget },
        _ => budget,
    }
}

/// (height, width) of the pictures that most requests have.
pub fn usual_size(model: &Model) -> Option<(u32, u32)> {
    model.only_size().or(model.manifest().transform.output_size())
}
