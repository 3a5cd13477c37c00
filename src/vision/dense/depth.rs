//! Logits of patches → depths.
//!
//! A head tells the depth of a place as the mean of evenly spaced bins, weighted by its logits: what is above 0, plus 0.1, divided
//! by the sum (`AdaBins`, Bhat et al. 2021, with uniform bins; `DepthBaseDecodeHead.depth_pred` with `bins_strategy="UD"` and
//! `norm_strategy="linear"` in DINOv2's code). Before that the logits are enlarged four times.
//!
//! ```
//! use dino_vision::dense::depth::{Depths, bins, expected};
//! use dino_vision::{head::DepthRange, transform::PatchGrid};
//!
//! let range = DepthRange { min: 1.0, max: 3.0 };
//! assert_eq!(bins(range, 3), [1.0, 2.0, 3.0]);
//! assert_eq!(expected(&[0.0, 0.0, 0.0], &bins(range, 3)).0, 2.0, "all bins alike");
//!
//! // One patch whose logits are all for the last bin: 4 x 4 depths near 3.
//! let logits = ndarray::array![[-1.0, -1.0, 99.8]];
//! let depths = Depths::new(logits.view(), PatchGrid { rows: 1, columns: 1 }, range);
//! assert_eq!(depths.values.len(), 16);
//! assert!(depths.values.iter().all(|depth| (2.99..3.0).contains(depth)));
//! ```

use ndarray::ArrayView2;

use super::enlarge::Enlargement;
use crate::cancel;
use crate::head::DepthRange;
use crate::transform::PatchGrid;

/// Factor by which logits are enlarged before they become depths (`upsample` of the public heads).
pub const UPSAMPLE: usize = 4;
/// Bins of the public heads.
pub const BINS: usize = 256;
/// What is added to each weight, so that none is 0 (`eps` there).
const FLOOR: f32 = 0.1;

/// Depths on a grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Depths {
    /// The grid.
    pub grid: PatchGrid,
    /// Row by row, in the unit of the range.
    pub values: Vec<f32>,
}

/// The depths of `count` bins.
pub fn bins(range: DepthRange, count: usize) -> Vec<f32> {
    let step = (range.max - range.min) / (count.max(2) - 1) as f32;
    (0..count).map(|at| range.min + at as f32 * step).collect()
}

/// The expected depth under logits of `bins`, and the sum of the weights.
pub fn expected(logits: &[f32], bins: &[f32]) -> (f32, f32) {
    let (mut sum, mut weighted) = (0.0, 0.0);
    for (logit, bin) in logits.iter().zip(bins) {
        let weight = logit.max(0.0) + FLOOR;
        sum += weight;
        weighted += weight * bin;
    }
    (weighted / sum, sum)
}

impl Depths {
    /// From logits `[patches, bins]` on the grid `patches`: on a grid that is [`UPSAMPLE`] times as fine. Where the request was cancelled
    /// ([`cancel`]), rows are missing.
    ///
    /// # Panics
    /// If there are not as many logits as patches.
    pub fn new(logits: ArrayView2<'_, f32>, patches: PatchGrid, range: DepthRange) -> Self {
        let bins = bins(range, logits.ncols());
        let logits = logits.as_standard_layout();
        let values = logits.as_slice().expect("standard layout");
        let grid = PatchGrid { rows: UPSAMPLE * patches.rows, columns: UPSAMPLE * patches.columns };
        let enlargement = Enlargement::new(patches, grid);
        let mut row = vec![0.0; grid.columns * bins.len()];
        let mut depths = Vec::with_capacity(grid.len());
        for y in 0..grid.rows {
            if cancel::is_cancelled() {
                break;
            }
            enlargement.row(values, bins.len(), y, &mut row);
            depths.extend(row.chunks_exact(bins.len()).map(|logits| expected(logits, &bins).0));
        }
        Self { grid, values: depths }
    }

    /// Enlarged bilinearly to another grid.
    ///
    /// # Panics
    /// If depths are missing.
    #[must_use]
    pub fn enlarged(&self, grid: PatchGrid) -> Self {
        Self { grid, values: Enlargement::new(self.grid, grid).apply(&self.values, 1) }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;

    #[test]
    fn a_bin_that_stands_out_is_the_depth_and_none_is_the_middle() {
        let range = DepthRange { min: 1.0, max: 9.0 };
        assert_eq!(bins(range, 5), [1.0, 3.0, 5.0, 7.0, 9.0]);
        let depths = Depths::new(array![[0.0_f32, 0.0, 1e6, 0.0, 0.0]].view(), PatchGrid { rows: 1, columns: 1 }, range);
        assert_eq!(depths.grid, PatchGrid { rows: 4, columns: 4 });
        assert!(depths.values.iter().all(|depth| (depth - 5.0).abs() < 1e-3));
        let patches = PatchGrid { rows: 1, columns: 2 };
        let depths = Depths::new(Array2::from_elem((2, 5), -1.0).view(), patches, range).enlarged(PatchGrid { rows: 3, columns: 3 });
        assert!(depths.values.len() == 9 && depths.values.iter().all(|depth| (depth - 5.0).abs() < 1e-5));
    }
}
