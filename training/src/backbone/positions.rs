//! Where patches are: position embeddings for pictures of another size, and rotary positions.
//!
//! ```
//! use candle_core::Device;
//! use dino_train::backbone::positions::interpolation;
//!
//! // From a table of 4 x 4 to a grid of 2 x 6.
//! let weights = interpolation(4, 2, 6, &Device::Cpu)?;
//! assert_eq!(weights.dims(), [12, 16]);
//! for sum in weights.sum(1)?.to_vec1::<f32>()? {
//!     assert!((sum - 1.0).abs() < 1e-5);
//! }
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{Device, Result, Tensor};

use super::parameters::Random;
use crate::ops::block::Jitter;

/// How patches learn where they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PositionCode {
    /// A table that is added to them, resampled to the grid of each picture.
    Learned,
    /// Queries and keys are turned (DINOv3). There is no table, keys have no biases, and layer norms have an epsilon of 1e-5.
    Rotary {
        /// The periods of the angles are `base^(i / n)` for i in 0..n, where n is a quarter of a head's channels.
        base: f64,
        /// How positions are changed in training.
        jitter: RotaryJitter,
    },
}

/// Random changes of rotary positions, drawn anew for each block and size of crops of a step, the same for all of its pictures; by their
/// names in DINOv3's public code.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RotaryJitter {
    /// Rows and columns are each shifted by up to this much; positions are from -1 to 1.
    pub shift: Option<f64>,
    /// Rows and columns are each multiplied by a factor between 1 / this and this.
    pub jitter: Option<f64>,
    /// Both together are multiplied by one factor between 1 / this and this.
    pub rescale: Option<f64>,
}

impl RotaryJitter {
    pub(super) fn draw(&self, random: &mut dyn Random) -> Jitter {
        let mut uniform = |bound: f64| bound as f32 * random.shared();
        let mut both = |bound: Option<f64>| bound.map_or([0.0; 2], |bound| [uniform(bound), uniform(bound)]);
        let (shift, factors) = (both(self.shift), both(self.jitter.map(f64::ln)));
        let rescale = self.rescale.map_or(0.0, |most| most.ln() as f32 * random.shared());
        Jitter { shift, scale: factors.map(|factor| (factor + rescale).exp()) }
    }
}

/// base^(i / n) for i in 0..n, where n is a quarter of a head's channels.
pub fn rotary_periods(base: f64, quarter: usize) -> Vec<f32> {
    (0..quarter).map(|index| base.powf(index as f64 / quarter as f64) as f32).collect()
}

/// The cubic convolution kernel that PyTorch's `interpolate(mode="bicubic")` uses without antialiasing (Keys, a = -0.75).
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.75;
    let x = x.abs();
    if x <= 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
    } else {
        0.0
    }
}

/// `[to, from]`: row i holds the weights of output i. Borders are repeated, `scale` is output by input.
fn axis(from: usize, to: usize, scale: f64) -> Vec<f64> {
    let mut weights = vec![0.0; to * from];
    for (i, row) in weights.chunks_exact_mut(from).enumerate() {
        let source = (i as f64 + 0.5) / scale - 0.5;
        let first = source.floor() - 1.0;
        for tap in 0..4 {
            let at = first + f64::from(tap);
            row[at.clamp(0.0, from as f64 - 1.0) as usize] += cubic(source - at);
        }
    }
    weights
}

/// `[height * width, side * side]`: multiplied with a table of `side * side` position embeddings it gives those of a `height` x `width` grid.
///
/// As the public DINO code's `interpolate_pos_encoding`: PyTorch is given the scale factor (height + 0.1) / side, and no sizes.
///
/// # Errors
/// When the device fails.
pub fn interpolation(side: usize, height: usize, width: usize, device: &Device) -> Result<Tensor> {
    let along = |count: usize| axis(side, count, (count as f64 + 0.1) / side as f64);
    grid(side, &along(height), &along(width), device)
}

/// `[to * to, from * from]`: multiplied with what lies on a grid of `from * from` it gives that of a grid of `to * to`, as `PyTorch`'s
/// `interpolate(size=(to, to), mode="bicubic", align_corners=False)`.
///
/// # Errors
/// When the device fails.
pub fn resampling(from: usize, to: usize, device: &Device) -> Result<Tensor> {
    let along = axis(from, to, to as f64 / from as f64);
    grid(from, &along, &along, device)
}

/// The weights of both axes together, `[rows * columns, side * side]`.
fn grid(side: usize, rows: &[f64], columns: &[f64], device: &Device) -> Result<Tensor> {
    let mut matrix = Vec::with_capacity(rows.len() * columns.len());
    for row in rows.chunks_exact(side) {
        for column in columns.chunks_exact(side) {
            for y in row {
                matrix.extend(column.iter().map(|x| (y * x) as f32));
            }
        }
    }
    Tensor::from_vec(matrix, (rows.len() / side * (columns.len() / side), side * side), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::loader::generator;

    #[test]
    fn the_kernel_interpolates_and_its_shifts_sum_to_one() {
        assert!((cubic(0.0) - 1.0).abs() < 1e-12 && cubic(1.0).abs() < 1e-12 && cubic(2.0).abs() < 1e-12);
        for i in 0..100 {
            let t = f64::from(i) / 100.0;
            let sum = cubic(t + 1.0) + cubic(t) + cubic(1.0 - t) + cubic(2.0 - t);
            assert!((sum - 1.0).abs() < 1e-12, "at {t}: {sum}");
        }
    }

    #[test]
    fn rows_sum_to_one() {
        for row in axis(6, 9, 9.1 / 6.0).chunks_exact(6) {
            assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn jitter_keeps_its_bounds() {
        let jitter = RotaryJitter { shift: Some(0.2), jitter: Some(1.5), rescale: Some(2.0) };
        let mut random = generator(0, 0, 0, 0);
        let drawn: Vec<Jitter> = (0..200).map(|_| jitter.draw(&mut random)).collect();
        let largest = |of: fn(&Jitter) -> f32| drawn.iter().map(of).fold(f32::MIN, f32::max);
        assert!((0.15..=0.2).contains(&largest(|j| j.shift[0])) && (0.15..=0.2).contains(&largest(|j| -j.shift[1])));
        assert!((1.3..=1.501).contains(&largest(|j| (j.scale[0] / j.scale[1]).sqrt())), "rows and columns apart");
        assert!(largest(|j| (j.scale[0] * j.scale[1]).sqrt()) > 1.8, "both together");
        assert!(drawn.iter().all(|j| j.scale.iter().all(|scale| (1.0 / 3.001..3.001).contains(scale))));
        let only = RotaryJitter { rescale: Some(2.0), ..RotaryJitter::default() }.draw(&mut random);
        assert_eq!(only, Jitter { shift: [0.0; 2], scale: [only.scale[0]; 2] });
        assert_eq!(RotaryJitter::default().draw(&mut random), Jitter::NONE);
    }
}
