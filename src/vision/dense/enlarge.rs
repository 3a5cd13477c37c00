//! Bilinear enlargement of values on a grid, as PyTorch's `interpolate(mode="bilinear", align_corners=False)` computes it, and the
//! way back of gradients.
//!
//! ```
//! use dino_vision::{dense::enlarge::Enlargement, transform::PatchGrid};
//!
//! let enlargement = Enlargement::new(PatchGrid { rows: 1, columns: 2 }, PatchGrid { rows: 1, columns: 4 });
//! assert_eq!(enlargement.apply(&[0.0, 1.0], 1), [0.0, 0.25, 0.75, 1.0]);
//! ```

use crate::transform::PatchGrid;

/// The two places of an axis that a new one lies between, and the weight of the second.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tap {
    low: usize,
    high: usize,
    weight: f32,
}

fn taps(source: usize, target: usize) -> Vec<Tap> {
    let scale = source as f64 / target as f64;
    let tap = |at: usize| {
        let place = (scale * (at as f64 + 0.5) - 0.5).max(0.0);
        let low = (place as usize).min(source - 1);
        Tap { low, high: (low + 1).min(source - 1), weight: (place - low as f64) as f32 }
    };
    (0..target).map(tap).collect()
}

/// From a grid of several channels, `[cells][channels]` row by row, to a larger one.
#[derive(Clone, Debug)]
pub struct Enlargement {
    rows: Vec<Tap>,
    columns: Vec<Tap>,
    source: PatchGrid,
}

impl Enlargement {
    /// From `source` to `target`. Neither is empty.
    pub fn new(source: PatchGrid, target: PatchGrid) -> Self {
        Self { rows: taps(source.rows, target.rows), columns: taps(source.columns, target.columns), source }
    }

    /// The grid that it makes.
    pub fn target(&self) -> PatchGrid {
        PatchGrid { rows: self.rows.len(), columns: self.columns.len() }
    }

    /// Row `y` of the larger grid, `[columns][channels]`.
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn row(&self, values: &[f32], channels: usize, y: usize, out: &mut [f32]) {
        let width = self.source.columns * channels;
        assert!(values.len() == self.source.rows * width && out.len() == self.columns.len() * channels, "values of the grids");
        let Tap { low, high, weight } = self.rows[y];
        let (low, high) = (&values[low * width..][..width], &values[high * width..][..width]);
        let between: Vec<f32> = low.iter().zip(high).map(|(low, high)| low + weight * (high - low)).collect();
        for (out, Tap { low, high, weight }) in out.chunks_exact_mut(channels).zip(&self.columns) {
            let (low, high) = (&between[low * channels..][..channels], &between[high * channels..][..channels]);
            for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
                *out = low + weight * (high - low);
            }
        }
    }

    /// All rows: `[rows][columns][channels]`.
    pub fn apply(&self, values: &[f32], channels: usize) -> Vec<f32> {
        let width = self.columns.len() * channels;
        let mut all = vec![0.0; self.rows.len() * width];
        for (y, out) in all.chunks_exact_mut(width.max(1)).enumerate() {
            self.row(values, channels, y, out);
        }
        all
    }

    /// Adds to `gradient` of the values what follows from that of row `y`.
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn add_gradient(&self, gradient: &mut [f32], channels: usize, y: usize, of_row: &[f32]) {
        let width = self.source.columns * channels;
        assert!(gradient.len() == self.source.rows * width && of_row.len() == self.columns.len() * channels, "values of the grids");
        let mut between = vec![0.0; width];
        for (of_pixel, Tap { low, high, weight }) in of_row.chunks_exact(channels).zip(&self.columns) {
            for (channel, of_pixel) in of_pixel.iter().enumerate() {
                between[low * channels + channel] += (1.0 - weight) * of_pixel;
                between[high * channels + channel] += weight * of_pixel;
            }
        }
        let Tap { low, high, weight } = self.rows[y];
        for (at, between) in between.iter().enumerate() {
            gradient[low * width + at] += (1.0 - weight) * between;
            gradient[high * width + at] += weight * between;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_pytorch() {
        let enlarge = |source, target, values: &[f32]| {
            let of = |columns| PatchGrid { rows: 1, columns };
            Enlargement::new(of(source), of(target)).apply(values, 1)
        };
        assert_eq!(enlarge(2, 4, &[0.0, 4.0]), [0.0, 1.0, 3.0, 4.0]);
        assert_eq!(enlarge(3, 3, &[1.0, 5.0, 2.0]), [1.0, 5.0, 2.0]);
        assert_eq!(enlarge(4, 2, &[0.0, 2.0, 4.0, 6.0]), [1.0, 5.0]);
        assert_eq!(enlarge(1, 3, &[7.0]), [7.0; 3]);
    }

    #[test]
    fn gradients_go_the_same_way_back() {
        let (source, target) = (PatchGrid { rows: 2, columns: 3 }, PatchGrid { rows: 5, columns: 7 });
        let enlargement = Enlargement::new(source, target);
        let values: Vec<f32> = (0_u8..12).map(|at| f32::from(at * at % 7)).collect();
        let upper: Vec<f32> = (0_u8..70).map(|at| f32::from(at * 3 % 11) - 5.0).collect();
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let mut gradient = vec![0.0; 12];
        for (y, row) in upper.chunks_exact(14).enumerate() {
            enlargement.add_gradient(&mut gradient, 2, y, row);
        }
        assert!((product(&enlargement.apply(&values, 2), &upper) - product(&values, &gradient)).abs() < 1e-3);
    }
}
