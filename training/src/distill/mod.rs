//! Distillation: a small transformer learns the CLS and patch tokens of a frozen teacher.
//!
//! As AM-RADIO does it with one teacher (Ranzinger et al. 2024, section 3.3): a linear head for CLS and one for patches bring the student's
//! tokens to the teacher's columns; CLS is held by cosine, patches by cosine and smooth L1.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use dino_train::{backbone::vit::{Vit, VitConfig}, data::loader::generator, distill::{Settings, Student}, finetune::Schedule};
//!
//! let mut random = generator(0, 0, 0, 0);
//! let config = VitConfig { img_size: 32, patch_size: 16, dim: 16, depth: 1, heads: 2, ..VitConfig::default() };
//! let mut student = Student::new(Vit::new(config, &mut random, &Device::Cpu)?, 24, &mut random, &Device::Cpu)?;
//!
//! let schedule = Schedule { epochs: 1, batch_size: 2, lr: 1e-3, min_lr: 1e-6, warmup_epochs: 0 };
//! let settings = Settings {
//!     schedule, weight_decay: 0.02, clip_grad: 3.0, patch_loss_weight: 1.0, smooth_l1_share: 0.1, crop_scale: 0.2,
//!     local_crops_number: 0, local_crops_size: 16, local_crops_scale: vec![0.05, 0.4], seed: 0,
//! };
//! // What a teacher of 24 columns makes of two pictures of four patches.
//! let random_tensor = |shape: &[usize]| Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu);
//! let teacher = (&random_tensor(&[2, 24])?, &random_tensor(&[2, 4, 24])?);
//! let pictures = Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu)?;
//! let means = student.step(&[pictures], teacher, &settings, (0, 10), &mut random)?;
//! assert!(means.loss > 0.0 && means.cls_cosine.abs() <= 1.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use candle_core::{Device, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::backbone::Pass;
use crate::backbone::parameters::{Group, Init, Random};
use crate::backbone::vit::Vit;
use crate::dino::optimizer::{self, Optimizer, Squares};
use crate::exchange;
use crate::finetune::{Schedule, Trained};
use crate::run::recipe::Recipe;

/// Settings of a run; those that have another value in a resumed run are refused.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Settings {
    /// Length and learning rates.
    #[command(flatten)]
    #[serde(flatten)]
    pub schedule: Schedule,
    /// Weight decay of all but biases and norms.
    #[arg(long, value_parser = dino_program::flags::from_zero::<f64>, default_value_t = 0.02)]
    pub weight_decay: f64,
    /// Largest norm of each parameter's gradient, 0 for none.
    #[arg(long, value_parser = dino_program::flags::from_zero::<f64>, default_value_t = 3.0)]
    pub clip_grad: f64,
    /// Weight of the loss of patches beside that of CLS, 0 for none.
    #[arg(long, value_parser = dino_program::flags::from_zero::<f64>, default_value_t = 1.0)]
    pub patch_loss_weight: f64,
    /// Share of smooth L1 in the loss of patches; the rest is their cosine.
    #[arg(long, value_parser = dino_program::flags::share::<f64>, default_value_t = 0.1)]
    pub smooth_l1_share: f64,
    /// Least share of a picture's area that a crop covers.
    #[arg(long, value_parser = dino_program::flags::part::<f64>, default_value_t = 0.2)]
    pub crop_scale: f64,
    /// Small crops out of each crop, which the student alone sees, and of which it has to give the teacher's CLS of the whole crop.
    #[arg(long, value_parser = dino_program::flags::up_to(64), default_value_t = 0)]
    #[serde(default)]
    pub local_crops_number: usize,
    /// Their side in pixels, a multiple of the student's patches.
    #[arg(long, value_parser = dino_program::flags::one_to(4096), default_value_t = local_crops_size())]
    #[serde(default = "local_crops_size")]
    pub local_crops_size: usize,
    /// Share of the crop's area that each of them covers.
    #[arg(long, value_parser = dino_program::flags::part::<f64>, num_args = 2, value_names = ["LOW", "HIGH"], default_values_t = local_crops_scale())]
    #[serde(default = "local_crops_scale")]
    pub local_crops_scale: Vec<f64>,
    /// Decides the first weights, the order of pictures and all crops.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl Settings {
    /// Refuses local crops that a student with patches of `patch_size` pixels cannot see.
    ///
    /// # Errors
    /// When a value does not fit.
    pub fn check_local_crops(&self, patch_size: usize) -> anyhow::Result<()> {
        let (side, scale) = (self.local_crops_size, &self.local_crops_scale);
        anyhow::ensure!(
            self.local_crops_number == 0 || side.is_multiple_of(patch_size),
            "--local-crops-size {side} is no multiple of --patch-size {patch_size}"
        );
        anyhow::ensure!(matches!(scale[..], [low, high] if low <= high), "--local-crops-scale takes two numbers, the lower first");
        Ok(())
    }
}

