//! Fine-tuning: a backbone and a linear classifier on its CLS token, trained together with labels.
//!
//! As `DeiT` (Touvron et al. 2021) trains, with the layer-wise learning rates of `BEiT` (Bao et al. 2022, appendix): AdamW, a warm-up and a
//! cosine, stochastic depth, label smoothing, and mixup where it is asked for.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use dino_train::backbone::vit::{Vit, VitConfig};
//! use dino_train::{data::loader::generator, finetune::{Classifier, Schedule, Settings, targets}};
//!
//! let mut random = generator(0, 0, 0, 0);
//! let config = VitConfig { img_size: 32, patch_size: 16, dim: 16, depth: 1, heads: 2, ..VitConfig::default() };
//! let mut classifier = Classifier::new(Vit::new(config, &mut random, &Device::Cpu)?, 2, &mut random, &Device::Cpu)?;
//!
//! let schedule = Schedule { epochs: 1, batch_size: 2, lr: 1e-3, min_lr: 1e-6, warmup_epochs: 0 };
//! let settings =
//!     Settings { schedule, layer_decay: 0.65, weight_decay: 0.05, drop_path: 0.0, smoothing: 0.0, mixup: 0.0, seed: 0 };
//! let pictures = Tensor::randn(0.0_f32, 1.0, (2, 3, 32, 32), &Device::Cpu)?;
//! let classes = Tensor::from_vec(targets(&[0, 1], 2, settings.smoothing), (2, 2), &Device::Cpu)?;
//! let losses: Vec<f64> =
//!     (0..20).map(|_| classifier.step(&pictures, &classes, &settings, 0.01, &mut random)).collect::<Result<_, _>>()?;
//! assert!(losses[19] < losses[0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod schedule;
mod start;
mod state;

use candle_core::{D, Device, Result, Tensor};
use ndarray::{Array1, Array2};
use rand_distr::Distribution as _;
use serde::{Deserialize, Serialize};

use crate::backbone::Pass;
use crate::backbone::parameters::{Group, Init, Random};
use crate::backbone::vit::Vit;
use crate::dino::layer_decay::LayerDecay;
use crate::dino::optimizer::{self, Optimizer, Squares};
use crate::exchange;

pub use schedule::Schedule;
pub use start::Start;
pub use state::{Progress, Stored, Trained, file_name, save};

/// Settings of a run; those that have another value in a resumed run are refused.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Settings {
    /// Length and learning rates.
    #[command(flatten)]
    #[serde(flatten)]
    pub schedule: Schedule,
    /// Factor of the learning rate from each block to the one before it: early blocks change little. 1 for one rate.
    #[arg(long, value_parser = dino_program::flags::part::<f64>, default_value_t = 0.65)]
    pub layer_decay: f64,
    /// Weight decay of all but biases, norms, CLS and positions.
    #[arg(long, value_parser = dino_program::flags::from_zero::<f64>, default_value_t = 0.05)]
    pub weight_decay: f64,
    /// Stochastic depth: share of the last block's branches that is dropped, less in earlier blocks.
    #[arg(long, value_parser = dino_program::flags::below_one::<f64>, default_value_t = 0.1)]
    pub drop_path: f64,
    /// Share of the target that is spread over all classes.
    #[arg(long, value_parser = dino_program::flags::below_one::<f64>, default_value_t = 0.1)]
    pub smoothing: f64,
    /// Mixes pictures in pairs, with shares from Beta(A, A); 0 for none. 0.8 is usual for long runs on much data.
    #[arg(long, value_parser = dino_program::flags::from_zero::<f64>, value_name = "A", default_value_t = 0.0)]
    pub mixup: f64,
    /// Decides the first weights of the classifier, the order of pictures, all crops and what is dropped.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// A backbone with a classifier, and their optimiser.
#[derive(Debug)]
pub struct Classifier {
    /// The backbone.
    pub backbone: Vit,
    /// `classifier.weight` `[classes, D]` and `classifier.bias` `[classes]`.
    pub head: Group,
    /// Holds the moments.
    pub optimizer: Optimizer,
}

impl Trained for Classifier {
    fn backbone(&self) -> &Vit {
        &self.backbone
    }

    fn head(&self) -> &Group {
        &self.head
    }

    fn optimizer(&mut self) -> &mut Optimizer {
        &mut self.optimizer
    }
}

