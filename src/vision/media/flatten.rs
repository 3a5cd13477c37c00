//! Any colour type to opaque 8-bit RGB.

use image::{DynamicImage, Rgb, RgbImage};

/// Composes on a grey, scales to 8 bits and drops what is not RGB.
pub(super) fn onto(background: u8, picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let picture = picture.into_rgba8();
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [r, g, b, alpha] = picture.get_pixel(x, y).0;
        Rgb([r, g, b].map(|value| blend(value, background, alpha)))
    })
}

/// `value * alpha + background * (1 - alpha)`, rounded.
fn blend(value: u8, background: u8, alpha: u8) -> u8 {
    let [value, background, alpha] = [value, background, alpha].map(u32::from);
    ((value * alpha + background * (255 - alpha) + 127) / 255) as u8
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, Luma, LumaA, Rgba, RgbaImage};

    use super::onto;

    #[test]
    fn transparency_becomes_the_background_and_half_is_half() {
        let mut picture = RgbaImage::from_pixel(3, 1, Rgba([10, 20, 30, 0]));
        picture.put_pixel(1, 0, Rgba([10, 20, 30, 255]));
        picture.put_pixel(2, 0, Rgba([0, 100, 255, 128]));
        let picture = DynamicImage::ImageRgba8(picture);
        assert_eq!(onto(255, picture.clone()).into_raw(), [255, 255, 255, 10, 20, 30, 127, 177, 255]);
        assert_eq!(onto(0, picture).into_raw(), [0, 0, 0, 10, 20, 30, 0, 50, 128]);
    }

    #[test]
    fn sixteen_bits_are_scaled_not_cut() {
        let grey = DynamicImage::ImageLuma16(image::ImageBuffer::from_pixel(1, 1, Luma([0x00FF_u16])));
        assert_eq!(onto(255, grey).into_raw(), [1; 3]);
        let clear = DynamicImage::ImageLumaA16(image::ImageBuffer::from_pixel(1, 1, LumaA([0_u16, 0])));
        assert_eq!(onto(255, clear).into_raw(), [255; 3]);
    }
}
