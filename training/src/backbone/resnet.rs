//! Residual networks as torchvision builds them (He et al. 2016; bottlenecks stride in their 3 x 3 convolution), without a classifier.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use dino_train::backbone::{Pass, resnet::{Kind, Resnet, ResnetConfig}};
//! use dino_train::{data::loader::generator, kernels::matmul::Precision};
//!
//! let config = ResnetConfig { kind: Kind::Basic, units: [1; 4], width: 4, precision: Precision::F32 };
//! let resnet = Resnet::new(config, &mut generator(0, 0, 0, 0), &Device::Cpu)?;
//! let pictures = Tensor::zeros((1, 3, 64, 96), DType::F32, &Device::Cpu)?;
//! assert_eq!(resnet.feature_map(&pictures, &Pass::Frozen)?.dims(), [1, 2, 3, 32]);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{Device, Result, Tensor, bail};

use super::parameters::{Group, Init, Random};
use super::{Pass, batch_norm};
use crate::kernels::matmul::Precision;
use crate::ops::conv::Convolution;
use crate::ops::max_pool::max_pool;

/// What a residual unit is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Two 3 x 3 convolutions.
    Basic,
    /// 1 x 1 to fewer channels, 3 x 3, and 1 x 1 to four times as many.
    Bottleneck,
}

/// Sizes of a residual network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResnetConfig {
    /// Its units.
    pub kind: Kind,
    /// Units of each of the four stages.
    pub units: [usize; 4],
    /// Channels behind the first convolution; each stage has twice as many as the one before.
    pub width: usize,
    /// Arithmetic of the convolutions.
    pub precision: Precision,
}

impl ResnetConfig {
    /// Output channels of a unit by its inner channels.
    fn expansion(&self) -> usize {
        match self.kind {
            Kind::Basic => 1,
            Kind::Bottleneck => 4,
        }
    }

    /// Dimension of the features.
    pub fn dim(&self) -> usize {
        self.width * 8 * self.expansion()
    }

    /// Number of units.
    pub fn depth(&self) -> usize {
        self.units.iter().sum()
    }
}

/// A convolution and the batch norm behind it. Their parameters are groups `2 * index` and `2 * index + 1`.
#[derive(Clone, Copy, Debug)]
struct Layer {
    index: usize,
    stride: usize,
}

#[derive(Clone, Debug)]
struct Unit {
    layers: Vec<Layer>,
    /// Projects the unit's input where its shape changes.
    shortcut: Option<Layer>,
}

/// A residual network and its parameters.
#[derive(Clone, Debug)]
pub struct Resnet {
    config: ResnetConfig,
    stem: Layer,
    units: Vec<Unit>,
    groups: Vec<Group>,
    /// Running statistics of each layer's batch norm.
    buffers: Vec<Group>,
}

/// Adds layers one after another.
struct Builder<'a, R> {
    groups: Vec<Group>,
    buffers: Vec<Group>,
    random: &'a mut R,
    device: &'a Device,
}

impl<R: Random> Builder<'_, R> {
    fn layer(&mut self, conv: &str, norm: &str, (from, to): (usize, usize), side: usize, stride: usize) -> Result<Layer> {
        let (conv, norm) = (format!("backbone.{conv}.weight"), format!("backbone.{norm}"));
        // torchvision's initialisation: Kaiming's normal one over the fan-out, for rectifiers.
        let deviation = (2.0 / (to * side * side) as f32).sqrt();
        let parameters = vec![(conv, vec![to, from, side, side], Init::Normal(deviation))];
        self.groups.push(Group::new(parameters, self.random, self.device)?);
        self.groups.push(batch_norm::parameters(&norm, to, self.random, self.device)?);
        self.buffers.push(batch_norm::running(&norm, to, self.random, self.device)?);
        Ok(Layer { index: self.buffers.len() - 1, stride })
    }
}

