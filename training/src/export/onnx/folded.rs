//! Positions of patches for one grid, computed while the graph is written.
//!
//! In float32 and in the order of the graph's own operators (see [`positions`](super::positions)), so that both give the same numbers.

use ndarray::{Array2, ArrayView2};

use crate::weights::{Interpolation, Tensor};

/// The table `[side, side, D]` resampled to the grid: `[rows · columns, D]`.
pub(super) fn learned(table: &Tensor, interpolation: Interpolation, rows: usize, columns: usize) -> Vec<f32> {
    let (side, dim) = (table.shape[0], table.shape[2]);
    let native = interpolation == Interpolation::ScaleFactor && (rows, columns) == (side, side);
    let [down, across] = [rows, columns].map(|count| match interpolation {
        Interpolation::Antialias => antialiased(side, count),
        Interpolation::ScaleFactor if native => cubic(side, count, 1.0),
        // DINO adds 0.1 to the target size against rounding, and passes the quotient as the scale factor.
        Interpolation::ScaleFactor => cubic(side, count, side as f32 / (count as f32 + 0.1)),
        Interpolation::Size => cubic(side, count, side as f32 / count as f32),
    });
    let table = ArrayView2::from_shape((side, side * dim), &table.data).expect("a tensor has its own number of elements");
    let tall = down.dot(&table);
    let mut full = Vec::with_capacity(rows * columns * dim);
    for row in tall.outer_iter() {
        let row = row.into_shape_with_order((side, dim)).expect("a row has its own number of elements");
        full.extend(across.dot(&row));
    }
    full
}

/// Weights `[count, side]` of a cubic resampling with a = -0.75, whose taps outside the table fall on its border.
fn cubic(side: usize, count: usize, ratio: f32) -> Array2<f32> {
    let mut weights = Array2::zeros((count, side));
    for (target, mut row) in weights.outer_iter_mut().enumerate() {
        let source = (target as f32 + 0.5) * ratio - 0.5;
        for offset in [-1.0, 0.0, 1.0, 2.0] {
            let tap = source.floor() + offset;
            row[tap.clamp(0.0, side as f32 - 1.0) as usize] += cubic_kernel(source - tap, -0.75);
        }
    }
    weights
}

/// Weights `[count, side]` of a cubic resampling with a = -0.5, widened when the grid shrinks, scaled to sum 1.
fn antialiased(side: usize, count: usize) -> Array2<f32> {
    let ratio = side as f32 / count as f32;
    let width = ratio.max(1.0);
    let mut weights = Array2::from_shape_fn((count, side), |(target, position)| {
        cubic_kernel((position as f32 + 0.5 - (target as f32 + 0.5) * ratio) / width, -0.5)
    });
    for mut row in weights.outer_iter_mut() {
        row /= row.sum();
    }
    weights
}

/// Keys' cubic convolution kernel (1981) with parameter `a`.
fn cubic_kernel(distance: f32, a: f32) -> f32 {
    let x = distance.abs();
    if x <= 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    } else {
        0.0
    }
}

/// Cosines and signed sines of rotary positions, `[prefix + patches, head_dim]` each, as [`positions::rotary`](super::positions::rotary)
/// computes them.
pub(super) fn rotary(periods: &[f32], prefix: usize, rows: usize, columns: usize) -> [Vec<f32>; 2] {
    let quarter = periods.len();
    let still = prefix * 4 * quarter;
    let (mut cosines, mut sines) = (vec![1.0; still], vec![0.0; still]);
    let coordinate = |index: usize, count: usize| (index as f32 + 0.5) / count as f32 * 2.0 - 1.0;
    for patch in 0..rows * columns {
        let places = [coordinate(patch / columns, rows), coordinate(patch % columns, columns)];
        let angles: Vec<f32> =
            places.iter().flat_map(|place| periods.iter().map(move |period| place * (2.0 * std::f32::consts::PI / period))).collect();
        // The halves of a head's channels turn by the same angles.
        for sign in [-1.0, 1.0] {
            cosines.extend(angles.iter().map(|angle| angle.cos()));
            sines.extend(angles.iter().map(|angle| sign * angle.sin()));
        }
    }
    [cosines, sines]
}
