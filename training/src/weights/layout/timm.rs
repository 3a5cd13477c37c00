//! timm's names and arguments of networks.

use serde_json::Value as Json;

use super::super::Error;
use super::super::scope::is_number;
use super::Names;
use super::config::refused;

/// Words of timm's names that stand for a ViT whose mathematics the fused layouts have; its size, `patch16` and numbers aside.
const VIT: [&str; 9] = ["vit", "deit", "plus", "dino", "dinov2", "dinov3", "reg4", "qkvb", "miil"];
/// Their sizes: width and attention heads.
const SIZES: [(&str, (usize, usize)); 8] = [
    ("tiny", (192, 3)),
    ("small", (384, 6)),
    ("base", (768, 12)),
    ("large", (1024, 16)),
    ("huge", (1280, 16)),
    ("giant", (1408, 16)),
    ("gigantic", (1664, 16)),
    ("7b", (4096, 32)),
];
/// Residual networks that are torchvision's.
const RESNETS: [&str; 11] = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "tv_resnet50",
];
/// `ConvNeXt`s that are the paper's. Others differ in norms or activations.
const CONVNEXTS: [&str; 4] = ["convnext_tiny", "convnext_small", "convnext_base", "convnext_large"];
/// Arguments that are compared with the tensors, or read.
const UNDERSTOOD: [&str; 18] = [
    "embed_dim",
    "depth",
    "num_heads",
    "patch_size",
    "in_chans",
    "mlp_ratio",
    "reg_tokens",
    "num_reg_tokens",
    "class_token",
    "no_embed_class",
    "qkv_bias",
    "proj_bias",
    "act_layer",
    "mlp_layer",
    "swiglu_mlp",
    "rope_temperature",
    "dims",
    "depths",
];
/// Arguments that change no feature of an evaluation, or whose effect the names and shapes of the tensors show; dropout rates aside.
const HARMLESS: [&str; 18] = [
    "init_values",
    "ls_init_value",
    "layer_scale_init_value",
    "num_classes",
    "img_size",
    "dynamic_img_size",
    "dynamic_img_pad",
    "strict_img_size",
    "global_pool",
    "pool_include_prefix",
    "fc_norm",
    "use_fc_norm",
    "weight_init",
    "fix_init",
    "pretrained",
    "features_only",
    "out_indices",
    "dynamic_size",
];
/// Arguments with the one value that leaves the plain network.
const PLAIN: [(&str, bool); 6] = [
    ("qk_norm", false),
    ("pre_norm", false),
    ("scale_attn_norm", false),
    ("scale_mlp_norm", false),
    ("final_norm", true),
    ("rope_rotate_half", true),
];
/// Arguments that stand for parts of a network, where they are another's.
const PARTS: [&str; 7] = ["norm_layer", "attn_layer", "block_fn", "embed_layer", "embed_norm_layer", "pos_embed", "rope_type"];

/// A name without the tag that says where the weights come from.
fn untagged(architecture: &str) -> &str {
    architecture.split('.').next().unwrap_or_default()
}

/// Whether a word is one that timm calls a network.
pub(super) fn is_name(word: &str) -> bool {
    word.contains("_patch") || RESNETS.contains(&untagged(word)) || ["resnet", "convnext_"].iter().any(|start| word.starts_with(start))
}

/// Refuses networks that the layout does not compute.
pub(super) fn check_name(architecture: &str, names: Names, source: &str) -> Result<(), Error> {
    let name = untagged(architecture);
    let known = match names {
        Names::Fused => width_and_heads(architecture).is_some(),
        Names::Resnet => RESNETS.contains(&name),
        Names::Convnext => CONVNEXTS.contains(&name),
        _ => true,
    };
    if known { Ok(()) } else { Err(refused(&format!("{source} that this is timm's `{architecture}`"))) }
}

/// Width and heads of a ViT, where every word of its name is known: `vit_small_patch14_reg4_dinov2`, and not
/// `vit_base_patch16_clip_quickgelu_224`.
pub(super) fn width_and_heads(architecture: &str) -> Option<(usize, usize)> {
    let (mut size, mut rest) = (None, Vec::new());
    for word in untagged(architecture).split('_') {
        if let Some(found) = SIZES.iter().find(|(name, _)| *name == word) {
            size = Some(found);
        } else if VIT.contains(&word) {
            rest.push(word);
        } else if !is_number(word) && !word.strip_prefix("patch").is_some_and(is_number) {
            return None;
        }
    }
    let is = |word: &str| rest.contains(&word);
    let (name, plain) = size?;
    Some(match *name {
        "giant" if is("dinov2") => (1536, 24),
        "huge" if is("dinov3") => (1280, 20),
        // Only DINOv3's plus changes the MLPs alone.
        "base" if is("plus") && !is("dinov3") => (896, 14),
        _ => *plain,
    })
}

/// Whether an argument is one of a network's parts or sizes.
pub(super) fn changes_mathematics(name: &str) -> bool {
    UNDERSTOOD.contains(&name) || PARTS.contains(&name) || PLAIN.iter().any(|(plain, _)| *plain == name)
}

/// Refuses arguments that change the network's mathematics in a way that is not known.
pub(super) fn check_argument(architecture: &str, name: &str, value: &Json) -> Result<(), Error> {
    let is_usual = match name {
        "pos_embed" => value == "learn",
        "rope_type" => value == "dinov3",
        // A class, as `timm.layers.SwiGLUPacked`.
        "mlp_layer" => {
            let class = value.as_str().and_then(|layer| layer.rsplit('.').next()).unwrap_or_default();
            ["swiglupacked", "mlp"].contains(&class.to_ascii_lowercase().as_str())
        }
        "norm_eps" => true,
        _ => {
            UNDERSTOOD.contains(&name)
                || HARMLESS.contains(&name)
                || name.ends_with("_rate")
                || PLAIN.iter().any(|(plain, usual)| *plain == name && value == usual)
        }
    };
    if is_usual {
        return Ok(());
    }
    Err(refused(&format!("config.json says that this is timm's `{architecture}` with {name} = {value} (model_args)")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_word_by_word() {
        for (name, expected) in [
            ("vit_small_patch16_224", (384, 6)),
            ("vit_base_patch8_224.dino", (768, 12)),
            ("vit_base_patch16_plus_240", (896, 14)),
            ("vit_huge_patch14_224", (1280, 16)),
            ("vit_giant_patch14_224", (1408, 16)),
            ("vit_gigantic_patch14_224", (1664, 16)),
            ("vit_small_patch14_reg4_dinov2.lvd142m", (384, 6)),
            ("vit_giant_patch14_reg4_dinov2", (1536, 24)),
            ("vit_small_plus_patch16_dinov3_qkvb", (384, 6)),
            ("vit_huge_plus_patch16_dinov3", (1280, 20)),
            ("vit_7b_patch16_dinov3", (4096, 32)),
            ("deit_tiny_patch16_224", (192, 3)),
        ] {
            assert_eq!(width_and_heads(name), Some(expected), "{name}");
        }
        for unknown in [
            "vit_base_patch16_clip_quickgelu_224",
            "vit_base_patch16_rope_224",
            "vit_relpos_base_patch16_224",
            "vit_base_patch16_siglip_224",
            "vit_little_patch16_reg4_gap_256",
            "vit_patch16_224",
            "eva02_small_patch14_224",
            "resnet50",
        ] {
            assert_eq!(width_and_heads(unknown), None, "{unknown}");
        }
    }
}
