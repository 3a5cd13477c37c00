//! Objects in a picture, from what a model saw of it.
//!
//! [`Patches`] are a model's outputs on the patch grid, [`segment()`] finds objects in them by one of the [`Method`]s, each in
//! a module of its own, written from its paper's formulas. A mask lives on the patch grid ([`Mask`]) and is enlarged to the
//! picture's own size only where it is written out: as a box and an area, as COCO run lengths, as polygons, or as PNG.
//!
//! ```
//! use dino_vision::segment::{Options, Patches, segment};
//! use dino_vision::transform::PatchGrid;
//!
//! // The attention of one head to 2 rows of 3 patches: the right column stands out.
//! let attention = ndarray::array![[0.05_f32, 0.05, 0.4, 0.05, 0.05, 0.4]];
//! let patches = Patches::new(Some(attention.view()), None, PatchGrid { rows: 2, columns: 3 });
//! let found = segment(&patches, (300, 200), 1.0, &Options::default())?;
//! assert_eq!(found.objects[0].mask.bbox(), [200, 0, 100, 200]);
//! # Ok::<(), dino_vision::segment::SegmentError>(())
//! ```

mod affinity;
mod attention;
mod background;
mod colour_basis;
pub(crate) mod components;
mod diffusion;
mod distinct;
mod drawn;
mod guided;
mod heatmap;
mod lost;
mod mask;
mod method;
mod ncut;
mod patches;
mod pca;
mod polygons;
mod rings;
mod rle;
mod saliency;
mod similarity;
mod spread;
mod structure;

use std::sync::Arc;

pub use crate::mask_defaults::{MaskDefaults, MaskFigures, Method, Refine};
pub use attention::{Head, head_cells};
pub use background::{Background, background};
pub use colour_basis::{ColourBasis, Coloured, bytes_of_shares};
pub use drawn::{DrawnMask, DrawnMaskError};
pub use guided::guide;
pub use heatmap::Heatmap;
pub use lost::{Expansion, LOST_PATCHES, lost};
pub use mask::{Mask, PngError, colours_png, map_png, patch_at};
pub use method::{Options, SegmentError, Segmentation, segment, segment_coloured};
pub use ncut::{Cut, ncut};
pub use patches::Patches;
pub use pca::principal_components;
pub use rings::OutlinePart;
pub use rle::Rle;
pub use saliency::saliency;
pub use similarity::{similarity, similarity_to_mask};
pub use structure::structure;

/// One object of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Where it is.
    pub mask: Mask,
    /// How far it stands out, between 0 and 1; close to 0 in a picture without an object. The picture's [`structure()`] times,
    /// for [`Method::Attention`], the contrast (inside - outside) / (inside + outside) of the mean attention per patch,
    /// outside being what no object covers; for [`Method::Saliency`], the share of the heat's variance between the two, times the share of its box that the object fills; for the others,
    /// 1 minus the cosine between the mean features inside and outside.
    /// What lies around an object differs from it as much as it does from that: of such a difference a later object keeps the
    /// share of what the earlier ones left that it leaves in turn, and no score is above that of the object before.
    pub score: f32,
    /// What the method put its threshold to, one value per patch, row by row: attention (shares of its mass), 1 minus the
    /// similarity to the background's seed, the cut's eigenvector, the correlation with the seed, the first component, or the saliency.
    pub heat: Arc<[f32]>,
}
