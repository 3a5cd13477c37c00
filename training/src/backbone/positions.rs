//! Position embeddings for pictures of another size.
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
    let rows = axis(side, height, (height as f64 + 0.1) / side as f64);
    let columns = axis(side, width, (width as f64 + 0.1) / side as f64);
    let mut matrix = Vec::with_capacity(height * width * side * side);
    for row in rows.chunks_exact(side) {
        for column in columns.chunks_exact(side) {
            for y in row {
                matrix.extend(column.iter().map(|x| (y * x) as f32));
            }
        }
    }
    Tensor::from_vec(matrix, (height * width, side * side), device)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
