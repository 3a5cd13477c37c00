//! The vision transformer of the DINO paper: patches and a CLS token, learned positions, pre-norm blocks.

use candle_core::{Device, Result, Tensor, bail};

use super::parameters::{Entry, Group, Init, Random};
use super::{Pass, positions};
use crate::kernels::matmul::Precision;
use crate::ops::block::{Block, DropPath, Sequences, Tokens};
use crate::ops::layer_norm::layer_norm;
use crate::ops::linear::linear;

/// Sizes of a vision transformer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VitConfig {
    /// Side of the square pictures that the position table is made for, in pixels.
    pub img_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Columns of the residual stream, and the dimension of the features.
    pub dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads in each block.
    pub heads: usize,
    /// Stochastic depth of the last block; it grows linearly from 0 in the first.
    pub drop_path: f64,
    /// Arithmetic of the linear layers.
    pub precision: Precision,
}

impl VitConfig {
    /// Hidden columns of the MLP by columns of the residual stream.
    const MLP_RATIO: usize = 4;
    /// Epsilon of the layer norms.
    pub const EPS: f32 = 1e-6;

    fn block(&self) -> Block {
        Block { dim: self.dim, heads: self.heads, hidden: self.dim * Self::MLP_RATIO, eps: Self::EPS, precision: self.precision }
    }

    /// Patches along one side of the position table.
    pub fn grid(&self) -> usize {
        self.img_size / self.patch_size
    }
}

/// Parameters in front of the blocks, one group each.
const CLS: usize = 0;
const POSITIONS: usize = 1;
const PATCH_WEIGHT: usize = 2;
const PATCH_BIAS: usize = 3;
const BLOCKS: usize = 4;

/// A vision transformer and its parameters.
#[derive(Clone, Debug)]
pub struct Vit {
    config: VitConfig,
    groups: Vec<Group>,
}

impl Vit {
    /// Fresh parameters, as the public code draws them.
    ///
    /// # Errors
    /// When sizes do not fit each other, or the device fails.
    pub fn new(config: VitConfig, random: &mut impl Random, device: &Device) -> Result<Self> {
        let VitConfig { img_size, patch_size, dim, depth, heads, .. } = config;
        if patch_size == 0 || img_size < patch_size || img_size % patch_size != 0 {
            bail!("pictures of {img_size} pixels cannot be cut into patches of {patch_size}");
        }
        if heads == 0 || dim % heads != 0 {
            bail!("a dimension of {dim} cannot be split between {heads} heads");
        }
        if depth == 0 {
            bail!("a transformer needs at least one block");
        }
        let tokens = config.grid() * config.grid() + 1;
        // The patch embedding keeps the initialisation of PyTorch's convolutions: uniform in ± 1/√fan-in, biases too.
        let fan_in = 3 * patch_size * patch_size;
        let bound = Init::Uniform(1.0 / (fan_in as f32).sqrt());
        let mut single =
            |name: &str, shape: &[usize], init| Group::new(vec![(format!("backbone.{name}"), shape.to_vec(), init)], random, device);
        let mut groups = vec![
            single("cls_token", &[1, 1, dim], Init::Normal(0.02))?,
            single("pos_embed", &[1, tokens, dim], Init::Normal(0.02))?,
            single("patch_embed.proj.weight", &[dim, 3, patch_size, patch_size], bound)?,
            single("patch_embed.proj.bias", &[dim], bound)?,
        ];
        for block in 0..depth {
            let parameters = config.block().parameters().into_iter().map(|(name, shape)| {
                let init = match name {
                    "norm1.weight" | "norm2.weight" => Init::Constant(1.0),
                    _ if name.ends_with(".bias") => Init::Constant(0.0),
                    _ => Init::Normal(0.02),
                };
                (format!("backbone.blocks.{block}.{name}"), shape, init)
            });
            groups.push(Group::new(parameters.collect(), random, device)?);
        }
        let mut single = |name: &str, init| Group::new(vec![(format!("backbone.{name}"), vec![dim], init)], random, device);
        groups.push(single("norm.weight", Init::Constant(1.0))?);
        groups.push(single("norm.bias", Init::Constant(0.0))?);
        Ok(Self { config, groups })
    }

    /// Sizes.
    pub fn config(&self) -> &VitConfig {
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
        let groups = Group::duplicate_all(&self.groups)?;
        Ok(Self { config: self.config, groups })
    }

    fn whole(&self, group: usize, track: bool) -> Result<Tensor> {
        let group = &self.groups[group];
        group.view(&group.flat(track), 0)
    }

    /// Pictures `[n, 3, height, width]` to rows `[n * tokens, dim]` with CLS first and positions added, and the tokens of each.
    fn embed(&self, pictures: &Tensor, track: bool) -> Result<(Tensor, usize)> {
        let (n, channels, height, width) = pictures.dims4()?;
        let VitConfig { patch_size: p, dim, .. } = self.config;
        let (h, w) = (height / p, width / p);
        if channels != 3 || h == 0 || w == 0 || height % p != 0 || width % p != 0 {
            bail!("pictures of shape {:?} cannot be cut into patches of {p} pixels", pictures.dims());
        }
        let patches = pictures.reshape(&[n, 3, h, p, w, p][..])?.permute([0, 2, 4, 1, 3, 5])?.reshape((n * h * w, 3 * p * p))?;
        let weight = self.whole(PATCH_WEIGHT, track)?.reshape((dim, 3 * p * p))?;
        let rows = linear(&patches, &weight, self.config.precision)?.reshape((n, h * w, dim))?;
        let (cls_position, positions) = self.positions(h, w, track)?;
        let rows = rows.broadcast_add(&positions.broadcast_add(&self.whole(PATCH_BIAS, track)?)?)?;
        let cls = (self.whole(CLS, track)?.reshape((1, 1, dim))? + cls_position)?.broadcast_as((n, 1, dim))?;
        let tokens = h * w + 1;
        Ok((Tensor::cat(&[cls, rows], 1)?.reshape((n * tokens, dim))?, tokens))
    }

