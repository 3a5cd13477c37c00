//! A transformer of a model's shape with the weights that training starts from: what is measured beside it.

use std::path::Path;

use candle_core::Device;
use dino_vision::model::{Manifest, Model};
use rand::SeedableRng as _;

use crate::backbone::vit::{Vit, VitConfig};
use crate::export;

/// The transformer as a model folder below `folder`.
pub(in crate::cli) fn untrained(manifest: &Manifest, folder: &Path) -> anyhow::Result<Model> {
    let config = VitConfig {
        img_size: manifest.transform.output_size().map_or(224, |(height, _)| height as usize),
        patch_size: manifest.patch_size as usize,
        dim: manifest.dim as usize,
        depth: manifest.depth as usize,
        heads: manifest.heads as usize,
        ..VitConfig::default()
    };
    let vit = Vit::new(config, &mut rand_chacha::ChaCha8Rng::seed_from_u64(0), &Device::Cpu)?;
    let mut tensors = std::collections::HashMap::new();
    for group in vit.groups() {
        for (at, entry) in group.entries().iter().enumerate() {
            tensors.insert(entry.name.clone(), group.view(&group.flat(false), at)?);
        }
    }
    let checkpoint = folder.join("untrained.safetensors");
    candle_core::safetensors::save(&tensors, &checkpoint)?;
    let mut options = export::Options::default();
    options.checkpoint.heads = Some(config.heads);
    export::export(&checkpoint, &folder.join("model"), &options)?;
    Ok(Model::open(&folder.join("model"))?)
}
