//! A backbone with its projection head: what the student and the teacher each are.

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

    /// The same values in variables of their own.
    ///
    /// # Errors
    /// When the device fails.
    pub fn duplicate(&self) -> Result<Self> {
        let ibot_head = self.ibot_head.as_ref().map(Head::duplicate).transpose()?;
        Ok(Self { backbone: self.backbone.duplicate()?, head: self.head.duplicate()?, ibot_head })
    }

    /// Features of patches `[rows, dim]` to logits `[rows, out]`.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn patch_logits(&self, features: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let head = self.patch_head();
        match features.dim(0)? {
            0 => Tensor::zeros((0, head.config().out), features.dtype(), features.device()),
            _ => head.forward(features, pass),
        }
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
