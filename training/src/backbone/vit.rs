//! The vision transformer of the DINO paper: patches and a CLS token, learned positions, pre-norm blocks. With registers and SwiGLU that
//! of DINOv2, with rotary positions that of DINOv3.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use dino_train::{backbone::vit::{Vit, VitConfig}, data::loader::generator};
//!
//! let config = VitConfig { img_size: 32, patch_size: 8, dim: 16, depth: 2, heads: 2, registers: 4, ..VitConfig::default() };
//! let vit = Vit::new(config, &mut generator(0, 0, 0, 0), &Device::Cpu)?;
//! let pictures = Tensor::zeros((1, 3, 24, 40), DType::F32, &Device::Cpu)?;
//! // CLS, four registers and 3 x 5 patches.
//! assert_eq!(vit.tokens(&pictures)?.dims(), [1, 20, 16]);
//! assert_eq!(vit.last_attention(&pictures)?.dims(), [1, 2, 20, 20]);
//! # Ok::<(), candle_core::Error>(())
//! ```

use std::ops::Range;

use candle_core::{Device, Result, Tensor, bail};

use super::Pass;
use super::lora::Lora;
use super::parameters::{Entry, Group, Init, Random};
use super::positions::{PositionCode, interpolation, rotary_periods};
use super::stem::{self, Stem};
use crate::kernels::matmul::Precision;
use crate::ops::block::{Block, DropPath, Jitter, Rotation, Sequences, Tokens};
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
    /// Columns of the hidden layer of a gated MLP (`SwiGLU`); without it the MLP is of GELU and four times as wide as the residual stream.
    pub gated: Option<usize>,
    /// How patches learn where they are.
    pub positions: PositionCode,
    /// Stochastic depth of the last block; it grows linearly from 0 in the first.
    pub drop_path: f64,
    /// How patches are embedded.
    pub stem: Stem,
    /// Register tokens behind CLS (Darcet et al. 2024).
    pub registers: usize,
    /// First value of the factors of each branch's columns (layer scale; Touvron et al. 2021), where there are any.
    pub layer_scale: Option<f32>,
    /// Whether there is a token that takes the place of masked patches (iBOT).
    pub mask_token: bool,
    /// Arithmetic of the linear layers.
    pub precision: Precision,
}

impl Default for VitConfig {
    /// ViT-S/16 of the paper, without stochastic depth.
    fn default() -> Self {
        Self {
            img_size: 224,
            patch_size: 16,
            dim: 384,
            depth: 12,
            heads: 6,
            gated: None,
            positions: PositionCode::Learned,
            drop_path: 0.0,
            stem: Stem::Patch,
            registers: 0,
            layer_scale: None,
            mask_token: false,
            precision: Precision::F32,
        }
    }
}

impl VitConfig {
    /// Hidden columns of the MLP by columns of the residual stream.
    const MLP_RATIO: usize = 4;

    /// Epsilon of the layer norms, as in the public code.
    pub fn eps(&self) -> f32 {
        match self.positions {
            PositionCode::Learned => 1e-6,
            PositionCode::Rotary { .. } => 1e-5,
        }
    }

    fn block(&self) -> Block {
        let Self { dim, heads, precision, gated, .. } = *self;
        let hidden = gated.unwrap_or(dim * Self::MLP_RATIO);
        Block { dim, heads, hidden, gated: gated.is_some(), eps: self.eps(), precision, recompute: false }
    }

    /// Rotary periods: a quarter as many as a head has channels.
    fn periods(&self, base: f64) -> Vec<f32> {
        rotary_periods(base, self.dim / self.heads / 4)
    }

    /// Patches along one side of the position table.
    pub fn grid(&self) -> usize {
        self.img_size / self.patch_size
    }
}

/// Parameters in front of the blocks, one group each.
const CLS: usize = 0;
/// The table of positions; rotary periods, which are not trained, in its place.
const POSITIONS: usize = 1;
const PATCH_WEIGHT: usize = 2;
const PATCH_BIAS: usize = 3;
const BLOCKS: usize = 4;

