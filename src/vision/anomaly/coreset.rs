//! A bound on the number of stored patches: the incremental form of greedy k-centre.
//!
//! Chosen rows are farther than a radius from each other, and every other row is near a chosen one. A new row is chosen where it is
//! farther than the radius from all of them; where that makes too many, the radius grows and the chosen rows are chosen from anew
//! (Charikar et al., Incremental clustering and dynamic information retrieval, 1997). What was not chosen is never looked at again.

use super::scan::{Hit, Options, Owners, scan};
use super::{Rows, scan};
use crate::byte_rows::{Left, Right};
use crate::cancel::Cancelled;

/// Rows that are chosen from at once.
const BLOCK: usize = 256;
/// Rows whose nearest others say how much the radius has to grow.
const SAMPLE: usize = 512;
/// Smallest radius: what is nearer is the same.
const SMALLEST: f32 = 1e-4;
/// Factor by which the radius grows until few enough are left.
const GROWTH: f32 = 1.25;
/// Share of the bound that is kept, in percent: choosing anew at every new picture would take too long.
const KEPT: usize = 75;

/// A row that was not chosen, since a chosen one is near it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Covered {
    pub(super) row: usize,
    /// The chosen one.
    pub(super) by: usize,
    pub(super) cosine: f32,
}

/// What was chosen of some rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Selection {
    /// Numbers of the chosen rows, ascending.
    pub(super) chosen: Vec<usize>,
    /// What was not chosen for the sake of one of these. Where choosing took several rounds, one of a later round may be what covered one
    /// of an earlier.
    pub(super) covered: Vec<Covered>,
}

/// The candidates that are farther than `radius` (1 - cosine) from what is chosen already and from each other, the first before the later
/// ones. `nearest` says for each how near it is to what is chosen already.
pub(super) fn separate(candidates: &Rows, nearest: &[Hit], radius: f32) -> Result<Selection, Cancelled> {
    let limit = 1.0 - radius;
    let (mut found, mut rows, mut tile) = (Selection::default(), Rows::new(candidates.dim()), Vec::new());
    for start in (0..candidates.len()).step_by(BLOCK) {
        let far: Vec<usize> = (start..(start + BLOCK).min(candidates.len())).filter(|&at| nearest[at].cosine < limit).collect();
        let block = candidates.select(far.iter().copied());
        let before = scan::scan(&block, &rows, Options::default())?.of_queries;
        Right::new(&block, 0..block.len()).cosines(&Left::new(&block, 0..block.len()), &mut tile);
        let mut own: Vec<usize> = Vec::new();
        for (at, hit) in before.iter().enumerate() {
            let cosine = |other: usize| tile[at * block.len() + other];
            let by = if hit.cosine >= limit {
                Some((found.chosen[hit.row as usize], hit.cosine))
            } else {
                own.iter().find(|&&other| cosine(other) >= limit).map(|&other| (far[other], cosine(other)))
            };
            match by {
                Some((by, cosine)) => found.covered.push(Covered { row: far[at], by, cosine }),
                None => own.push(at),
            }
        }
        for at in own {
            rows.push_from(&block, at);
            found.chosen.push(far[at]);
        }
    }
    Ok(found)
}

/// The rows that are left of more than `most`, and the radius that they are apart.
pub(super) fn thinned(rows: &Rows, radius: f32, most: usize) -> Result<(Selection, f32), Cancelled> {
    let mut radius = (radius * GROWTH).max(typical_distance(rows)?).max(SMALLEST);
    let mut found = Selection { chosen: (0..rows.len()).collect(), covered: Vec::new() };
    loop {
        let left = rows.select(found.chosen.iter().copied());
        let Selection { chosen, covered } = separate(&left, &vec![Hit::NOTHING; left.len()], radius)?;
        let row = |at: usize| found.chosen[at];
        found.covered.extend(covered.into_iter().map(|covered| Covered { row: row(covered.row), by: row(covered.by), ..covered }));
        found.chosen = chosen.into_iter().map(row).collect();
        if found.chosen.len() * 100 <= most * KEPT || found.chosen.len() <= 1 {
            return Ok((found, radius));
        }
        radius *= GROWTH;
    }
}

/// The median distance of rows to their nearest other row, of a sample.
fn typical_distance(rows: &Rows) -> Result<f32, Cancelled> {
    let sampled: Vec<u32> = (0..rows.len()).step_by(rows.len().div_ceil(SAMPLE).max(1)).map(|row| row as u32).collect();
    let numbers: Vec<u32> = (0..rows.len() as u32).collect();
    let sample = rows.select(sampled.iter().map(|&row| row as usize));
    let options = Options { owners: Some(Owners { queries: &sampled, rows: &numbers }), of_rows: false };
    let mut distances: Vec<f32> = scan(&sample, rows, options)?.of_queries.iter().map(|hit| scan::distance(hit.cosine)).collect();
    distances.sort_unstable_by(f32::total_cmp);
    Ok(distances.get(distances.len() / 2).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::scan::tests::scattered;
    use super::*;

    #[test]
    fn what_is_left_is_apart_and_covers_the_rest() {
        let rows = scattered(2000, 6, 3);
        let (Selection { chosen: kept, covered }, radius) = thinned(&rows, 0.0, 1000).unwrap();
        assert_eq!(kept.len() + covered.len(), rows.len());
        let cosine = |a: usize, b: usize| {
            let product: i32 = rows.codes(a).iter().zip(rows.codes(b)).map(|(&x, &y)| i32::from(x) * i32::from(y)).sum();
            product as f32 * rows.scales()[a] * rows.scales()[b]
        };
        for Covered { row, by, cosine: near } in covered {
            assert!((cosine(row, by) - near).abs() < 1e-6 && near >= 1.0 - radius && kept.binary_search(&row).is_err());
        }
        assert!(kept.len() <= 750 && kept.len() > 100 && kept.is_sorted(), "{} at {radius}", kept.len());
        let left = rows.select(kept.iter().copied());
        let cosines = scan(&rows, &left, Options::default()).unwrap().of_queries;
        assert!(cosines.iter().all(|hit| hit.cosine > 1.0 - 4.0 * radius));
        let owners: Vec<u32> = (0..left.len() as u32).collect();
        let options = Options { owners: Some(Owners { queries: &owners, rows: &owners }), of_rows: false };
        assert!(scan(&left, &left, options).unwrap().of_queries.iter().all(|hit| hit.cosine < 1.0 - radius));
        // Copies are one.
        let copies = rows.select((0..18).map(|at| at % 3));
        assert_eq!(thinned(&copies, 0.0, 10).unwrap().0.chosen, [0, 1, 2]);
    }
}
