//! Mask borders moved from patches to pixels, along the edges of the picture: the guided filter (He, Sun and Tang 2013).

use image::RgbImage;
use image::imageops::{self, FilterType};

use super::Mask;
use super::components::labels;
use crate::mask_defaults::Refine;
use crate::transform::PatchGrid;

/// Longer side of a guide in pixels: it bounds time and memory, whatever the picture's size.
const LONGER_SIDE: u32 = 1024;
/// Variance of brightness (0 to 1) that counts as an edge: about four grey levels.
const EPSILON: f32 = 2.5e-4;

impl Refine {
    /// The picture that borders follow, where they do; see [`guide`].
    pub fn guide(self, picture: &RgbImage) -> Option<RgbImage> {
        (self == Self::Guided).then(|| guide(picture))
    }
}

/// The picture that borders follow, its longer side at most 1024 pixels; smaller pictures are kept as they are.
pub fn guide(picture: &RgbImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    let longer = width.max(height);
    if longer <= LONGER_SIDE {
        return picture.clone();
    }
    let side = |side: u32| (u64::from(side) * u64::from(LONGER_SIDE) / u64::from(longer)).max(1) as u32;
    imageops::resize(picture, side(width), side(height), FilterType::Triangle)
}

impl Mask {
    /// The mask with its borders along the edges of `guide`, at the guide's resolution. A pixel belongs to it where a linear
    /// function of brightness, fitted to the mask in windows of two patches, is above a half. Specks and holes smaller than a
    /// quarter of a patch are filled in. A mask of which nothing would be left stays as it is.
    #[must_use]
    pub fn refined(&self, guide: &RgbImage) -> Self {
        let (width, height) = guide.dimensions();
        if width == 0 || height == 0 {
            return self.clone();
        }
        let (w, h) = (width as usize, height as usize);
        let patch = (w.div_ceil(self.grid().columns)).max(h.div_ceil(self.grid().rows));
        let means = |values: &[f32]| window_means(values, w, h, patch);

        let coarse = Self::new(self.cells().to_vec(), self.grid(), (width, height));
        let inside: Vec<f32> = (0..w * h).map(|at| f32::from(u8::from(coarse.contains((at % w) as u32, (at / w) as u32)))).collect();
        let bright: Vec<f32> = guide.pixels().map(|pixel| luma(pixel.0)).collect();
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).collect::<Vec<_>>();
        let (mean_bright, mean_inside) = (means(&bright), means(&inside));
        let (mean_square, mean_both) = (means(&product(&bright, &bright)), means(&product(&bright, &inside)));
        let slope: Vec<f32> = (0..w * h)
            .map(|at| {
                let variance = (mean_square[at] - mean_bright[at] * mean_bright[at]).max(0.0);
                (mean_both[at] - mean_bright[at] * mean_inside[at]) / (variance + EPSILON)
            })
            .collect();
        let offset: Vec<f32> = (0..w * h).map(|at| mean_inside[at] - slope[at] * mean_bright[at]).collect();
        let (slope, offset) = (means(&slope), means(&offset));
        let mut cells: Vec<bool> = (0..w * h).map(|at| slope[at] * bright[at] + offset[at] > 0.5).collect();

        let least = (patch * patch / 4).max(1);
        turn_small_parts(&mut cells, w, least, true);
        turn_small_parts(&mut cells, w, least, false);
        let refined = Self::new(cells, PatchGrid { rows: h, columns: w }, (self.width(), self.height()));
        if refined.area() > 0 { refined } else { self.clone() }
    }
}

fn luma([red, green, blue]: [u8; 3]) -> f32 {
    (0.299 * f32::from(red) + 0.587 * f32::from(green) + 0.114 * f32::from(blue)) / 255.0
}

/// Turns connected parts of cells of this value that have fewer than `least` cells.
fn turn_small_parts(cells: &mut [bool], columns: usize, least: usize, value: bool) {
    let chosen: Vec<bool> = cells.iter().map(|cell| *cell == value).collect();
    let (labels, count) = labels(&chosen, columns, false);
    let mut sizes = vec![0_usize; count as usize + 1];
    for label in &labels {
        sizes[*label as usize] += 1;
    }
    for (cell, label) in cells.iter_mut().zip(labels) {
        if label > 0 && sizes[label as usize] < least {
            *cell = !value;
        }
    }
}

