//! A backbone takes over the weights of a checkpoint: training goes on from a public release, with labels or without.
//!
//! ```
//! use candle_core::Device;
//! use dino_train::backbone::{Backbone, vit::VitConfig};
//! use dino_train::data::loader::generator;
//! use dino_train::weights::{Options, init::initialise};
//! use dino_vision::transform::Transform;
//!
//! let checkpoint = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/checkpoints/pth-dino-backbone/dino_vit_pretrain.pth");
//! let options = Options { heads: Some(4), ..Options::default() };
//! let of = |dim| {
//!     let config = VitConfig { img_size: 224, patch_size: 8, dim, depth: 2, heads: 4, ..VitConfig::default() };
//!     Backbone::new(config.into(), &mut generator(0, 0, 0, 0), &Device::Cpu)
//! };
//! assert!(initialise(&of(32)?, checkpoint.as_ref(), &options, &Transform::evaluation()).is_ok());
//! assert!(initialise(&of(64)?, checkpoint.as_ref(), &options, &Transform::evaluation()).is_err(), "of another size");
//! # Ok::<(), candle_core::Error>(())
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;
use dino_vision::transform::Transform;

use super::spec::{self, Activation, Interpolation, Linear, Mlp, Norm, Positions, StemLevel};
use super::{Options, Tensor, error, layout, load, locate, open};
use crate::backbone::convnext::{self, ConvnextConfig};
use crate::backbone::parameters::{Entry, Group};
use crate::backbone::positions::{PositionCode, RotaryJitter, rotary_periods};
use crate::backbone::stem::Stem;
use crate::backbone::vit::{Vit, VitConfig};
use crate::backbone::{Backbone, BackboneConfig, positions};
use crate::data::loader::generator;
use crate::kernels::matmul::Precision;

/// Why a backbone could not take over a checkpoint. It is unchanged then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] super::Error),
    /// It holds another kind of network.
    #[error("{0}")]
    Unsupported(String),
    /// The sizes differ.
    #[error(
        "the checkpoint does not fit the backbone of this run (--arch, --patch-size, --dim, --depth):{}{}{}",
        error::lines("missing", .missing), error::lines("extra", .extra), error::lines("wrong shape", .wrong)
    )]
    Misfit {
        /// Parameters of the run's backbone that the checkpoint lacks.
        missing: Vec<String>,
        /// Tensors of the checkpoint that the run's backbone lacks.
        extra: Vec<String>,
        /// Tensors of another shape, with both shapes.
        wrong: Vec<String>,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] candle_core::Error),
}

/// Tensors under the names that the public code gives them inside a backbone.
type Named = BTreeMap<String, Tensor>;

/// Fills `backbone` from the checkpoint at `path`, of any layout that [`load`] reads, and returns what the user should know. `pixels` is how
/// the run prepares pictures.
///
/// # Errors
/// See [`Error`].
pub fn initialise(backbone: &Backbone, path: &Path, options: &Options, pixels: &Transform) -> Result<Vec<String>, Error> {
    let config = backbone.config();
    let checkpoint = match (load(path, options), &config) {
        // The checkpoint does not say, so the run does.
        (Err(super::Error::Heads(_)), BackboneConfig::Vit(config)) => {
            load(path, &Options { heads: Some(config.heads), ..options.clone() })?
        }
        // No convolutional network has heads.
        (Err(super::Error::Heads(_)), BackboneConfig::Resnet(_) | BackboneConfig::Convnext(_)) => return Err(holds_no(path, &config)),
        (read, _) => read?,
    };
    let mut notes = checkpoint.report.notes;
    let tensors = match (checkpoint.backbone, config) {
        (spec::Backbone::Vit(vit), BackboneConfig::Vit(config)) => {
            if vit.heads != config.heads {
                let (theirs, ours) = (vit.heads, config.heads);
                let reason = format!("{} has {theirs} heads, the backbone of this run {ours}: give --heads {theirs}", path.display());
                return Err(Error::Unsupported(reason));
            }
            named(vit, &config, &mut notes)?
        }
        (spec::Backbone::Resnet(_), BackboneConfig::Resnet(_)) => layout::resnet_tensors(&open(&locate(path)?)?, options)?,
        (spec::Backbone::Convnext(convnext), BackboneConfig::Convnext(config)) => {
            note_epsilon(convnext.eps, convnext::EPS, &mut notes);
            named_convnext(layout::convnext_tensors(&open(&locate(path)?)?, options)?, &config)?
        }
        (_, BackboneConfig::Resnet(_) | BackboneConfig::Convnext(_)) => return Err(holds_no(path, &config)),
        (_, BackboneConfig::Vit(_)) => {
            return Err(Error::Unsupported(format!(
                "{} holds a convolutional network: --init takes a ResNet with --arch resnet18 or resnet50, a ConvNeXt with --arch \
                 convnext_tiny, convnext_small, convnext_base or convnext_large",
                path.display()
            )));
        }
    };
    assign(backbone, tensors)?;
    let Transform { mean, std, .. } = checkpoint.transform;
    if checkpoint.transform_note.is_none() && (mean, std) != (pixels.mean, pixels.std) {
        tracing::warn!(
            "the weights of {} are made for pixels of mean {mean:?} and deviation {std:?}, and this run trains with {:?} and {:?}: expect them \
             to be worse at first",
            path.display(),
            pixels.mean,
            pixels.std
        );
    }
    Ok(notes)
}

