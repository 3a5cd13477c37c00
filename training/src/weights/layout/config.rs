//! What `config.json` says of a network: settings that change its mathematics are understood, or the checkpoint is refused.
//!
//! The names and shapes of tensors do not tell everything. A ViT with another activation, or a ResNet with blurred pooling, has
//! the tensors of the plain one and computes something else.

use serde_json::Value as Json;

use super::super::Error;
use super::Names;

/// Words of timm's names that stand for a network whose mathematics the fused layouts have; `patch16` and numbers aside.
const TIMM_VIT: [&str; 17] = [
    "vit", "deit", "tiny", "small", "base", "large", "huge", "giant", "gigantic", "plus", "7b", "dino", "dinov2", "dinov3", "reg4", "qkvb",
    "miil",
];
/// timm's residual networks that are torchvision's.
const TIMM_RESNET: [&str; 11] = [
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
/// timm's `ConvNeXt`s that are the paper's. Others differ in norms or activations.
const TIMM_CONVNEXT: [&str; 4] = ["convnext_tiny", "convnext_small", "convnext_base", "convnext_large"];
/// Arguments of a timm model that change no feature of its evaluation.
const TIMM_ARGUMENTS: [&str; 11] = [
    // Other numbers than 3 do not fit the tensors.
    "in_chans",
    "num_classes",
    "img_size",
    "dynamic_img_size",
    "dynamic_img_pad",
    "strict_img_size",
    "global_pool",
    "drop_rate",
    "drop_path_rate",
    "pretrained",
    "features_only",
];
/// `model_type` of Hugging Face's networks that have the names of its ViT and DINOv2.
const HUGGING_FACE: [&str; 4] = ["vit", "vit_msn", "dinov2", "dinov2_with_registers"];

/// Refuses what the layout does not compute.
pub(super) fn check(config: &Json, names: Names) -> Result<(), Error> {
    if let Some(architecture) = config["architecture"].as_str() {
        check_timm(architecture, &config["model_args"], names)?;
    }
    let Some(kind) = config["model_type"].as_str().filter(|_| config["architecture"].is_null()) else { return Ok(()) };
    let known = match names {
        Names::HuggingFace => HUGGING_FACE.contains(&kind),
        Names::HuggingFaceV3 => kind == "dinov3_vit",
        Names::Convnext => kind == "dinov3_convnext",
        Names::Fused | Names::Resnet | Names::Refused(_) => true,
    };
    if known { Ok(()) } else { Err(refused(&format!("a `{kind}` (model_type)"))) }
}

fn check_timm(architecture: &str, arguments: &Json, names: Names) -> Result<(), Error> {
    let known = match names {
        Names::Fused => is_known_vit(architecture),
        Names::Resnet => TIMM_RESNET.contains(&architecture),
        Names::Convnext => TIMM_CONVNEXT.contains(&architecture.split('.').next().unwrap_or_default()),
        _ => true,
    };
    if !known {
        return Err(refused(&format!("timm's `{architecture}` (architecture)")));
    }
    let unknown = arguments.as_object().into_iter().flatten().find(|(name, _)| !TIMM_ARGUMENTS.contains(&name.as_str()));
    unknown.map_or(Ok(()), |(name, value)| Err(refused(&format!("timm's `{architecture}` with {name} = {value} (model_args)"))))
}

/// Whether every word of the name is known: `vit_small_patch14_reg4_dinov2`, and not `vit_base_patch16_clip_quickgelu_224`.
fn is_known_vit(architecture: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // A tag behind a dot says where the weights come from.
    let name = architecture.split('.').next().unwrap_or_default();
    name.split('_').all(|word| TIMM_VIT.contains(&word) || is_number(word) || word.strip_prefix("patch").is_some_and(is_number))
}

fn refused(what: &str) -> Error {
    Error::Unsupported(format!(
        "config.json says that this is {what}, whose mathematics is not known here: its tensors have known names, but the export would \
         compute something else. If it is a plain ViT, ResNet or ConvNeXt all the same, move config.json aside"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_of_timm_are_read_word_by_word() {
        for known in [
            "vit_small_patch16_224",
            "vit_base_patch8_224.dino",
            "vit_small_patch14_reg4_dinov2",
            "vit_small_plus_patch16_dinov3_qkvb",
            "vit_7b_patch16_dinov3",
            "vit_huge_plus_patch16_dinov3",
        ] {
            assert!(is_known_vit(known), "{known}");
        }
        for unknown in [
            "vit_base_patch16_clip_quickgelu_224",
            "vit_base_patch16_rope_224",
            "vit_relpos_base_patch16_224",
            "vit_base_patch16_siglip_224",
            "vit_little_patch16_reg4_gap_256",
            "eva02_small_patch14_224",
            "resnet50",
        ] {
            assert!(!is_known_vit(unknown), "{unknown}");
        }
    }

    #[test]
    fn what_changes_the_mathematics_is_refused_by_name() {
        let refused = |config: Json, names| check(&config, names).unwrap_err().to_string();
        assert!(refused(json!({"architecture": "resnetblur50"}), Names::Resnet).contains("resnetblur50"));
        let arguments = json!({"architecture": "vit_small_patch16_224", "model_args": {"act_layer": "quick_gelu"}});
        assert!(refused(arguments, Names::Fused).contains("act_layer = \"quick_gelu\""));
        assert!(refused(json!({"architecture": "convnext_zepto_rms"}), Names::Convnext).contains("convnext_zepto_rms"));
        assert!(check(&json!({"architecture": "convnext_tiny"}), Names::Convnext).is_ok());
        assert!(refused(json!({"model_type": "ijepa"}), Names::HuggingFace).contains("ijepa"));
        let harmless = json!({"architecture": "vit_small_patch16_224", "model_args": {"img_size": 518, "num_classes": 0, "in_chans": 3}});
        assert!(check(&harmless, Names::Fused).is_ok());
        assert!(check(&json!({"model_type": "dinov2"}), Names::HuggingFace).is_ok());
        assert!(check(&json!({"architectures": ["ViTModel"]}), Names::HuggingFace).is_ok());
    }
}
