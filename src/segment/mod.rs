//! Masks from the last block's attention.
//!
//! A mask lives on the patch grid ([`Mask`]) and is enlarged to the picture's own size only where it is written out:
//! as a box and an area, as COCO run lengths, or as PNG.

mod attention;
mod components;
mod mask;
mod rle;

pub use attention::{AttentionOptions, Head, SegmentError, attention, head_cells};
pub use mask::{Mask, PngError};
pub use rle::Rle;

/// One object of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Where it is.
    pub mask: Mask,
    /// How far it stands out, between 0 and 1: the contrast (inside - outside) / (inside + outside) of the mean
    /// attention per patch, outside being what no object covers. Close to 0 for a picture without an object.
    pub score: f32,
}
