//! Pictures made smaller until they fit into a square, as Pillow's `thumbnail` does with its Lanczos filter.

use image::{Rgb, RgbImage};

use super::Interpolation;
use super::resample::{Window, resample};

/// Squares of pixels are averaged first where at least this many times the new size is left.
const GAP: f64 = 2.0;

/// (width, height) of a picture that is to fit into a square of `side` pixels. One that fits already stays as it is.
pub fn fitting_size((width, height): (u32, u32), side: u32) -> (u32, u32) {
    if side >= width && side >= height {
        return (width, height);
    }
    let (aspect, whole) = (f64::from(width) / f64::from(height), f64::from(side));
    // Of the two whole numbers beside the exact one that which keeps the aspect ratio better.
    let round = |exact: f64, fault: &dyn Fn(f64) -> f64| {
        let (low, high) = (exact.floor(), exact.ceil());
        (if fault(high) < fault(low) { high } else { low }).max(1.0) as u32
    };
    if aspect <= 1.0 {
        (round(whole * aspect, &|width| (aspect - width / whole).abs()), side)
    } else {
        (side, round(whole / aspect, &|height| if height > 0.0 { (aspect - whole / height).abs() } else { 0.0 }))
    }
}

/// The picture at [`fitting_size`].
pub fn fit_within(picture: &RgbImage, side: u32) -> RgbImage {
    let (from, to) = (picture.dimensions(), fitting_size(picture.dimensions(), side));
    if from == to {
        return picture.clone();
    }
    let factor = |from: u32, to: u32| ((f64::from(from) / f64::from(to) / GAP) as u32).max(1);
    let (across, down) = (factor(from.0, to.0), factor(from.1, to.1));
    let reduced = if across > 1 || down > 1 { &averaged(picture, across, down) } else { picture };
    let x = Window::part(f64::from(from.0) / f64::from(across), to.0);
    let y = Window::part(f64::from(from.1) / f64::from(down), to.1);
    resample(reduced, &x, &y, Interpolation::Lanczos)
}

/// Means of blocks of `across` x `down` pixels; those on the right and below may be smaller. Rounded as Pillow does.
fn averaged(picture: &RgbImage, across: u32, down: u32) -> RgbImage {
    let (width, height) = picture.dimensions();
    RgbImage::from_fn(width.div_ceil(across), height.div_ceil(down), |column, row| {
        let columns = column * across..(column * across + across).min(width);
        let rows = row * down..(row * down + down).min(height);
        let count = u64::from(columns.end - columns.start) * u64::from(rows.end - rows.start);
        let mut sums = [count / 2; 3];
        for (x, y) in rows.flat_map(|y| columns.clone().map(move |x| (x, y))) {
            sums.iter_mut().zip(picture.get_pixel(x, y).0).for_each(|(sum, value)| *sum += u64::from(value));
        }
        Rgb(sums.map(|sum| ((sum * ((1 << 24) / count)) >> 24) as u8))
    })
}
