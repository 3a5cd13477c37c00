//! `manifest.json` of a model folder.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::transform::Transform;

/// What a model folder says of itself. Field names are part of the public contract.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this file's format, now 1.
    pub format: u32,
    /// `vit` or `resnet`, with the family it comes from, for example `dino-vit`, `dinov2-vit`, `dinov3-vit`, `dino-resnet`.
    pub architecture: String,
    /// Side of a patch in pixels; for a ResNet the stride of its feature map (32).
    pub patch_size: u32,
    /// Dimension of the embedding.
    pub dim: u32,
    /// Number of blocks.
    pub depth: u32,
    /// Attention heads per block; 0 for a ResNet.
    pub heads: u32,
    /// Register tokens between CLS and the patches.
    pub registers: u32,
    /// How positions follow the picture's size, in words: `dino-bicubic-scale`, `bicubic-size`, `bicubic-antialias`, `rotary`, `none`.
    pub position_interpolation: String,
    /// The evaluation transform.
    pub transform: Transform,
    /// The checkpoint that the weights come from.
    pub source: Source,
    /// One entry for each ONNX file, by precision (`f32`, `f16`, `int8`).
    pub files: BTreeMap<String, File>,
    /// Program and version that wrote the folder.
    pub made_by: String,
}

/// Origin of the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// File name, without its folders.
    pub file: String,
    /// Layout that was recognised, for example `dino-pth`, `hf-dinov2`.
    pub layout: String,
    /// SHA-256 of the file, in hex.
    pub sha256: String,
}

/// One ONNX file of the folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct File {
    /// File name inside the folder.
    pub name: String,
    /// SHA-256 of the file, in hex.
    pub sha256: String,
    /// What this precision costs against f32, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<serde_json::Value>,
}
