//! The cosines of some rows with many others, block by block on all cores.

use rayon::prelude::*;

use super::{Left, Right};
use crate::cancel::{self, Cancelled};

/// Rows of one block: its products with a picture's patches stay in the second cache.
pub(crate) const BLOCK: usize = 512;

/// What `of_tile` makes of the cosines `[left, right]` of each block, in the order of `blocks`; it also learns the number of columns.
///
/// # Errors
/// [`Cancelled`].
pub(crate) fn each_tile<B: Sync, T: Send>(
    left: &Left,
    blocks: &[B],
    right: impl Fn(&B) -> Right + Sync,
    of_tile: impl Fn(&B, &mut [f32], usize) -> T + Sync,
) -> Result<Vec<T>, Cancelled> {
    // Other threads do not know the request that this one works for.
    let token = cancel::current();
    let of_block = |tile: &mut Vec<f32>, block: &B| {
        if token.is_cancelled() {
            return None;
        }
        let right = right(block);
        right.cosines(left, tile);
        Some(of_tile(block, tile, right.len()))
    };
    let found: Option<Vec<T>> = blocks.par_iter().map_init(Vec::new, of_block).collect();
    found.ok_or(Cancelled)
}