impl Classifier {
    /// A fresh classifier on a backbone.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(backbone: Vit, classes: usize, random: &mut impl Random, device: &Device) -> Result<Self> {
        let dim = backbone.config().dim;
        let parameters = vec![
            ("classifier.weight".to_owned(), vec![classes, dim], Init::Normal(0.02)),
            ("classifier.bias".to_owned(), vec![classes], Init::Constant(0.0)),
        ];
        Ok(Self { backbone, head: Group::new(parameters, random, device)?, optimizer: Optimizer::default() })
    }

    /// Weights `[classes, D]` and biases `[classes]`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn weights(&self) -> Result<(Array2<f32>, Array1<f32>)> {
        let flat = self.head.var().as_detached_tensor().to_device(&Device::Cpu)?.to_vec1::<f32>()?;
        let shape = &self.head.entries()[0].shape;
        let (weight, bias) = flat.split_at(shape[0] * shape[1]);
        Ok((Array2::from_shape_vec((shape[0], shape[1]), weight.to_vec()).expect("the layout of the group"), bias.to_vec().into()))
    }

    /// One step on pictures `[n, 3, h, w]` with targets `[n, classes]` whose rows sum to 1. Returns the loss, in nats.
    ///
    /// # Errors
    /// When the loss is not finite, shapes do not fit, or the device fails.
    pub fn step(
        &mut self,
        pictures: &Tensor,
        targets: &Tensor,
        settings: &Settings,
        lr: f64,
        random: &mut dyn Random,
    ) -> anyhow::Result<f64> {
        let features = self.backbone.features(std::slice::from_ref(pictures), &mut Pass::Trained(random, &exchange::alone()))?;
        let flat = self.head.flat(true);
        let logits = features.matmul(&self.head.view(&flat, 0)?.t()?)?.broadcast_add(&self.head.view(&flat, 1)?)?;
        let loss = cross_entropy(&logits, targets)?;
        let gradients = loss.backward()?;
        let mut squares = Squares::of(&self.backbone.groups().iter().chain([&self.head]).collect::<Vec<_>>(), &gradients)?;
        let value = f64::from(squares.fetch(&[loss])?[0][0]);
        anyhow::ensure!(value.is_finite(), "the loss is {value}: lower --lr, or warm it up over more epochs");
        let depth = self.backbone.config().depth;
        let Self { backbone, head, optimizer } = self;
        optimizer.layer_decay = LayerDecay { rate: settings.layer_decay, depth, ..LayerDecay::default() };
        for (index, group) in backbone.groups().iter().chain([&*head]).enumerate() {
            // CLS and positions.
            let weight_decay = if index < 2 { 0.0 } else { settings.weight_decay };
            let settings = optimizer::Settings { lr, weight_decay, clip: 0.0, freeze_last_layer: false };
            optimizer.step_with(&[group], &gradients, &squares, &settings)?;
        }
        Ok(value)
    }
}

/// Mean over the rows of -Σ target · log softmax(logit).
fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let logs = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?;
    (targets * logs)?.sum_all()? * (-1.0 / logits.dim(0)? as f64)
}

/// Targets `[n, classes]`, row by row: the class with what smoothing leaves it, the rest spread over all.
pub fn targets(classes: &[u32], count: usize, smoothing: f64) -> Vec<f32> {
    let rest = (smoothing / count.max(1) as f64) as f32;
    let mut targets = vec![rest; classes.len() * count];
    for (row, &class) in targets.chunks_exact_mut(count.max(1)).zip(classes) {
        row[class as usize] += 1.0 - smoothing as f32;
    }
    targets
}

/// Mixes row i with row n - 1 - i of both, in one share for the batch (Zhang et al. 2018).
pub fn mix(pictures: &mut [f32], targets: &mut [f32], rows: usize, alpha: f64, random: &mut impl rand::Rng) {
    let Ok(beta) = rand_distr::Beta::new(alpha, alpha) else { return };
    let share = beta.sample(random) as f32;
    for values in [pictures, targets] {
        let width = values.len() / rows.max(1);
        for row in 0..rows / 2 {
            let (front, back) = values.split_at_mut((rows - 1 - row) * width);
            for (a, b) in front[row * width..(row + 1) * width].iter_mut().zip(&mut back[..width]) {
                (*a, *b) = (*a * share + *b * (1.0 - share), *b * share + *a * (1.0 - share));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn smoothed_and_mixed_targets_sum_to_one() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(0);
        let mut targets = targets(&[0, 2, 1], 4, 0.1);
        assert!((targets[0] - 0.925).abs() < 1e-6 && (targets[1] - 0.025).abs() < 1e-6);
        let mut pictures = vec![1.0, 1.0, 5.0, 5.0, 3.0, 3.0];
        mix(&mut pictures, &mut targets, 3, 0.8, &mut random);
        assert!((pictures[0] + pictures[4] - 4.0).abs() < 1e-6 && (pictures[2] - 5.0).abs() < 1e-6);
        assert!(targets.chunks(4).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-6));
    }

    #[test]
    fn the_loss_is_the_cross_entropy() {
        let logits = Tensor::new(&[[1.0_f32, 2.0], [0.0, 0.0]], &Device::Cpu).unwrap();
        let targets = Tensor::new(&[[0.0_f32, 1.0], [0.5, 0.5]], &Device::Cpu).unwrap();
        let loss = cross_entropy(&logits, &targets).unwrap().to_scalar::<f32>().unwrap();
        let expected = f32::midpoint((1.0 + (-1.0_f32).exp()).ln(), 2.0_f32.ln());
        assert!((loss - expected).abs() < 1e-6);
    }
}