    /// Positions of CLS `[1, 1, dim]` and of an `h` x `w` grid `[1, h * w, dim]`.
    fn positions(&self, h: usize, w: usize, track: bool) -> Result<(Tensor, Tensor)> {
        let (side, dim) = (self.config.grid(), self.config.dim);
        let table = self.whole(POSITIONS, track)?;
        let patches = table.narrow(1, 1, side * side)?;
        // As the public code: a square picture with the table's number of patches takes the table as it is.
        let patches = if (h, w) == (side, side) {
            patches
        } else {
            positions::interpolation(side, h, w, table.device())?.matmul(&patches.reshape((side * side, dim))?)?.reshape((1, h * w, dim))?
        };
        Ok((table.narrow(1, 0, 1)?, patches))
    }

    /// Crops of any sizes, each `[n, 3, height, width]`, to the residual stream before the last norm: rows packed one after another.
    fn residual(&self, crops: &[Tensor], pass: &mut Pass<'_>, output: Tokens) -> Result<(Tensor, Sequences)> {
        let track = pass.tracks();
        let mut rows = Vec::with_capacity(crops.len());
        let mut sequences = Sequences(Vec::with_capacity(crops.len()));
        for crop in crops {
            let (embedded, tokens) = self.embed(crop, track)?;
            rows.push(embedded);
            sequences.0.push((crop.dim(0)?, tokens));
        }
        let mut x = if rows.len() == 1 { rows.swap_remove(0) } else { Tensor::cat(&rows, 0)? };
        for (i, group) in self.groups[BLOCKS..BLOCKS + self.config.depth].iter().enumerate() {
            let drop = self.drop_path(i, sequences.count(), pass);
            let output = if i + 1 == self.config.depth { output } else { Tokens::All };
            x = self.config.block().forward(&x, &group.flat(track), &sequences, drop.as_ref(), output)?;
        }
        Ok((x, sequences))
    }

    fn drop_path(&self, block: usize, sequences: usize, pass: &mut Pass<'_>) -> Option<DropPath> {
        let rate = self.config.drop_path * block as f64 / (self.config.depth.max(2) - 1) as f64;
        match pass {
            Pass::Trained(random, _) if rate > 0.0 => {
                let keep = 1.0 - rate as f32;
                let mut draw = || (0..sequences).map(|_| if random.uniform() * 0.5 + 0.5 < keep { 1.0 / keep } else { 0.0 }).collect();
                Some(DropPath { attention: draw(), mlp: draw() })
            }
            _ => None,
        }
    }

    fn norm(&self, x: &Tensor, track: bool) -> Result<Tensor> {
        let last = self.groups.len();
        layer_norm(x, &self.whole(last - 2, track)?, &self.whole(last - 1, track)?, VitConfig::EPS)
    }

    /// Normalised CLS features of all crops, `[Σ n, dim]`, crop by crop.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn features(&self, crops: &[Tensor], pass: &mut Pass<'_>) -> Result<Tensor> {
        let (x, _) = self.residual(crops, pass, Tokens::First)?;
        self.norm(&x, pass.tracks())
    }

    /// All normalised tokens `[n, tokens, dim]` of pictures `[n, 3, height, width]`.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn tokens(&self, pictures: &Tensor) -> Result<Tensor> {
        let (x, sequences) = self.residual(std::slice::from_ref(pictures), &mut Pass::Frozen, Tokens::All)?;
        self.norm(&x, false)?.reshape((sequences.count(), (), self.config.dim))
    }

    /// Normalised tokens after the first `blocks` blocks, `[n, tokens, dim]`: the public code's `get_intermediate_layers`.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn intermediate(&self, pictures: &Tensor, blocks: usize) -> Result<Tensor> {
        let (x, sequences) = self.shallow(blocks).residual(std::slice::from_ref(pictures), &mut Pass::Frozen, Tokens::All)?;
        self.norm(&x, false)?.reshape((sequences.count(), (), self.config.dim))
    }

    /// This transformer up to a block, sharing its parameters.
    fn shallow(&self, blocks: usize) -> Self {
        Self { config: VitConfig { depth: blocks.min(self.config.depth), ..self.config }, groups: self.groups.clone() }
    }

    /// Attention weights of the last block, `[n, heads, tokens, tokens]`.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn last_attention(&self, pictures: &Tensor) -> Result<Tensor> {
        let Some(last) = self.config.depth.checked_sub(1) else { bail!("a transformer without blocks has no attention") };
        let (x, sequences) = self.shallow(last).residual(std::slice::from_ref(pictures), &mut Pass::Frozen, Tokens::All)?;
        let weights = self.config.block().attention_weights(&x, &self.groups[BLOCKS + last].flat(false), &sequences)?;
        Tensor::stack(&weights, 0)
    }
}

/// Every parameter of some groups with its group.
pub fn entries(groups: &[Group]) -> impl Iterator<Item = (&Group, &Entry)> {
    groups.iter().flat_map(|group| group.entries().iter().map(move |entry| (group, entry)))
}