/// Copies tensors into parameters and running statistics once all fit.
fn assign(backbone: &Backbone, mut tensors: Named) -> Result<(), Error> {
    let (mut missing, mut wrong, mut fitting) = (Vec::new(), Vec::new(), Vec::new());
    let groups = backbone.groups().iter().chain(backbone.buffers());
    let entries = groups.flat_map(|group| group.entries().iter().map(move |entry| (group, entry)));
    for (group, entry) in entries.collect::<Vec<(&Group, &Entry)>>() {
        let name = entry.name.strip_prefix("backbone.").unwrap_or(&entry.name);
        match tensors.remove(name) {
            None => missing.push(name.to_owned()),
            Some(tensor) if tensor.shape != entry.shape => {
                wrong.push(format!("{name} is {:?}, the run's backbone needs {:?}", tensor.shape, entry.shape));
            }
            Some(tensor) => fitting.push((group, entry, tensor)),
        }
    }
    let extra: Vec<String> = tensors.into_keys().collect();
    if !(missing.is_empty() && wrong.is_empty() && extra.is_empty()) {
        return Err(Error::Misfit { missing, extra, wrong });
    }
    for (group, entry, tensor) in fitting {
        group.set(entry, &tensor.data)?;
    }
    Ok(())
}

/// The transformer `vit` as variables, at its own picture size, with stochastic depth of `drop_path`. Notes say what becomes different.
///
/// # Errors
/// See [`Error`].
pub fn vit(vit: spec::Vit, drop_path: f64, precision: Precision, device: &Device, notes: &mut Vec<String>) -> Result<Vit, Error> {
    let img_size = match &vit.positions {
        Positions::Learned { table, .. } => table.shape[0] * vit.patch_size,
        Positions::Rotary { .. } => (VitConfig::default().img_size / vit.patch_size).max(1) * vit.patch_size,
    };
    let positions = match rotary_base(&vit)? {
        Some(base) => PositionCode::Rotary { base, jitter: RotaryJitter::default() },
        None => PositionCode::Learned,
    };
    let config = VitConfig {
        img_size,
        gated: gated(&vit)?,
        positions,
        patch_size: vit.patch_size,
        dim: vit.dim,
        depth: vit.blocks.len(),
        heads: vit.heads,
        drop_path,
        stem: if vit.stem.is_empty() { Stem::Patch } else { Stem::Conv },
        registers: vit.registers(),
        precision,
        ..VitConfig::default()
    };
    // Every value is replaced.
    let fresh = Vit::new(config, &mut generator(0, 0, 0, 0), device)?;
    assign(&Backbone::Vit(fresh.clone()), named(vit, &config, notes)?)?;
    Ok(fresh)
}

fn holds_no(path: &Path, asked: &BackboneConfig) -> Error {
    let kind = match asked {
        BackboneConfig::Vit(_) => "vision transformer",
        BackboneConfig::Resnet(_) => "ResNet",
        BackboneConfig::Convnext(_) => "ConvNeXt",
    };
    Error::Unsupported(format!("{} holds no {kind}, which --arch asks for", path.display()))
}

/// Notes an epsilon that training does not keep.
fn note_epsilon(theirs: f32, ours: f32, notes: &mut Vec<String>) {
    if (theirs - ours).abs() > 1e-9 {
        // Features move by less than rounding does, unless a token hardly varies.
        notes.push(format!("its layer norms have an epsilon of {theirs:e}, training and what it exports {ours:e}"));
    }
}

