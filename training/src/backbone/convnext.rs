//! `ConvNeXt` (Liu et al. 2022) as DINOv3 has it: four stages of residual blocks, whose cells are of 4, 8, 16 and 32 pixels. The norm of
//! the cells' mean stands for the picture.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use dino_train::backbone::{Pass, convnext::{Convnext, ConvnextConfig}};
//! use dino_train::{data::loader::generator, kernels::matmul::Precision};
//!
//! let config = ConvnextConfig { depths: [1; 4], dims: [4, 8, 16, 32], drop_path: 0.0, layer_scale: None, precision: Precision::F32 };
//! let convnext = Convnext::new(config, &mut generator(0, 0, 0, 0), &Device::Cpu)?;
//! let pictures = Tensor::zeros((1, 3, 64, 96), DType::F32, &Device::Cpu)?;
//! assert_eq!(convnext.feature_map(&pictures, &mut Pass::Frozen)?.dims(), [1, 2, 3, 32]);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{Device, Result, Tensor, bail};

use super::Pass;
use super::parameters::{Group, Init, Random};
use crate::kernels::depthwise::SIDE;
use crate::kernels::matmul::Precision;
use crate::ops::depthwise::depthwise;
use crate::ops::layer_norm::layer_norm;
use crate::ops::linear::linear;
use crate::ops::pointwise::Pointwise;

/// Pixels along a cell of the last stage.
pub const CELL: usize = 32;
/// Epsilon of the layer norms, as in the public code.
pub const EPS: f32 = 1e-6;
/// First value of the layer scales, as in the public code.
pub const LAYER_SCALE: f32 = 1e-6;
/// Deviation of fresh weights, as in the public code.
const DEVIATION: f32 = 0.02;
/// Hidden columns of a block's MLP by its channels.
const MLP_RATIO: usize = 4;

/// Sizes of a `ConvNeXt`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConvnextConfig {
    /// Blocks of each stage.
    pub depths: [usize; 4],
    /// Channels of each stage.
    pub dims: [usize; 4],
    /// Stochastic depth of the last block; it grows linearly from 0 in the first.
    pub drop_path: f64,
    /// First value of the factors of each block's channels (layer scale), where there are any.
    pub layer_scale: Option<f32>,
    /// Arithmetic of the linear layers and of the convolutions between stages.
    pub precision: Precision,
}

impl ConvnextConfig {
    /// Dimension of the features.
    pub fn dim(&self) -> usize {
        self.dims[3]
    }

    /// Number of blocks.
    pub fn depth(&self) -> usize {
        self.depths.iter().sum()
    }

    /// Pixels of the stage before along a cell of a stage.
    fn side(stage: usize) -> usize {
        if stage == 0 { 4 } else { 2 }
    }

    /// Channels that come into a stage.
    fn inputs(&self, stage: usize) -> usize {
        stage.checked_sub(1).map_or(3, |before| self.dims[before])
    }

    /// What follows the depthwise convolution in a block of a stage.
    fn branch(&self, stage: usize) -> Pointwise {
        let dim = self.dims[stage];
        Pointwise { dim, hidden: MLP_RATIO * dim, scaled: self.layer_scale.is_some(), eps: EPS, precision: self.precision }
    }
}

/// Places in the group of what makes a stage's cells; the norm is over the incoming channels, in the first stage over the outgoing ones.
const CUT_WEIGHT: usize = 0;
const CUT_BIAS: usize = 1;
const NORM_WEIGHT: usize = 2;
const NORM_BIAS: usize = 3;
/// Places in a block's group; the parameters of its branch follow.
const DEPTHWISE_WEIGHT: usize = 0;
const DEPTHWISE_BIAS: usize = 1;
const BRANCH: usize = 2;

/// A `ConvNeXt` and its parameters: for each stage the group of what makes its cells and one for each block, then the last norm.
#[derive(Clone, Debug)]
pub struct Convnext {
    config: ConvnextConfig,
    groups: Vec<Group>,
}

