//! Rotations of a stored picture, for objects that lie at any angle.

use image::{Rgb, RgbImage};

/// Rotations of a picture, itself included: AnomalyDINO's, 45 degrees apart.
pub const ROTATIONS: usize = 8;

/// A picture that is turned around its middle by `step` times 45 degrees against the clock, in its own size; its surroundings are its
/// own mirror image. As OpenCV's `warpAffine`, bilinear, but for its rounding of places to 1/32 pixel.
pub fn rotated(picture: &RgbImage, step: usize) -> RgbImage {
    if step.is_multiple_of(ROTATIONS) {
        return picture.clone();
    }
    let (width, height) = picture.dimensions();
    let (sin, cos) = (step as f64 * std::f64::consts::FRAC_PI_4).sin_cos();
    let (x0, y0) = (f64::from(width) / 2.0, f64::from(height) / 2.0);
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (f64::from(x) - x0, f64::from(y) - y0);
        at(picture, cos * x - sin * y + x0, sin * x + cos * y + y0)
    })
}

/// The picture between four pixels.
fn at(picture: &RgbImage, x: f64, y: f64) -> Rgb<u8> {
    let (left, top) = (x.floor(), y.floor());
    let (along, down) = (x - left, y - top);
    let pixel = |dx: f64, dy: f64| picture.get_pixel(mirrored(left + dx, picture.width()), mirrored(top + dy, picture.height())).0;
    let corners = [pixel(0.0, 0.0), pixel(1.0, 0.0), pixel(0.0, 1.0), pixel(1.0, 1.0)];
    let weights = [(1.0 - along) * (1.0 - down), along * (1.0 - down), (1.0 - along) * down, along * down];
    Rgb(std::array::from_fn(|channel| {
        corners.iter().zip(weights).map(|(pixel, weight)| f64::from(pixel[channel]) * weight).sum::<f64>().round() as u8
    }))
}

/// c b | a b c | b a: the pixel at the border is not repeated.
fn mirrored(at: f64, length: u32) -> u32 {
    let period = (2 * i64::from(length) - 2).max(1);
    let at = (at as i64).rem_euclid(period);
    at.min(period - at).clamp(0, i64::from(length) - 1) as u32
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::{ROTATIONS, rotated};

    #[test]
    fn a_quarter_turn_moves_pixels_and_the_whole_turn_none() {
        let picture = RgbImage::from_fn(5, 5, |x, y| Rgb([(x * 40) as u8, (y * 40) as u8, 7]));
        assert_eq!(rotated(&picture, 0), picture);
        assert_eq!(rotated(&picture, ROTATIONS), picture);
        // As cv2.warpAffine(picture, cv2.getRotationMatrix2D((2.5, 2.5), 90, 1), (5, 5)): against the clock.
        let turned = rotated(&picture, 2);
        assert_eq!(turned.get_pixel(0, 4).0, [40, 0, 7]);
        assert_eq!(turned.get_pixel(3, 2).0, [120, 120, 7]);
        assert_eq!(rotated(&RgbImage::new(1, 1), 1).dimensions(), (1, 1));
    }
}
