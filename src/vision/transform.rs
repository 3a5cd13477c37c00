//! Pixels to the model's input, as its manifest says.
//!
//! ```
//! use dino_vision::transform::Transform;
//!
//! let picture = image::RgbImage::new(640, 427);
//! let transform = Transform::evaluation();
//! assert_eq!(transform.apply(&picture).shape(), [3, 224, 224]);
//!
//! // For masks: the whole picture, in whole patches of 16 pixels.
//! let (input, grid) = transform.whole_picture(&picture, 480, 16);
//! assert_eq!(input.shape(), [3, 320, 480]);
//! assert_eq!((grid.rows, grid.columns), (20, 30));
//! ```

mod fit;
mod preprocessor;
mod resample;
mod timm;

use image::{RgbImage, imageops};
use ndarray::Array3;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use fit::{fit_within, fitting_size};
use resample::{Window, resample};

/// Longest side of a model's input, in pixels, that a file beside a model may ask for.
pub const MOST_SIDE: u32 = 4096;

/// Mean of ImageNet's red, green and blue, pixels in 0..1.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Standard deviation of ImageNet's red, green and blue, pixels in 0..1.
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// How a picture is brought to the model's size before it is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// The shorter side gets this length, the aspect ratio is kept.
    Shorter(u32),
    /// Both sides are set (height, width), the aspect ratio is not kept.
    Exact(u32, u32),
}

/// The resampling filter, as Pillow defines it (antialiased).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// Triangle filter.
    Bilinear,
    /// Cubic filter with a = -0.5.
    Bicubic,
    /// Lanczos filter with three lobes.
    Lanczos,
}

/// Rows and columns of patches in a model's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchGrid {
    /// Patches from top to bottom.
    pub rows: usize,
    /// Patches from left to right.
    pub columns: usize,
}

impl PatchGrid {
    /// Number of patches.
    pub fn len(self) -> usize {
        self.rows * self.columns
    }

    /// Whether there is no patch.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Whether a patch, counted row by row, lies at the border.
    pub fn is_border(self, patch: usize) -> bool {
        let (row, column) = (patch / self.columns, patch % self.columns);
        row == 0 || column == 0 || row + 1 == self.rows || column + 1 == self.columns
    }

    /// The grid of a whole picture of (width, height) pixels whose longer side becomes about `longer_side` pixels: each side the
    /// nearest multiple of `patch`, at least one patch. `patch` is not zero.
    pub fn of_picture((width, height): (u32, u32), longer_side: u32, patch: u32) -> Self {
        let scale = f64::from(longer_side) / f64::from(width.max(height));
        let patches = |side: u32| ((f64::from(side) * scale / f64::from(patch)).round() as usize).max(1);
        Self { rows: patches(height), columns: patches(width) }
    }
}

/// The evaluation transform of a model, stored in its manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Transform {
    /// First step.
    pub resize: Resize,
    /// Then the centre (height, width) is kept; `null` keeps everything.
    pub crop: Option<(u32, u32)>,
    /// Filter of the first step.
    pub interpolation: Interpolation,
    /// Mean per channel of pixels in 0..1.
    pub mean: [f32; 3],
    /// Standard deviation per channel of pixels in 0..1; above 0.
    #[schemars(extend("items" = {"type": "number", "exclusiveMinimum": 0}))]
    pub std: [f32; 3],
}

impl Transform {
    /// That of DINO's evaluation code: shorter side 256, bicubic, the centre 224 x 224, mean and deviation of `ImageNet`.
    pub fn evaluation() -> Self {
        Self {
            resize: Resize::Shorter(256),
            crop: Some((224, 224)),
            interpolation: Interpolation::Bicubic,
            mean: IMAGENET_MEAN,
            std: IMAGENET_STD,
        }
    }

    /// (height, width) of what [`apply`](Self::apply) gives, where it is the same for every picture.
    pub fn output_size(&self) -> Option<(u32, u32)> {
        match (self.crop, self.resize) {
            (Some(crop), _) => Some(crop),
            (None, Resize::Exact(height, width)) => Some((height, width)),
            (None, Resize::Shorter(_)) => None,
        }
    }

    /// Resized and cropped pixels, before normalisation.
    ///
    /// Sizes and offsets are those of torchvision's `Resize` and `CenterCrop`; a picture smaller than the crop is
    /// centred on black. Only the window that the crop keeps is resampled, so that a picture 2000 times wider than
    /// high costs no more than any other.
    pub fn pixels(&self, picture: &RgbImage) -> RgbImage {
        let (width, height) = picture.dimensions();
        let (resized_height, resized_width) = self.resized_size(height, width);
        let crop = self.crop.map(|(height, width)| (u64::from(height), u64::from(width)));
        let (kept_height, kept_width) = crop.unwrap_or((resized_height, resized_width));

        let x = Window::centred(width, resized_width, kept_width);
        let y = Window::centred(height, resized_height, kept_height);
        let part = resample(picture, &x, &y, self.interpolation);
        if part.dimensions() == (kept_width as u32, kept_height as u32) {
            return part;
        }
        let mut canvas = RgbImage::new(kept_width as u32, kept_height as u32);
        imageops::replace(&mut canvas, &part, x.padding, y.padding);
        canvas
    }