/// The tensors of a `ConvNeXt` as the run's backbone has them: with layer scales, or without.
fn named_convnext(mut tensors: Named, config: &ConvnextConfig) -> Result<Named, Error> {
    let has_scales = tensors.keys().any(|name| name.ends_with(".gamma"));
    if has_scales && config.layer_scale.is_none() {
        return Err(Error::Unsupported("this backbone has layer scales: leave out --layer-scale 0".to_owned()));
    }
    if !has_scales && config.layer_scale.is_some() {
        // As if they were multiplied into the layers before them.
        let of_block =
            |(name, bias): (&String, &Tensor)| Some((format!("{}.gamma", name.strip_suffix(".pwconv2.bias")?), bias.shape.clone()));
        let scales: Vec<_> = tensors.iter().filter_map(of_block).collect();
        tensors.extend(scales.into_iter().map(|(name, shape)| (name, Tensor { data: vec![1.0; shape.iter().product()], shape })));
    }
    Ok(tensors)
}

fn refused(what: &str) -> Error {
    Error::Unsupported(format!(
        "this backbone has {what}, which is not trained here: give a ViT of the public DINO, DINOv2 and DINOv3 releases or of dino-train"
    ))
}

/// Columns of the hidden layer of the MLPs where they are gated.
///
/// # Errors
/// For gates that are not trained here.
pub fn gated(vit: &spec::Vit) -> Result<Option<usize>, Error> {
    match vit.blocks.first().map(|block| &block.mlp) {
        Some(Mlp::Gated { activation: Activation::Gelu, .. }) => Err(refused("MLPs with gates of GELU")),
        Some(Mlp::Gated { output, .. }) => Ok(output.weight.shape.get(1).copied()),
        _ => Ok(None),
    }
}

/// The base of the periods where positions are rotary.
///
/// # Errors
/// For periods of no base.
pub fn rotary_base(vit: &spec::Vit) -> Result<Option<f64>, Error> {
    let Positions::Rotary { periods } = &vit.positions else { return Ok(None) };
    let count = periods.len() as f64;
    let found = periods.last().map_or(100.0, |last| if periods.len() > 1 { f64::from(*last).powf(count / (count - 1.0)) } else { 100.0 });
    // 100 is that of every public release; their periods are rounded to bfloat16.
    let bases = [EXACT, BFLOAT16].into_iter().flat_map(|tolerance| [100.0, found.round(), found].map(|base| (base, tolerance)));
    match bases.into_iter().find(|(base, tolerance)| are_of_base(periods, *base, *tolerance)) {
        Some((base, _)) => Ok(Some(base)),
        None => Err(refused("rotary positions whose periods are of no base")),
    }
}

/// Relative differences of periods: by rounding of float32, and of bfloat16.
const EXACT: f32 = 1e-5;
const BFLOAT16: f32 = 5e-3;

fn are_of_base(periods: &[f32], base: f64, tolerance: f32) -> bool {
    rotary_periods(base, periods.len()).iter().zip(periods).all(|(ours, theirs)| (ours / theirs - 1.0).abs() < tolerance)
}