/// As in training without a teacher.
fn local_crops_size() -> usize {
    Recipe::default().local_crops_size
}

fn local_crops_scale() -> Vec<f64> {
    Recipe::default().local_crops_scale
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Its settings.
    pub settings: Settings,
    /// Epochs that are done.
    pub epochs_done: usize,
    /// Fingerprint of the teacher.
    pub teacher: String,
    /// SHA-256 over the names of the pictures.
    pub pictures: String,
    /// The student, and the crops that it sees.
    pub student: Recipe,
}

/// Means over the pictures of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Means {
    /// What is made small.
    pub loss: f64,
    /// Cosine between the student's CLS, brought to the teacher's columns, and the teacher's.
    pub cls_cosine: f64,
    /// The same of local crops, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_cosine: Option<f64>,
    /// The same of patches.
    pub patch_cosine: f64,
}

impl Means {
    /// Adds `others` times `weight`.
    pub fn add(&mut self, others: &Self, weight: f64) {
        self.loss += others.loss * weight;
        self.cls_cosine += others.cls_cosine * weight;
        self.patch_cosine += others.patch_cosine * weight;
        if let Some(cosine) = others.local_cosine {
            *self.local_cosine.get_or_insert_default() += cosine * weight;
        }
    }
}

/// A student with its heads, and their optimiser.
#[derive(Debug)]
pub struct Student {
    backbone: Vit,
    /// `cls.weight` `[teacher, D]`, `cls.bias`, `patch.weight` and `patch.bias`.
    head: Group,
    optimizer: Optimizer,
}

/// Names of the heads, in the order of their parameters.
const HEADS: [&str; 2] = ["cls", "patch"];
/// Added to squared norms.
const EPS: f64 = 1e-12;

