//! The nearest row of each query: exact scans in blocks.

use ndarray::{ArrayView2, s};

use super::Rows;
use crate::byte_rows::{BLOCK, Left, Right, each_tile};
use crate::cancel::{self, Cancelled};

/// Queries that are compared at once: their products with a block bound the memory.
const QUERIES: usize = 1024;

/// What rounding may take from the cosine of a row with itself.
const ROUNDING: f32 = 1e-6;

/// The cosine where there is no row to compare with: less than any.
pub(crate) const NONE: f32 = -2.0;

/// The nearest row of a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Hit {
    /// [`NONE`] without any row.
    pub(crate) cosine: f32,
    pub(crate) row: u32,
}

impl Hit {
    pub(crate) const NOTHING: Self = Self { cosine: NONE, row: u32::MAX };
}

/// The nearest in both directions.
pub(crate) struct Found {
    /// Of each query the nearest row, of equal ones the first.
    pub(crate) of_queries: Vec<Hit>,
    /// Of each row the cosine of the nearest query, where that was asked for.
    pub(crate) of_rows: Vec<f32>,
}

/// Numbers of the pictures that queries and rows belong to: a row of the query's own picture is not looked at.
#[derive(Clone, Copy)]
pub(crate) struct Owners<'a> {
    pub(crate) queries: &'a [u32],
    pub(crate) rows: &'a [u32],
}

/// What a scan is asked for.
#[derive(Clone, Copy, Default)]
pub(crate) struct Options<'a> {
    pub(crate) owners: Option<Owners<'a>>,
    pub(crate) of_rows: bool,
}

/// Compares all queries with all rows, on all cores.
///
/// # Errors
/// [`Cancelled`].
pub(crate) fn scan(queries: &Rows, rows: &Rows, options: Options<'_>) -> Result<Found, Cancelled> {
    let mut found = Found { of_queries: vec![Hit::NOTHING; queries.len()], of_rows: Vec::new() };
    if options.of_rows {
        found.of_rows = vec![NONE; rows.len()];
    }
    for first in (0..queries.len()).step_by(QUERIES) {
        let part = first..(first + QUERIES).min(queries.len());
        let left = Left::new(queries, part.clone());
        let right = |&start: &usize| Right::new(rows, start..(start + BLOCK).min(rows.len()));
        let of_tile = |&start: &usize, tile: &mut [f32], columns: usize| {
            if let Some(owners) = options.owners {
                leave_out(tile, &owners.queries[part.clone()], &owners.rows[start..start + columns]);
            }
            let nearest: Vec<Hit> = tile.chunks_exact(columns).map(|row| nearest(row, start)).collect();
            let of_rows = if options.of_rows { largest_of_columns(tile, columns) } else { Vec::new() };
            (nearest, of_rows)
        };
        let starts: Vec<usize> = (0..rows.len()).step_by(BLOCK).collect();
        let blocks = each_tile(&left, &starts, right, of_tile)?;
        for (start, (nearest, of_rows)) in starts.into_iter().zip(blocks) {
            for (best, hit) in found.of_queries[part.clone()].iter_mut().zip(nearest) {
                if hit.cosine > best.cosine {
                    *best = hit;
                }
            }
            for (best, cosine) in found.of_rows.iter_mut().skip(start).zip(of_rows) {
                *best = best.max(cosine);
            }
        }
    }
    Ok(found)
}

fn leave_out(tile: &mut [f32], queries: &[u32], rows: &[u32]) {
    for (row, own) in tile.chunks_exact_mut(rows.len()).zip(queries) {
        for (cosine, owner) in row.iter_mut().zip(rows) {
            if owner == own {
                *cosine = NONE;
            }
        }
    }
}

fn nearest(cosines: &[f32], start: usize) -> Hit {
    // Without the rules of `f32::max` about numbers that are none, the compiler uses the processor's own maximum.
    let most = cosines.iter().fold(NONE, |most, &cosine| if cosine > most { cosine } else { most });
    let at = cosines.iter().position(|&cosine| cosine >= most).unwrap_or_default();
    if most > NONE { Hit { cosine: most, row: (start + at) as u32 } } else { Hit::NOTHING }
}