/// A vision transformer and its parameters.
#[derive(Clone, Debug)]
pub struct Vit {
    config: VitConfig,
    groups: Vec<Group>,
    places: Places,
    lora: Option<Lora>,
    /// Whether blocks compute again in the backward pass.
    recompute: bool,
}

/// Where the groups behind the blocks are. A transformer cut short has the places of the whole one.
#[derive(Clone, Debug, Default)]
struct Places {
    /// Weight of the last norm; its bias follows.
    norm: usize,
    /// Convolutions of the stem.
    stem: Range<usize>,
    registers: Option<usize>,
    mask_token: Option<usize>,
    /// Layer scales of the first block; those of the others follow.
    scales: Option<usize>,
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
        let is_rotary = matches!(config.positions, PositionCode::Rotary { .. });
        if is_rotary && (dim / heads) % 4 != 0 {
            bail!("rotary positions need heads of a multiple of 4 channels: {dim} channels and {heads} heads make {}", dim / heads);
        }
        let tokens = config.grid() * config.grid() + 1;
        // The patch embedding keeps the initialisation of PyTorch's convolutions: uniform in ± 1/√fan-in, biases too.
        let channels = config.stem.channels(patch_size, dim)?;
        let (inputs, side) = config.stem.projection(patch_size, dim);
        let fan_in = inputs * side * side;
        let bound = Init::Uniform(1.0 / (fan_in as f32).sqrt());
        let mut single =
            |name: &str, shape: &[usize], init| Group::new(vec![(format!("backbone.{name}"), shape.to_vec(), init)], random, device);
        let mut groups = vec![
            single("cls_token", &[1, 1, dim], Init::Normal(0.02))?,
            if is_rotary {
                single("rope_embed.periods", &[dim / heads / 4], Init::Constant(0.0))?
            } else {
                single("pos_embed", &[1, tokens, dim], Init::Normal(0.02))?
            },
            single("patch_embed.proj.weight", &[dim, inputs, side, side], bound)?,
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
        let mut single =
            |name: &str, shape: &[usize], init| Group::new(vec![(format!("backbone.{name}"), shape.to_vec(), init)], random, device);
        let mut places = Places { norm: groups.len(), ..Places::default() };
        groups.push(single("norm.weight", &[dim], Init::Constant(1.0))?);
        groups.push(single("norm.bias", &[dim], Init::Constant(0.0))?);
        if config.registers > 0 {
            places.registers = Some(groups.len());
            // By their names in DINOv3 and in DINOv2.
            let name = if is_rotary { "storage_tokens" } else { "register_tokens" };
            groups.push(single(name, &[1, config.registers, dim], Init::Normal(1e-6))?);
        }
        if config.mask_token {
            places.mask_token = Some(groups.len());
            groups.push(single("mask_token", &[1, dim], Init::Constant(0.0))?);
        }
        if let Some(first) = config.layer_scale {
            places.scales = Some(groups.len());
            for block in 0..depth {
                let scale = |branch| (format!("backbone.blocks.{block}.ls{branch}.gamma"), vec![dim], Init::Constant(first));
                groups.push(Group::new(vec![scale(1), scale(2)], random, device)?);
            }
        }
        places.stem = groups.len()..groups.len() + channels.len();
        groups.extend(stem::parameters(&channels, random, device)?);
        if let PositionCode::Rotary { base, .. } = config.positions {
            let periods: &Group = &groups[POSITIONS];
            periods.set(&periods.entries()[0], &config.periods(base))?;
        }
        Ok(Self { config, groups, places, lora: None, recompute: false })
    }

    /// With fresh low-rank adapters: they and the mask token are trained, and nothing else is.
    ///
    /// # Errors
    /// When the device fails.
    pub fn with_adapters(self, rank: usize, random: &mut impl Random, device: &Device) -> Result<Self> {
        let lora = Lora::new(&self.config.block(), self.config.depth, rank, random, device)?;
        Ok(Self { lora: Some(lora), ..self })
    }

