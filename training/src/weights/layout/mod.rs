//! Recognises a layout by its tensor names.
//!
//! A name is a root ([`root`]) and the layout's own name: `teacher.module.backbone.` + `blocks.0.norm1.weight`.

mod config;
mod convnext;
mod fused;
mod huggingface;
mod resnet;
mod root;
mod timm;

use std::collections::BTreeMap;

use dino_vision::transform::Transform;
use serde_json::Value as Json;

use super::scope::Scope;
use super::spec::{Backbone, Positions, Vit};
use super::store::{Store, Tensor};
use super::{Error, Options, Report};
use config::Config;
pub(super) use root::{side, wrapper_side};

/// What reading a layout gives.
pub(super) struct Read {
    pub(super) backbone: Backbone,
    pub(super) layout: &'static str,
    pub(super) architecture: &'static str,
    pub(super) transform: Option<Transform>,
    pub(super) report: Report,
}

/// A family of layouts that share their names.
#[derive(Clone, Copy)]
enum Names {
    /// DINO's own: queries, keys and values in one matrix. Also DINOv2, DINOv3 and timm.
    Fused,
    /// Hugging Face's ViT and DINOv2.
    HuggingFace,
    /// Hugging Face's DINOv3.
    HuggingFaceV3,
    /// torchvision's residual networks.
    Resnet,
    /// `ConvNeXt`, in Meta's, Hugging Face's and timm's names.
    Convnext,
    /// Recognised, to be refused by this name.
    Refused(&'static str),
}

/// A tensor that only one family has.
const SIGNATURES: [(&str, Names); 8] = [
    ("patch_embed.proj.weight", Names::Fused),
    ("embeddings.patch_embeddings.projection.weight", Names::HuggingFace),
    ("embeddings.patch_embeddings.weight", Names::HuggingFaceV3),
    ("layer1.0.conv1.weight", Names::Resnet),
    ("patch_embed.proj.0.0.weight", Names::Refused("XCiT")),
    ("downsample_layers.0.0.weight", Names::Convnext),
    ("stages.0.layers.0.depthwise_conv.weight", Names::Convnext),
    ("stages.0.blocks.0.conv_dw.weight", Names::Convnext),
];

/// Finds the backbone in a store and reads it.
pub(super) fn read(store: &Store, config: Option<&Json>, options: &Options) -> Result<Read, Error> {
    let mut notes = Vec::new();
    let (root, names) = find(store, options, &mut notes)?;
    let config = Config::read(config, store, names)?;
    let scope = Scope::new(store, &root, &options.ignore)?;
    let hints = Hints::gather(store, config, options)?;
    let mut read = match names {
        Names::Fused => fused::read(scope, &hints),
        Names::HuggingFace => huggingface::read(scope, &hints),
        Names::HuggingFaceV3 => huggingface::read_v3(scope, &hints),
        Names::Resnet => resnet::read(scope),
        Names::Convnext => convnext::read(scope, &hints),
        Names::Refused(name) => Err(Error::Unsupported(format!(
            "this is a checkpoint of {name}, which is not supported: only vision transformers, ResNets and ConvNeXts are"
        ))),
    }?;
    hints.config.check(&read.backbone)?;
    if let Some(asked) = options.positions {
        match &mut read.backbone {
            Backbone::Vit(Vit { positions: Positions::Learned { interpolation, .. }, .. }) => *interpolation = asked,
            _ => return Err(Error::Unsupported("--positions is for a learned table of positions, and this network has none".to_owned())),
        }
    } else if matches!(names, Names::Fused) && read.layout == fused::DINO.layout && hints.own.is_empty() {
        // timm's names are those of DINO, and its way of resampling is another.
        read.report.notes.push(
            "positions are resampled as DINO's own code does; if timm saved this file, give --positions bicubic-antialias, or save it with \
             its config.json: both differ for all pictures but those of the training's size"
                .to_owned(),
        );
    }
    read.transform = hints.transform;
    read.report.notes.splice(0..0, notes);
    Ok(read)
}

/// Where the backbone is, and the family of its names.
fn find(store: &Store, options: &Options, notes: &mut Vec<String>) -> Result<(String, Names), Error> {
    let (root, names) = root::find(store, options, notes)?;
    Ok((if matches!(names, Names::Convnext) { above_model(store, root) } else { root }, names))
}

/// In the modules of transformers 5 a `ConvNeXt` is called `model`, and its final norm lies beside it.
fn above_model(store: &Store, root: String) -> String {
    match root.strip_suffix("model.") {
        Some(above) if store.shape(&format!("{above}layer_norm.weight")).is_some() => above.to_owned(),
        _ => root,
    }
}

/// Every tensor of a torchvision ResNet that [`read`] reads, under its own name, batch norms included.
pub(super) fn resnet_tensors(store: &Store, options: &Options) -> Result<BTreeMap<String, Tensor>, Error> {
    let (root, _) = find(store, options, &mut Vec::new())?;
    Scope::new(store, &root, &options.ignore)?.tensors(is_harmless)
}

/// Every tensor of a `ConvNeXt` that [`read`] reads, under Meta's names, layer scales included.
pub(super) fn convnext_tensors(store: &Store, options: &Options) -> Result<BTreeMap<String, Tensor>, Error> {
    let (root, _) = find(store, options, &mut Vec::new())?;
    convnext::tensors(&Scope::new(store, &root, &options.ignore)?)
}

/// What is known beside the tensors, from flags, `config.json`, the checkpoint's metadata and the arguments of DINO's script.
#[derive(Default)]
pub(super) struct Hints {
    config: Config,
    heads: Option<usize>,
    /// (dim, depth, heads) as the checkpoint itself says them.
    own: Vec<(usize, usize, usize)>,
    transform: Option<Transform>,
    /// Whether this project's trainer wrote it, whose positions are always interpolated as in DINO.
    trained_here: bool,
}

impl Hints {
    fn gather(store: &Store, config: Config, options: &Options) -> Result<Self, Error> {
        let mut hints = Self { config, heads: options.heads, ..Self::default() };
        if let Some(text) = store.scalar("dino").and_then(Json::as_str) {
            let damaged = |reason: String| Error::Damaged { file: store.files()[0].clone(), reason };
            let json: Json = serde_json::from_str(text).map_err(|error| damaged(format!("its metadata: {error}")))?;
            hints.trained_here = true;
            let number = |key: &str| json[key].as_u64().map(|value| value as usize);
            if let (Some(dim), Some(depth), Some(heads)) = (number("dim"), number("depth"), number("heads")) {
                hints.own.push((dim, depth, heads));
            }
            if !json["transform"].is_null() {
                let transform = serde_json::from_value(json["transform"].clone());
                hints.transform = Some(transform.map_err(|error| damaged(format!("its transform: {error}")))?);
            }
        }
        // The arguments of DINO's training script. Its architectures always have twelve blocks.
        match store.scalar("args.arch").and_then(Json::as_str) {
            Some("vit_tiny") => hints.own.push((192, 12, 3)),
            Some("vit_small") => hints.own.push((384, 12, 6)),
            Some("vit_base") => hints.own.push((768, 12, 12)),
            _ => {}
        }
        Ok(hints)
    }