    /// `[3, height, width]`, normalised.
    pub fn apply(&self, picture: &RgbImage) -> Array3<f32> {
        self.normalise(&self.pixels(picture))
    }

    /// The same transform for inputs of this (height, width): the kept part of the picture grows or shrinks with them. One that gives this
    /// size already stays as it is.
    #[must_use]
    pub fn for_size(&self, size: (u32, u32)) -> Self {
        let mut other = self.clone();
        match (self.output_size(), self.resize) {
            (Some(same), _) if same == size => {}
            (Some((height, width)), Resize::Shorter(shorter)) => {
                let growth = (f64::from(size.0) / f64::from(height)).max(f64::from(size.1) / f64::from(width));
                other.resize = Resize::Shorter((f64::from(shorter) * growth).round() as u32);
                other.crop = Some(size);
            }
            _ => {
                other.resize = Resize::Exact(size.0, size.1);
                other.crop = None;
            }
        }
        other
    }

    /// The input for a mask of the whole picture: no crop, stretched to whole patches (see [`PatchGrid::of_picture`]).
    /// `[3, rows * patch, columns * patch]`, normalised. `patch` is not zero.
    pub fn whole_picture(&self, picture: &RgbImage, longer_side: u32, patch: u32) -> (Array3<f32>, PatchGrid) {
        let grid = PatchGrid::of_picture(picture.dimensions(), longer_side, patch);
        (self.stretched(picture, grid.rows as u32 * patch, grid.columns as u32 * patch), grid)
    }

    /// The same for a model that may take pictures of one size (height, width) alone.
    pub fn whole_picture_within(
        &self,
        picture: &RgbImage,
        only_size: Option<(u32, u32)>,
        longer_side: u32,
        patch: u32,
    ) -> (Array3<f32>, PatchGrid) {
        let Some((height, width)) = only_size else { return self.whole_picture(picture, longer_side, patch) };
        let grid = PatchGrid { rows: (height / patch) as usize, columns: (width / patch) as usize };
        (self.stretched(picture, height, width), grid)
    }

    /// All of a picture as `[3, height, width]`, bicubic, normalised.
    fn stretched(&self, picture: &RgbImage, height: u32, width: u32) -> Array3<f32> {
        let (x, y) = (Window::whole(picture.width(), width), Window::whole(picture.height(), height));
        self.normalise(&resample(picture, &x, &y, Interpolation::Bicubic))
    }

    /// `[3, height, width]`: (pixel / 255 - mean) / std.
    pub fn normalise(&self, pixels: &RgbImage) -> Array3<f32> {
        let (width, height) = pixels.dimensions();
        let mut planes = Array3::zeros((3, height as usize, width as usize));
        for (channel, mut plane) in planes.outer_iter_mut().enumerate() {
            let (mean, std) = (self.mean[channel], self.std[channel]);
            let table: [f32; 256] = std::array::from_fn(|value| (value as f32 / 255.0 - mean) / std);
            for (value, pixel) in plane.iter_mut().zip(pixels.pixels()) {
                *value = table[usize::from(pixel.0[channel])];
            }
        }
        planes
    }

