//! The linear evaluation of the DINO paper (section 4.1): a linear classifier on frozen features, trained by SGD, as the public
//! `eval_linear.py` trains it.
//!
//! ```
//! use dino_train::{data::loader::generator, evaluate::linear::Probe};
//! use ndarray::array;
//!
//! let features = array![[1.0, 0.0], [0.0, 1.0]];
//! let mut probe = Probe::new(2, 2, 0.1, &mut generator(0, 0, 0, 0));
//! let losses: Vec<f64> = (0..100).map(|_| probe.step(features.view(), &[0, 1], 0.1)).collect();
//! assert!(losses[99] < losses[0]);
//! assert_eq!(probe.figures(features.view(), &[0, 1]).top1, 100.0);
//! ```

use ndarray::{Array1, Array2, ArrayView2, Axis, Zip};
use rayon::prelude::*;

use super::figures::Figures;
use crate::backbone::parameters::Random;

/// Momentum of the SGD.
const MOMENTUM: f32 = 0.9;
/// Deviation of the first weights.
const DEVIATION: f32 = 0.01;
/// The batch that learning rates are given for.
const REFERENCE_BATCH: f64 = 256.0;

/// One linear classifier in training.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Highest learning rate for a batch of 256: it is scaled by batch / 256.
    pub lr: f64,
    /// `[classes, F]`.
    pub weight: Array2<f32>,
    /// `[classes]`.
    pub bias: Array1<f32>,
    velocity: (Array2<f32>, Array1<f32>),
}

impl Probe {
    /// Normal weights and no biases. Probes that are drawn from the same numbers start alike.
    pub fn new(classes: usize, features: usize, lr: f64, random: &mut impl Random) -> Self {
        let weight = Array2::from_shape_simple_fn((classes, features), || DEVIATION * random.normal());
        Self::from_weights(weight, Array1::zeros(classes), lr)
    }

    /// A probe with given first weights `[classes, F]` and biases `[classes]`.
    pub fn from_weights(weight: Array2<f32>, bias: Array1<f32>, lr: f64) -> Self {
        let velocity = (Array2::zeros(weight.dim()), Array1::zeros(bias.len()));
        Self { lr, weight, bias, velocity }
    }

    /// Features `[n, F]` to logits `[n, classes]`.
    pub fn logits(&self, features: ArrayView2<'_, f32>) -> Array2<f32> {
        features.dot(&self.weight.t()) + &self.bias
    }

    /// One step of SGD on a batch. Returns the mean cross-entropy before the step, in nats. Every class is one of the probe's.
    pub fn step(&mut self, features: ArrayView2<'_, f32>, classes: &[u32], lr: f32) -> f64 {
        let mut gradient = self.logits(features);
        let mut loss = 0.0;
        for (mut row, &class) in gradient.rows_mut().into_iter().zip(classes) {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let right = row[class as usize] - largest;
            row.mapv_inplace(|logit| (logit - largest).exp());
            let sum = row.sum();
            loss += f64::from(sum.ln() - right);
            row /= sum;
            row[class as usize] -= 1.0;
        }
        gradient /= classes.len() as f32;
        let moves = (gradient.t().dot(&features), gradient.sum_axis(Axis(0)));
        let follow = |parameter: &mut f32, velocity: &mut f32, gradient: &f32| {
            *velocity = MOMENTUM * *velocity + gradient;
            *parameter -= lr * *velocity;
        };
        Zip::from(&mut self.weight).and(&mut self.velocity.0).and(&moves.0).for_each(follow);
        Zip::from(&mut self.bias).and(&mut self.velocity.1).and(&moves.1).for_each(follow);
        loss / classes.len() as f64
    }

    /// Classifies `[n, F]`. Classes that the probe does not know (numbers from [`Probe::classes`] on) count as wrong.
    pub fn figures(&self, features: ArrayView2<'_, f32>, classes: &[u32]) -> Figures {
        let logits = self.logits(features);
        let outcomes = logits.rows().into_iter().zip(classes).map(|(row, &class)| {
            let Some(&own) = row.get(class as usize) else { return (false, false) };
            // A class that is as good counts as better if it comes first, as it does where the best is looked for.
            let better = row.iter().enumerate().filter(|&(other, &logit)| logit > own || (logit >= own && other < class as usize)).count();
            (better == 0, better < 5)
        });
        Figures::count(classes, outcomes.collect::<Vec<_>>().into_iter())
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.bias.len()
    }
}

/// One step of each probe on the same rows of an epoch in batches of `batch`, at a share of their rates (see [`cosine`]), spread over
/// the cores; the losses in the order of the probes.
pub fn step_all(probes: &mut [Probe], features: ArrayView2<'_, f32>, classes: &[u32], share: f64, batch: usize) -> Vec<f64> {
    // The last batch of an epoch is smaller, and keeps the rate of the others.
    let factor = share * batch as f64 / REFERENCE_BATCH;
    probes.par_iter_mut().map(|probe| probe.step(features, classes, (probe.lr * factor) as f32)).collect()
}

/// Share of the learning rate in an epoch: a cosine from 1 to 0, epoch by epoch.
pub fn cosine(epoch: usize, epochs: usize) -> f64 {
    0.5 * (1.0 + (std::f64::consts::PI * epoch as f64 / epochs.max(1) as f64).cos())
}