fn named(vit: spec::Vit, config: &VitConfig, notes: &mut Vec<String>) -> Result<Named, Error> {
    if vit.registers() != config.registers {
        return Err(refused(&format!("{} register tokens where the run has {}", vit.registers(), config.registers)));
    }
    note_epsilon(vit.eps, config.eps(), notes);
    let own_gate = gated(&vit)?;
    if own_gate != config.gated {
        return Err(Error::Unsupported(match own_gate {
            Some(hidden) => {
                format!("the MLPs of this backbone are gated, of {hidden} columns: give --ffn-layer swiglu --ffn-hidden {hidden}")
            }
            None => "the MLPs of this backbone are not gated: give --ffn-layer mlp".to_owned(),
        }));
    }
    let base = rotary_base(&vit)?;
    let has_key_biases =
        |block: &spec::Block| block.qkv.bias.iter().any(|bias| bias[vit.dim..2 * vit.dim].iter().any(|value| *value != 0.0));
    if base.is_some() && vit.blocks.iter().any(has_key_biases) {
        return Err(refused("rotary positions and biases of keys"));
    }
    let mut named = Named::new();
    let registers_name = match (vit.positions, config.positions) {
        (Positions::Learned { table, interpolation }, PositionCode::Learned) => {
            named.insert("pos_embed".to_owned(), position_table(table, config, interpolation, notes)?);
            "register_tokens"
        }
        (Positions::Rotary { periods }, PositionCode::Rotary { base: ours, .. }) if are_of_base(&periods, ours, BFLOAT16) => {
            // Those that the run computes with.
            let data = rotary_periods(ours, periods.len());
            named.insert("rope_embed.periods".to_owned(), Tensor { shape: vec![data.len()], data });
            "storage_tokens"
        }
        (Positions::Rotary { .. }, _) => {
            let base = base.unwrap_or_default();
            return Err(Error::Unsupported(format!(
                "the positions of this backbone are rotary, of base {base}: give --pos-embed rope --rope-base {base}"
            )));
        }
        (Positions::Learned { .. }, _) => {
            return Err(Error::Unsupported("this backbone has a table of positions: give --pos-embed learned".to_owned()));
        }
    };
    // The prefix holds CLS with its position, so that this position is zero.
    let mut cls = vit.prefix.data;
    let registers = cls.split_off(vit.dim);
    named.insert("cls_token".to_owned(), Tensor { shape: vec![1, 1, vit.dim], data: cls });
    if config.registers > 0 {
        named.insert(registers_name.to_owned(), Tensor { shape: vec![1, config.registers, vit.dim], data: registers });
    }
    if config.mask_token {
        named.insert("mask_token".to_owned(), Tensor { shape: vec![1, vit.dim], data: vec![0.0; vit.dim] });
    }
    for (level, StemLevel { convolution, norm: behind }) in vit.stem.into_iter().enumerate() {
        named.insert(format!("patch_embed.stem.{level}.weight"), convolution.kernel.weight);
        norm(&mut named, &format!("patch_embed.stem.{level}.norm"), behind);
    }
    linear(&mut named, "patch_embed.proj", vit.patch);
    for (index, block) in vit.blocks.into_iter().enumerate() {
        let name = |part: &str| format!("blocks.{index}.{part}");
        norm(&mut named, &name("norm1"), block.norm1);
        linear(&mut named, &name("attn.qkv"), block.qkv);
        linear(&mut named, &name("attn.proj"), block.proj);
        norm(&mut named, &name("norm2"), block.norm2);
        let (input, output, names) = match block.mlp {
            Mlp::Plain { input, output } => (input, output, ["mlp.fc1", "mlp.fc2"]),
            Mlp::Gated { input, output, .. } => (input, output, ["mlp.w12", "mlp.w3"]),
        };
        linear(&mut named, &name(names[0]), input);
        linear(&mut named, &name(names[1]), output);
        if config.layer_scale.is_some() {
            // They are multiplied into the layers before them.
            for scale in ["ls1.gamma", "ls2.gamma"] {
                named.insert(name(scale), Tensor { shape: vec![vit.dim], data: vec![1.0; vit.dim] });
            }
        }
    }
    norm(&mut named, "norm", vit.norm);
    Ok(named)
}

/// `[side, side, D]` to `[1, 1 + grid * grid, D]` with zeros for CLS; resampled where the run's pictures have another grid.
fn position_table(table: Tensor, config: &VitConfig, from: Interpolation, notes: &mut Vec<String>) -> Result<Tensor, Error> {
    let (side, dim, grid) = (table.shape[0], table.shape.get(2).copied().unwrap_or(0), config.grid());
    let mut data = vec![0.0; dim];
    if side == grid {
        data.extend(table.data);
    } else {
        notes.push(format!("positions of {side} x {side} patches are resampled to {grid} x {grid}"));
        let patches = candle_core::Tensor::from_vec(table.data, (side * side, dim), &Device::Cpu)?;
        data.extend(positions::interpolation(side, grid, grid, &Device::Cpu)?.matmul(&patches)?.flatten_all()?.to_vec1::<f32>()?);
    }
    if from != Interpolation::ScaleFactor {
        notes.push(
            "other picture sizes resample positions as the public DINO code does, the release's own code a little differently".to_owned(),
        );
    }
    Ok(Tensor { shape: vec![1, 1 + grid * grid, dim], data })
}

fn linear(named: &mut Named, name: &str, layer: Linear) {
    let outputs = layer.weight.shape.first().copied().unwrap_or(0);
    let bias = layer.bias.unwrap_or_else(|| vec![0.0; outputs]);
    named.insert(format!("{name}.weight"), layer.weight);
    named.insert(format!("{name}.bias"), Tensor { shape: vec![outputs], data: bias });
}

fn norm(named: &mut Named, name: &str, norm: Norm) {
    for (part, data) in [("weight", norm.weight), ("bias", norm.bias)] {
        named.insert(format!("{name}.{part}"), Tensor { shape: vec![data.len()], data });
    }
}