impl Convnext {
    /// Fresh parameters, as the public code draws them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(config: ConvnextConfig, random: &mut impl Random, device: &Device) -> Result<Self> {
        if config.dims.contains(&0) || config.depths.contains(&0) {
            bail!("a ConvNeXt needs channels, and a block in each stage");
        }
        let mut groups = Vec::new();
        for stage in 0..4 {
            let (dim, inputs, side) = (config.dims[stage], config.inputs(stage), ConvnextConfig::side(stage));
            // The first stage cuts, then norms; the others the other way round.
            let (cut, norm, normed) = if stage == 0 { (0, 1, dim) } else { (1, 0, inputs) };
            let name = |part: usize, kind: &str| format!("backbone.downsample_layers.{stage}.{part}.{kind}");
            let parameters = vec![
                (name(cut, "weight"), vec![dim, inputs, side, side], Init::Normal(DEVIATION)),
                (name(cut, "bias"), vec![dim], Init::Constant(0.0)),
                (name(norm, "weight"), vec![normed], Init::Constant(1.0)),
                (name(norm, "bias"), vec![normed], Init::Constant(0.0)),
            ];
            groups.push(Group::new(parameters, random, device)?);
            for block in 0..config.depths[stage] {
                let mut shapes = vec![("dwconv.weight", vec![dim, 1, SIDE, SIDE]), ("dwconv.bias", vec![dim])];
                shapes.extend(config.branch(stage).parameters());
                let parameters = shapes.into_iter().map(|(name, shape)| {
                    let init = match name {
                        "norm.weight" => Init::Constant(1.0),
                        "gamma" => Init::Constant(config.layer_scale.unwrap_or(1.0)),
                        _ if name.ends_with(".bias") => Init::Constant(0.0),
                        _ => Init::Normal(DEVIATION),
                    };
                    (format!("backbone.stages.{stage}.{block}.{name}"), shape, init)
                });
                groups.push(Group::new(parameters.collect(), random, device)?);
            }
        }
        let norm = |part: &str, value| (format!("backbone.norm.{part}"), vec![config.dim()], Init::Constant(value));
        groups.push(Group::new(vec![norm("weight", 1.0), norm("bias", 0.0)], random, device)?);
        Ok(Self { config, groups })
    }

    /// Sizes.
    pub fn config(&self) -> &ConvnextConfig {
        &self.config
    }

    /// All parameters.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The same values in variables of their own.
    ///
    /// # Errors
    /// When the device fails.
    pub fn duplicate(&self) -> Result<Self> {
        Ok(Self { config: self.config, groups: Group::duplicate_all(&self.groups)? })
    }

    /// Features of all crops, each `[n, 3, height, width]`, as `[Σ n, dim]`, crop by crop.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn features(&self, crops: &[Tensor], pass: &mut Pass<'_>) -> Result<Tensor> {
        let means = crops.iter().map(|crop| self.cells(crop, pass)?.flatten(1, 2)?.mean(1)).collect::<Result<Vec<Tensor>>>()?;
        self.norm(&Tensor::cat(&means, 0)?, pass)
    }

    /// Pictures `[n, 3, height, width]` to the normed cells of the last stage, `[n, height / 32, width / 32, dim]`: the patch tokens of the
    /// public code.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn feature_map(&self, pictures: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor> {
        self.norm(&self.cells(pictures, pass)?, pass)
    }

    fn norm(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let group = &self.groups[self.groups.len() - 1];
        let flat = group.flat(pass.tracks());
        layer_norm(x, &group.view(&flat, 0)?, &group.view(&flat, 1)?, EPS)
    }

    /// Pictures `[n, 3, height, width]` to the cells of the last stage, before the last norm.
    fn cells(&self, pictures: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor> {
        let (_, channels, height, width) = pictures.dims4()?;
        if channels != 3 || height == 0 || width == 0 || height % CELL != 0 || width % CELL != 0 {
            bail!("pictures of shape {:?} cannot be cut into cells of {CELL} pixels", pictures.dims());
        }
        let mut x = pictures.permute((0, 2, 3, 1))?;
        let (mut groups, mut blocks) = (self.groups.iter(), 0);
        for (stage, &depth) in self.config.depths.iter().enumerate() {
            if let Some(group) = groups.next() {
                x = self.downsample(stage, group, &x, pass)?;
            }
            for group in groups.by_ref().take(depth) {
                x = self.block(stage, blocks, group, &x, pass)?;
                blocks += 1;
            }
        }
        Ok(x)
    }

    /// Makes the cells of a stage of `x` `[n, height, width, channels]`.
    fn downsample(&self, stage: usize, group: &Group, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let flat = group.flat(pass.tracks());
        let normed = |x: &Tensor| layer_norm(x, &group.view(&flat, NORM_WEIGHT)?, &group.view(&flat, NORM_BIAS)?, EPS);
        let (side, dim) = (ConvnextConfig::side(stage), self.config.dims[stage]);
        let x = if stage == 0 { x.clone() } else { normed(x)? };
        let (n, height, width, channels) = x.dims4()?;
        let (h, w) = (height / side, width / side);
        let rows = x.reshape(&[n, h, side, w, side, channels][..])?.transpose(2, 3)?.reshape((n * h * w, side * side * channels))?;
        let weight = group.view(&flat, CUT_WEIGHT)?.permute((0, 2, 3, 1))?.reshape((dim, side * side * channels))?;
        let cells = linear(&rows, &weight, self.config.precision)?.broadcast_add(&group.view(&flat, CUT_BIAS)?)?;
        let cells = cells.reshape((n, h, w, dim))?;
        if stage == 0 { normed(&cells) } else { Ok(cells) }
    }

    /// Block number `number`, counted over all stages.
    fn block(&self, stage: usize, number: usize, group: &Group, x: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor> {
        let (flat, shape) = (group.flat(pass.tracks()), x.dims4()?);
        let (n, dim) = (shape.0, shape.3);
        let convolved = depthwise(x, &group.view(&flat, DEPTHWISE_WEIGHT)?, &group.view(&flat, DEPTHWISE_BIAS)?)?;
        let branch = self.config.branch(stage);
        let parameters = flat.narrow(0, group.entries()[BRANCH].offset, branch.len())?;
        let factors = pass.drop_path(self.config.drop_path * number as f64 / (self.config.depth().max(2) - 1) as f64, n);
        branch.forward(&x.reshape(((), dim))?, &convolved.reshape(((), dim))?, &parameters, factors.as_deref())?.reshape(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::loader::generator;
    use crate::exchange::alone;

    #[test]
    fn blocks_are_dropped_in_training_alone_and_pictures_that_cannot_be_cut_are_refused() {
        let config =
            ConvnextConfig { depths: [1; 4], dims: [4, 8, 8, 12], drop_path: 0.9, layer_scale: Some(1.0), precision: Precision::F32 };
        let convnext = Convnext::new(config, &mut generator(0, 0, 0, 0), &Device::Cpu).unwrap();
        let pictures = Tensor::randn(0.0_f32, 1.0, (4, 3, 32, 32), &Device::Cpu).unwrap();
        let exchange = alone();
        let features = |pass: &mut Pass<'_>| {
            convnext.features(std::slice::from_ref(&pictures), pass).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let frozen = features(&mut Pass::Frozen);
        assert_eq!(features(&mut Pass::Teacher(&exchange)), frozen);
        assert_ne!(features(&mut Pass::Trained(&mut generator(1, 0, 0, 0), &exchange)), frozen);
        let narrow = pictures.narrow(3, 0, 24).unwrap();
        assert!(convnext.features(&[narrow], &mut Pass::Frozen).unwrap_err().to_string().contains("cells of 32 pixels"));
    }

    #[test]
    fn the_gradient_of_every_parameter_is_the_slope_of_the_features() {
        // By how much the loss moves.
        const CHANGE: f32 = 3e-3;
        let config =
            ConvnextConfig { depths: [1, 2, 1, 1], dims: [4, 8, 8, 12], drop_path: 0.0, layer_scale: Some(1.0), precision: Precision::F32 };
        let mut random = generator(2, 0, 0, 0);
        let convnext = Convnext::new(config, &mut random, &Device::Cpu).unwrap();
        let mut normal = |shape: &[usize]| {
            let values: Vec<f32> = std::iter::repeat_with(|| random.normal()).take(shape.iter().product()).collect();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        };
        let crops = [normal(&[2, 3, 64, 64]), normal(&[3, 3, 32, 64])];
        let weights = normal(&[5, 12]);
        let exchange = alone();
        let features = convnext.features(&crops, &mut Pass::Trained(&mut generator(3, 0, 0, 0), &exchange)).unwrap();
        let gradients = (features * &weights).unwrap().sum_all().unwrap().backward().unwrap();
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let loss = || {
            let features = values(&convnext.features(&crops, &mut Pass::Frozen).unwrap());
            features.iter().zip(values(&weights)).map(|(feature, weight)| f64::from(*feature) * f64::from(weight)).sum::<f64>()
        };
        for group in convnext.groups() {
            let (flat, gradient) = (values(group.var()), values(gradients.get(group.var()).unwrap()));
            for entry in group.entries() {
                let of = entry.offset..entry.offset + entry.len();
                let gradient = &gradient[of.clone()];
                let steepness = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
                assert!(steepness > 0.0, "{}", entry.name);
                let length = CHANGE / steepness.max(1.0);
                let moved = |by: f32| {
                    let step = |(value, slope): (&f32, &f32)| value + by * slope / steepness;
                    group.set(entry, &flat[of.clone()].iter().zip(gradient).map(step).collect::<Vec<_>>()).unwrap();
                    loss()
                };
                let slope = (moved(length) - moved(-length)) / f64::from(2.0 * length);
                let (difference, steepness) = ((slope - f64::from(steepness)).abs(), f64::from(steepness));
                assert!(difference < 2e-3 + 2e-2 * steepness, "{}: {slope}, not {steepness}", entry.name);
                moved(0.0);
            }
        }
    }
}
