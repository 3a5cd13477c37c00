//! iBOT's loss (Zhou et al. 2022): what the teacher says of patches that the student does not see.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use dino_train::dino::{ibot::Ibot, masks::Masks};
//! use dino_train::exchange::alone;
//!
//! // One crop of two patches, of which the first is masked; four outputs, which are all the same.
//! let masks = Masks::new(&[vec![true, false]], &Device::Cpu)?;
//! let (logits, ibot) = (Tensor::zeros((1, 4), DType::F32, &Device::Cpu)?, Ibot::new(1.0, 4, &Device::Cpu)?);
//! let loss = ibot.held(&ibot.targets(&logits, 0.04, &alone())?, &masks).cross_entropy(&logits)?;
//! assert!((loss.to_scalar::<f32>()? - 4_f32.ln()).abs() < 1e-6);
//! # Ok::<(), candle_core::Error>(())
//! ```

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::loss::DinoLoss;
use super::masks::Masks;
use crate::exchange::Exchange;
use crate::ops::loss::Held;

/// The loss of masked patches, beside that of whole pictures.
#[derive(Clone, Debug)]
pub struct Ibot {
    /// Weight beside DINO's loss.
    pub weight: f64,
    /// Temperatures, and the centre of the teacher's output for patches.
    pub patches: DinoLoss,
}

impl Ibot {
    /// A centre of zeros over `k` outputs.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(weight: f64, k: usize, device: &Device) -> Result<Self> {
        Ok(Self { weight, patches: DinoLoss::new(k, device)? })
    }

    /// The teacher's logits of the masked patches, `[masked, k]`, to its distributions.
    ///
    /// # Errors
    /// When another process is lost, or the device fails.
    pub fn targets(&self, teacher: &Tensor, teacher_temp: f64, exchange: &Arc<dyn Exchange>) -> Result<Tensor> {
        self.patches.targets(teacher, teacher_temp, exchange)
    }

    /// What the student's logits of the masked patches are held against: the mean over global crops of the mean cross-entropy over a crop's
    /// masked patches, without the loss's weight.
    pub fn held<'a>(&self, targets: &'a Tensor, masks: &'a Masks) -> Held<'a> {
        Held::rows(targets, &masks.weights, self.patches.student_temp)
    }
}
