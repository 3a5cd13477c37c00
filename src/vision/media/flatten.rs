//! Any colour type to opaque 8-bit RGB.

use image::{DynamicImage, Rgb, RgbImage};

/// Composes on white, scales to 8 bits and drops what is not RGB.
pub(super) fn onto_white(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let picture = picture.into_rgba8();
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [r, g, b, alpha] = picture.get_pixel(x, y).0;
        Rgb([r, g, b].map(|value| blend_with_white(value, alpha)))
    })
}

/// `value * alpha + 255 * (1 - alpha)`, rounded.
fn blend_with_white(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, Luma, LumaA, Rgba, RgbaImage};

    use super::onto_white;

    #[test]
    fn transparency_becomes_white_and_half_is_half() {
        let mut picture = RgbaImage::from_pixel(3, 1, Rgba([10, 20, 30, 0]));
        picture.put_pixel(1, 0, Rgba([10, 20, 30, 255]));
        picture.put_pixel(2, 0, Rgba([0, 100, 255, 128]));
        let flat = onto_white(DynamicImage::ImageRgba8(picture));
        assert_eq!(flat.into_raw(), [255, 255, 255, 10, 20, 30, 127, 177, 255]);
    }

    #[test]
    fn sixteen_bits_are_scaled_not_cut() {
        let grey = DynamicImage::ImageLuma16(image::ImageBuffer::from_pixel(1, 1, Luma([0x00FF_u16])));
        assert_eq!(onto_white(grey).into_raw(), [1; 3]);
        let clear = DynamicImage::ImageLumaA16(image::ImageBuffer::from_pixel(1, 1, LumaA([0_u16, 0])));
        assert_eq!(onto_white(clear).into_raw(), [255; 3]);
    }
}