    /// Without adapters.
    #[must_use]
    pub fn without_adapters(self) -> Self {
        Self { lora: None, ..self }
    }

    /// Whose blocks keep their inputs alone for the backward pass, and compute the rest again there.
    #[must_use]
    pub fn with_activation_checkpointing(self) -> Self {
        Self { recompute: true, ..self }
    }

    /// Low-rank adapters, where there are some.
    pub fn adapters(&self) -> &[Group] {
        self.lora.as_ref().map_or(&[], Lora::groups)
    }

    /// The value of each group with adapters merged into it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn merged(&self) -> Result<Vec<Tensor>> {
        let blocks = BLOCKS..BLOCKS + self.config.depth;
        let value = |(index, group): (usize, &Group)| match &self.lora {
            Some(lora) if blocks.contains(&index) => lora.merged(&self.config.block(), index - BLOCKS, &group.flat(false), false),
            _ => Ok(group.flat(false)),
        };
        self.groups.iter().enumerate().map(value).collect()
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
        let lora = self.lora.as_ref().map(Lora::duplicate).transpose()?;
        Ok(Self { config: self.config, groups, places: self.places.clone(), lora, recompute: self.recompute })
    }

    fn whole(&self, group: usize, track: bool) -> Result<Tensor> {
        // Beside adapters, the mask token alone is trained: checkpoints come without one.
        let track = track && (self.lora.is_none() || Some(group) == self.places.mask_token);
        let group = &self.groups[group];
        group.view(&group.flat(track), 0)
    }

    /// The parameters of a block, with its layer scales multiplied into the layers before them: the blocks themselves have none. Beside
    /// rotary positions the biases of keys are zero, as in DINOv3.
    fn block(&self, index: usize, track: bool) -> Result<Tensor> {
        let group = &self.groups[BLOCKS + index];
        let (flat, track) = match &self.lora {
            Some(lora) => (lora.merged(&self.config.block(), index, &group.flat(false), track)?, false),
            None => (group.flat(track), track),
        };
        let flat = if self.config.positions == PositionCode::Learned { flat } else { self.without_key_biases(&flat)? };
        let Some(scales) = self.places.scales else { return Ok(flat) };
        self.config.block().scaled(&flat, &self.groups[scales + index].flat(track))
    }

    /// The parameters of a block whose biases of keys, which are zero, are not trained.
    fn without_key_biases(&self, flat: &Tensor) -> Result<Tensor> {
        let dim = self.config.dim;
        let ahead = self.config.block().parameters().into_iter().take_while(|(name, _)| *name != "attn.qkv.bias");
        let keys = ahead.map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>() + dim;
        let rest = flat.elem_count() - keys - dim;
        Tensor::cat(&[flat.narrow(0, 0, keys)?, flat.narrow(0, keys, dim)?.detach(), flat.narrow(0, keys + dim, rest)?], 0)
    }

    /// Patches of each of some pictures `[n, 3, height, width]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn patches_of(&self, pictures: &Tensor) -> Result<usize> {
        let (.., height, width) = pictures.dims4()?;
        Ok((height / self.config.patch_size) * (width / self.config.patch_size))
    }

    /// Pictures `[n, 3, height, width]` to patches `[n, rows * columns, dim]`, without the bias of the embedding.
    fn patches(&self, pictures: &Tensor, track: bool) -> Result<Tensor> {
        let (n, _, height, width) = pictures.dims4()?;
        let VitConfig { patch_size: p, dim, .. } = self.config;
        let (h, w) = (height / p, width / p);
        let rows = match self.config.stem {
            Stem::Patch => pictures.reshape(&[n, 3, h, p, w, p][..])?.permute([0, 2, 4, 1, 3, 5])?.reshape((n * h * w, 3 * p * p))?,
            Stem::Conv => {
                let convolutions = &self.groups[self.places.stem.clone()];
                // With adapters the stem stands still, as all that they do not adapt.
                let track = track && self.lora.is_none();
                let positions = stem::forward(pictures, convolutions, track, self.config.eps(), self.config.precision)?;
                positions.reshape((n * h * w, dim))?
            }
        };
        let weight = self.whole(PATCH_WEIGHT, track)?.reshape((dim, rows.dim(1)?))?;
        linear(&rows, &weight, self.config.precision)?.reshape((n, h * w, dim))
    }

    /// Pictures `[n, 3, height, width]` to rows `[n * tokens, dim]`: CLS, registers and patches, with positions added, and the tokens
    /// of each. Where `mask` `[n, patches]` is 1, the mask token takes the place of a patch.
    fn embed(&self, pictures: &Tensor, mask: Option<&Tensor>, track: bool) -> Result<(Tensor, usize)> {
        let (n, channels, height, width) = pictures.dims4()?;
        let VitConfig { patch_size: p, dim, registers, .. } = self.config;
        let (h, w) = (height / p, width / p);
        if channels != 3 || h == 0 || w == 0 || height % p != 0 || width % p != 0 {
            bail!("pictures of shape {:?} cannot be cut into patches of {p} pixels", pictures.dims());
        }
        let rows = self.patches(pictures, track)?;
        let positions = self.positions(h, w, track)?;
        let bias = self.whole(PATCH_BIAS, track)?;
        let rows = match (mask, self.places.mask_token) {
            (None, _) => match &positions {
                Some((_, positions)) => rows.broadcast_add(&positions.broadcast_add(&bias)?)?,
                None => rows.broadcast_add(&bias)?,
            },
            (Some(_), None) => bail!("a transformer without a mask token cannot mask patches"),
            (Some(mask), Some(token)) => {
                let mask = mask.reshape((n, h * w, 1))?;
                let token = self.whole(token, track)?.reshape((1, 1, dim))?;
                let kept = rows.broadcast_add(&bias)?.broadcast_mul(&(1.0 - &mask)?)?;
                let hidden = (kept + mask.broadcast_mul(&token)?)?;
                match &positions {
                    Some((_, positions)) => hidden.broadcast_add(positions)?,
                    None => hidden,
                }
            }
        };
        let mut cls = self.whole(CLS, track)?.reshape((1, 1, dim))?;
        if let Some((position, _)) = positions {
            cls = (cls + position)?;
        }
        let mut tokens = vec![cls.broadcast_as((n, 1, dim))?];
        if let Some(group) = self.places.registers {
            tokens.push(self.whole(group, track)?.broadcast_as((n, registers, dim))?);
        }
        tokens.push(rows);
        let count = 1 + registers + h * w;
        Ok((Tensor::cat(&tokens, 1)?.reshape((n * count, dim))?, count))
    }

    /// Positions of CLS `[1, 1, dim]` and of an `h` x `w` grid `[1, h * w, dim]`, where there is a table of them.
    fn positions(&self, h: usize, w: usize, track: bool) -> Result<Option<(Tensor, Tensor)>> {
        if self.config.positions != PositionCode::Learned {
            return Ok(None);
        }
        let (side, dim) = (self.config.grid(), self.config.dim);
        let table = self.whole(POSITIONS, track)?;
        let patches = table.narrow(1, 1, side * side)?;
        // As the public code: a square picture with the table's number of patches takes the table as it is.
        let patches = if (h, w) == (side, side) {
            patches
        } else {
            interpolation(side, h, w, table.device())?.matmul(&patches.reshape((side * side, dim))?)?.reshape((1, h * w, dim))?
        };
        Ok(Some((table.narrow(1, 0, 1)?, patches)))
    }

    /// Rotations of crops for one block, where positions are rotary.
    fn rotations(&self, crops: &[Tensor], pass: &mut Pass<'_>) -> Result<Vec<Rotation>> {
        let PositionCode::Rotary { base, jitter } = self.config.positions else { return Ok(Vec::new()) };
        let VitConfig { patch_size, registers, .. } = self.config;
        let periods = self.config.periods(base);
        let of_crop = |crop: &Tensor| {
            let (.., height, width) = crop.dims4()?;
            let drawn = if let Pass::Trained(random, _) = pass { jitter.draw(&mut **random) } else { Jitter::NONE };
            Ok(Rotation::new(1 + registers, (height / patch_size, width / patch_size), &periods, &drawn))
        };
        crops.iter().map(of_crop).collect()
    }

    /// Crops of any sizes, each `[n, 3, height, width]`, to the residual stream before the last norm: rows packed one after another.
    /// Patches of the first crops are masked by `masks`.
    fn residual(&self, crops: &[Tensor], masks: Option<&Tensor>, pass: &mut Pass<'_>, output: Tokens) -> Result<(Tensor, Sequences)> {
        let track = pass.tracks();
        let mut rows = Vec::with_capacity(crops.len());
        let mut sequences = Sequences(Vec::with_capacity(crops.len()));
        for (i, crop) in crops.iter().enumerate() {
            let (embedded, tokens) = self.embed(crop, masks.filter(|_| i == 0), track)?;
            rows.push(embedded);
            sequences.0.push((crop.dim(0)?, tokens));
        }
        let mut x = if rows.len() == 1 { rows.swap_remove(0) } else { Tensor::cat(&rows, 0)? };
        let block = Block { recompute: self.recompute, ..self.config.block() };
        for i in 0..self.config.depth {
            let rotations = self.rotations(crops, pass)?;
            let drop = self.drop_path(i, sequences.count(), pass);
            let output = if i + 1 == self.config.depth { output } else { Tokens::All };
            x = block.forward(&x, &self.block(i, track)?, &sequences, &rotations, drop.as_ref(), output)?;
        }
        Ok((x, sequences))
    }

    fn drop_path(&self, block: usize, sequences: usize, pass: &mut Pass<'_>) -> Option<DropPath> {
        let rate = self.config.drop_path * block as f64 / (self.config.depth.max(2) - 1) as f64;
        Some(DropPath { attention: pass.drop_path(rate, sequences)?, mlp: pass.drop_path(rate, sequences)? })
    }

    fn norm(&self, x: &Tensor, track: bool) -> Result<Tensor> {
        layer_norm(x, &self.whole(self.places.norm, track)?, &self.whole(self.places.norm + 1, track)?, self.config.eps())
    }

    /// Normalised CLS features of all crops, `[Σ n, dim]`, crop by crop.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn features(&self, crops: &[Tensor], pass: &mut Pass<'_>) -> Result<Tensor> {
        let (x, _) = self.residual(crops, None, pass, Tokens::First)?;
        self.norm(&x, pass.tracks())
    }

    /// Normalised tokens, one row each: CLS, registers and patches of each of the first crops, then CLS of each of the others; and which rows
    /// are CLS. Patches of the first crops are replaced where `masks` `[n, patches]` is 1.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn tokens_of_first(&self, crops: &[Tensor], masks: Option<&Tensor>, pass: &mut Pass<'_>) -> Result<(Tensor, Vec<u32>)> {
        let output = Tokens::AllOfFirstRun;
        let (x, sequences) = self.residual(crops, masks, pass, output)?;
        Ok((self.norm(&x, pass.tracks())?, sequences.first_rows(output)))
    }

    /// All normalised tokens `[n, tokens, dim]` of pictures `[n, 3, height, width]`.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn tokens(&self, pictures: &Tensor) -> Result<Tensor> {
        let (x, sequences) = self.residual(std::slice::from_ref(pictures), None, &mut Pass::Frozen, Tokens::All)?;
        self.norm(&x, false)?.reshape((sequences.count(), (), self.config.dim))
    }

    /// Normalised tokens after the first `blocks` blocks, `[n, tokens, dim]`: the public code's `get_intermediate_layers`.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn intermediate(&self, pictures: &Tensor, blocks: usize) -> Result<Tensor> {
        let (x, sequences) = self.shallow(blocks).residual(std::slice::from_ref(pictures), None, &mut Pass::Frozen, Tokens::All)?;
        self.norm(&x, false)?.reshape((sequences.count(), (), self.config.dim))
    }

    /// This transformer up to a block, sharing its parameters.
    fn shallow(&self, blocks: usize) -> Self {
        Self { config: VitConfig { depth: blocks.min(self.config.depth), ..self.config }, ..self.clone() }
    }

    /// Attention weights of the last block, `[n, heads, tokens, tokens]`.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn last_attention(&self, pictures: &Tensor) -> Result<Tensor> {
        let Some(last) = self.config.depth.checked_sub(1) else { bail!("a transformer without blocks has no attention") };
        let (x, sequences) = self.shallow(last).residual(std::slice::from_ref(pictures), None, &mut Pass::Frozen, Tokens::All)?;
        let rotations = self.rotations(std::slice::from_ref(pictures), &mut Pass::Frozen)?;
        let weights = self.config.block().attention_weights(&x, &self.block(last, false)?, &sequences, &rotations)?;
        Tensor::stack(&weights, 0)
    }
}