impl Resnet {
    /// Fresh parameters, as torchvision draws them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(config: ResnetConfig, random: &mut impl Random, device: &Device) -> Result<Self> {
        if config.width == 0 || config.units.contains(&0) {
            bail!("a residual network needs channels, and a unit in each stage");
        }
        let mut builder = Builder { groups: Vec::new(), buffers: Vec::new(), random, device };
        let stem = builder.layer("conv1", "bn1", (3, config.width), 7, 2)?;
        let (mut units, mut channels) = (Vec::new(), config.width);
        for (stage, &count) in config.units.iter().enumerate() {
            let inner = config.width << stage;
            for unit in 0..count {
                let stride = if stage > 0 && unit == 0 { 2 } else { 1 };
                let name = format!("layer{}.{unit}", stage + 1);
                let out = inner * config.expansion();
                // Inputs, outputs, side and stride of each convolution.
                let shapes = match config.kind {
                    Kind::Basic => vec![(channels, inner, 3, stride), (inner, out, 3, 1)],
                    Kind::Bottleneck => vec![(channels, inner, 1, 1), (inner, inner, 3, stride), (inner, out, 1, 1)],
                };
                let mut layers = Vec::new();
                for (i, (from, to, side, stride)) in shapes.into_iter().enumerate() {
                    let (conv, norm) = (format!("{name}.conv{}", i + 1), format!("{name}.bn{}", i + 1));
                    layers.push(builder.layer(&conv, &norm, (from, to), side, stride)?);
                }
                let shortcut = if stride != 1 || channels != out {
                    let (conv, norm) = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
                    Some(builder.layer(&conv, &norm, (channels, out), 1, stride)?)
                } else {
                    None
                };
                units.push(Unit { layers, shortcut });
                channels = out;
            }
        }
        Ok(Self { config, stem, units, groups: builder.groups, buffers: builder.buffers })
    }

    /// Sizes.
    pub fn config(&self) -> &ResnetConfig {
        &self.config
    }

    /// All parameters.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Running statistics: stored, not trained.
    pub fn buffers(&self) -> &[Group] {
        &self.buffers
    }

    /// The same values in variables of their own.
    ///
    /// # Errors
    /// When the device fails.
    pub fn duplicate(&self) -> Result<Self> {
        let (groups, buffers) = (Group::duplicate_all(&self.groups)?, Group::duplicate_all(&self.buffers)?);
        Ok(Self { groups, buffers, ..self.clone() })
    }

    /// Features of all crops, each `[n, 3, height, width]`, as `[Σ n, dim]`, crop by crop.
    ///
    /// Crops of one size are one batch to the norms, as in the public code.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn features(&self, crops: &[Tensor], pass: &Pass<'_>) -> Result<Tensor> {
        let mut features = Vec::with_capacity(crops.len());
        for crop in crops {
            features.push(self.feature_map(crop, pass)?.flatten(1, 2)?.mean(1)?);
        }
        Tensor::cat(&features, 0)
    }

    /// Pictures `[n, 3, height, width]` to the map of the last stage, `[n, ⌈height/32⌉, ⌈width/32⌉, dim]`.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn feature_map(&self, pictures: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let (_, channels, ..) = pictures.dims4()?;
        if channels != 3 {
            bail!("pictures of shape {:?} are not RGB", pictures.dims());
        }
        let pixels = pictures.permute((0, 2, 3, 1))?.contiguous()?;
        let mut x = max_pool(&self.layer(self.stem, &pixels, None, true, pass)?)?;
        for unit in &self.units {
            let shortcut = match unit.shortcut {
                Some(layer) => self.layer(layer, &x, None, false, pass)?,
                None => x.clone(),
            };
            for (i, &layer) in unit.layers.iter().enumerate() {
                let last = i + 1 == unit.layers.len();
                x = self.layer(layer, &x, last.then_some(&shortcut), true, pass)?;
            }
        }
        Ok(x)
    }

    fn layer(&self, layer: Layer, x: &Tensor, shortcut: Option<&Tensor>, rectify: bool, pass: &Pass<'_>) -> Result<Tensor> {
        let (conv, norm) = (&self.groups[2 * layer.index], &self.groups[2 * layer.index + 1]);
        let weight = conv.view(&conv.flat(pass.tracks()), 0)?;
        let x = Convolution { stride: layer.stride, precision: self.config.precision }.forward(x, &weight)?;
        batch_norm::forward(&x, norm, &self.buffers[layer.index], shortcut, rectify, pass)
    }
}
