//! Pictures of where the last block's CLS token looks, head by head, as the public `visualize_attention.py` draws them.
//!
//! ```
//! use dino_train::evaluate::attention::Attention;
//! use dino_vision::transform::PatchGrid;
//!
//! // One head, whose CLS looks at itself and at a row of four patches.
//! let weights = ndarray::array![[0.2_f32, 0.0, 0.7, 0.1, 0.0]];
//! let attention = Attention::new(weights.view(), PatchGrid { rows: 1, columns: 4 });
//! assert_eq!(attention.names().collect::<Vec<_>>(), ["head-0", "mean"]);
//! assert_eq!(attention.mask(0, (64, 16), 0.6).bbox(), [16, 0, 16, 16]);
//! ```

use dino_vision::segment::{Mask, head_cells};
use dino_vision::transform::PatchGrid;
use image::{Rgb, RgbImage, imageops};
use ndarray::{ArrayView2, Axis, s};

use crate::show::draw;

/// The attention of one picture over its patches.
#[derive(Clone, Debug)]
pub struct Attention {
    grid: PatchGrid,
    /// One row of weights over the patches for each head, then their mean.
    maps: Vec<Vec<f32>>,
}

/// Colour that a mask is laid over the picture in.
const MASK: Rgb<u8> = Rgb([255, 200, 0]);
/// Pixels between the parts of a sheet, and their colour.
const GAP: u32 = 4;
const PAPER: Rgb<u8> = Rgb([255; 3]);
const INK: Rgb<u8> = Rgb([40; 3]);

impl Attention {
    /// From the model's `[heads, T]`, whose last columns are the patches of `grid`, row by row.
    pub fn new(attention: ArrayView2<'_, f32>, grid: PatchGrid) -> Self {
        let patches = attention.slice(s![.., attention.len_of(Axis(1)).saturating_sub(grid.len())..]);
        let mut maps: Vec<Vec<f32>> = patches.rows().into_iter().map(|row| row.to_vec()).collect();
        maps.extend(patches.mean_axis(Axis(0)).map(|mean| mean.to_vec()));
        Self { grid, maps }
    }

    /// Names of the maps: `head-0` and so on, then `mean`.
    pub fn names(&self) -> impl Iterator<Item = String> {
        let heads = self.maps.len().saturating_sub(1);
        (0..self.maps.len()).map(move |map| if map == heads { "mean".to_owned() } else { format!("head-{map}") })
    }

    /// A map as a heat map of the picture's size (width, height): its largest weight is yellow, its smallest dark blue.
    pub fn heat(&self, map: usize, (width, height): (u32, u32)) -> RgbImage {
        let weights = &self.maps[map];
        let (low, high) = weights.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &w| (low.min(w), high.max(w)));
        let cells = RgbImage::from_fn(self.grid.columns as u32, self.grid.rows as u32, |column, row| {
            let weight = weights[row as usize * self.grid.columns + column as usize];
            draw::viridis((weight - low) / (high - low).max(f32::MIN_POSITIVE))
        });
        imageops::resize(&cells, width, height, imageops::FilterType::Nearest)
    }

    /// The smallest set of patches that holds `threshold` of a map's mass.
    pub fn mask(&self, map: usize, size: (u32, u32), threshold: f32) -> Mask {
        Mask::new(head_cells(&self.maps[map], threshold), self.grid, size)
    }

    /// The picture with a map's mask over it; what is outside is darker.
    pub fn overlay(&self, map: usize, picture: &RgbImage, threshold: f32) -> RgbImage {
        let mask = self.mask(map, picture.dimensions(), threshold);
        let mut overlay = picture.clone();
        for (x, y, pixel) in overlay.enumerate_pixels_mut() {
            *pixel = if mask.contains(x, y) { draw::blend(*pixel, MASK, 0.45) } else { draw::blend(*pixel, Rgb([0; 3]), 0.35) };
        }
        overlay
    }

    /// All maps side by side: the picture, then each head and the mean with its heat map above its mask. Parts are at most `side` pixels.
    pub fn sheet(&self, picture: &RgbImage, threshold: f32, side: u32) -> RgbImage {
        let (width, height) = picture.dimensions();
        let scale = (f64::from(side.max(1)) / f64::from(width.max(height))).min(1.0);
        let part = |length: u32| ((f64::from(length) * scale).round() as u32).max(1);
        let (width, height) = (part(width), part(height));
        let small = imageops::resize(picture, width, height, imageops::FilterType::Triangle);
        let head = draw::LETTER + GAP;
        // As wide as its name.
        let column = width.max(7 * draw::LETTER) + GAP;
        let columns = 1 + self.maps.len() as u32;
        let mut sheet = RgbImage::from_pixel(GAP + columns * column, head + 2 * (GAP + height) + GAP, PAPER);
        draw::text(&mut sheet, (GAP, GAP), "picture", INK);
        imageops::replace(&mut sheet, &small, i64::from(GAP), i64::from(head + GAP));
        for (map, name) in self.names().enumerate() {
            let x = GAP + (1 + map as u32) * column;
            draw::text(&mut sheet, (x, GAP), &name, INK);
            imageops::replace(&mut sheet, &self.heat(map, (width, height)), i64::from(x), i64::from(head + GAP));
            imageops::replace(&mut sheet, &self.overlay(map, &small, threshold), i64::from(x), i64::from(head + 2 * GAP + height));
        }
        sheet
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn maps_lie_where_the_attention_is() {
        // CLS, then 2 x 3 patches; the first head looks at the upper right, the second at the lower left.
        let attention = Attention::new(
            array![[0.4, 0.0, 0.1, 0.5, 0.0, 0.0, 0.0], [0.4, 0.0, 0.0, 0.0, 0.6, 0.0, 0.0]].view(),
            PatchGrid { rows: 2, columns: 3 },
        );
        assert_eq!(attention.names().collect::<Vec<_>>(), ["head-0", "head-1", "mean"]);
        let heat = attention.heat(0, (30, 20));
        assert_eq!((heat.get_pixel(25, 5), heat.get_pixel(5, 15)), (&draw::viridis(1.0), &draw::viridis(0.0)));
        assert_eq!(attention.mask(0, (30, 20), 0.6).bbox(), [20, 0, 10, 10]);
        assert_eq!(attention.mask(1, (30, 20), 0.6).bbox(), [0, 10, 10, 10]);
        let picture = RgbImage::from_pixel(30, 20, Rgb([100; 3]));
        let overlay = attention.overlay(1, &picture, 0.6);
        assert!(overlay.get_pixel(5, 15).0[0] > 150 && overlay.get_pixel(25, 5).0[0] < 100);
        let sheet = attention.sheet(&picture, 0.6, 15);
        assert_eq!(sheet.dimensions(), (4 + 4 * 60, 12 + 2 * 14 + 4));
    }

    #[test]
    fn even_and_broken_attention_can_be_drawn() {
        for weight in [0.25, 0.0, f32::NAN] {
            let attention = Attention::new(ndarray::Array2::from_elem((1, 4), weight).view(), PatchGrid { rows: 2, columns: 2 });
            assert_eq!(attention.sheet(&RgbImage::new(1, 90), 0.6, 64).height(), 12 + 2 * 68 + 4);
        }
    }
}
