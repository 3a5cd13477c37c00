//! How pictures become patch embeddings: one product for each patch, or a few convolutions ahead of it.
//!
//! ```
//! use dino_train::backbone::stem::Stem;
//!
//! assert_eq!(Stem::Conv.channels(16, 384)?, [48, 96, 192, 384]);
//! assert_eq!(Stem::Patch.projection(16, 384), (3, 16));
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{Device, Result, Tensor, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::parameters::{Group, Init, Random};
use crate::kernels::matmul::Precision;
use crate::ops::conv::Convolution;
use crate::ops::gelu::gelu;
use crate::ops::layer_norm::layer_norm;

/// Ways to embed patches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Stem {
    /// one linear layer for each patch, as in the paper
    #[default]
    Patch,
    /// convolutions of 3 x 3 at stride 2, each with layer norm and GELU, then one of 1 x 1: learns from fewer pictures
    Conv,
}

/// Side of the convolutions' windows.
const SIDE: usize = 3;
/// Distance of neighbouring windows.
const STRIDE: usize = 2;

impl Stem {
    /// Channels behind each convolution for patches of `patch_size` pixels and `dim` columns: they double up to `dim`, as the size halves.
    ///
    /// # Errors
    /// When the patch is no power of two, or `dim` cannot be halved as often.
    pub fn channels(self, patch_size: usize, dim: usize) -> Result<Vec<usize>> {
        if self == Self::Patch {
            return Ok(Vec::new());
        }
        let levels = patch_size.trailing_zeros() as usize;
        if patch_size != STRIDE.pow(levels as u32) || levels == 0 {
            bail!("--stem conv halves pictures until a patch is one position: --patch-size {patch_size} is no power of two");
        }
        let first = STRIDE.pow(levels as u32 - 1);
        if !dim.is_multiple_of(first) {
            bail!("--stem conv with --patch-size {patch_size} needs a dimension that is a multiple of {first}, not {dim}");
        }
        Ok((0..levels).map(|level| dim >> (levels - 1 - level)).collect())
    }

    /// Input channels and side of the window of the layer that the patches end in, `patch_embed.proj`.
    pub fn projection(self, patch_size: usize, dim: usize) -> (usize, usize) {
        match self {
            Self::Patch => (3, patch_size),
            Self::Conv => (dim, 1),
        }
    }
}

/// A group for each convolution: weight `[out, in, 3, 3]`, then weight and bias of its norm.
pub(super) fn parameters(channels: &[usize], random: &mut impl Random, device: &Device) -> Result<Vec<Group>> {
    let inputs = std::iter::once(3).chain(channels.iter().copied());
    let level = |(level, (&outputs, inputs)): (usize, (&usize, usize))| {
        let name = |part: &str| format!("backbone.patch_embed.stem.{level}.{part}");
        let bound = Init::Uniform(1.0 / ((inputs * SIDE * SIDE) as f32).sqrt());
        let parameters = vec![
            (name("weight"), vec![outputs, inputs, SIDE, SIDE], bound),
            (name("norm.weight"), vec![outputs], Init::Constant(1.0)),
            (name("norm.bias"), vec![outputs], Init::Constant(0.0)),
        ];
        Group::new(parameters, random, device)
    };
    channels.iter().zip(inputs).enumerate().map(level).collect()
}

/// Pictures `[n, 3, height, width]` through the convolutions of `groups` to positions `[n, height / patch, width / patch, channels]`.
///
/// # Errors
/// When shapes do not fit, or the device fails.
pub(super) fn forward(pictures: &Tensor, groups: &[Group], track: bool, eps: f32, precision: Precision) -> Result<Tensor> {
    let convolution = Convolution { stride: STRIDE, precision };
    groups.iter().try_fold(pictures.permute([0, 2, 3, 1])?, |x, group| {
        let flat = group.flat(track);
        let x = convolution.forward(&x, &group.view(&flat, 0)?)?;
        gelu(&layer_norm(&x, &group.view(&flat, 1)?, &group.view(&flat, 2)?, eps)?)
    })
}
