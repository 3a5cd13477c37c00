//! Pictures made for the tests.

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};

/// Noise, the same for the same seed.
pub(crate) fn noise(width: u32, height: u32, seed: u64) -> RgbImage {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let bytes = (0..width as usize * height as usize * 3)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect();
    RgbImage::from_raw(width, height, bytes).unwrap()
}

/// A gradient with a bright block whose place depends on `seed`: pictures that a model tells apart.
pub(crate) fn scene(width: u32, height: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let (u, v) = (x * 255 / width.max(1), y * 255 / height.max(1));
        let block = x * 4 / width.max(1) == seed % 4 && y * 4 / height.max(1) == seed / 4 % 4;
        if block { Rgb([255, (seed * 37 % 256) as u8, 0]) } else { Rgb([u as u8, v as u8, (seed * 11 % 256) as u8]) }
    })
}

pub(crate) fn encode(picture: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    DynamicImage::from(picture.clone()).write_to(&mut file, format).unwrap();
    file.into_inner()
}

pub(crate) fn png(picture: &RgbImage) -> Vec<u8> {
    encode(picture, ImageFormat::Png)
}
