//! The map of a picture: the distances of its patches, enlarged to its own size and smoothed.

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use rayon::prelude::*;

use crate::segment::PngError;
use crate::transform::PatchGrid;

/// Standard deviation of the smoothing in pixels of the picture.
const SIGMA: f64 = 4.0;
/// Pixels on each side that count: four deviations.
const RADIUS: usize = 16;

/// One number for each pixel of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct AnomalyMap {
    /// In pixels.
    pub width: usize,
    /// In pixels.
    pub height: usize,
    /// Row by row.
    pub values: Vec<f32>,
}

/// AnomalyDINO's `dists2map`: bilinear to (width, height) as OpenCV does it, then a Gaussian of 4 pixels as SciPy does it.
///
/// # Panics
/// If the distances are not as many as the grid has patches.
pub fn enlarged(distances: &[f32], grid: PatchGrid, size: (u32, u32)) -> AnomalyMap {
    let mut map = bilinear(distances, grid, size);
    smooth(&mut map.values, map.width, map.height);
    map
}

/// One value for each patch, enlarged bilinearly to (width, height) as OpenCV does it.
///
/// # Panics
/// If the values are not as many as the grid has patches.
pub fn bilinear(of_patches: &[f32], grid: PatchGrid, (width, height): (u32, u32)) -> AnomalyMap {
    assert_eq!(of_patches.len(), grid.len(), "one value per patch");
    let (width, height) = (width as usize, height as usize);
    let (columns, rows) = (steps(width, grid.columns), steps(height, grid.rows));
    let mut values = vec![0.0; width * height];
    values.par_chunks_exact_mut(width.max(1)).zip(rows).for_each(|(out, (upper, lower, down))| {
        let at = |row: usize, column: usize| of_patches[row * grid.columns + column];
        for (value, &(left, right, along)) in out.iter_mut().zip(&columns) {
            let above = at(upper, left) + (at(upper, right) - at(upper, left)) * along;
            let below = at(lower, left) + (at(lower, right) - at(lower, left)) * along;
            *value = above + (below - above) * down;
        }
    });
    AnomalyMap { width, height, values }
}

/// For each pixel the two cells that it lies between, and how far along.
fn steps(pixels: usize, cells: usize) -> Vec<(usize, usize, f32)> {
    let scale = cells as f64 / pixels as f64;
    let step = |pixel: usize| {
        let place = ((pixel as f64 + 0.5) * scale - 0.5).clamp(0.0, (cells - 1) as f64);
        let first = place as usize;
        (first, (first + 1).min(cells - 1), (place - first as f64) as f32)
    };
    (0..pixels).map(step).collect()
}

/// Both directions of a Gaussian filter, mirrored at the borders (`reflect`).
fn smooth(values: &mut [f32], width: usize, height: usize) {
    if values.is_empty() {
        return;
    }
    let weights: Vec<f64> = (0..=2 * RADIUS).map(|at| (-0.5 * ((at as f64 - RADIUS as f64) / SIGMA).powi(2)).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let weights: Vec<f32> = weights.iter().map(|weight| (weight / sum) as f32).collect();
    let before = values.to_vec();
    values.par_chunks_exact_mut(width).enumerate().for_each(|(y, out)| {
        out.fill(0.0);
        for (at, weight) in weights.iter().enumerate() {
            let row = mirrored(y as isize + at as isize - RADIUS as isize, height);
            out.iter_mut().zip(&before[row * width..(row + 1) * width]).for_each(|(sum, value)| *sum += weight * value);
        }
    });
    values.par_chunks_exact_mut(width).for_each(|row| {
        let reach = RADIUS as isize;
        let padded: Vec<f32> = (-reach..width as isize + reach).map(|x| row[mirrored(x, width)]).collect();
        for (value, window) in row.iter_mut().zip(padded.windows(weights.len())) {
            *value = window.iter().zip(&weights).map(|(value, weight)| value * weight).sum();
        }
    });
}

/// d c b a | a b c d | d c b a
fn mirrored(at: isize, length: usize) -> usize {
    let length = length as isize;
    let at = at.rem_euclid(2 * length);
    (if at < length { at } else { 2 * length - 1 - at }) as usize
}

impl AnomalyMap {
    /// The largest value.
    pub fn largest(&self) -> f32 {
        self.values.iter().copied().fold(0.0, f32::max)
    }

    /// An 8-bit grey PNG of the picture's size, in which `white` is 255.
    ///
    /// # Errors
    /// [`PngError`], which takes a full memory.
    pub fn png(&self, white: f32) -> Result<Vec<u8>, PngError> {
        let by = if white > 0.0 { 255.0 / white } else { 0.0 };
        // A cast of a float keeps to the range of the bytes.
        let pixels: Vec<u8> = self.values.iter().map(|value| (value * by).round() as u8).collect();
        let mut file = Vec::new();
        PngEncoder::new(&mut file).write_image(&pixels, self.width as u32, self.height as u32, ExtendedColorType::L8)?;
        Ok(file)
    }
}
