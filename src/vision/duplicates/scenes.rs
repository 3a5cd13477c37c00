//! The second stage: pairs of vectors above a cosine, by products of blocks.

use super::forest::Forest;
use crate::byte_rows::{BLOCK, Left, Right, Rows, each_tile};
use crate::cancel::Cancelled;

/// Rows that are compared with all later blocks at once.
const ROWS: usize = 1024;

/// What rounding may take from the cosine of equal rows.
const ROUNDING: f32 = 1e-6;

/// What comparing vectors came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    /// Pairs of items that are similar enough.
    pub found: u64,
    /// Most of them that were in memory at a time. Of each block only those are kept that connect something new within it, so that it
    /// is at most four for each item.
    pub held: usize,
}

/// Pairs of a block, by their places in it.
struct Edges {
    start: usize,
    pairs: Vec<(u32, u32)>,
    found: u64,
}

/// Connects rows whose cosine is at least `least`.
///
/// # Errors
/// [`Cancelled`].
pub(super) fn unite(rows: &Rows, least: f32, forest: &mut Forest, progress: &dyn Fn(f64)) -> Result<Pairs, Cancelled> {
    let (count, least) = (rows.len(), least - ROUNDING);
    let mut pairs = Pairs::default();
    for first in (0..count).step_by(ROWS) {
        let left = Left::new(rows, first..(first + ROWS).min(count));
        // Earlier blocks have met these rows.
        let starts: Vec<usize> = (first..count).step_by(BLOCK).collect();
        let right = |&start: &usize| Right::new(rows, start..(start + BLOCK).min(count));
        let of_tile = |&start: &usize, tile: &mut [f32], columns: usize| edges(tile, columns, first, start, least);
        let blocks = each_tile(&left, &starts, right, of_tile)?;
        pairs.held = pairs.held.max(blocks.iter().map(|edges| edges.pairs.len()).sum());
        for edges in blocks {
            pairs.found += edges.found;
            for (row, column) in edges.pairs {
                forest.unite(first as u32 + row, edges.start as u32 + column);
            }
        }
        // What is left is a triangle.
        let left = (count - (first + ROWS).min(count)) as f64 / count as f64;
        progress(1.0 - left * left);
    }
    Ok(pairs)
}

/// The pairs of a block that connect something new within it.
fn edges(tile: &[f32], columns: usize, first: usize, start: usize, least: f32) -> Edges {
    let rows = tile.len() / columns.max(1);
    let mut edges = Edges { start, pairs: Vec::new(), found: 0 };
    let mut local = None;
    for (row, cosines) in tile.chunks_exact(columns).enumerate() {
        // Almost no row has one: this loop is one that the processor's vectors can run.
        let most = cosines.iter().fold(f32::MIN, |most, &cosine| if cosine > most { cosine } else { most });
        if most < least {
            continue;
        }
        let local = local.get_or_insert_with(|| Forest::new(rows + columns));
        for (column, &cosine) in cosines.iter().enumerate() {
            // Each pair once, and none of a row with itself.
            if cosine >= least && start + column > first + row {
                edges.found += 1;
                if local.unite(row as u32, (rows + column) as u32) {
                    edges.pairs.push((row as u32, column as u32));
                }
            }
        }
    }
    edges
}
