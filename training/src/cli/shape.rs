//! Sizes of a backbone that need not be given: a checkpoint to go on from has its own.

use std::path::Path;

use anyhow::Result;
use toml::Table;

use crate::run::state;
use crate::weights::{self, Backbone, Convnext, Positions, init};

/// Settings that follow from a checkpoint.
const NAMES: [&str; 13] = [
    "arch",
    "patch-size",
    "dim",
    "depth",
    "heads",
    "registers",
    "ffn-layer",
    "ffn-hidden",
    "pos-embed",
    "rope-base",
    "stem",
    "global-crops-size",
    "local-crops-size",
];
/// Side of the global crops, and of the local ones for it, that the public code takes.
const CROPS: (usize, usize) = (224, 96);

/// Sizes of the run in a folder, as its newest checkpoint has them; empty where it cannot be read.
///
/// # Errors
/// When the folder cannot be read.
pub(super) fn of_run(out: &Path) -> Result<Table> {
    let Some(recipe) = state::newest_description(out)?.map(|description| description.recipe) else { return Ok(Table::new()) };
    let settings = Table::try_from(recipe)?;
    Ok(settings.into_iter().filter(|(name, _)| NAMES.contains(&name.as_str())).collect())
}

/// Sizes of a transformer in a checkpoint, and crops that its patches divide: those of the public code, or smaller ones where it was trained
/// on such. Of a `ConvNeXt` its name, and its dimension where that is another. Empty for other networks.
///
/// # Errors
/// When the checkpoint cannot be read.
pub(super) fn of_checkpoint(path: &Path, options: &weights::Options) -> Result<Table> {
    let loaded = match weights::load(path, options) {
        // The backbones of the public code have heads of 64 channels.
        Err(weights::Error::Heads(_)) => return Ok(Table::new()),
        other => other?,
    };
    let vit = match loaded.backbone {
        Backbone::Vit(vit) => vit,
        Backbone::Convnext(convnext) => return Ok(of_convnext(&convnext)),
        Backbone::Resnet(_) => return Ok(Table::new()),
    };
    let (arch, own) = match vit.dim {
        192 => ("vit_tiny", [192, 12, 3]),
        384 => ("vit_small", [384, 12, 6]),
        _ => ("vit_base", [768, 12, 12]),
    };
    let patch = vit.patch_size.max(1);
    let multiple = |side: f64| ((side / patch as f64).round() as usize).max(1) * patch;
    let native = match &vit.positions {
        Positions::Learned { table, .. } => table.shape.first().map_or(CROPS.0, |side| side * patch),
        Positions::Rotary { .. } => CROPS.0,
    };
    let global = multiple(CROPS.0 as f64).min(native.max(patch));
    let local = multiple(global as f64 * CROPS.1 as f64 / CROPS.0 as f64);
    let stem = if vit.stem.is_empty() { "patch" } else { "conv" };
    let sizes = [("patch-size", patch), ("registers", vit.registers()), ("global-crops-size", global), ("local-crops-size", local)];
    // What the architecture says by itself is not said twice: it would be another setting to a run that goes on.
    let others = [("dim", vit.dim), ("depth", vit.blocks.len()), ("heads", vit.heads)];
    let others = others.into_iter().zip(own).filter(|((_, size), own)| size != own).map(|(size, _)| size);
    let mut settings: Table = sizes.into_iter().chain(others).map(|(name, size)| (name.to_owned(), (size as i64).into())).collect();
    if let Some(hidden) = init::gated(&vit)? {
        settings.insert("ffn-layer".to_owned(), "swiglu".into());
        settings.insert("ffn-hidden".to_owned(), (hidden as i64).into());
    }
    if let Some(base) = init::rotary_base(&vit)? {
        settings.insert("pos-embed".to_owned(), "rope".into());
        settings.insert("rope-base".to_owned(), base.into());
    }
    settings.insert("arch".to_owned(), arch.into());
    settings.insert("stem".to_owned(), stem.into());
    tracing::info!("the backbone is that of the checkpoint: {arch}, dim {}, {} blocks, patches of {patch}", vit.dim, vit.blocks.len());
    Ok(settings)
}

fn of_convnext(convnext: &Convnext) -> Table {
    let (dim, depths) = (convnext.dim(), convnext.stages.iter().map(|stage| stage.blocks.len()).collect::<Vec<_>>());
    let (arch, own) = match (&depths[..], dim) {
        ([3, 3, 9, 3], _) => ("convnext_tiny", 768),
        ([3, 3, 27, 3], 1024) => ("convnext_base", 1024),
        ([3, 3, 27, 3], 1536) => ("convnext_large", 1536),
        ([3, 3, 27, 3], _) => ("convnext_small", 768),
        _ => return Table::new(),
    };
    let mut settings = Table::from_iter([("arch".to_owned(), arch.into())]);
    if dim != own {
        settings.insert("dim".to_owned(), (dim as i64).into());
    }
    tracing::info!("the backbone is that of the checkpoint: {arch}, dim {dim}, {} blocks", depths.iter().sum::<usize>());
    settings
}
