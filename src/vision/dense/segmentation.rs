//! Logits of patches → the class of each pixel.
//!
//! ```
//! use dino_vision::{dense::segmentation::{ClassMap, probability}, transform::PatchGrid};
//!
//! // Two patches: the first is of class 1, the second of either.
//! let logits = ndarray::array![[0.0, 20.0], [0.0, 0.0]];
//! let of_second = probability(logits.view(), 1);
//! assert!(of_second[0] > 0.999 && (of_second[1] - 0.5).abs() < 1e-6);
//!
//! let grid = PatchGrid { rows: 1, columns: 2 };
//! assert_eq!(ClassMap::new(logits.view(), grid, grid).classes, [1, 0]);
//! ```

use ndarray::ArrayView2;

use super::enlarge::Enlargement;
use crate::cancel;
use crate::transform::PatchGrid;

/// Below this difference to the largest logit a class has no share of a pixel's probability that counts.
const NEGLIGIBLE: f32 = -20.0;

/// The likeliest class of each cell of a grid over the picture.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassMap {
    /// The grid.
    pub grid: PatchGrid,
    /// Numbers of classes, row by row.
    pub classes: Vec<u8>,
    /// Of each class the number of its cells, and the sum of its probability there.
    pub shares: Vec<(u64, f64)>,
}

impl ClassMap {
    /// From the logits `[patches, classes]` of at most 256 classes on the grid `patches`: they are enlarged to `grid`, and the largest
    /// wins, the first of equals. Where the request was cancelled ([`cancel`]), rows are missing.
    ///
    /// # Panics
    /// If there are not as many logits as patches.
    pub fn new(logits: ArrayView2<'_, f32>, patches: PatchGrid, grid: PatchGrid) -> Self {
        let count = logits.ncols();
        let logits = logits.as_standard_layout();
        let values = logits.as_slice().expect("standard layout");
        let enlargement = Enlargement::new(patches, grid);
        let mut row = vec![0.0; grid.columns * count];
        let mut map = Self { grid, classes: Vec::with_capacity(grid.len()), shares: vec![(0, 0.0); count] };
        for y in 0..grid.rows {
            if cancel::is_cancelled() {
                break;
            }
            enlargement.row(values, count, y, &mut row);
            for logits in row.chunks_exact(count) {
                let (best, largest) = largest(logits);
                let others: f32 = logits.iter().map(|logit| logit - largest).filter(|below| *below > NEGLIGIBLE).map(f32::exp).sum();
                map.classes.push(best as u8);
                let (cells, probability) = &mut map.shares[best];
                *cells += 1;
                *probability += f64::from(others.recip());
            }
        }
        map
    }

    /// The classes that have a cell, with their mean probability there, the most probable first.
    pub fn present(&self) -> Vec<(usize, f32)> {
        let mean = |(class, &(cells, sum)): (usize, &(u64, f64))| (cells > 0).then(|| (class, (sum / cells as f64) as f32));
        let mut present: Vec<_> = self.shares.iter().enumerate().filter_map(mean).collect();
        present.sort_by(|a, b| b.1.total_cmp(&a.1));
        present
    }
}

/// The first of the largest.
fn largest(logits: &[f32]) -> (usize, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (class, &logit) in logits.iter().enumerate() {
        if logit > best.1 {
            best = (class, logit);
        }
    }
    best
}

/// The probability of one class in each patch, of logits `[patches, classes]`.
pub fn probability(logits: ArrayView2<'_, f32>, class: usize) -> Vec<f32> {
    let of = |row: ndarray::ArrayView1<'_, f32>| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        (row[class] - largest).exp() / row.iter().map(|logit| (logit - largest).exp()).sum::<f32>()
    };
    logits.rows().into_iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn the_largest_enlarged_logit_wins_and_its_probability_is_averaged() {
        let (patches, grid) = (PatchGrid { rows: 1, columns: 2 }, PatchGrid { rows: 2, columns: 4 });
        let logits = array![[4.0_f32, 0.0, 0.0], [0.0, 0.0, 8.0]];
        let map = ClassMap::new(logits.view(), patches, grid);
        assert_eq!(map.classes, [0, 0, 2, 2, 0, 0, 2, 2]);
        let present = map.present();
        assert_eq!(present.iter().map(|(class, _)| *class).collect::<Vec<_>>(), [2, 0]);
        assert!(present.iter().all(|(_, score)| (0.5..1.0).contains(score)), "{present:?}");
        let share = probability(logits.view(), 0);
        assert!((share[0] - 4.0_f32.exp() / (4.0_f32.exp() + 2.0)).abs() < 1e-6 && share[1] < 1e-3);
    }
}
