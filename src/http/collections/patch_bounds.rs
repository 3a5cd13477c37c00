//! What a collection of patches may ask of this server. It is checked when one is made or restored, and again before each use: a
//! collection may come from a server with other limits, or of another model.

use super::super::{
    embed::check_layer,
    problem::{Code, Problem},
};
use crate::{
    index::{PatchOptions, Spec},
    serving::{COLLECTION_POOLING, Served},
};
use dino_vision::embedding::{EmbeddingError, Pooling};

/// Most patches that one collection may be asked to hold in memory.
const MAX_PATCHES: usize = 1_000_000;
/// Most numbers of a byte each that these may come to.
const MAX_PATCH_BYTES: usize = 1 << 30;

/// Largest `max_patches` of a collection whose vectors have `dim` numbers.
pub(super) fn most_patches(dim: usize) -> usize {
    MAX_PATCHES.min(MAX_PATCH_BYTES / dim.max(1))
}

/// Refuses pictures that are larger than this server takes them, and more patches than it holds in memory. Without a model that is
/// served, only the upper bounds are known.
pub(super) fn check_memory(options: PatchOptions, dim: usize, served: Option<&Served>, segment_size: u32) -> Result<(), Problem> {
    let refused = |why: String| Err(Problem::new(Code::BadParameter, why));
    let patch = served.map_or(1, |served| served.manifest().patch_size.max(1));
    let PatchOptions { size, max_patches, .. } = options;
    if !(patch..=segment_size.max(patch)).contains(&size) {
        return refused(format!("size: must lie between {patch}, a patch of this model, and {segment_size} (--segment-size), not {size}"));
    }
    let (least, most) = (served.map_or(1, |served| served.most_patches(size)), most_patches(dim));
    if !(least..=most).contains(&max_patches) {
        return refused(format!(
            "max_patches: must lie between {least}, the patches of one picture, and {most}, which take {} MB; not {max_patches}",
            (most * dim) >> 20
        ));
    }
    Ok(())
}

/// Refuses vectors of another length than the model's: products with them would read beyond their end.
pub(super) fn check_dim(dim: usize, served: &Served) -> Result<(), Problem> {
    let own = COLLECTION_POOLING.dim(served.manifest().dim as usize);
    if dim == own {
        return Ok(());
    }
    let detail = format!("the collection's vectors have {dim} dimensions, and those of its model {own}: make another collection");
    Err(Problem::new(Code::DimensionMismatch, detail))
}

/// The block whose tokens the patches are. Refuses what the model's graph does not give: it may have been reloaded from another one.
pub(in crate::http) fn check_outputs(served: &Served, layer: Option<u32>) -> Result<Option<u32>, Problem> {
    let layer = check_layer(served, layer)?;
    if served.outputs().iter().any(|output| ["last_hidden_state", "feature_map"].contains(output)) {
        return Ok(layer);
    }
    Err(EmbeddingError::LacksOutput { pooling: Pooling::Patches, output: "last_hidden_state" }.into())
}

/// Refuses a collection that this server cannot use with the model, before a picture is decoded.
pub(super) fn check_use(spec: &Spec, options: PatchOptions, served: &Served, segment_size: u32) -> Result<(), Problem> {
    check_dim(spec.dim, served)?;
    check_memory(options, spec.dim, Some(served), segment_size)?;
    check_outputs(served, options.layer).map(drop)
}
