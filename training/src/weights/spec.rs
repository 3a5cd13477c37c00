//! A backbone without the names of any layout: what every layout is read into, and all that the ONNX graph is built from.

use super::store::Tensor;

/// A backbone with its weights.
#[derive(Clone, Debug)]
pub enum Backbone {
    /// A vision transformer.
    Vit(Vit),
    /// A residual convolutional network.
    Resnet(Resnet),
    /// A convolutional network of transformer-like blocks.
    Convnext(Convnext),
}

/// A vision transformer: patches, a CLS token and registers, pre-norm blocks, a final norm.
#[derive(Clone, Debug)]
pub struct Vit {
    /// Side of a patch in pixels, p.
    pub patch_size: usize,
    /// Width of the tokens, D.
    pub dim: usize,
    /// Attention heads per block; each has D / heads channels.
    pub heads: usize,
    /// Epsilon of every layer norm.
    pub eps: f32,
    /// Convolutions ahead of the patch embedding, each of stride 2 with a norm over channels and GELU behind it.
    pub stem: Vec<StemLevel>,
    /// Patch embedding: weight `[D, 3, p, p]`, or `[D, channels, 1, 1]` behind a stem.
    pub patch: Linear,
    /// CLS with its position, then the registers: `[1 + registers, D]`.
    pub prefix: Tensor,
    /// Where patches learn where they are.
    pub positions: Positions,
    /// The blocks in order.
    pub blocks: Vec<Block>,
    /// The final norm.
    pub norm: Norm,
}

impl Vit {
    /// Number of register tokens.
    pub fn registers(&self) -> usize {
        self.prefix.shape[0] - 1
    }
}

/// Weight `[out, in]` (or `[out, in, height, width]` for a convolution) and bias `[out]`.
#[derive(Clone, Debug, Default)]
pub struct Linear {
    /// Weight.
    pub weight: Tensor,
    /// Bias, if the layer has one.
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    /// Multiplies output i by `factors[i]`, as a layer scale behind the layer does.
    pub fn scale_outputs(&mut self, factors: &[f32]) {
        let width = self.weight.data.len() / factors.len().max(1);
        for (row, factor) in self.weight.data.chunks_mut(width.max(1)).zip(factors) {
            for value in row {
                *value *= factor;
            }
        }
        for (value, factor) in self.bias.iter_mut().flatten().zip(factors) {
            *value *= factor;
        }
    }

    /// Puts layers that read the same input side by side; a missing bias counts as zeros if another layer has one.
    pub fn stack(layers: Vec<Self>) -> Self {
        let biased = layers.iter().any(|layer| layer.bias.is_some());
        let mut all = Self { bias: biased.then(Vec::new), ..Self::default() };
        // Growing would double the memory of large layers.
        all.weight.data.reserve_exact(layers.iter().map(|layer| layer.weight.data.len()).sum());
        for layer in layers {
            let rows = layer.weight.shape.first().copied().unwrap_or(0);
            if all.weight.shape.is_empty() {
                all.weight.shape.clone_from(&layer.weight.shape);
            } else {
                all.weight.shape[0] += rows;
            }
            all.weight.data.extend(layer.weight.data);
            if let Some(bias) = &mut all.bias {
                bias.extend(layer.bias.unwrap_or_else(|| vec![0.0; rows]));
            }
        }
        all
    }
}

/// Scale and shift of a layer norm, `[D]` each.
#[derive(Clone, Debug, Default)]
pub struct Norm {
    /// Scale.
    pub weight: Vec<f32>,
    /// Shift.
    pub bias: Vec<f32>,
}

/// One convolution of a stem: weight `[out, in, 3, 3]`, without a bias.
#[derive(Clone, Debug)]
pub struct StemLevel {
    /// The convolution.
    pub convolution: Conv,
    /// Norm over its channels.
    pub norm: Norm,
}

/// One pre-norm transformer block. Layer scales are folded into `proj` and the last layer of `mlp`.
#[derive(Clone, Debug)]
pub struct Block {
    /// Norm before the attention.
    pub norm1: Norm,
    /// Queries, keys and values: weight `[3D, D]`.
    pub qkv: Linear,
    /// Output of the attention: weight `[D, D]`.
    pub proj: Linear,
    /// Norm before the MLP.
    pub norm2: Norm,
    /// The MLP.
    pub mlp: Mlp,
}