    /// Number of blocks, where something beside the tensors says it.
    fn depth(&self, dim: usize) -> Result<Option<usize>, Error> {
        Ok(self.config.depth(dim)?.or(self.own.iter().find(|own| own.0 == dim).map(|own| own.1)))
    }

    /// Attention heads of a network of width `dim`: that of --heads, that of the configuration, that of rotary `periods` in the tensors,
    /// that of the checkpoint's own arguments where they fit the tensors, else one for each 64 channels, as in most public releases.
    fn heads(&self, dim: usize, (is_rotary, periods): (bool, Option<usize>), notes: &mut Vec<String>) -> Result<usize, Error> {
        // The scope has noted that the width is unknown, and its error says more.
        if dim == 0 {
            return Ok(1);
        }
        let fits = |heads: &usize| *heads > 0 && dim.is_multiple_of(*heads);
        if let Some(heads) = self.heads {
            let error = || Error::Heads(format!("--heads {heads} does not divide the width {dim}"));
            return Some(heads).filter(fits).ok_or_else(error);
        }
        // Each period turns a pair of channels, by rows and by columns.
        let of_periods = periods.map(|periods| dim / periods.saturating_mul(4).max(1)).filter(fits);
        let said = self.config.heads(dim)?;
        if let (Some(periods), Some(heads)) = (of_periods, said)
            && periods != heads
        {
            return Err(Error::Unsupported(format!(
                "rope_embed.periods are those of {periods} heads, and config.json says {heads}: say which with --heads N"
            )));
        }
        let own = self.own.iter().find(|own| own.0 == dim).map(|own| own.2).filter(fits);
        if let Some(heads) = said.or(of_periods).or(own) {
            return Ok(heads);
        }
        if ODD_WIDTHS.contains(&dim) && !(is_rotary && dim == 1280) {
            let reason =
                format!("nothing says how many heads there are, and public releases {dim} channels wide have other heads than of 64");
            return Err(Error::Heads(reason));
        }
        if dim.is_multiple_of(64) {
            notes.push(format!("{} heads are assumed, one for each 64 channels (--heads N overrides)", dim / 64));
            return Ok(dim / 64);
        }
        Err(Error::Heads(format!("the checkpoint does not say how many heads it has, and its width {dim} is no multiple of 64")))
    }
}

/// Widths of the releases of ViT-H, giant and gigantic, and of DINOv3 ViT-7B: they have 16 or 32 heads. DINOv3's H+, whose positions are
/// rotary, is as wide as ViT-H and has 20.
const ODD_WIDTHS: [usize; 4] = [1280, 1408, 1664, 4096];

/// Splits a position table `[1, tokens, D]` into the rows of CLS (and of the registers), and the patches' `[side, side, D]`. Of the numbers
/// of such rows that may be, the first is taken that leaves a square.
fn split_table(scope: &mut Scope, name: &str, rows: &[usize], dim: usize) -> (Vec<f32>, Tensor) {
    let [_, tokens, _] = scope.dims(name);
    let is_square = |patches: usize| patches > 0 && patches.isqrt().pow(2) == patches;
    let square = rows.iter().copied().find(|rows| tokens.checked_sub(*rows).is_some_and(is_square));
    let rows = square.unwrap_or(rows[0]);
    let patches = tokens.saturating_sub(rows);
    let side = patches.isqrt();
    let mut table = scope.take(name, &[1, tokens, dim]);
    if tokens > 0 && square.is_none() {
        scope.reject(name, &format!("holds positions of {patches} patches, which is no square"));
    }
    let prefix = table.data.drain(..(rows * dim).min(table.data.len())).collect();
    table.shape = vec![side, side, dim];
    (prefix, table)
}

/// A quarter of a head's channels: rotary positions turn pairs of them, half by rows and half by columns.
fn rotary_quarter(dim: usize, heads: usize) -> Result<usize, Error> {
    let head_dim = dim / heads;
    if !head_dim.is_multiple_of(4) {
        return Err(Error::Heads(format!(
            "rotary positions need heads of a multiple of 4 channels, and {heads} heads have {head_dim} each"
        )));
    }
    Ok(head_dim / 4)
}

/// Register tokens `[1, registers, D]`, where there are some.
fn registers(scope: &mut Scope, name: &str, dim: usize) -> Option<Tensor> {
    scope.has(name).then(|| {
        let [_, count, _] = scope.dims(name);
        scope.take(name, &[1, count, dim])
    })
}

/// CLS, then the registers, with those of their positions that there are, as one `[1 + registers, D]`.
fn prefix(cls: &Tensor, positions: &[f32], registers: Option<Tensor>, dim: usize) -> Tensor {
    let mut data = cls.data.clone();
    data.extend(registers.into_iter().flat_map(|registers| registers.data));
    for (value, position) in data.iter_mut().zip(positions) {
        *value += position;
    }
    Tensor { shape: vec![data.len() / dim.max(1), dim], data }
}

/// Whether a tensor is known not to change the backbone's features: heads, tokens of training, counters.
fn is_harmless(name: &str) -> bool {
    /// First parts of names.
    const HEADS: [&str; 17] = [
        "head",
        "head_dist",
        "heads",
        "fc",
        "pooler",
        "classifier",
        "mask_token",
        "dino_head",
        "ibot_head",
        "local_cls_norm",
        "dino_loss",
        "ibot_patch_loss",
        "prototypes",
        "projector",
        "projection_head",
        "predictor",
        "decode_head",
    ];
    let first = name.split('.').next().unwrap_or_default();
    HEADS.contains(&first) || name == "embeddings.mask_token" || name.ends_with(".num_batches_tracked")
}
