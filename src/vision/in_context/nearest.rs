//! The k nearest rows of each query, block by block.

use crate::byte_rows::{BLOCK, Left, Right, Rows, each_tile};
use crate::cancel::Cancelled;

/// Most queries that are compared at once.
const QUERIES: usize = 1024;
/// Blocks whose nearest rows are in memory at once.
const WAVE: usize = 32;
/// Most rows that were found in the blocks of a wave, before they are merged: 24 bytes each.
const MAX_WAITING: usize = 1 << 21;

/// A row that was found: which of the parts it is of, its number there, and its cosine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Neighbour {
    pub(super) part: usize,
    pub(super) row: usize,
    pub(super) cosine: f32,
}

/// Tells `tell` the number of each query and its `k` nearest rows among all parts, nearest first; of equal ones those of earlier parts and
/// rows. Those of some queries are in memory at a time.
///
/// # Errors
/// [`Cancelled`], and those of `tell`.
pub(super) fn each_nearest(
    queries: &Rows,
    parts: &[&Rows],
    k: usize,
    mut tell: impl FnMut(usize, &[Neighbour]) -> Result<(), Cancelled>,
) -> Result<(), Cancelled> {
    let blocks: Vec<(usize, usize)> =
        parts.iter().enumerate().flat_map(|(part, rows)| (0..rows.len()).step_by(BLOCK).map(move |start| (part, start))).collect();
    let at_once = queries_at_once(k);
    for first in (0..queries.len()).step_by(at_once) {
        let asked = first..(first + at_once).min(queries.len());
        let left = Left::new(queries, asked.clone());
        let right = |&(part, start): &(usize, usize)| Right::new(parts[part], start..(start + BLOCK).min(parts[part].len()));
        let of_tile = |&(part, start): &(usize, usize), tile: &mut [f32], columns: usize| {
            let best = |row: &[f32]| {
                let mut best = Vec::new();
                for (at, &cosine) in row.iter().enumerate() {
                    offer(&mut best, Neighbour { part, row: start + at, cosine }, k);
                }
                best
            };
            tile.chunks_exact(columns).map(best).collect::<Vec<_>>()
        };
        let mut found: Vec<Vec<Neighbour>> = vec![Vec::new(); asked.len()];
        for wave in blocks.chunks(WAVE) {
            for block in each_tile(&left, wave, right, of_tile)? {
                for (best, candidates) in found.iter_mut().zip(block) {
                    for candidate in candidates {
                        offer(best, candidate, k);
                    }
                }
            }
        }
        for (query, neighbours) in asked.zip(&found) {
            tell(query, neighbours)?;
        }
    }
    Ok(())
}

/// Queries that are compared at once: fewer where each has many neighbours.
fn queries_at_once(k: usize) -> usize {
    (MAX_WAITING / (WAVE * k.clamp(1, BLOCK))).clamp(1, QUERIES)
}

/// Keeps the `k` nearest in their order. An equal one that comes later is behind.
fn offer(best: &mut Vec<Neighbour>, candidate: Neighbour, k: usize) {
    if best.len() == k && best.last().is_none_or(|last| candidate.cosine <= last.cosine) {
        return;
    }
    let at = best.partition_point(|known| known.cosine >= candidate.cosine);
    best.truncate(k - 1);
    best.insert(at, candidate);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::anomaly::scan::tests::scattered;

    fn nearest(queries: &Rows, parts: &[&Rows], k: usize) -> Vec<Vec<Neighbour>> {
        let mut found = Vec::new();
        let tell = |query: usize, neighbours: &[Neighbour]| {
            assert_eq!(query, found.len());
            found.push(neighbours.to_vec());
            Ok(())
        };
        each_nearest(queries, parts, k, tell).unwrap();
        found
    }

    #[test]
    fn neighbours_are_those_of_comparing_all() {
        // More than are compared at once with the largest of these `k`.
        let queries = scattered(140, 12, 1);
        let parts = [scattered(1030, 12, 2), scattered(5, 12, 3), scattered(0, 12, 4), scattered(600, 12, 5)];
        let parts: Vec<_> = parts.iter().collect();
        for k in [1, 7, 2000] {
            let found = nearest(&queries, &parts, k);
            assert_eq!(found.len(), queries.len());
            for (at, found) in found.iter().enumerate() {
                let mut all: Vec<Neighbour> = Vec::new();
                for (part, rows) in parts.iter().enumerate() {
                    for row in 0..rows.len() {
                        let product: i32 = queries.codes(at).iter().zip(rows.codes(row)).map(|(&x, &y)| i32::from(x) * i32::from(y)).sum();
                        let cosine = (product as f32 * queries.scales()[at] * rows.scales()[row]).clamp(-1.0, 1.0);
                        all.push(Neighbour { part, row, cosine });
                    }
                }
                all.sort_by(|a, b| b.cosine.total_cmp(&a.cosine));
                all.truncate(k);
                assert_eq!(*found, all, "{k} {at}");
            }
        }
        assert!(nearest(&queries, &[], 3).iter().all(Vec::is_empty));
    }

    #[test]
    fn what_waits_to_be_merged_is_bounded() {
        for k in 1..=2000 {
            let queries = queries_at_once(k);
            let bytes = queries * WAVE * k.min(BLOCK) * size_of::<Neighbour>();
            assert!(queries >= 1 && bytes <= 50 << 20, "{k}: {bytes}");
        }
        assert_eq!((queries_at_once(20), queries_at_once(1000)), (QUERIES, 128));
    }
}