/// The mean of each pixel's window, `radius` pixels to every side, as far as the picture goes: sums that run along the rows,
/// then down the columns.
fn window_means(values: &[f32], width: usize, height: usize, radius: usize) -> Vec<f32> {
    let mut across = vec![0.0_f32; values.len()];
    for (row, means) in values.chunks_exact(width).zip(across.chunks_exact_mut(width)) {
        let mut sum: f64 = row[..radius.min(width)].iter().map(|value| f64::from(*value)).sum();
        for (x, mean) in means.iter_mut().enumerate() {
            sum += row.get(x + radius).map_or(0.0, |value| f64::from(*value));
            *mean = (sum / ((x + radius + 1).min(width) - x.saturating_sub(radius)) as f64) as f32;
            sum -= x.checked_sub(radius).map_or(0.0, |gone| f64::from(row[gone]));
        }
    }
    let mut means = vec![0.0_f32; values.len()];
    let mut sums = vec![0.0_f64; width];
    let row = |y: usize| &across[y * width..(y + 1) * width];
    for y in 0..radius.min(height) {
        sums.iter_mut().zip(row(y)).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    for y in 0..height {
        if y + radius < height {
            sums.iter_mut().zip(row(y + radius)).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        let count = ((y + radius + 1).min(height) - y.saturating_sub(radius)) as f64;
        means[y * width..(y + 1) * width].iter_mut().zip(&sums).for_each(|(mean, sum)| *mean = (sum / count) as f32);
        if let Some(gone) = y.checked_sub(radius) {
            sums.iter_mut().zip(row(gone)).for_each(|(sum, value)| *sum -= f64::from(*value));
        }
    }
    means
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::{guide, window_means};
    use crate::segment::Mask;
    use crate::transform::PatchGrid;

    #[test]
    fn window_means_are_those_of_the_windows() {
        let (width, height) = (7_usize, 5_usize);
        let values: Vec<f32> = (0..width * height).map(|at| (at * at % 11) as f32).collect();
        for radius in [0, 1, 3, 9] {
            let means = window_means(&values, width, height, radius);
            for (at, mean) in means.iter().enumerate() {
                let near = |other: usize, side: fn(usize) -> usize| side(other).abs_diff(side(at)) <= radius;
                let window: Vec<f32> =
                    (0..values.len()).filter(|other| near(*other, |at| at % 7) && near(*other, |at| at / 7)).map(|at| values[at]).collect();
                let expected = window.iter().sum::<f32>() / window.len() as f32;
                assert!((mean - expected).abs() < 1e-4, "radius {radius} at {at}: {mean}, not {expected}");
            }
        }
    }

    #[test]
    fn borders_move_to_the_edges_of_the_picture() {
        // A disc of which the patches know only roughly.
        let inside = |x: f32, y: f32| (x - 80.0).powi(2) + (y - 60.0).powi(2) < 900.0;
        let picture = RgbImage::from_fn(160, 120, |x, y| if inside(x as f32, y as f32) { Rgb([230, 180, 90]) } else { Rgb([40, 60, 50]) });
        let grid = PatchGrid { rows: 12, columns: 16 };
        let cells = (0..grid.len()).map(|cell| inside((cell % 16) as f32 * 10.0 + 5.0, (cell / 16) as f32 * 10.0 + 5.0)).collect();
        let coarse = Mask::new(cells, grid, (160, 120));
        let wrong = |mask: &Mask| {
            (0..160 * 120).filter(|at| mask.contains(at % 160, at / 160) != inside((at % 160) as f32, (at / 160) as f32)).count()
        };
        let refined = coarse.refined(&picture);
        assert!(wrong(&refined) * 4 < wrong(&coarse), "{} against {}", wrong(&refined), wrong(&coarse));
        assert_eq!(refined, coarse.refined(&picture));
        assert_eq!((refined.width(), refined.height()), (160, 120));
    }

    #[test]
    fn every_shape_has_an_answer_and_large_pictures_are_reduced() {
        for (width, height) in [(1, 1), (1, 40), (3000, 2), (7, 7)] {
            let picture = RgbImage::from_fn(width, height, |x, y| Rgb([(x * 7 + y * 13) as u8; 3]));
            let guide = guide(&picture);
            assert!(guide.width() <= 1024 && guide.height() <= 1024);
            let mask = Mask::new(vec![true, false, false, true], PatchGrid { rows: 2, columns: 2 }, (width, height));
            let refined = mask.refined(&guide);
            assert_eq!((refined.width(), refined.height()), (width, height));
            assert_eq!(refined.area() > 0, mask.area() > 0);
        }
    }
}
