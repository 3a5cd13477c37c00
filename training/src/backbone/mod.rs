//! Backbones: pictures to features.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use dino_train::backbone::{Backbone, Pass, vit::VitConfig};
//! use dino_train::data::loader::generator;
//!
//! let config = VitConfig { img_size: 32, patch_size: 8, dim: 16, depth: 2, heads: 2, ..VitConfig::default() };
//! let backbone = Backbone::new(config.into(), &mut generator(0, 0, 0, 0), &Device::Cpu)?;
//! let crops = [(2, 32), (5, 16)].map(|(crops, side)| Tensor::zeros((crops, 3, side, side), DType::F32, &Device::Cpu));
//! let [large, small] = crops;
//! assert_eq!(backbone.features(&[large?, small?], &mut Pass::Frozen)?.dims(), [7, 16]);
//! # Ok::<(), candle_core::Error>(())
//! ```

pub(crate) mod batch_norm;
pub mod convnext;
mod lora;
pub mod parameters;
pub mod positions;
pub mod resnet;
pub mod stem;
pub mod vit;

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};

use self::convnext::{Convnext, ConvnextConfig};
use self::parameters::{Group, Random};
use self::resnet::{Resnet, ResnetConfig};
use self::vit::{Vit, VitConfig};
use crate::exchange::Exchange;

/// What a forward pass is for.
pub enum Pass<'a> {
    /// Evaluation: constants, and norms by their running statistics.
    Frozen,
    /// The teacher: constants, and batch norms by the statistics of the batch of these processes, which move the running ones.
    Teacher(&'a Arc<dyn Exchange>),
    /// The student: variables, batch norms as the teacher's, with stochastic depth drawn from this source.
    Trained(&'a mut dyn Random, &'a Arc<dyn Exchange>),
}

impl Pass<'_> {
    /// True where gradients are wanted.
    pub fn tracks(&self) -> bool {
        matches!(self, Self::Trained(..))
    }

    /// The processes whose batch the batch norms use, if they use it.
    pub fn exchange(&self) -> Option<&Arc<dyn Exchange>> {
        match self {
            Self::Frozen => None,
            Self::Teacher(exchange) | Self::Trained(_, exchange) => Some(exchange),
        }
    }

    /// Stochastic depth: the factors of a branch of `count` pictures, 0 or 1/keep, where branches are dropped at a rate above 0.
    pub(crate) fn drop_path(&mut self, rate: f64, count: usize) -> Option<Vec<f32>> {
        match self {
            Self::Trained(random, _) if rate > 0.0 => {
                let keep = 1.0 - rate as f32;
                Some((0..count).map(|_| if random.uniform() * 0.5 + 0.5 < keep { 1.0 / keep } else { 0.0 }).collect())
            }
            _ => None,
        }
    }
}

/// Sizes of a backbone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BackboneConfig {
    /// A vision transformer.
    Vit(VitConfig),
    /// A residual network.
    Resnet(ResnetConfig),
    /// A convolutional network of transformer-like blocks.
    Convnext(ConvnextConfig),
}

impl From<VitConfig> for BackboneConfig {
    fn from(config: VitConfig) -> Self {
        Self::Vit(config)
    }
}

impl From<ResnetConfig> for BackboneConfig {
    fn from(config: ResnetConfig) -> Self {
        Self::Resnet(config)
    }
}

impl From<ConvnextConfig> for BackboneConfig {
    fn from(config: ConvnextConfig) -> Self {
        Self::Convnext(config)
    }
}

impl BackboneConfig {
    /// Dimension of the features.
    pub fn dim(&self) -> usize {
        match self {
            Self::Vit(config) => config.dim,
            Self::Resnet(config) => config.dim(),
            Self::Convnext(config) => config.dim(),
        }
    }

    /// Number of blocks, or of residual units.
    pub fn depth(&self) -> usize {
        match self {
            Self::Vit(config) => config.depth,
            Self::Resnet(config) => config.depth(),
            Self::Convnext(config) => config.depth(),
        }
    }
}

/// A backbone and its parameters.
#[derive(Clone, Debug)]
pub enum Backbone {
    /// A vision transformer.
    Vit(Vit),
    /// A residual network.
    Resnet(Resnet),
    /// A convolutional network of transformer-like blocks.
    Convnext(Convnext),
}

impl Backbone {
    /// Fresh parameters, as the public code draws them.
    ///
    /// # Errors
    /// When sizes do not fit each other, or the device fails.
    pub fn new(config: BackboneConfig, random: &mut impl Random, device: &Device) -> Result<Self> {
        Ok(match config {
            BackboneConfig::Vit(config) => Self::Vit(Vit::new(config, random, device)?),
            BackboneConfig::Resnet(config) => Self::Resnet(Resnet::new(config, random, device)?),
            BackboneConfig::Convnext(config) => Self::Convnext(Convnext::new(config, random, device)?),
        })
    }

    /// Sizes.
    pub fn config(&self) -> BackboneConfig {
        match self {
            Self::Vit(vit) => BackboneConfig::Vit(*vit.config()),
            Self::Resnet(resnet) => BackboneConfig::Resnet(*resnet.config()),
            Self::Convnext(convnext) => BackboneConfig::Convnext(*convnext.config()),
        }
    }

    /// The vision transformer, where it is one.
    pub fn vit(&self) -> Option<&Vit> {
        match self {
            Self::Vit(vit) => Some(vit),
            Self::Resnet(_) | Self::Convnext(_) => None,
        }
    }

