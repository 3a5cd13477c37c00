//! Resampling of the part of a picture that is kept, as Pillow does it.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;

use super::Interpolation;

impl Interpolation {
    fn filter(self) -> FilterType {
        match self {
            Self::Bilinear => FilterType::Bilinear,
            // Catmull-Rom is the name of the cubic with a = -0.5.
            Self::Bicubic => FilterType::CatmullRom,
            Self::Lanczos => FilterType::Lanczos3,
        }
    }

    /// How far the filter reaches, in pixels of the coarser grid.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }
}

/// What is kept along one axis.
pub(super) struct Window {
    /// First source pixel, with its fraction.
    start: f64,
    /// Source pixels, with their fraction.
    length: f64,
    /// Pixels after resampling.
    output: u32,
    /// Black pixels before them, where the crop is larger than the picture.
    pub(super) padding: i64,
}

impl Window {
    /// The centre `kept` of `resized` pixels, as torchvision's `center_crop` places it: padding is rounded down
    /// before the picture, and the offset of a crop to the nearest even number.
    pub(super) fn centred(source: u32, resized: u64, kept: u64) -> Self {
        let output = kept.min(resized);
        let offset = ((resized - output) as f64 / 2.0).round_ties_even();
        let scale = f64::from(source) / resized as f64;
        let start = offset * scale;
        Self {
            start,
            // Rounding must not carry the window over the border.
            length: (output as f64 * scale).min(f64::from(source) - start),
            output: output as u32,
            padding: ((kept - output) / 2) as i64,
        }
    }

    /// From the first pixel on.
    pub(super) fn part(length: f64, output: u32) -> Self {
        Self { start: 0.0, length, output, padding: 0 }
    }

    pub(super) fn whole(source: u32, output: u32) -> Self {
        Self::part(f64::from(source), output)
    }
}

/// Antialiased convolution of the window, with the filter reaching beyond it into the picture.
///
/// Pillow rounds to 8 bits between its passes, rows first. The library would take columns first, so it is called once
/// for each pass: without that, one pixel in five would be off by one.
pub(super) fn resample(picture: &RgbImage, x: &Window, y: &Window, interpolation: Interpolation) -> RgbImage {
    // Rows that the second pass looks at: the window and the reach of the filter.
    let reach = interpolation.support() * (y.length / f64::from(y.output)).max(1.0);
    let first = (y.start - reach).floor().max(0.0);
    let last = (y.start + y.length + reach).ceil().min(f64::from(picture.height()));
    let rows = last - first;

    let narrow = pass(picture, (x.output, rows as u32), (x.start, first, x.length, rows), interpolation);
    pass(&narrow, (x.output, y.output), (0.0, y.start - first, f64::from(x.output), y.length), interpolation)
}

/// Brings a window (left, top, width, height) of a picture to a size (width, height).
fn pass(
    picture: &RgbImage,
    (width, height): (u32, u32),
    (left, top, from_width, from_height): (f64, f64, f64, f64),
    interpolation: Interpolation,
) -> RgbImage {
    const WHY: &str = "buffers have the size of their pictures, and windows lie inside";
    // With a type of pixels, code for the other types is not compiled: it would be half of this crate's code.
    let source = TypedImageRef::<U8x3>::from_buffer(picture.width(), picture.height(), picture.as_raw()).expect(WHY);
    let mut result = RgbImage::new(width, height);
    let mut target = TypedImage::<U8x3>::from_buffer(width, height, result.as_mut()).expect(WHY);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(interpolation.filter())).crop(left, top, from_width, from_height);
    Resizer::new().resize_typed(&source, &mut target, &options).expect(WHY);
    result
}
