//! Layouts with DINO's own names: DINO, DINOv2, DINOv3 and timm, and this project's trainer.
//!
//! They share `patch_embed.proj`, `cls_token`, `norm` and `blocks.{i}` with `norm1`, `attn.qkv`, `attn.proj`, `norm2` and
//! `mlp`, and differ in positions, registers, layer scales and the MLP.

use super::super::Error;
use super::super::scope::Scope;
use super::super::spec::{Activation, Backbone, Block, Conv, Interpolation, Linear, Mlp, Positions, StemLevel, Vit};
use super::{Hints, Read, is_harmless, prefix, registers, rotary_quarter, split_table};
use crate::backbone::positions::rotary_periods;

/// What sets one of these layouts apart.
pub(super) struct Dialect {
    pub(super) layout: &'static str,
    architecture: &'static str,
    eps: f32,
    registers: &'static str,
    /// Names of the layer scales inside a block.
    scales: [&'static str; 2],
    interpolation: Interpolation,
}

pub(super) const DINO: Dialect = Dialect {
    layout: "dino-pth",
    architecture: "dino-vit",
    eps: 1e-6,
    registers: "register_tokens",
    scales: ["ls1.gamma", "ls2.gamma"],
    interpolation: Interpolation::ScaleFactor,
};
const DINOV2: Dialect = Dialect { layout: "dinov2-pth", architecture: "dinov2-vit", ..DINO };
const DINOV3: Dialect = Dialect { layout: "dinov3-pth", architecture: "dinov3-vit", eps: 1e-5, registers: "storage_tokens", ..DINO };
const TIMM: Dialect = Dialect { layout: "timm-dino", registers: "reg_token", interpolation: Interpolation::Antialias, ..DINO };
const TIMM_V3: Dialect = Dialect { layout: "timm-dinov3", registers: "reg_token", scales: ["gamma_1", "gamma_2"], ..DINOV3 };

fn dialect(scope: &Scope, hints: &Hints) -> Result<Dialect, Error> {
    let timm = hints.config.is_timms();
    if !scope.has("pos_embed") {
        let is_rotary = ["rope_embed.periods", DINOV3.registers, TIMM_V3.registers].iter().any(|name| scope.has(name));
        // A network without any position has the same tensors as one whose positions are rotary.
        if !is_rotary && hints.config.rope_base()?.is_none() {
            return Err(Error::Unsupported(
                "there is no table of positions (pos_embed), and nothing that says that they are rotary as DINOv3's (rope_embed.periods, registers, or rope_theta in config.json)"
                    .to_owned(),
            ));
        }
        return Ok(if scope.has(TIMM_V3.registers) { TIMM_V3 } else { DINOV3 });
    }
    if hints.trained_here {
        return Ok(DINO);
    }
    let registers = scope.has("register_tokens") || scope.has("reg_token");
    // Meta's DINOv2 keeps the mask token of its training; timm drops it.
    Ok(match (scope.has_any("blocks.0.ls1."), scope.has("mask_token") && !timm) {
        (true, true) if registers => Dialect { layout: "dinov2-registers-pth", interpolation: Interpolation::Antialias, ..DINOV2 },
        (true, true) => DINOV2,
        (true, false) => Dialect { layout: "timm-dinov2", architecture: "dinov2-vit", ..TIMM },
        (false, _) if timm => TIMM,
        (false, _) => DINO,
    })
}

/// How many rows of a table of positions may be those of CLS and of registers: timm has them for CLS, for none, or for all (`no_embed_class`).
fn prefix_rows(dialect: &Dialect, hints: &Hints, registers: usize) -> Result<Vec<usize>, Error> {
    Ok(match hints.config.flag("no_embed_class")? {
        _ if !dialect.layout.starts_with("timm") => vec![1],
        Some(true) => vec![0],
        Some(false) => vec![1 + registers],
        None if registers == 0 => vec![1],
        None => vec![0, 1 + registers],
    })
}

pub(super) fn read(mut scope: Scope, hints: &Hints) -> Result<Read, Error> {
    let dialect = dialect(&scope, hints)?;
    if scope.has_any("cls_norm.") {
        return Err(Error::Unsupported("DINOv3 with a norm of its own for CLS (cls_norm) is not supported".to_owned()));
    }
    let [dim, channels, side, _] = scope.dims("patch_embed.proj.weight");
    let stem = stem(&mut scope);
    if channels != 3 && channels != 0 && stem.is_empty() {
        return Err(Error::Unsupported(format!("the backbone takes {channels} channels; only RGB is supported")));
    }
    let mut notes = Vec::new();
    let stored = scope.shape("rope_embed.periods").and_then(|shape| shape.first().copied());
    let heads = hints.heads(dim, (!scope.has("pos_embed"), stored), &mut notes)?;
    let patch = Linear {
        weight: scope.take("patch_embed.proj.weight", &[dim, if stem.is_empty() { 3 } else { channels }, side, side]),
        bias: Some(scope.take("patch_embed.proj.bias", &[dim]).data),
    };
    let cls = scope.take("cls_token", &[1, 1, dim]);
    let registers = registers(&mut scope, dialect.registers, dim);
    let (prefix, positions) = if scope.has("pos_embed") {
        let rows = prefix_rows(&dialect, hints, registers.as_ref().map_or(0, |registers| registers.shape.get(1).copied().unwrap_or(0)))?;
        let (prefix_positions, table) = split_table(&mut scope, "pos_embed", &rows, dim);
        let positions = Positions::Learned { table, interpolation: dialect.interpolation };
        (prefix(&cls, &prefix_positions, registers, dim), positions)
    } else {
        (prefix(&cls, &[], registers, dim), Positions::Rotary { periods: periods(&mut scope, hints, rotary_quarter(dim, heads)?)? })
    };
    let depth = scope.count("blocks", hints.depth(dim)?.or(Some(1)));
    let gate = match hints.config.activation()? {
        Some(said) if hints.config.is_timms() => said,
        _ => Activation::Silu,
    };
    let blocks: Vec<_> = (0..depth).map(|index| block(&mut scope, &format!("blocks.{index}"), dim, gate, &dialect)).collect();
    // timm's giant DINOv2s have SiLU by their names; others get it from arguments that config.json need not repeat.
    let by_name = hints.config.architecture.as_ref().is_some_and(|name| name.contains("dinov"));
    if hints.config.is_timms()
        && !by_name
        && hints.config.activation()?.is_none()
        && matches!(blocks[..], [Block { mlp: Mlp::Gated { .. }, .. }, ..])
    {
        notes.push(
            "the gates of its MLPs are taken to be SiLU, as those of SwiGLUPacked are: config.json does not say act_layer".to_owned(),
        );
    }
    let norm = scope.norm("norm", dim);
    let mut report = scope.finish(dialect.layout, is_harmless)?;
    report.notes = notes;
    let patch_size = side << stem.len();
    let eps = hints.config.eps()?.map_or(dialect.eps, |eps| eps as f32);
    let vit = Vit { patch_size, dim, heads, eps, stem, patch, prefix, positions, blocks, norm };
    Ok(Read { backbone: Backbone::Vit(vit), layout: dialect.layout, architecture: dialect.architecture, transform: None, report })
}

/// The convolutions of this project's own stem, where there is one.
fn stem(scope: &mut Scope) -> Vec<StemLevel> {
    let (mut stem, mut inputs) = (Vec::new(), 3);
    while let Some(&[outputs, ..]) = scope.shape(&format!("patch_embed.stem.{}.weight", stem.len())) {
        let name = format!("patch_embed.stem.{}", stem.len());
        let kernel = Linear { weight: scope.take(&format!("{name}.weight"), &[outputs, inputs, 3, 3]), bias: None };
        let convolution = Conv { kernel, stride: 2, groups: 1 };
        stem.push(StemLevel { convolution, norm: scope.norm(&format!("{name}.norm"), outputs) });
        inputs = outputs;
    }
    stem
}

/// Rotary periods: stored, or of the base that the configuration says, or that of every public DINOv3 (100).
fn periods(scope: &mut Scope, hints: &Hints, quarter: usize) -> Result<Vec<f32>, Error> {
    let base = hints.config.rope_base()?.unwrap_or(100.0);
    Ok(scope.optional("rope_embed.periods", &[quarter]).map_or_else(|| rotary_periods(base, quarter), |periods| periods.data))
}

fn block(scope: &mut Scope, name: &str, dim: usize, gate: Activation, dialect: &Dialect) -> Block {
    let norm1 = scope.norm(&format!("{name}.norm1"), dim);
    let qkv = qkv(scope, &format!("{name}.attn"), dim);
    let mut proj = scope.linear_maybe_biased(&format!("{name}.attn.proj"), dim, dim);
    let norm2 = scope.norm(&format!("{name}.norm2"), dim);
    let mut mlp = mlp(scope, &format!("{name}.mlp"), dim, gate);
    let (Mlp::Plain { output, .. } | Mlp::Gated { output, .. }) = &mut mlp;
    for (layer, scale) in [&mut proj, output].into_iter().zip(dialect.scales) {
        if let Some(scale) = scope.all_or_none(&format!("{name}.{scale}"), &[dim]) {
            layer.scale_outputs(&scale.data);
        }
    }
    Block { norm1, qkv, proj, norm2, mlp }
}

/// `attn.qkv`, with DINOv3's mask over its bias: the key third of the stored bias is noise that the mask removes. Without
/// a mask the bias counts as it is. timm keeps separate biases for queries and values instead.
fn qkv(scope: &mut Scope, name: &str, dim: usize) -> Linear {
    let mut qkv = scope.linear_maybe_biased(&format!("{name}.qkv"), 3 * dim, dim);
    if let Some(mask) = scope.all_or_none(&format!("{name}.qkv.bias_mask"), &[3 * dim]) {
        for (bias, mask) in qkv.bias.iter_mut().flatten().zip(&mask.data) {
            *bias *= mask;
        }
    }
    let query = scope.all_or_none(&format!("{name}.q_bias"), &[dim]);
    let value = scope.all_or_none(&format!("{name}.v_bias"), &[dim]);
    match (query, value) {
        (Some(query), Some(value)) => {
            if qkv.bias.is_some() {
                scope.reject(&format!("{name}.q_bias"), "is there beside a bias of qkv: which of them counts is not known");
            }
            qkv.bias = Some([query.data, vec![0.0; dim], value.data].concat());
        }
        (None, None) => {}
        (query, _) => {
            let [there, lacking] = if query.is_some() { ["q_bias", "v_bias"] } else { ["v_bias", "q_bias"] };
            scope.reject(&format!("{name}.{there}"), &format!("is there without {lacking}"));
        }
    }
    qkv
}

/// `packed_gate` is the activation where timm packs a gate, which follows the network's; that of the others is always `SiLU`.
fn mlp(scope: &mut Scope, name: &str, dim: usize, packed_gate: Activation) -> Mlp {
    let gated = |input, output| Mlp::Gated { input, activation: Activation::Silu, output };
    // DINOv2's SwiGLU has one matrix for gate and value, DINOv3's and timm's have two.
    if scope.has(&format!("{name}.w12.weight")) {
        let [double, _] = scope.dims(&format!("{name}.w12.weight"));
        let input = scope.linear(&format!("{name}.w12"), double / 2 * 2, dim);
        return gated(input, scope.linear(&format!("{name}.w3"), dim, double / 2));
    }
    for [gate, value, output] in [["w1", "w2", "w3"], ["fc1_g", "fc1_x", "fc2"]] {
        if scope.has(&format!("{name}.{gate}.weight")) {
            let [width, _] = scope.dims(&format!("{name}.{gate}.weight"));
            let parts = [gate, value].map(|part| scope.linear(&format!("{name}.{part}"), width, dim));
            return gated(Linear::stack(parts.into()), scope.linear(&format!("{name}.{output}"), dim, width));
        }
    }
    let [width, _] = scope.dims(&format!("{name}.fc1.weight"));
    // timm packs gate and value under the names of a plain MLP.
    if let Some(&[_, half]) = scope.shape(&format!("{name}.fc2.weight"))
        && half.checked_mul(2) == Some(width)
    {
        let input = scope.linear(&format!("{name}.fc1"), width, dim);
        return Mlp::Gated { input, activation: packed_gate, output: scope.linear(&format!("{name}.fc2"), dim, half) };
    }
    let input = scope.linear(&format!("{name}.fc1"), width, dim);
    Mlp::Plain { input, output: scope.linear(&format!("{name}.fc2"), dim, width) }
}

#[cfg(test)]
mod tests {
    use super::super::super::store::Tensor;
    use super::*;

    #[test]
    fn periods_are_those_of_base_100() {
        let periods = rotary_periods(100.0, 4);
        let expected = [1.0, 100_f32.powf(0.25), 10.0, 100_f32.powf(0.75)];
        assert!(periods.iter().zip(expected).all(|(found, expected)| (found / expected - 1.0).abs() < 1e-6));
    }

    #[test]
    fn prefix_adds_the_position_to_cls_alone() {
        let tensor = |shape: &[usize], data: &[f32]| Tensor { shape: shape.to_vec(), data: data.to_vec() };
        let prefix = prefix(&tensor(&[1, 1, 2], &[1.0, 2.0]), &[10.0, 20.0], Some(tensor(&[1, 1, 2], &[5.0, 6.0])), 2);
        assert_eq!(prefix, tensor(&[2, 2], &[11.0, 22.0, 5.0, 6.0]));
    }
}
