//! A value for each patch, averaged over the patches that are near and alike: objects become whole, and their borders stay.
//!
//! A bilateral filter (Tomasi and Manduchi 1998) whose range is the features of a network instead of colours.

use ndarray::{Array2, Axis};

use super::affinity::normalised;
use crate::cancel;
use crate::transform::PatchGrid;

/// Standard deviation of the distance in the picture, where the longer side is 1.
const REACH: f32 = 0.14;
/// Dissimilarity at which a weight has fallen to 1/e, as a share of the mean dissimilarity of all pairs.
const RANGE: f32 = 0.25;
/// Averages are taken over cells, at most so many along a side: a cell is the mean of its patches.
const MOST_CELLS: usize = 32;
/// Patches that are averaged at a time: the whole matrix of weights is never in memory.
const BLOCK: usize = 128;

/// `values` after two averages; `features` is `[patches, D]` with rows of length 1.
pub(super) fn diffused(features: &Array2<f32>, grid: PatchGrid, values: Vec<f32>) -> Vec<f32> {
    let Some(mean) = features.mean_axis(Axis(0)) else { return values };
    let scale = RANGE * (1.0 - mean.dot(&mean));
    // Where all are alike there is nothing to tell apart.
    if scale.is_nan() || scale <= f32::EPSILON {
        return values;
    }
    let longer = grid.rows.max(grid.columns);
    let side = longer.div_ceil(MOST_CELLS);
    let cells = PatchGrid { rows: grid.rows.div_ceil(side), columns: grid.columns.div_ceil(side) };
    let cell_of = |patch: usize| patch / grid.columns / side * cells.columns + patch % grid.columns / side;
    let (mut sums, mut heat) = (Array2::zeros((cells.len(), features.ncols())), vec![0.0; cells.len()]);
    let (mut places, mut counts) = (vec![(0.0, 0.0); cells.len()], vec![0.0_f32; cells.len()]);
    let place = |patch: usize| ((patch / grid.columns) as f32 / longer as f32, (patch % grid.columns) as f32 / longer as f32);
    for (patch, feature) in features.rows().into_iter().enumerate() {
        let (cell, (y, x)) = (cell_of(patch), place(patch));
        let mut sum = sums.row_mut(cell);
        sum += &feature;
        heat[cell] += values[patch];
        places[cell].0 += y;
        places[cell].1 += x;
        counts[cell] += 1.0;
    }
    for (cell, count) in counts.iter().enumerate() {
        heat[cell] /= count;
        places[cell].0 /= count;
        places[cell].1 /= count;
    }
    let cells = Cells { features: normalised(sums.view()), places, scale };
    let heat = cells.average(&cells.features, |cell| cells.places[cell], &heat);
    cells.average(features, place, &heat)
}

/// What is averaged over.
struct Cells {
    /// `[cells, D]`, rows of length 1.
    features: Array2<f32>,
    /// (y, x) of each.
    places: Vec<(f32, f32)>,
    scale: f32,
}

impl Cells {
    /// For each row of `features`, whose place is `place`, the mean of the cells' values, weighted by nearness and likeness.
    fn average(&self, features: &Array2<f32>, place: impl Fn(usize) -> (f32, f32), values: &[f32]) -> Vec<f32> {
        let mut averages = Vec::with_capacity(features.nrows());
        for block in features.axis_chunks_iter(Axis(0), BLOCK) {
            if cancel::is_cancelled() {
                break;
            }
            for cosines in block.dot(&self.features.t()).rows() {
                let (y, x) = place(averages.len());
                let (mut sum, mut weights) = (0.0, 0.0);
                for ((cosine, value), (row, column)) in cosines.iter().zip(values).zip(&self.places) {
                    let apart = (y - row).powi(2) + (x - column).powi(2);
                    let weight = ((cosine - 1.0) / self.scale - apart / (2.0 * REACH * REACH)).exp();
                    sum += weight * value;
                    weights += weight;
                }
                // Features unlike all cells, their own among them, have no weight.
                averages.push(if weights > 0.0 { sum / weights } else { 0.0 });
            }
        }
        averages.resize(features.nrows(), 0.0);
        averages
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::diffused;
    use crate::transform::PatchGrid;

    /// Two kinds of patches, left and right.
    fn halves(grid: PatchGrid) -> Array2<f32> {
        Array2::from_shape_fn((grid.len(), 2), |(patch, kind)| {
            f32::from(u8::from((patch % grid.columns < grid.columns / 2) == (kind == 0)))
        })
    }

    #[test]
    fn values_spread_to_what_is_alike_and_not_across_a_border() {
        // The larger grid has cells of several patches.
        for grid in [PatchGrid { rows: 6, columns: 10 }, PatchGrid { rows: 40, columns: 80 }] {
            let mut values = vec![0.0; grid.len()];
            for row in 0..grid.rows / 2 {
                for column in 0..grid.columns / 2 {
                    values[row * grid.columns + column] = 1.0;
                }
            }
            let after = diffused(&halves(grid), grid, values);
            let at = |row: usize, column: usize| after[row * grid.columns + column];
            let (below, last) = (grid.rows / 2, grid.columns / 2 - 1);
            assert!(at(below, last) > 0.2, "{grid:?}: {}", at(below, last));
            assert!(at(0, last + 1) < 0.1, "{grid:?}: {}", at(0, last + 1));
            assert!(after.iter().all(|value| (0.0..=1.0).contains(value)));
        }
    }

    #[test]
    fn an_even_value_stays_and_patches_without_features_do_no_harm() {
        let grid = PatchGrid { rows: 5, columns: 7 };
        let mut features = halves(grid);
        assert!(diffused(&features, grid, vec![0.5; grid.len()]).iter().all(|value| (value - 0.5).abs() < 1e-5));
        features.row_mut(3).fill(0.0);
        assert!(diffused(&features, grid, vec![0.5; grid.len()]).iter().all(|value| value.is_finite()));
        assert_eq!(diffused(&Array2::zeros((0, 2)), PatchGrid { rows: 0, columns: 0 }, Vec::new()), [0.0; 0]);
        assert_eq!(diffused(&Array2::from_elem((35, 1), 1.0), grid, vec![0.25; 35]), [0.25; 35]);
    }
}
