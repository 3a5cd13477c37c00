//! The projection head: a three-layer MLP, an L2 bottleneck and a weight-normalised last layer (paper, section 3.1 and appendix C).

use candle_core::{Device, Result, Tensor};

use crate::backbone::parameters::{Group, Init, Random};
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
    /// Output dimension K.
    pub out: usize,
    /// Keep the last layer's norms at 1 instead of training them.
    pub norm_last_layer: bool,
    /// Arithmetic of the linear layers.
    pub precision: Precision,
}

const MLP: [&str; 3] = ["0", "2", "4"];

/// A projection head and its parameters.
#[derive(Clone, Debug)]
pub struct Head {
    config: HeadConfig,
    groups: Vec<Group>,
}

impl Head {
    /// Fresh parameters, as the public code draws them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(config: HeadConfig, random: &mut impl Random, device: &Device) -> Result<Self> {
        let HeadConfig { dim, hidden, bottleneck, out, .. } = config;
        let mut single =
            |name: &str, shape: &[usize], init| Group::new(vec![(format!("head.{name}"), shape.to_vec(), init)], random, device);
        let mut groups = Vec::new();
        for (layer, (from, to)) in MLP.iter().zip([(dim, hidden), (hidden, hidden), (hidden, bottleneck)]) {
            groups.push(single(&format!("mlp.{layer}.weight"), &[to, from], Init::Normal(0.02))?);
            groups.push(single(&format!("mlp.{layer}.bias"), &[to], Init::Constant(0.0))?);
        }
        groups.push(single("last_layer.weight_g", &[out, 1], Init::Constant(1.0))?);
        groups.push(single("last_layer.weight_v", &[out, bottleneck], Init::Uniform(1.0 / (bottleneck as f32).sqrt()))?);
        Ok(Self { config, groups })
    }

    /// Sizes.
    pub fn config(&self) -> &HeadConfig {
        &self.config
    }

    /// All parameters, those of the last layer at the end.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The same values in variables of their own.
    ///
    /// # Errors
    /// When the device fails.
    pub fn duplicate(&self) -> Result<Self> {
        Ok(Self { config: self.config, groups: self.groups.iter().map(Group::duplicate).collect::<Result<_>>()? })
    }

    /// Features `[rows, dim]` to logits `[rows, out]`.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn forward(&self, features: &Tensor, track: bool) -> Result<Tensor> {
        let parameter = |i: usize, track: bool| self.groups[i].view(&self.groups[i].flat(track), 0);
        let mut x = features.clone();
        for layer in 0..MLP.len() {
            x = linear(&x, &parameter(2 * layer, track)?, self.config.precision)?.broadcast_add(&parameter(2 * layer + 1, track)?)?;
            if layer + 1 < MLP.len() {
                x = gelu(&x)?;
            }
        }
        let last = 2 * MLP.len();
        let norms = parameter(last, track && !self.config.norm_last_layer)?;
        let directions = scaled_unit_rows(&parameter(last + 1, track)?, &norms, 0.0)?;
        let ones = Tensor::ones((x.dim(0)?, 1), x.dtype(), x.device())?;
        linear(&scaled_unit_rows(&x, &ones, 1e-12)?, &directions, self.config.precision)
    }
}