    /// Whose blocks keep their inputs alone for the backward pass, and compute the rest again there. A convolutional network as it is.
    #[must_use]
    pub fn with_activation_checkpointing(self) -> Self {
        match self {
            Self::Vit(vit) => Self::Vit(vit.with_activation_checkpointing()),
            Self::Resnet(_) | Self::Convnext(_) => self,
        }
    }

    /// All parameters.
    pub fn groups(&self) -> &[Group] {
        match self {
            Self::Vit(vit) => vit.groups(),
            Self::Resnet(resnet) => resnet.groups(),
            Self::Convnext(convnext) => convnext.groups(),
        }
    }

    /// Low-rank adapters, where there are some: they are trained, and [`Backbone::groups`] stay as they are but for the mask token.
    pub fn adapters(&self) -> &[Group] {
        match self {
            Self::Vit(vit) => vit.adapters(),
            Self::Resnet(_) | Self::Convnext(_) => &[],
        }
    }

    /// The value of each of [`Backbone::groups`] as the backbone computes with it, adapters merged.
    ///
    /// # Errors
    /// When the device fails.
    pub fn merged(&self) -> Result<Vec<Tensor>> {
        match self {
            Self::Vit(vit) => vit.merged(),
            Self::Resnet(_) | Self::Convnext(_) => Ok(self.groups().iter().map(|group| group.flat(false)).collect()),
        }
    }

    /// With fresh low-rank adapters.
    ///
    /// # Errors
    /// When it is no transformer, or the device fails.
    pub fn with_adapters(self, rank: usize, random: &mut impl Random, device: &Device) -> Result<Self> {
        match self {
            Self::Vit(vit) => Ok(Self::Vit(vit.with_adapters(rank, random, device)?)),
            Self::Resnet(_) | Self::Convnext(_) => bail!("a convolutional network has no low-rank adapters"),
        }
    }

    /// Without adapters, as if there had never been any.
    #[must_use]
    pub fn without_adapters(self) -> Self {
        match self {
            Self::Vit(vit) => Self::Vit(vit.without_adapters()),
            Self::Resnet(_) | Self::Convnext(_) => self,
        }
    }

    /// Running statistics of batch norms: stored, not trained.
    pub fn buffers(&self) -> &[Group] {
        match self {
            Self::Vit(_) | Self::Convnext(_) => &[],
            Self::Resnet(resnet) => resnet.buffers(),
        }
    }

    /// The same values in variables of their own.
    ///
    /// # Errors
    /// When the device fails.
    pub fn duplicate(&self) -> Result<Self> {
        Ok(match self {
            Self::Vit(vit) => Self::Vit(vit.duplicate()?),
            Self::Resnet(resnet) => Self::Resnet(resnet.duplicate()?),
            Self::Convnext(convnext) => Self::Convnext(convnext.duplicate()?),
        })
    }

    /// Crops of any sizes, each `[n, 3, height, width]`, to features `[Σ n, dim]`, crop by crop.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn features(&self, crops: &[Tensor], pass: &mut Pass<'_>) -> Result<Tensor> {
        match self {
            Self::Vit(vit) => vit.features(crops, pass),
            Self::Resnet(resnet) => resnet.features(crops, pass),
            Self::Convnext(convnext) => convnext.features(crops, pass),
        }
    }

    /// Crop and patch of every patch of crops `[n, 3, height, width]`.
    ///
    /// # Errors
    /// When the backbone has no patches, or shapes do not fit.
    pub fn places(&self, crops: &Tensor) -> Result<Vec<(usize, usize)>> {
        let Self::Vit(vit) = self else { bail!("a convolutional network has no patches") };
        let patches = vit.patches_of(crops)?;
        Ok((0..crops.dim(0)?).flat_map(|crop| (0..patches).map(move |patch| (crop, patch))).collect())
    }

    /// [`Backbone::features`], and those of some patches of the first crops: rows `[places, dim]` for places of crop and patch. Patches of
    /// the first crops are replaced where `masks` `[n, patches]` is 1.
    ///
    /// # Errors
    /// When the backbone has no patches or no mask token, shapes do not fit, or the device fails.
    pub fn features_at(
        &self,
        crops: &[Tensor],
        masks: Option<&Tensor>,
        places: &[(usize, usize)],
        pass: &mut Pass<'_>,
    ) -> Result<(Tensor, Tensor)> {
        if masks.is_none() && places.is_empty() {
            let features = self.features(crops, pass)?;
            let none = Tensor::zeros((0, features.dim(1)?), features.dtype(), features.device())?;
            return Ok((features, none));
        }
        let Self::Vit(vit) = self else { bail!("a convolutional network has no patches to mask") };
        let (tokens, cls) = vit.tokens_of_first(crops, masks, pass)?;
        let rows = |rows: Vec<u32>| match rows.len() {
            0 => Tensor::zeros((0, vit.config().dim), tokens.dtype(), tokens.device()),
            count => tokens.index_select(&Tensor::from_vec(rows, count, tokens.device())?, 0),
        };
        let first = 1 + vit.config().registers;
        let per_crop = crops.first().map_or(Ok(0), |crops| vit.patches_of(crops))? + first;
        let patches = places.iter().map(|(crop, patch)| (crop * per_crop + first + patch) as u32);
        Ok((rows(cls)?, rows(patches.collect())?))
    }
}
