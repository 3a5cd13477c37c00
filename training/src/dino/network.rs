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
}

impl Network {
    /// Fresh parameters.
    ///
    /// # Errors
    /// When sizes do not fit each other, or the device fails.
    pub fn new(backbone: impl Into<BackboneConfig>, head: HeadConfig, random: &mut impl Random, device: &Device) -> Result<Self> {
        Ok(Self { backbone: Backbone::new(backbone.into(), random, device)?, head: Head::new(head, random, device)? })
    }

    /// The same values in variables of their own.
    ///
    /// # Errors
    /// When the device fails.
    pub fn duplicate(&self) -> Result<Self> {
        Ok(Self { backbone: self.backbone.duplicate()?, head: self.head.duplicate()? })
    }

    /// Crops of any sizes, each `[n, 3, height, width]`, to logits `[Σ n, out]`, crop by crop.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn forward(&self, crops: &[Tensor], pass: &mut Pass<'_>) -> Result<Tensor> {
        let features = self.backbone.features(crops, pass)?;
        self.head.forward(&features, pass)
    }

    /// All parameter groups.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.backbone.groups().iter().chain(self.head.groups())
    }

    /// Running statistics of all batch norms: stored, not trained, and not averaged into the teacher, which has its own.
    pub fn buffers(&self) -> impl Iterator<Item = &Group> {
        self.backbone.buffers().iter().chain(self.head.buffers())
    }

    /// Every parameter with its group.
    pub fn entries(&self) -> impl Iterator<Item = (&Group, &Entry)> {
        self.groups().flat_map(|group| group.entries().iter().map(move |entry| (group, entry)))
    }
}
