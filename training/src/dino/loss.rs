//! The DINO loss: the student's views against the teacher's centred and sharpened output (paper, section 3.1, algorithm 1).

use candle_core::{Device, Result, Tensor};

use crate::ops::loss::cross_entropy;

/// The two crops that the teacher sees.
pub const TEACHER_VIEWS: usize = 2;

/// Centre of the teacher's output, and the temperatures that do not change.
#[derive(Clone, Debug)]
pub struct DinoLoss {
    centre: Tensor,
    /// Temperature of the student's softmax.
    pub student_temp: f64,
    /// Momentum of the centre.
    pub center_momentum: f64,
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
        Ok(Self { centre: Tensor::zeros((1, k), candle_core::DType::F32, device)?, student_temp: 0.1, center_momentum: 0.9 })
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
    /// When shapes do not fit, or the device fails.
    pub fn evaluate(&self, student: &Tensor, teacher: &Tensor, teacher_temp: f64) -> Result<Value> {
        let teacher = teacher.detach();
        let logits = (teacher.broadcast_sub(&self.centre)? / teacher_temp)?;
        let logits = logits.broadcast_sub(&logits.max_keepdim(1)?)?;
        let logs = logits.broadcast_sub(&logits.exp()?.sum_keepdim(1)?.log()?)?;
        let targets = logs.exp()?;
        let entropy = ((&targets * logs)?.sum_all()? / -(targets.dim(0)? as f64))?;
        let loss = cross_entropy(student, &targets, TEACHER_VIEWS, self.student_temp)?;
        Ok(Value { loss, teacher_entropy: entropy, targets })
    }

    /// Moves the centre towards the mean of a step's teacher logits, one for each output.
    ///
    /// # Errors
    /// When there are not as many as outputs, or the device fails.
    pub fn move_centre(&mut self, mean: &[f32]) -> Result<()> {
        let mean = Tensor::from_slice(mean, (1, mean.len()), self.centre.device())?;
        self.centre = ((&self.centre * self.center_momentum)? + (mean * (1.0 - self.center_momentum))?)?;
        Ok(())
    }
}
