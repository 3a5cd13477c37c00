//! Hugging Face's layouts: `ViTModel`, `Dinov2Model`, `Dinov2WithRegistersModel` and `DINOv3ViTModel`.

use super::super::Error;
use super::super::scope::Scope;
use super::super::spec::{Activation, Backbone, Block, Interpolation, Linear, Mlp, Positions, Vit};
use super::{Hints, Read, is_harmless, prefix, registers, rotary_quarter, split_table};
use crate::backbone::positions::rotary_periods;

/// Names inside a block, and what depends on the model beside them.
struct Dialect {
    layout: &'static str,
    architecture: &'static str,
    /// The list of blocks.
    list: &'static str,
    norms: [&'static str; 2],
    /// Queries, keys, values, and the output of the attention.
    attention: [&'static str; 4],
    /// The layers of a plain MLP.
    mlp: [&'static str; 2],
    /// Whether a gated MLP has the activation of `config.json`; that of DINOv2 is always `SiLU`.
    gate_follows_config: bool,
    norm: &'static str,
    patches: &'static str,
    /// Epsilon when `config.json` does not say one.
    eps: f64,
    interpolation: Interpolation,
}

const VIT: Dialect = Dialect {
    layout: "hf-dino-vit",
    architecture: "dino-vit",
    list: "encoder.layer",
    norms: ["layernorm_before", "layernorm_after"],
    attention: ["attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense"],
    mlp: ["intermediate.dense", "output.dense"],
    gate_follows_config: false,
    norm: "layernorm",
    patches: "embeddings.patch_embeddings.projection",
    eps: 1e-12,
    interpolation: Interpolation::Size,
};
const DINOV2: Dialect =
    Dialect { layout: "hf-dinov2", architecture: "dinov2-vit", norms: ["norm1", "norm2"], mlp: ["mlp.fc1", "mlp.fc2"], eps: 1e-6, ..VIT };
const DINOV2_REGISTERS: Dialect = Dialect { layout: "hf-dinov2-registers", interpolation: Interpolation::Antialias, ..DINOV2 };
const DINOV3: Dialect = Dialect {
    layout: "hf-dinov3-vit",
    architecture: "dinov3-vit",
    list: "layer",
    attention: PROJECTIONS,
    mlp: ["mlp.up_proj", "mlp.down_proj"],
    gate_follows_config: true,
    norm: "norm",
    patches: "embeddings.patch_embeddings",
    eps: 1e-5,
    ..DINOV2
};

/// Names of the attention's layers in the modules of transformers 5, whose files keep the older names.
const PROJECTIONS: [&str; 4] = ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"];

/// ViT and DINOv2, under the names of `save_pretrained` or those of a `state_dict` of transformers 5.
pub(super) fn read(scope: Scope, hints: &Hints) -> Result<Read, Error> {
    if scope.has_any("layers.0.layernorm_before") {
        let dialect = Dialect { list: "layers", attention: PROJECTIONS, mlp: DINOV2.mlp, ..VIT };
        return build(scope, hints, &dialect);
    }
    let dialect = if scope.has_any("encoder.layer.0.layernorm_before") {
        VIT
    } else if scope.has("embeddings.register_tokens") {
        DINOV2_REGISTERS
    } else {
        DINOV2
    };
    let renamed = scope.has_any("encoder.layer.0.attention.q_proj.");
    let dialect = if renamed { Dialect { attention: PROJECTIONS, ..dialect } } else { dialect };
    build(scope, hints, &dialect)
}

/// DINOv3.
pub(super) fn read_v3(scope: Scope, hints: &Hints) -> Result<Read, Error> {
    let list = if scope.has_any("model.layer.") { "model.layer" } else { DINOV3.list };
    build(scope, hints, &Dialect { list, ..DINOV3 })
}

fn build(mut scope: Scope, hints: &Hints, dialect: &Dialect) -> Result<Read, Error> {
    let [dim, channels, patch_size, _] = scope.dims(&format!("{}.weight", dialect.patches));
    if channels != 3 && channels != 0 {
        return Err(Error::Unsupported(format!("the backbone takes {channels} channels; only RGB is supported")));
    }
    let mut notes = Vec::new();
    if !hints.config.is_there() {
        notes.push("there is no config.json beside the weights; the values of the public releases are used".to_owned());
    }
    let heads = hints.heads(dim, (dialect.layout == DINOV3.layout, None), &mut notes)?;
    let activation = match hints.config.activation()? {
        // The default of transformers; without a configuration, the releases' own.
        None if hints.config.is_there() => Activation::Gelu,
        said => said.unwrap_or(Activation::Silu),
    };
    check_biases(&mut scope, hints, dialect)?;
    let patch = Linear {
        weight: scope.take(&format!("{}.weight", dialect.patches), &[dim, 3, patch_size, patch_size]),
        bias: Some(scope.take(&format!("{}.bias", dialect.patches), &[dim]).data),
    };
    let cls = scope.take("embeddings.cls_token", &[1, 1, dim]);
    let registers = registers(&mut scope, "embeddings.register_tokens", dim);
    let (prefix, positions) = if dialect.layout == DINOV3.layout {
        let base = hints.config.rope_base()?.unwrap_or(100.0);
        (prefix(&cls, &[], registers, dim), Positions::Rotary { periods: rotary_periods(base, rotary_quarter(dim, heads)?) })
    } else {
        let (cls_position, table) = split_table(&mut scope, "embeddings.position_embeddings", &[1], dim);
        let positions = Positions::Learned { table, interpolation: dialect.interpolation };
        (prefix(&cls, &cls_position, registers, dim), positions)
    };
    let depth = scope.count(dialect.list, hints.depth(dim)?.or(Some(1)));
    let blocks = (0..depth).map(|index| block(&mut scope, &format!("{}.{index}", dialect.list), dim, activation, dialect));
    let blocks = blocks.collect();
    let norm = scope.norm(dialect.norm, dim);
    let mut report = scope.finish(dialect.layout, is_harmless)?;
    report.notes = notes;
    let eps = hints.config.eps()?.unwrap_or(dialect.eps) as f32;
    let vit = Vit { patch_size, dim, heads, eps, stem: Vec::new(), patch, prefix, positions, blocks, norm };
    Ok(Read { backbone: Backbone::Vit(vit), layout: dialect.layout, architecture: dialect.architecture, transform: None, report })
}

/// Refuses biases that the configuration does not have: transformers leaves them out. Those that it has and the tensors lack are drawn anew.
fn check_biases(scope: &mut Scope, hints: &Hints, dialect: &Dialect) -> Result<(), Error> {
    let [query, key, value, output] = dialect.attention;
    for (setting, layer) in [
        ("qkv_bias", query),
        ("qkv_bias", key),
        ("qkv_bias", value),
        ("query_bias", query),
        ("key_bias", key),
        ("value_bias", value),
        ("proj_bias", output),
        ("mlp_bias", dialect.mlp[0]),
        ("mlp_bias", dialect.mlp[1]),
    ] {
        let name = format!("{}.0.{layer}.bias", dialect.list);
        if let Some(said) = hints.config.flag(setting)?.filter(|said| *said != scope.has(&name)) {
            scope.reject(&name, &format!("is {}there, and {setting} of config.json is {said}", if said { "not " } else { "" }));
        }
    }
    Ok(())
}

fn block(scope: &mut Scope, name: &str, dim: usize, activation: Activation, dialect: &Dialect) -> Block {
    let [norm1, norm2] = dialect.norms.map(|norm| scope.norm(&format!("{name}.{norm}"), dim));
    let [query, key, value, output] = dialect.attention.map(|layer| format!("{name}.{layer}"));
    let qkv = [query, key, value].map(|layer| scope.linear_maybe_biased(&layer, dim, dim));
    let mut proj = scope.linear_maybe_biased(&output, dim, dim);
    let mut mlp = mlp(scope, name, dim, activation, dialect);
    let (Mlp::Plain { output, .. } | Mlp::Gated { output, .. }) = &mut mlp;
    for (layer, scale) in [(&mut proj, "layer_scale1"), (output, "layer_scale2")] {
        if let Some(scale) = scope.all_or_none(&format!("{name}.{scale}.lambda1"), &[dim]) {
            layer.scale_outputs(&scale.data);
        }
    }
    Block { norm1, qkv: Linear::stack(qkv.into()), proj, norm2, mlp }
}

fn mlp(scope: &mut Scope, name: &str, dim: usize, activation: Activation, dialect: &Dialect) -> Mlp {
    let width = |scope: &mut Scope, layer: &str| -> usize {
        let [width, _] = scope.dims(&format!("{layer}.weight"));
        width
    };
    let (packed, gate) = (format!("{name}.mlp.weights_in"), format!("{name}.mlp.gate_proj"));
    if scope.has(&format!("{packed}.weight")) {
        let double = width(scope, &packed) / 2 * 2;
        let input = scope.linear(&packed, double, dim);
        let output = scope.linear(&format!("{name}.mlp.weights_out"), dim, double / 2);
        // DINOv2's SwiGLU does not follow `hidden_act`.
        return Mlp::Gated { input, activation: Activation::Silu, output };
    }
    if scope.has(&format!("{gate}.weight")) {
        let width = width(scope, &gate);
        let parts = [gate, format!("{name}.mlp.up_proj")].map(|layer| scope.linear_maybe_biased(&layer, width, dim));
        let output = scope.linear_maybe_biased(&format!("{name}.mlp.down_proj"), dim, width);
        let activation = if dialect.gate_follows_config { activation } else { Activation::Silu };
        return Mlp::Gated { input: Linear::stack(parts.into()), activation, output };
    }
    let [first, second] = dialect.mlp.map(|layer| format!("{name}.{layer}"));
    let width = width(scope, &first);
    let input = scope.linear_maybe_biased(&first, width, dim);
    Mlp::Plain { input, output: scope.linear_maybe_biased(&second, dim, width) }
}
