//! Inputs as PyTorch code makes them that takes pictures of any size.
//!
//! ```
//! use dino_train::evaluate::input::{bilinear, whole_patches};
//! use ndarray::{Array3, array};
//!
//! let (planes, grid) = whole_patches(&Array3::zeros((3, 40, 50)), 16)?;
//! assert_eq!((planes.dim(), grid.rows, grid.columns), ((3, 32, 48), 2, 3));
//!
//! let twice = bilinear(array![[0.0, 1.0]].view(), (1, 4), 0.5);
//! assert_eq!(twice, array![[0.0, 0.25, 0.75, 1.0]]);
//! # Ok::<(), anyhow::Error>(())
//! ```

use anyhow::ensure;
use dino_vision::transform::PatchGrid;
use ndarray::{Array2, Array3, ArrayView2, s};

/// Without the pixels on the right and below that fill no patch, as a strided convolution leaves them out, and the patches that stay.
///
/// # Errors
/// Where there is no whole patch.
pub fn whole_patches(planes: &Array3<f32>, patch: u32) -> anyhow::Result<(Array3<f32>, PatchGrid)> {
    let (_, height, width) = planes.dim();
    let patch = patch as usize;
    let grid = PatchGrid { rows: height / patch, columns: width / patch };
    ensure!(!grid.is_empty(), "{width} x {height} pixels have no whole patch of {patch}: give a larger --image-size");
    Ok((planes.slice(s![.., ..grid.rows * patch, ..grid.columns * patch]).as_standard_layout().into_owned(), grid))
}

/// A plane of (height, width) whose pixels lie `step` pixels of the given one apart: bilinear without antialiasing, pixels by their
/// middles, as `interpolate` does with a `scale_factor` of 1 / `step` and without `align_corners`.
pub fn bilinear(plane: ArrayView2<'_, f32>, (height, width): (usize, usize), step: f64) -> Array2<f32> {
    let taps = |source: usize, target: usize| -> Vec<(usize, usize, f32)> {
        let tap = |at: usize| {
            let place = ((at as f64 + 0.5) * step - 0.5).max(0.0) as f32;
            let first = (place as usize).min(source - 1);
            (first, (first + 1).min(source - 1), place - first as f32)
        };
        (0..target).map(tap).collect()
    };
    let (across, down) = (taps(plane.ncols(), width), taps(plane.nrows(), height));
    let mix = |a: f32, b: f32, share: f32| a * (1.0 - share) + b * share;
    let mut result = Array2::zeros((height, width));
    for (mut row, (first, second, share)) in result.outer_iter_mut().zip(down) {
        let mixed: Vec<f32> = plane.row(first).iter().zip(plane.row(second)).map(|(a, b)| mix(*a, *b, share)).collect();
        row.iter_mut().zip(&across).for_each(|(value, &(first, second, share))| *value = mix(mixed[first], mixed[second], share));
    }
    result
}
