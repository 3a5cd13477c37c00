//! Layer-wise learning rates (`BEiT`, Bao et al. 2022), by the names of parameters as DINOv2's `get_vit_lr_decay_rate` has them.
//!
//! ```
//! use dino_train::dino::layer_decay::LayerDecay;
//!
//! let rates = LayerDecay { rate: 0.5, depth: 12, patch_embed: 1.0, backbone: 1.0 };
//! assert_eq!(rates.multiplier("head.mlp.0.weight"), 1.0);
//! assert_eq!(rates.multiplier("backbone.blocks.11.mlp.fc1.weight"), 0.5);
//! assert_eq!(rates.multiplier("backbone.blocks.10.mlp.fc1.weight"), 0.25);
//! ```

/// Factors of the learning rate of a backbone's parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerDecay {
    /// Factor from each block to the one before it, 1 for one rate.
    pub rate: f64,
    /// Blocks of the backbone.
    pub depth: usize,
    /// Further factor of the patch embedding.
    pub patch_embed: f64,
    /// Further factor of the whole backbone, such as a warm-up of its own.
    pub backbone: f64,
}

impl Default for LayerDecay {
    /// The same rate for all.
    fn default() -> Self {
        Self { rate: 1.0, depth: 0, patch_embed: 1.0, backbone: 1.0 }
    }
}

/// What comes before the first block: parameters with these names are of layer 0.
const FIRST: [&str; 6] = ["pos_embed", "patch_embed", "mask_token", "cls_token", "register_tokens", "storage_tokens"];

impl LayerDecay {
    /// Factor of a parameter. Layer 0 is in front of the blocks, block i (from 0) is layer i + 1, the last norm and everything outside of
    /// the backbone are of layer depth + 1, whose factor is 1.
    pub fn multiplier(&self, name: &str) -> f64 {
        let Some(inside) = name.strip_prefix("backbone.") else { return 1.0 };
        let block = inside.strip_prefix("blocks.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        let is_first = FIRST.iter().any(|first| inside.contains(first));
        let layer = if is_first { 0 } else { block.map_or(self.depth + 1, |block| block + 1) };
        let patch_embed = if inside.contains("patch_embed") { self.patch_embed } else { 1.0 };
        self.rate.powi((self.depth + 1).saturating_sub(layer) as i32) * patch_embed * self.backbone
    }
}
