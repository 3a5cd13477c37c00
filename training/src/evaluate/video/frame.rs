//! A frame as the model sees it: its shorter side has one length, its longer side is cut down to a multiple of 64.
//!
//! ```
//! use dino_train::evaluate::video::frame::{resize, size};
//!
//! assert_eq!(size((854, 480), 480)?, (832, 480));
//! assert_eq!(resize(&image::RgbImage::new(854, 480), (832, 480)).dimensions(), (832, 480));
//! # Ok::<(), anyhow::Error>(())
//! ```

use anyhow::ensure;
use dino_vision::transform::{IMAGENET_MEAN, IMAGENET_STD, MOST_SIDE, PatchGrid, Transform};
use image::RgbImage;
use ndarray::Array3;

use crate::evaluate::input::whole_patches;

/// The longer side is a multiple of this.
const MULTIPLE: u64 = 64;
/// What the public script divides by in place of ImageNet's deviation: its 0.228 for red is kept so that figures are comparable.
const STD: [f32; 3] = [0.228, 0.224, 0.225];
/// Fixed-point 1 of OpenCV's bilinear weights.
const ONE: f32 = 2048.0;

/// (width, height) to which a frame of `size` (width, height) is resized.
///
/// # Errors
/// Where the longer side would be longer than a model's input may be.
pub fn size((width, height): (u32, u32), shorter: u32) -> anyhow::Result<(u32, u32)> {
    let longer = |long: u32, short: u32| u64::from(shorter) * u64::from(long) / u64::from(short) / MULTIPLE * MULTIPLE;
    let (wide, high) = if height > width { (shorter.into(), longer(height, width)) } else { (longer(width, height), shorter.into()) };
    let most = u64::from(MOST_SIDE);
    ensure!(wide <= most && high <= most, "it would be resized to {wide} x {high} pixels, of which no side may be longer than {most}");
    Ok((wide as u32, high as u32))
}

/// The input `[3, H, W]` of a frame that is resized to (width, height), without the pixels that fill no patch, and its patches.
///
/// # Errors
/// Where the frame has no whole patch.
pub fn input(picture: &RgbImage, size: (u32, u32), transform: &Transform, patch: u32) -> anyhow::Result<(Array3<f32>, PatchGrid)> {
    let is_imagenet = (transform.mean, transform.std) == (IMAGENET_MEAN, IMAGENET_STD);
    let transform = Transform { std: if is_imagenet { STD } else { transform.std }, ..transform.clone() };
    whole_patches(&transform.normalise(&resize(picture, size)), patch)
}

/// Bilinear without antialiasing, in the fixed-point numbers of OpenCV's `resize`, which the public script calls.
pub fn resize(picture: &RgbImage, (width, height): (u32, u32)) -> RgbImage {
    let across = taps(picture.width(), width, false);
    let down = taps(picture.height(), height, true);
    // Each row of the source once, at the new width.
    let rows: Vec<Vec<i32>> = picture
        .rows()
        .map(|row| {
            let row: Vec<[u8; 3]> = row.map(|pixel| pixel.0).collect();
            let mix = |tap: &Tap, channel: usize| {
                i32::from(row[tap.first][channel]) * tap.weights[0] + i32::from(row[tap.second][channel]) * tap.weights[1]
            };
            across.iter().flat_map(|tap| [0, 1, 2].map(|channel| mix(tap, channel))).collect()
        })
        .collect();
    let row = |tap: &Tap| {
        let part = |row: usize, weight: i32, at: usize| (weight * (rows[row][at] >> 4)) >> 16;
        let mix = move |at: usize| (part(tap.first, tap.weights[0], at) + part(tap.second, tap.weights[1], at) + 2) >> 2;
        (0..3 * width as usize).map(|at| mix(at).clamp(0, 255) as u8).collect::<Vec<u8>>()
    };
    RgbImage::from_raw(width, height, down.iter().flat_map(row).collect()).expect("a row of the new width for each tap")
}

/// The two pixels that a new one lies between.
struct Tap {
    first: usize,
    second: usize,
    weights: [i32; 2],
}

/// As OpenCV, which beyond the first and the last pixel changes the weights of columns, and keeps those of rows.
fn taps(source: u32, target: u32, keep_weights: bool) -> Vec<Tap> {
    let (scale, last) = (f64::from(source) / f64::from(target), i64::from(source) - 1);
    let tap = |at: u32| {
        let place = ((f64::from(at) + 0.5) * scale - 0.5) as f32;
        let first = place.floor();
        let (share, first) = (place - first, first as i64);
        let share = if keep_weights || (0..last).contains(&first) { share } else { 0.0 };
        let weight = |share: f32| (share * ONE).round_ties_even() as i32;
        let pixel = |at: i64| at.clamp(0, last) as usize;
        Tap { first: pixel(first), second: pixel(first + 1), weights: [weight(1.0 - share), weight(share)] }
    };
    (0..target).map(tap).collect()
}
