//! The DINO loss: the student's views against the teacher's centred and sharpened output (paper, section 3.1, algorithm 1).
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use dino_train::{dino::loss::DinoLoss, exchange::alone};
//!
//! // Two views of one picture; four outputs, which are all the same.
//! let logits = Tensor::zeros((2, 4), DType::F32, &Device::Cpu)?;
//! let value = DinoLoss::new(4, &Device::Cpu)?.evaluate(&logits, &logits, 0.04, &alone())?;
//! assert!((value.loss.to_scalar::<f32>()? - 4_f32.ln()).abs() < 1e-6);
//! assert!((value.teacher_entropy.to_scalar::<f32>()? - 4_f32.ln()).abs() < 1e-6);
//! # Ok::<(), candle_core::Error>(())
//! ```

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::sinkhorn::{self, Queue};
use crate::exchange::Exchange;
use crate::ops::loss::Held;

/// The two crops that the teacher sees.
pub const TEACHER_VIEWS: usize = 2;

/// How the teacher is kept from giving every picture the same output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Centering {
    /// a moving mean of its output is taken away, as in DINO
    #[default]
    Centering,
    /// its outputs are balanced over the batch, as in SwAV and DINOv2
    SinkhornKnopp,
}

/// Centre of the teacher's output, and the temperatures that do not change.
#[derive(Clone, Debug)]
pub struct DinoLoss {
    centre: Tensor,
    /// Temperature of the student's softmax.
    pub student_temp: f64,
    /// Momentum of the centre.
    pub center_momentum: f64,
    /// Whether there is a centre, or outputs are balanced over the batch.
    pub centering: Centering,
    /// Earlier outputs that count in the balance.
    pub queue: Queue,
}

/// One evaluation of the loss.
pub struct Value {
    /// Mean cross-entropy over pairs and pictures, a scalar in the graph.
    pub loss: Tensor,
    /// Mean entropy of the teacher's distribution, in nats, a scalar: near 0 or near ln K is a collapse.
    pub teacher_entropy: Tensor,
    /// The teacher's distributions `[2 * pictures, k]`.
    pub targets: Tensor,
}

impl DinoLoss {
    /// A centre of zeros over `k` outputs.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(k: usize, device: &Device) -> Result<Self> {
        let centre = Tensor::zeros((1, k), candle_core::DType::F32, device)?;
        Ok(Self { centre, student_temp: 0.1, center_momentum: 0.9, centering: Centering::default(), queue: Queue::default() })
    }

    /// The centre, `[1, k]`.
    pub fn centre(&self) -> &Tensor {
        &self.centre
    }

    /// Replaces the centre, `[1, k]`.
    pub fn set_centre(&mut self, centre: Tensor) {
        self.centre = centre;
    }

    /// Student logits `[views * pictures, k]` and teacher logits `[2 * pictures, k]`, view by view, to the loss.
    ///
    /// # Errors
    /// When shapes do not fit, another process is lost, or the device fails.
    pub fn evaluate(&self, student: &Tensor, teacher: &Tensor, teacher_temp: f64, exchange: &Arc<dyn Exchange>) -> Result<Value> {
        let (targets, teacher_entropy) = self.judged(teacher, teacher_temp, exchange)?;
        Ok(Value { loss: self.held(&targets).cross_entropy(student)?, teacher_entropy, targets })
    }

    /// The teacher's logits `[2 * pictures, k]` to its distributions, and their mean entropy.
    pub(super) fn judged(&self, teacher: &Tensor, teacher_temp: f64, exchange: &Arc<dyn Exchange>) -> Result<(Tensor, Tensor)> {
        let (targets, logs) = if self.centering == Centering::SinkhornKnopp {
            let targets = self.targets(teacher, teacher_temp, exchange)?;
            let logs = targets.maximum(f64::from(f32::MIN_POSITIVE))?.log()?;
            (targets, logs)
        } else {
            let logs = self.centred(teacher, teacher_temp)?;
            (logs.exp()?, logs)
        };
        let entropy = ((&targets * logs)?.sum_all()? / -(targets.dim(0)? as f64))?;
        Ok((targets, entropy))
    }

    /// What the student's views are held against.
    pub(super) fn held<'a>(&self, targets: &'a Tensor) -> Held<'a> {
        Held::views(targets, TEACHER_VIEWS, self.student_temp)
    }

    /// The teacher's logits `[rows, k]` to its distributions.
    pub(super) fn targets(&self, teacher: &Tensor, teacher_temp: f64, exchange: &Arc<dyn Exchange>) -> Result<Tensor> {
        if self.centering == Centering::SinkhornKnopp {
            return sinkhorn::assign(teacher, &self.queue, teacher_temp, exchange);
        }
        // A process may have no masked patches.
        if teacher.dim(0)? == 0 {
            return Ok(teacher.clone());
        }
        self.centred(teacher, teacher_temp)?.exp()
    }

    /// Logarithms of the distributions that the centre gives.
    fn centred(&self, teacher: &Tensor, teacher_temp: f64) -> Result<Tensor> {
        let logits = (teacher.detach().broadcast_sub(&self.centre)? / teacher_temp)?;
        let logits = logits.broadcast_sub(&logits.max_keepdim(1)?)?;
        logits.broadcast_sub(&logits.exp()?.sum_keepdim(1)?.log()?)
    }

    /// Moves the centre towards the mean of a step's teacher logits, one for each output; without a centre, nothing changes.
    ///
    /// # Errors
    /// When there are not as many as outputs, or the device fails.
    pub fn move_centre(&mut self, mean: &[f32]) -> Result<()> {
        if self.centering == Centering::SinkhornKnopp {
            return Ok(());
        }
        let mean = Tensor::from_slice(mean, (1, mean.len()), self.centre.device())?;
        self.centre = ((&self.centre * self.center_momentum)? + (mean * (1.0 - self.center_momentum))?)?;
        Ok(())
    }
}
