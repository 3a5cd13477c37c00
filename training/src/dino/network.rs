//! A backbone with its projection head: what the student and the teacher each are.
//!
//! ```
//! use candle_core::Device;
//! use dino_train::dino::{head::HeadConfig, network::Network};
//! use dino_train::{backbone::vit::VitConfig, data::loader::generator, kernels::matmul::Precision};
//!
//! let vit = VitConfig { img_size: 32, patch_size: 16, dim: 16, depth: 1, heads: 2, ..VitConfig::default() };
//! let precision = Precision::F32;
//! let head = HeadConfig { dim: 16, hidden: 32, bottleneck: 8, out: Some(64), batch_norm: false, norm_last_layer: true, precision };
//! let network = Network::new(vit, head, &mut generator(0, 0, 0, 0), &Device::Cpu)?;
//! assert!(network.entries().any(|(_, entry)| entry.name == "backbone.cls_token" && entry.shape == [1, 1, 16]));
//! assert!(network.entries().any(|(_, entry)| entry.name == "head.mlp.0.weight" && entry.shape == [32, 16]));
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{Device, Result, Tensor};

use crate::backbone::parameters::{Entry, Group, Random};
use crate::backbone::{Backbone, BackboneConfig, Pass};
use crate::dino::head::{Head, HeadConfig};

/// Backbone and projection head.
#[derive(Clone, Debug)]
pub struct Network {
    /// Pictures to features.
    pub backbone: Backbone,
    /// Features to logits.
    pub head: Head,
    /// Features of patches to logits, where they have a head of their own.
    pub ibot_head: Option<Head>,
}

/// What a network says of crops and of patches.
#[derive(Clone, Debug)]
pub struct Logits {
    /// Of crops, `[rows, out]`.
    pub crops: Tensor,
    /// Of patches, `[rows, out]`.
    pub patches: Tensor,
    /// The two in one tensor, patches behind crops, where one call of a head gave them: gradients flow through it at less cost.
    pub both: Option<Tensor>,
}

/// Whether a group holds the linear layers of a transformer block.
fn is_block(group: &Group) -> bool {
    group.entries().iter().any(|entry| entry.name.ends_with("attn.qkv.weight"))
}

impl Network {
    /// Fresh parameters.
    ///
    /// # Errors
    /// When sizes do not fit each other, or the device fails.
    pub fn new(backbone: impl Into<BackboneConfig>, head: HeadConfig, random: &mut impl Random, device: &Device) -> Result<Self> {
        Ok(Self { backbone: Backbone::new(backbone.into(), random, device)?, head: Head::new(head, random, device)?, ibot_head: None })
    }

    /// With a head for patches.
    ///
    /// # Errors
    /// When the device fails.
    pub fn with_ibot_head(self, head: HeadConfig, random: &mut impl Random, device: &Device) -> Result<Self> {
        Ok(Self { ibot_head: Some(Head::named("ibot_head", head, random, device)?), ..self })
    }

    /// With fresh low-rank adapters of the backbone.
    ///
    /// # Errors
    /// When the backbone is no transformer, or the device fails.
    pub fn with_adapters(self, rank: usize, random: &mut impl Random, device: &Device) -> Result<Self> {
        Ok(Self { backbone: self.backbone.with_adapters(rank, random, device)?, ..self })
    }

    /// What is trained: without adapters all groups, with adapters those that have a gradient.
    pub fn trained(&self) -> impl Iterator<Item = &Group> {
        self.groups().chain(self.backbone.adapters())
    }

    /// Of a network with adapters: the groups that [`Network::merged`] changes, and the adapters.
    pub fn own_groups(&self) -> impl Iterator<Item = &Group> {
        let adapters = self.backbone.adapters();
        let blocks = self.backbone.groups().iter().filter(|group| !adapters.is_empty() && is_block(group));
        blocks.chain(adapters)
    }

    /// [`Network::merged`], with none for what training does not change: rotary periods, and beside adapters all of the backbone but its
    /// blocks and the mask token.
    ///
    /// # Errors
    /// When the device fails.
    pub fn moving(&self) -> Result<Vec<Option<Tensor>>> {
        let has_adapters = !self.backbone.adapters().is_empty();
        let moves = |group: &Group| {
            let name = group.entries().first().map_or("", |entry| entry.name.as_str());
            let is_constant = name == "backbone.rope_embed.periods";
            !is_constant && (!has_adapters || !name.starts_with("backbone.") || is_block(group) || name == "backbone.mask_token")
        };
        Ok(self.groups().zip(self.merged()?).map(|(group, value)| moves(group).then_some(value)).collect())
    }

    /// The value of each of [`Network::groups`] as the network computes with it, adapters merged.
    ///
    /// # Errors
    /// When the device fails.
    pub fn merged(&self) -> Result<Vec<Tensor>> {
        let mut values = self.backbone.merged()?;
        values.extend(self.heads().flat_map(Head::groups).map(|group| group.flat(false)));
        Ok(values)
    }

    /// The same values in variables of their own.
    ///
    /// # Errors
    /// When the device fails.
    pub fn duplicate(&self) -> Result<Self> {
        let ibot_head = self.ibot_head.as_ref().map(Head::duplicate).transpose()?;
        Ok(Self { backbone: self.backbone.duplicate()?, head: self.head.duplicate()?, ibot_head })
    }

    /// Features of crops and of patches, `[rows, dim]` each, to logits. A head that both share is called once.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn logits(&self, crops: &Tensor, patches: &Tensor, pass: &Pass<'_>) -> Result<Logits> {
        let (rows, rows_of_patches) = (crops.dim(0)?, patches.dim(0)?);
        let head = self.patch_head();
        if rows_of_patches == 0 {
            let none = Tensor::zeros((0, head.config().columns()), patches.dtype(), patches.device())?;
            return Ok(Logits { crops: self.head.forward(crops, pass)?, patches: none, both: None });
        }
        if self.ibot_head.is_some() {
            return Ok(Logits { crops: self.head.forward(crops, pass)?, patches: head.forward(patches, pass)?, both: None });
        }
        let both = self.head.forward(&Tensor::cat(&[crops, patches], 0)?, pass)?;
        Ok(Logits { crops: both.narrow(0, 0, rows)?, patches: both.narrow(0, rows, rows_of_patches)?, both: Some(both) })
    }

    /// The head for patches.
    pub fn patch_head(&self) -> &Head {
        self.ibot_head.as_ref().unwrap_or(&self.head)
    }

    fn heads(&self) -> impl Iterator<Item = &Head> {
        std::iter::once(&self.head).chain(&self.ibot_head)
    }

    /// All parameter groups.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.backbone.groups().iter().chain(self.heads().flat_map(Head::groups))
    }

    /// Running statistics of all batch norms: stored, not trained, and not averaged into the teacher, which has its own.
    pub fn buffers(&self) -> impl Iterator<Item = &Group> {
        self.backbone.buffers().iter().chain(self.heads().flat_map(Head::buffers))
    }

    /// Every parameter with its group.
    pub fn entries(&self) -> impl Iterator<Item = (&Group, &Entry)> {
        self.groups().flat_map(|group| group.entries().iter().map(move |entry| (group, entry)))
    }
}