    /// (height, width) after the first step. A shorter side of 256 can make the longer one very long.
    fn resized_size(&self, height: u32, width: u32) -> (u64, u64) {
        match self.resize {
            Resize::Exact(height, width) => (u64::from(height), u64::from(width)),
            Resize::Shorter(short) => {
                // torchvision: int(size * long / short), where the division never rounds up to the next integer.
                let long = |long: u32, by: u32| u64::from(short) * u64::from(long) / u64::from(by);
                if width <= height { (long(height, width), u64::from(short)) } else { (u64::from(short), long(width, height)) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};
    use ndarray::Axis;

    use super::{Interpolation, PatchGrid, Resize, Transform, Window, resample};

    fn transform(shorter: u32, crop: Option<(u32, u32)>) -> Transform {
        Transform {
            resize: Resize::Shorter(shorter),
            crop,
            interpolation: Interpolation::Bicubic,
            mean: [0.5, 0.4, 0.3],
            std: [0.2, 0.25, 0.3],
        }
    }

    /// A picture without any symmetry, the same each time.
    fn picture(width: u32, height: u32) -> RgbImage {
        let hash = |value: u32| value.wrapping_mul(2_654_435_761).rotate_left(13).wrapping_mul(0x85EB_CA6B);
        RgbImage::from_fn(width, height, |x, y| {
            let noise = hash(x.wrapping_mul(7919) ^ hash(y)).to_le_bytes();
            Rgb([noise[0] / 2 + (x * 128 / width) as u8, noise[1], (y * 255 / height) as u8])
        })
    }

    #[test]
    fn the_window_gives_what_resizing_everything_and_cropping_gives() {
        for (width, height) in [(300, 200), (200, 301), (37, 500), (512, 512), (90, 41), (1000, 12)] {
            for interpolation in [Interpolation::Bilinear, Interpolation::Bicubic, Interpolation::Lanczos] {
                let picture = picture(width, height);
                let transform = Transform { interpolation, ..transform(64, Some((56, 48))) };
                let (resized_height, resized_width) = transform.resized_size(height, width);
                let x = Window::whole(width, resized_width as u32);
                let y = Window::whole(height, resized_height as u32);
                let everything = resample(&picture, &x, &y, interpolation);
                let offset = |resized: u64, kept: u64| ((resized - kept) as f64 / 2.0).round_ties_even() as u32;
                let (left, top) = (offset(resized_width, 48), offset(resized_height, 56));
                let cropped = image::imageops::crop_imm(&everything, left, top, 48, 56).to_image();

                let window = transform.pixels(&picture);
                let largest = window.as_raw().iter().zip(cropped.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
                assert!(largest <= Some(1), "{width} x {height}, {interpolation:?}: {largest:?}");
            }
        }
    }

    #[test]
    fn extreme_shapes_cost_no_more_than_others() {
        for (width, height) in [(2000, 3), (1, 499), (65_535, 1), (1, 65_535), (1, 1)] {
            let pixels = transform(256, Some((224, 224))).pixels(&picture(width, height));
            assert_eq!(pixels.dimensions(), (224, 224));
        }
    }

    /// Columns that can be told apart, at a scale of one.
    fn kept_columns(width: u32, kept: u32) -> Vec<u8> {
        let picture = RgbImage::from_fn(width, 4, |x, _| Rgb([x as u8 + 1; 3]));
        let pixels = transform(4, Some((4, kept))).pixels(&picture);
        (0..kept).map(|x| pixels.get_pixel(x, 0).0[0]).collect()
    }

    #[test]
    fn crops_round_half_to_even_and_padding_is_black_and_short_on_the_left() {
        assert_eq!(kept_columns(5, 4), [1, 2, 3, 4]);
        assert_eq!(kept_columns(7, 4), [3, 4, 5, 6]);
        assert_eq!(kept_columns(9, 4), [3, 4, 5, 6]);
        assert_eq!(kept_columns(4, 7), [0, 1, 2, 3, 4, 0, 0]);
    }

    #[test]
    fn exact_resizing_does_not_keep_the_aspect_ratio() {
        let exact = Transform { resize: Resize::Exact(16, 24), ..transform(1, None) };
        assert_eq!(exact.output_size(), Some((16, 24)));
        assert_eq!(exact.apply(&picture(100, 300)).dim(), (3, 16, 24));
        assert_eq!(transform(16, None).output_size(), None);
        assert_eq!(transform(16, None).apply(&picture(100, 300)).dim(), (3, 48, 16));
    }

    #[test]
    fn numbers_are_normalised_by_channel() {
        let planes = transform(1, None).normalise(&RgbImage::from_pixel(1, 1, Rgb([255, 0, 51])));
        let numbers: Vec<f32> = planes.iter().copied().collect();
        for (number, expected) in numbers.iter().zip([2.5, -1.6, -1.0 / 3.0]) {
            assert!((number - expected).abs() < 1e-6, "{numbers:?}");
        }
    }

    #[test]
    fn a_transform_for_another_size_keeps_the_same_part() {
        let usual = Transform { resize: Resize::Shorter(256), crop: Some((224, 224)), ..transform(1, None) };
        assert_eq!(usual.for_size((224, 224)), usual);
        let wide = usual.for_size((224, 448));
        assert_eq!((wide.resize, wide.crop), (Resize::Shorter(512), Some((224, 448))));
        let exact = Transform { resize: Resize::Exact(224, 224), crop: None, ..usual };
        assert_eq!(exact.for_size((64, 96)).output_size(), Some((64, 96)));
    }

    #[test]
    fn a_whole_picture_keeps_its_sides_to_the_nearest_patch() {
        let grid = |width, height, patch| {
            let (planes, grid) = transform(1, None).whole_picture(&picture(width, height), 480, patch);
            assert_eq!(planes.dim(), (3, grid.rows * patch as usize, grid.columns * patch as usize));
            grid
        };
        assert_eq!(grid(640, 480, 8), PatchGrid { rows: 45, columns: 60 });
        assert_eq!(grid(488, 427, 16), PatchGrid { rows: 26, columns: 30 });
        assert_eq!(grid(500, 17, 16), PatchGrid { rows: 1, columns: 30 });
        assert_eq!(grid(1000, 1, 16), PatchGrid { rows: 1, columns: 30 });
        assert_eq!(grid(7, 7, 14), PatchGrid { rows: 34, columns: 34 });
        assert_eq!(PatchGrid { rows: 2, columns: 3 }.len(), 6);
    }

    #[test]
    fn the_left_half_of_a_whole_picture_stays_on_the_left() {
        let picture = RgbImage::from_fn(40, 24, |x, _| Rgb([if x < 20 { 255 } else { 0 }; 3]));
        let (planes, _) = transform(1, None).whole_picture(&picture, 40, 8);
        let row = planes.index_axis(Axis(0), 0);
        assert!(row[[12, 2]] > 2.0 && row[[12, 37]] < -2.0);
    }
}
