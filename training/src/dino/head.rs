//! The projection head: a three-layer MLP, an L2 bottleneck and a weight-normalised last layer (paper, section 3.1 and appendix C); or the
//! MLP alone, a projector whose output are embeddings (`LeJEPA`).
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use dino_train::dino::head::{Head, HeadConfig};
//! use dino_train::{backbone::Pass, data::loader::generator, kernels::matmul::Precision};
//!
//! let precision = Precision::F32;
//! let config = HeadConfig { dim: 16, hidden: 32, bottleneck: 8, out: Some(64), batch_norm: false, norm_last_layer: true, precision };
//! let head = Head::new(config, &mut generator(0, 0, 0, 0), &Device::Cpu)?;
//! let features = Tensor::randn(0.0_f32, 1.0, (2, 16), &Device::Cpu)?;
//! let logits = head.forward(&features, &Pass::Frozen)?.to_vec2::<f32>()?;
//! assert_eq!((logits.len(), logits[0].len()), (2, 64));
//! assert!(logits[0].iter().all(|logit| logit.abs() < 1.001), "products of unit vectors");
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{Device, Result, Tensor};

use crate::backbone::parameters::{Group, Init, Random};
use crate::backbone::{Pass, batch_norm};
use crate::kernels::matmul::Precision;
use crate::ops::gelu::gelu;
use crate::ops::linear::linear;
use crate::ops::unit_rows::scaled_unit_rows;

/// Sizes of a projection head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadConfig {
    /// Dimension of the backbone's features.
    pub dim: usize,
    /// Columns of the two hidden layers.
    pub hidden: usize,
    /// Columns of the bottleneck.
    pub bottleneck: usize,
    /// Output dimension K of the last layer; none for a projector, which ends at its bottleneck and does not normalise that.
    pub out: Option<usize>,
    /// Batch norms behind the hidden layers.
    pub batch_norm: bool,
    /// Keep the last layer's norms at 1 instead of training them.
    pub norm_last_layer: bool,
    /// Arithmetic of the linear layers.
    pub precision: Precision,
}

impl HeadConfig {
    /// Columns of the output.
    pub fn columns(&self) -> usize {
        self.out.unwrap_or(self.bottleneck)
    }

    /// A projector has rectifiers behind its batch norms, as in the public code of `LeJEPA`.
    fn rectifies(&self) -> bool {
        self.out.is_none() && self.batch_norm
    }
}

/// Linear layers of the MLP.
const LAYERS: usize = 3;

/// A projection head and its parameters.
#[derive(Clone, Debug)]
pub struct Head {
    config: HeadConfig,
    groups: Vec<Group>,
    /// Running statistics of the batch norms.
    buffers: Vec<Group>,
}

impl Head {
    /// Fresh parameters, as the public code draws them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(config: HeadConfig, random: &mut impl Random, device: &Device) -> Result<Self> {
        Self::named("head", config, random, device)
    }

    /// The same with names of parameters below `name`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn named(name: &str, config: HeadConfig, random: &mut impl Random, device: &Device) -> Result<Self> {
        let HeadConfig { dim, hidden, bottleneck, out, .. } = config;
        let mut groups = Vec::new();
        for (layer, (from, to)) in [(dim, hidden), (hidden, hidden), (hidden, bottleneck)].into_iter().enumerate() {
            // Places in the public code's list of layers: linear, batch norm if there are any, GELU.
            let place = layer * if config.batch_norm { 3 } else { 2 };
            let (weight, bias) = match out {
                Some(_) => (Init::Normal(0.02), Init::Constant(0.0)),
                // PyTorch's defaults.
                None => (Init::Uniform(1.0 / (from as f32).sqrt()), Init::Uniform(1.0 / (from as f32).sqrt())),
            };
            groups.push(single(&format!("{name}.mlp.{place}.weight"), &[to, from], weight, random, device)?);
            groups.push(single(&format!("{name}.mlp.{place}.bias"), &[to], bias, random, device)?);
        }
        let mut buffers = Vec::new();
        for layer in 0..if config.batch_norm { LAYERS - 1 } else { 0 } {
            let name = format!("{name}.mlp.{}", 3 * layer + 1);
            groups.push(batch_norm::parameters(&name, hidden, random, device)?);
            buffers.push(batch_norm::running(&name, hidden, random, device)?);
        }
        if let Some(out) = out {
            groups.push(single(&format!("{name}.last_layer.weight_g"), &[out, 1], Init::Constant(1.0), random, device)?);
            let bound = Init::Uniform(1.0 / (bottleneck as f32).sqrt());
            groups.push(single(&format!("{name}.last_layer.weight_v"), &[out, bottleneck], bound, random, device)?);
        }
        Ok(Self { config, groups, buffers })
    }

    /// Sizes.
    pub fn config(&self) -> &HeadConfig {
        &self.config
    }

    /// All parameters, those of the last layer, where there is one, at the end.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The parameters that are trained.
    pub fn trained(&self) -> impl Iterator<Item = &Group> {
        let keeps_norms = self.config.norm_last_layer && self.config.out.is_some();
        let norms = keeps_norms.then(|| self.groups.len() - 2);
        self.groups.iter().enumerate().filter(move |(index, _)| Some(*index) != norms).map(|(_, group)| group)
    }

    /// Running statistics of the batch norms: stored, not trained.
    pub fn buffers(&self) -> &[Group] {
        &self.buffers
    }

    /// The same values in variables of their own.
    ///
    /// # Errors
    /// When the device fails.
    pub fn duplicate(&self) -> Result<Self> {
        let (groups, buffers) = (Group::duplicate_all(&self.groups)?, Group::duplicate_all(&self.buffers)?);
        Ok(Self { config: self.config, groups, buffers })
    }

    /// Features `[rows, dim]` to logits `[rows, out]`, of a projector to embeddings `[rows, bottleneck]`.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn forward(&self, features: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let track = pass.tracks();
        let parameter = |i: usize, track: bool| self.groups[i].view(&self.groups[i].flat(track), 0);
        let mut x = features.clone();
        for layer in 0..LAYERS {
            x = linear(&x, &parameter(2 * layer, track)?, self.config.precision)?.broadcast_add(&parameter(2 * layer + 1, track)?)?;
            if let Some(running) = self.buffers.get(layer) {
                x = batch_norm::forward(&x, &self.groups[2 * LAYERS + layer], running, None, self.config.rectifies(), pass)?;
            }
            if layer + 1 < LAYERS && !self.config.rectifies() {
                x = gelu(&x)?;
            }
        }
        if self.config.out.is_none() {
            return Ok(x);
        }
        let last = self.groups.len() - 2;
        let norms = parameter(last, track && !self.config.norm_last_layer)?;
        let directions = scaled_unit_rows(&parameter(last + 1, track)?, &norms, 0.0)?;
        let ones = Tensor::ones((x.dim(0)?, 1), x.dtype(), x.device())?;
        linear(&scaled_unit_rows(&x, &ones, 1e-12)?, &directions, self.config.precision)
    }
}

fn single(name: &str, shape: &[usize], init: Init, random: &mut impl Random, device: &Device) -> Result<Group> {
    Group::new(vec![(name.to_owned(), shape.to_vec(), init)], random, device)
}
