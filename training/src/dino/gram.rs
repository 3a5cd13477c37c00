//! Gram anchoring (DINOv3, Siméoni et al. 2025): patches stay as similar to each other as they were to an earlier teacher.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use dino_train::dino::gram::{Negatives, gram};
//!
//! // One picture of two patches.
//! let anchor = Tensor::new(&[[[1.0_f32, 0.0], [0.0, 1.0]]], &Device::Cpu)?;
//! let turned = Tensor::new(&[[[0.0_f32, 2.0], [2.0, 0.0]]], &Device::Cpu)?;
//! let merged = Tensor::new(&[[[1.0_f32, 0.0], [1.0, 0.0]]], &Device::Cpu)?;
//! assert_eq!(gram(&turned, &anchor, false, Negatives::Kept)?.to_scalar::<f32>()?, 0.0);
//! assert_eq!(gram(&merged, &anchor, false, Negatives::Kept)?.to_scalar::<f32>()?, 0.5);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{D, Result, Tensor, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::backbone::Backbone;
use crate::backbone::positions::resampling;
use crate::ops::unit_rows::scaled_unit_rows;

/// Least norm that a feature is divided by.
const EPS: f32 = 1e-12;

/// Which similarities are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Negatives {
    /// all as they are
    #[default]
    Kept,
    /// negative ones count as 0, of both
    Removed,
    /// negative ones of the anchor count as 0
    RemovedFromAnchor,
}

/// The term that holds patches to an anchor.
#[derive(Clone, Debug)]
pub struct Gram {
    /// Weight beside DINO's loss.
    pub weight: f64,
    /// What the student's patches are held to; it is not trained.
    pub anchor: Backbone,
    /// Compare the patches of all crops of a batch, not those of each alone.
    pub across: bool,
    /// What becomes of negative similarities.
    pub negatives: Negatives,
    /// The anchor is an earlier teacher of this run, which nothing but the run's checkpoints holds.
    pub is_own: bool,
}

/// Patch features `[pictures, patches, dim]` of student and anchor to the mean squared difference of their cosine similarities, within
/// each picture, or with `across` among the patches of all pictures.
///
/// # Errors
/// When shapes do not fit, or the device fails.
pub fn gram(student: &Tensor, anchor: &Tensor, across: bool, negatives: Negatives) -> Result<Tensor> {
    let (own, mut wanted) = (similarities(student, across)?, similarities(&anchor.detach(), across)?);
    if negatives != Negatives::Kept {
        wanted = wanted.relu()?;
    }
    let own = if negatives == Negatives::Removed { own.relu()? } else { own };
    (own - wanted)?.sqr()?.mean_all()
}

/// Patch features of square pictures, `[pictures, patches, dim]`, resampled to `count` patches each: bicubic without antialiasing, as the
/// public code makes the features of larger pictures comparable.
///
/// # Errors
/// When pictures are not square, or the device fails.
pub fn resampled(features: &Tensor, count: usize) -> Result<Tensor> {
    let (pictures, patches, dim) = features.dims3()?;
    if patches == count {
        return Ok(features.clone());
    }
    let (from, to) = (patches.isqrt(), count.isqrt());
    if from * from != patches || to * to != count {
        bail!("{patches} and {count} patches are not those of square pictures");
    }
    // One product for all pictures.
    let columns = features.transpose(0, 1)?.contiguous()?.reshape((patches, pictures * dim))?;
    let resampled = resampling(from, to, features.device())?.matmul(&columns)?;
    resampled.reshape((count, pictures, dim))?.transpose(0, 1)?.contiguous()
}

fn similarities(features: &Tensor, across: bool) -> Result<Tensor> {
    let (pictures, patches, dim) = features.dims3()?;
    let ones = Tensor::ones((pictures * patches, 1), features.dtype(), features.device())?;
    let unit = scaled_unit_rows(&features.reshape((pictures * patches, dim))?, &ones, EPS)?;
    let unit = if across { unit.unsqueeze(0)? } else { unit.reshape((pictures, patches, dim))? };
    unit.matmul(&unit.transpose(D::Minus2, D::Minus1)?.contiguous()?)
}
