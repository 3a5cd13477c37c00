//! A small `ConvNeXt` of DINOv3 with random weights (`tests/data/convnext/make.py`), and its tensors as each release names them.

use std::path::PathBuf;

use super::{Tensors, read, repository};

/// The folder as transformers saves it, with what transformers answers.
pub(crate) fn folder() -> PathBuf {
    repository().join("tests/data/convnext")
}

/// Inputs and outputs of transformers.
pub(crate) fn expected() -> Tensors {
    read(&folder().join("expected.safetensors"))
}

/// The tensors under the names of another release.
pub(crate) fn renamed(name: impl Fn(&str) -> String) -> Tensors {
    read(&folder().join("model.safetensors")).into_iter().map(|(old, tensor)| (name(&old), tensor)).collect()
}

/// Meta's name.
pub(crate) fn meta(name: &str) -> String {
    let name = name.replace("depthwise_conv", "dwconv").replace("pointwise_conv", "pwconv").replace(".layers.", ".");
    let name = name.replace("layer_norm", "norm");
    match name.split_once(".downsample_layers.") {
        Some((stage, part)) => format!("downsample_layers.{}.{part}", stage.trim_start_matches("stages.")),
        None => name,
    }
}

/// timm's name.
pub(crate) fn timm(name: &str) -> String {
    let name = name.replace("depthwise_conv", "conv_dw").replace("pointwise_conv", "mlp.fc").replace(".layers.", ".blocks.");
    let name = name.replace("stages.0.downsample_layers.", "stem.").replace("downsample_layers", "downsample");
    if let Some(part) = name.strip_prefix("layer_norm.") { format!("head.norm.{part}") } else { name.replace("layer_norm", "norm") }
}

/// Other layouts than that of the folder, with their names in manifests.
pub(crate) fn releases() -> [(&'static str, Tensors); 4] {
    let of_modules = |name: &str| if name.starts_with("layer_norm") { name.to_owned() } else { format!("model.{name}") };
    [
        ("dinov3-convnext-pth", renamed(meta)),
        ("timm-convnext", renamed(timm)),
        ("hf-dinov3-convnext", renamed(of_modules)),
        ("hf-dinov3-convnext", renamed(|name| format!("model.{}", of_modules(name)))),
    ]
}
