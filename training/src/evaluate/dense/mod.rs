//! Linear heads over all patches: the linear evaluation of DINOv2 (Oquab et al. 2023, section 7.4) for segmentation and depth, on
//! cached features of a frozen backbone.
//!
//! An [`Objective`] turns the logits of a batch into a loss and its gradients ([`segmentation`], [`depth`]); a [`Probe`] is the head
//! in training; [`Cache`] holds what a backbone said of the pictures.
//!
//! ```
//! use std::sync::Arc;
//!
//! use dino_train::data::loader::generator;
//! use dino_train::evaluate::dense::{Example, Probe, segmentation::Segmentation, step};
//! use dino_vision::transform::PatchGrid;
//! use ndarray::array;
//!
//! // A picture of two patches, whose pixels have the classes 0 and 1.
//! let grid = PatchGrid { rows: 1, columns: 2 };
//! let features = Arc::new(array![[1.0, 0.0], [0.0, 1.0]]);
//! let batch = [Example { features, grid, labels: Arc::from([0_u8, 1]), size: grid }];
//! let mut probes = [Probe::without_norm(2, 2, 0.05, 0.0, &mut generator(0, 0, 0, 0))];
//! let losses: Vec<f64> = (0..50).map(|at| step(&Segmentation, &mut probes, &batch, at, 1.0)[0]).collect();
//! assert!(losses[49] < losses[0] / 2.0);
//! ```

pub mod cache;
pub mod depth;
pub mod depth_map;
pub mod figures;
pub mod probe;
pub mod schedule;
pub mod segmentation;

use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

pub use cache::{Cache, Example};
pub use probe::{Probe, Statistics};

/// What is learnt of the logits of patches.
pub trait Objective: Sync {
    /// What is known of a pixel.
    type Label: bytemuck::Pod + Send + Sync;

    /// The loss of a batch of pictures, whose logits `[patches, channels]` are in the order of `batch`, in step `step` of a training,
    /// and its gradient in each picture's logits.
    fn loss(&self, logits: &[Array2<f32>], batch: &[Example<Self::Label>], step: usize) -> (f64, Vec<Array2<f32>>);
}

/// One step of each probe on the same batch, at a learning rate that is `share` of its own; the losses in the order of the probes.
pub fn step<O: Objective>(objective: &O, probes: &mut [Probe], batch: &[Example<O::Label>], step: usize, share: f64) -> Vec<f64> {
    let features: Vec<ArrayView2<'_, f32>> = batch.iter().map(|example| example.features.view()).collect();
    let has_norm = probes.iter().any(|probe| probe.norm.is_some());
    let statistics = has_norm.then(|| Statistics::of(&features));
    let normalised: Option<Vec<Array2<f32>>> =
        statistics.as_ref().map(|statistics| features.par_iter().map(|features| statistics.normalise(*features)).collect());
    let inputs: Vec<ArrayView2<'_, f32>> = normalised.as_ref().map_or(features, |all| all.iter().map(|input| input.view()).collect());
    probes
        .iter_mut()
        .map(|probe| {
            let (weight, bias) = probe.in_training();
            let logits: Vec<Array2<f32>> = inputs.par_iter().map(|input| input.dot(&weight.t()) + &bias).collect();
            let (loss, gradients) = objective.loss(&logits, batch, step);
            probe.update(&inputs, &gradients, statistics.as_ref(), share);
            loss
        })
        .collect()
}