impl Student {
    /// Fresh heads on a backbone, for a teacher of `teacher` columns.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(backbone: Vit, teacher: usize, random: &mut impl Random, device: &Device) -> Result<Self> {
        let dim = backbone.config().dim;
        let parameters = HEADS.into_iter().flat_map(|name| {
            [
                (format!("distill_head.{name}.weight"), vec![teacher, dim], Init::Normal(0.02)),
                (format!("distill_head.{name}.bias"), vec![teacher], Init::Constant(0.0)),
            ]
        });
        Ok(Self { head: Group::new(parameters.collect(), random, device)?, backbone, optimizer: Optimizer::default() })
    }

    /// One step after the teacher's CLS `[n, T]` and patches `[n, patches, T]` of crops `[n, 3, h, w]`, the first of `crops`. A second are
    /// local ones, `[m n, 3, s, s]`, those of picture i at i, n + i, 2 n + i and so on.
    ///
    /// # Errors
    /// When the loss is not finite, shapes do not fit, or the device fails.
    pub fn step(
        &mut self,
        crops: &[Tensor],
        (cls, patches): (&Tensor, &Tensor),
        settings: &Settings,
        (step, steps_per_epoch): (usize, usize),
        random: &mut dyn Random,
    ) -> anyhow::Result<Means> {
        let (n, per_picture, columns) = patches.dims3()?;
        let pass = &mut Pass::Trained(random, &exchange::alone());
        let (tokens, _) = self.backbone.tokens_of_first(crops, None, pass)?;
        let (dim, prefix) = (self.backbone.config().dim, 1 + self.backbone.config().registers);
        let rows = n * (prefix + per_picture);
        let locals = crops.get(1).map(|crops| tokens.narrow(0, rows, crops.dim(0)?)).transpose()?;
        let tokens = tokens.narrow(0, 0, rows)?.reshape((n, prefix + per_picture, dim))?;
        let flat = self.head.flat(true);
        let head = |rows: &Tensor, number: usize| -> Result<Tensor> {
            let (weight, bias) = (self.head.view(&flat, 2 * number)?, self.head.view(&flat, 2 * number + 1)?);
            rows.matmul(&weight.t()?)?.broadcast_add(&bias)
        };
        let seen_cls = head(&first(&tokens)?, 0)?;
        let seen_patches = head(&tokens.narrow(1, prefix, per_picture)?.reshape((n * per_picture, dim))?, 1)?;
        let patches = patches.reshape((n * per_picture, columns))?;
        let (cls_cosine, patch_cosine) = (cosine(&seen_cls, cls)?, cosine(&seen_patches, &patches)?);
        let smooth = smooth_l1(&seen_patches, &patches)?;
        let share = settings.smooth_l1_share;
        let of_patches = (((1.0 - &patch_cosine)? * (1.0 - share))? + (smooth * share)?)?;
        let mut of_cls = (1.0 - &cls_cosine)?;
        let mut figures = vec![cls_cosine, patch_cosine];
        if let Some(locals) = locals {
            let seen = head(&locals, 0)?;
            let number = seen.dim(0)? / n;
            let cosine = cosine(&seen, &cls.repeat((number, 1))?)?;
            // The mean over all crops, whatever their size.
            of_cls = ((of_cls + ((1.0 - &cosine)? * number as f64)?)? / (1 + number) as f64)?;
            figures.push(cosine);
        }
        let loss = (of_cls + (of_patches * settings.patch_loss_weight)?)?;
        let gradients = loss.backward()?;
        let groups: Vec<&Group> = self.backbone.groups().iter().chain([&self.head]).collect();
        let mut squares = Squares::of(&groups, &gradients)?;
        figures.push(loss);
        let fetched = squares.fetch(&figures)?;
        let mean = |i: usize| f64::from(fetched[i][0]);
        let last = figures.len() - 1;
        let local_cosine = (last == 3).then(|| mean(2));
        let means = Means { loss: mean(last), cls_cosine: mean(0), patch_cosine: mean(1), local_cosine };
        anyhow::ensure!(means.loss.is_finite(), "the loss is {}: lower --lr, or warm it up over more epochs", means.loss);
        let lr = settings.schedule.lr_at(step, steps_per_epoch);
        let Settings { weight_decay, clip_grad: clip, .. } = *settings;
        let settings = optimizer::Settings { lr, weight_decay, clip, freeze_last_layer: false };
        self.optimizer.step_with(&groups, &gradients, &squares, &settings)?;
        Ok(means)
    }
}

impl Trained for Student {
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

/// The first token of each picture, of tokens `[n, t, dim]`.
fn first(tokens: &Tensor) -> Result<Tensor> {
    tokens.narrow(1, 0, 1)?.squeeze(1)?.contiguous()
}

/// Mean cosine between the rows of two matrices.
fn cosine(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let squares = |x: &Tensor| x.sqr()?.sum(1)? + EPS;
    ((a * b)?.sum(1)? / (squares(a)? * squares(b)?)?.sqrt()?)?.mean_all()
}

/// Mean of d² / 2 where |d| < 1, else |d| - 1/2, over all differences d.
fn smooth_l1(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let distance = (a - b)?.abs()?;
    let near = distance.minimum(1.0)?;
    (((near.sqr()? * 0.5)? + distance)? - near)?.mean_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_those_of_their_formulas() {
        let matrix = |rows: &[[f32; 2]]| Tensor::new(rows.as_flattened(), &Device::Cpu).unwrap().reshape((rows.len(), 2)).unwrap();
        let value = |tensor: Tensor| tensor.to_scalar::<f32>().unwrap();
        let (a, b) = (matrix(&[[1.0, 0.0], [3.0, 4.0]]), matrix(&[[1.0, 1.0], [3.0, 4.0]]));
        assert!((value(cosine(&a, &b).unwrap()) - f32::midpoint(0.5_f32.sqrt(), 1.0)).abs() < 1e-6);
        let (a, b) = (matrix(&[[0.0, 0.0]]), matrix(&[[0.5, -3.0]]));
        assert!((value(smooth_l1(&a, &b).unwrap()) - f32::midpoint(0.125, 2.5)).abs() < 1e-6);
    }
}