fn largest_of_columns(tile: &[f32], columns: usize) -> Vec<f32> {
    let mut largest = vec![NONE; columns];
    for row in tile.chunks_exact(columns) {
        for (largest, &cosine) in largest.iter_mut().zip(row) {
            *largest = if cosine > *largest { cosine } else { *largest };
        }
    }
    largest
}

/// 1 minus the cosine of each of `queries` `[n, dim]` to the nearest of `rows` `[m, dim]`; all rows have length 1. 0 without rows.
///
/// # Errors
/// [`Cancelled`].
pub fn distances_of_floats(queries: ArrayView2<'_, f32>, rows: ArrayView2<'_, f32>) -> Result<Vec<f32>, Cancelled> {
    let mut best = vec![NONE; queries.nrows()];
    for start in (0..rows.nrows()).step_by(BLOCK) {
        cancel::check()?;
        let products = queries.dot(&rows.slice(s![start..(start + BLOCK).min(rows.nrows()), ..]).t());
        for (best, row) in best.iter_mut().zip(products.rows()) {
            *best = row.iter().fold(*best, |most, &cosine| most.max(cosine));
        }
    }
    Ok(best.into_iter().map(distance).collect())
}

/// The distance of a patch whose nearest has this cosine; 0 where there is none, and where only rounding is between them.
pub(crate) fn distance(cosine: f32) -> f32 {
    if cosine <= NONE || cosine > 1.0 - ROUNDING { 0.0 } else { 1.0 - cosine }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Hit, NONE, Options, Owners, scan};
    use crate::anomaly::Rows;

    pub(crate) fn scattered(count: usize, dim: usize, seed: usize) -> Rows {
        let mut rows = Rows::new(dim);
        for row in 0..count {
            rows.push((0..dim).map(|at| (((row * dim + at) * 7919 + seed * 104_729) as f32 * 12.9898).sin() * 43758.547 % 1.0));
        }
        rows
    }

    #[test]
    fn blocks_and_queries_of_any_number_are_scanned() {
        let (queries, rows) = (scattered(1030, 24, 1), scattered(1100, 24, 2));
        let found = scan(&queries, &rows, Options { of_rows: true, ..Options::default() }).unwrap();
        let cosine = |a: usize, b: usize| {
            let product: i32 = queries.codes(a).iter().zip(rows.codes(b)).map(|(&x, &y)| i32::from(x) * i32::from(y)).sum();
            product as f32 * queries.scales()[a] * rows.scales()[b]
        };
        for at in [0, 1, 1023, 1024, 1029] {
            let best = (0..1100).max_by(|&x, &y| cosine(at, x).total_cmp(&cosine(at, y)).then(y.cmp(&x))).unwrap();
            assert_eq!(found.of_queries[at], Hit { cosine: cosine(at, best), row: best as u32 });
        }
        for at in [0, 511, 512, 1099] {
            let best = (0..1030).map(|query| cosine(query, at)).fold(NONE, f32::max);
            assert!((found.of_rows[at] - best).abs() < 1e-6);
        }
        let empty = scan(&queries, &Rows::new(24), Options::default()).unwrap();
        assert_eq!(empty.of_queries, vec![Hit::NOTHING; 1030]);
    }

    #[test]
    fn rows_of_the_query_s_own_picture_are_not_looked_at() {
        let rows = scattered(700, 8, 1);
        let owners: Vec<u32> = (0..700).map(|row| row / 100).collect();
        let own = scan(&rows, &rows, Options::default()).unwrap();
        assert!(own.of_queries.iter().enumerate().all(|(at, hit)| hit.row == at as u32));
        let options = Options { owners: Some(Owners { queries: &owners, rows: &owners }), of_rows: false };
        let others = scan(&rows, &rows, options).unwrap();
        assert!(others.of_queries.iter().enumerate().all(|(at, hit)| owners[hit.row as usize] != owners[at] && hit.cosine > NONE));
    }
}