/// Every parameter of some groups with its group.
pub fn entries(groups: &[Group]) -> impl Iterator<Item = (&Group, &Entry)> {
    groups.iter().flat_map(|group| group.entries().iter().map(move |entry| (group, entry)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::DType;

    use super::*;
    use crate::backbone::positions::RotaryJitter;
    use crate::data::loader::generator;
    use crate::exchange::{Alone, Exchange};
    use crate::ops::pool;

    #[test]
    fn with_activation_checkpointing_blocks_keep_nothing_of_a_forward_pass() {
        // Sizes of no other test: what blocks keep goes to the pool, which other tests share.
        let config = VitConfig { img_size: 56, patch_size: 8, dim: 22, depth: 2, heads: 2, ..VitConfig::default() };
        let vit = Vit::new(config, &mut generator(0, 0, 0, 0), &Device::Cpu).unwrap();
        let pictures = Tensor::zeros((3, 3, 56, 56), DType::F32, &Device::Cpu).unwrap();
        let exchange: Arc<dyn Exchange> = Arc::new(Alone);
        let kept = |vit: &Vit| {
            let mut random = generator(0, 0, 0, 0);
            let tokens = vit.tokens_of_first(std::slice::from_ref(&pictures), None, &mut Pass::Trained(&mut random, &exchange)).unwrap();
            drop(tokens);
            let rows = 3 * (7 * 7 + 1);
            [3 * 22, 4 * 22].map(|columns| pool::waiting(rows * columns))
        };
        assert_eq!(kept(&vit.duplicate().unwrap().with_activation_checkpointing()), [0, 0]);
        // q, k and v, and the hidden layer, of each block.
        assert_eq!(kept(&vit), [2, 2]);
    }

    #[test]
    fn rotary_positions_are_changed_in_training_alone() {
        let jitter = RotaryJitter { shift: Some(0.2), jitter: Some(1.5), rescale: Some(2.0) };
        let config = VitConfig { img_size: 32, patch_size: 8, dim: 16, depth: 2, heads: 2, ..VitConfig::default() };
        let config = VitConfig { positions: PositionCode::Rotary { base: 100.0, jitter }, ..config };
        let vit = Vit::new(config, &mut generator(0, 0, 0, 0), &Device::Cpu).unwrap();
        let pictures = Tensor::randn(0.0_f32, 1.0, (1, 3, 32, 32), &Device::Cpu).unwrap();
        let exchange: Arc<dyn Exchange> = Arc::new(Alone);
        let features = |pass: &mut Pass<'_>| {
            vit.features(std::slice::from_ref(&pictures), pass).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let frozen = features(&mut Pass::Frozen);
        assert_eq!(features(&mut Pass::Teacher(&exchange)), frozen);
        assert_ne!(features(&mut Pass::Trained(&mut generator(1, 0, 0, 0), &exchange)), frozen);
    }
}
