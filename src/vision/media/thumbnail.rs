//! Small copies of pictures, to show beside an item.

use std::borrow::Cow;

use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;

/// Longer side of a thumbnail, in pixels.
pub const THUMBNAIL_SIDE: u32 = 96;
/// Quality of its JPEG.
const QUALITY: u8 = 85;

/// `picture` as a JPEG whose longer side has [`THUMBNAIL_SIDE`] pixels, or its own number where it is smaller.
pub fn thumbnail(picture: &RgbImage) -> Vec<u8> {
    let small = within(picture, THUMBNAIL_SIDE);
    let mut jpeg = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut jpeg, QUALITY);
    small.write_with_encoder(encoder).expect("a small picture fits into a JPEG in memory");
    jpeg
}

/// The picture, shrunk where its longer side has more than `longest` pixels.
pub fn within(picture: &RgbImage, longest: u32) -> Cow<'_, RgbImage> {
    let (width, height) = picture.dimensions();
    let scale = f64::from(longest) / f64::from(width.max(height));
    if scale >= 1.0 {
        return Cow::Borrowed(picture);
    }
    let side = |length: u32| ((f64::from(length) * scale).round() as u32).max(1);
    Cow::Owned(image::imageops::thumbnail(picture, side(width), side(height)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbnails_are_small_and_keep_their_shape() {
        for (size, expected) in [((500, 250), (96, 48)), ((3, 3000), (1, 96)), ((20, 10), (20, 10))] {
            let jpeg = thumbnail(&RgbImage::new(size.0, size.1));
            let decoded = image::load_from_memory(&jpeg).unwrap();
            assert_eq!((decoded.width(), decoded.height()), expected);
        }
    }
}