/// An MLP with hidden width M.
#[derive(Clone, Debug)]
pub enum Mlp {
    /// `output(gelu(input(x)))`: weights `[M, D]` and `[D, M]`. GELU is the exact form, with erf.
    Plain {
        /// First layer.
        input: Linear,
        /// Second layer.
        output: Linear,
    },
    /// `output(f(a) * b)` with `[a, b] = input(x)`: weights `[2M, D]` and `[D, M]`.
    Gated {
        /// First layer, gate above value.
        input: Linear,
        /// f.
        activation: Activation,
        /// Second layer.
        output: Linear,
    },
}

/// The function of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · Φ(x), exact.
    Gelu,
    /// x · σ(x).
    Silu,
}

/// How patches learn where they are.
#[derive(Clone, Debug)]
pub enum Positions {
    /// A learned table that is resampled to the picture's grid and added to the patches.
    Learned {
        /// `[side, side, D]`.
        table: Tensor,
        /// The way it is resampled.
        interpolation: Interpolation,
    },
    /// Rotations of queries and keys (DINOv3): for patch centres x in -1..1, angles 2π·x / period, first the row's,
    /// then the column's, for each half of a head's channels.
    Rotary {
        /// A quarter as many as a head has channels.
        periods: Vec<f32>,
    },
}

/// How a learned table is resampled from `side` to n positions along an axis; all are separable cubic filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// DINO's and DINOv2's own code: a = -0.75, the scale factor is (n + 0.1) / side, except on the native square.
    ScaleFactor,
    /// Hugging Face's ViT and DINOv2: a = -0.75, the scale factor is n / side.
    Size,
    /// DINOv2 with registers and timm: n / side with PyTorch's antialiasing, for which a = -0.5.
    Antialias,
}

impl Interpolation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ScaleFactor, Self::Size, Self::Antialias];

    /// The manifest's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ScaleFactor => "dino-bicubic-scale",
            Self::Size => "bicubic-size",
            Self::Antialias => "bicubic-antialias",
        }
    }
}

/// A residual network; batch norms are folded into the convolutions.
#[derive(Clone, Debug)]
pub struct Resnet {
    /// The first convolution, before max pooling.
    pub stem: Conv,
    /// Units of each stage.
    pub stages: Vec<Vec<Unit>>,
    /// Channels of the last stage, D.
    pub dim: usize,
}

/// A residual unit: convolutions with rectifiers between them, added to the shortcut, a rectifier.
#[derive(Clone, Debug)]
pub struct Unit {
    /// Two convolutions, or three in a bottleneck.
    pub convs: Vec<Conv>,
    /// A projection of the unit's input where its shape changes.
    pub shortcut: Option<Conv>,
}

/// A convolution with as much padding as keeps the size at stride 1.
#[derive(Clone, Debug)]
pub struct Conv {
    /// Weight `[out, in / groups, k, k]` and bias.
    pub kernel: Linear,
    /// Stride along both axes.
    pub stride: usize,
    /// Groups of channels.
    pub groups: usize,
}

/// A `ConvNeXt` (arXiv:2201.03545): four stages, whose cells are of 4, 8, 16 and 32 pixels.
#[derive(Clone, Debug)]
pub struct Convnext {
    /// The stages in order.
    pub stages: Vec<ConvnextStage>,
    /// The final norm, of each cell and of their mean.
    pub norm: Norm,
    /// Epsilon of every layer norm.
    pub eps: f32,
}

impl Convnext {
    /// Channels of the last stage, D.
    pub fn dim(&self) -> usize {
        self.norm.weight.len()
    }
}

/// A stage of a [`Convnext`].
#[derive(Clone, Debug)]
pub struct ConvnextStage {
    /// The convolution that cuts out cells: weight `[C, in, k, k]`, stride k.
    pub downsample: Linear,
    /// The norm behind it in the first stage, before it in the others.
    pub norm: Norm,
    /// The blocks in order.
    pub blocks: Vec<ConvnextBlock>,
}

/// A residual block: each channel's own convolution, a norm, and an MLP with GELU. The layer scale is folded into `output`.
#[derive(Clone, Debug)]
pub struct ConvnextBlock {
    /// Weight `[C, 1, k, k]`.
    pub depthwise: Conv,
    /// Over the channels.
    pub norm: Norm,
    /// Weight `[4C, C]`.
    pub input: Linear,
    /// Weight `[C, 4C]`.
    pub output: Linear,
}
