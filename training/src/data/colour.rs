//! Colour jitter, greyscale, blur and solarisation on pixels in 0..255, as Pillow and torchvision define them.
//!
//! ```
//! use dino_train::data::colour::Planes;
//!
//! let mut picture = Planes::new(&image::RgbImage::from_pixel(1, 1, image::Rgb([200, 100, 50])));
//! picture.solarise();
//! assert_eq!(picture.planes, [[55.0], [100.0], [50.0]]);
//! picture.brightness(0.5);
//! assert_eq!(picture.planes, [[27.5], [50.0], [25.0]]);
//! ```

/// Three planes of one picture, values in 0..255.
#[derive(Clone, Debug)]
pub struct Planes {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Red, green, blue, each `width * height` values row by row.
    pub planes: [Vec<f32>; 3],
}

/// Luma after ITU-R 601-2, Pillow's mode "L".
fn luma(r: f32, g: f32, b: f32) -> f32 {
    0.299 * r + 0.587 * g + 0.114 * b
}

impl Planes {
    /// Splits interleaved pixels.
    pub fn new(picture: &image::RgbImage) -> Self {
        let pixels = picture.as_raw();
        let plane = |c: usize| pixels[c..].iter().step_by(3).map(|&v| f32::from(v)).collect();
        Self { width: picture.width() as usize, height: picture.height() as usize, planes: [plane(0), plane(1), plane(2)] }
    }

    fn map(&mut self, f: impl Fn(f32, f32, f32) -> [f32; 3]) {
        let [r, g, b] = &mut self.planes;
        for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
            [*r, *g, *b] = f(*r, *g, *b);
        }
    }

    /// Mirrors left and right.
    pub fn flip(&mut self) {
        for plane in &mut self.planes {
            for row in plane.chunks_exact_mut(self.width) {
                row.reverse();
            }
        }
    }

    /// Blends with black.
    pub fn brightness(&mut self, factor: f32) {
        self.map(|r, g, b| [r, g, b].map(|v| (v * factor).min(255.0)));
    }

    /// Blends with the mean grey.
    pub fn contrast(&mut self, factor: f32) {
        let [r, g, b] = &self.planes;
        let sum: f64 = r.iter().zip(g).zip(b).map(|((&r, &g), &b)| f64::from(luma(r, g, b))).sum();
        let mean = (sum / r.len().max(1) as f64).round() as f32;
        self.map(|r, g, b| [r, g, b].map(|v| (mean + (v - mean) * factor).clamp(0.0, 255.0)));
    }

    /// Blends with the picture in grey.
    pub fn saturation(&mut self, factor: f32) {
        self.map(|r, g, b| {
            let grey = luma(r, g, b);
            [r, g, b].map(|v| (grey + (v - grey) * factor).clamp(0.0, 255.0))
        });
    }

    /// Turns the hue by a share of the full circle.
    pub fn hue(&mut self, shift: f32) {
        self.map(|r, g, b| {
            let (h, s, v) = to_hsv(r, g, b);
            to_rgb((h + shift).rem_euclid(1.0), s, v)
        });
    }

    /// Takes the colour out.
    pub fn grey(&mut self) {
        self.map(|r, g, b| [luma(r, g, b); 3]);
    }

    /// Inverts values from the threshold 128 on.
    pub fn solarise(&mut self) {
        self.map(|r, g, b| [r, g, b].map(|v| if v >= 128.0 { 255.0 - v } else { v }));
    }

    /// Gaussian blur of standard deviation `sigma`, as three box blurs of fractional radius: Pillow's `GaussianBlur`.
    pub fn blur(&mut self, sigma: f32) {
        const PASSES: usize = 3;
        let variance = sigma * sigma / PASSES as f32;
        let whole = ((12.0 * variance + 1.0).sqrt() - 1.0).div_euclid(2.0);
        let edge = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance) / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)));
        let (radius, edge) = (whole as usize, edge);
        let mut line = vec![0.0; self.width.max(self.height)];
        let mut out = line.clone();
        for plane in &mut self.planes {
            for row in plane.chunks_exact_mut(self.width) {
                for _ in 0..PASSES {
                    box_blur(row, &mut out[..self.width], radius, edge);
                    row.copy_from_slice(&out[..self.width]);
                }
            }
            for x in 0..self.width {
                let column = &mut line[..self.height];
                for (y, v) in column.iter_mut().enumerate() {
                    *v = plane[y * self.width + x];
                }
                for _ in 0..PASSES {
                    box_blur(column, &mut out[..self.height], radius, edge);
                    column.copy_from_slice(&out[..self.height]);
                }
                for (y, v) in column.iter().enumerate() {
                    plane[y * self.width + x] = *v;
                }
            }
        }
    }

    /// `[3, height, width]`, (value / 255 - mean) / std, with values rounded to whole steps as an 8-bit picture would hold them.
    pub fn normalise(&self, mean: [f32; 3], std: [f32; 3], out: &mut [f32]) {
        for (((plane, out), mean), std) in self.planes.iter().zip(out.chunks_exact_mut(self.width * self.height)).zip(mean).zip(std) {
            let (scale, offset) = (1.0 / (255.0 * std), mean / std);
            for (o, v) in out.iter_mut().zip(plane) {
                *o = v.round() * scale - offset;
            }
        }
    }
}

/// A box of `2 radius + 1` values and a share `edge` of one more on either side; borders are repeated.
fn box_blur(line: &[f32], out: &mut [f32], radius: usize, edge: f32) {
    let n = line.len() as isize;
    let at = |i: isize| line[i.clamp(0, n - 1) as usize];
    let r = radius as isize;
    let factor = 1.0 / (2.0 * (radius as f32 + edge) + 1.0);
    let mut sum: f32 = (-r..=r).map(at).sum();
    for (i, o) in out.iter_mut().enumerate() {
        let i = i as isize;
        *o = (sum + edge * (at(i - r - 1) + at(i + r + 1))) * factor;
        sum += at(i + r + 1) - at(i - r);
    }
}

/// Hue and saturation in 0..1, value in 0..255.
fn to_hsv(r: f32, g: f32, b: f32) -> (f32, f32, f32) {
    let (high, low) = (r.max(g).max(b), r.min(g).min(b));
    let range = high - low;
    if range <= 0.0 {
        return (0.0, 0.0, high);
    }
    let sector = if r >= high {
        (g - b) / range
    } else if g >= high {
        2.0 + (b - r) / range
    } else {
        4.0 + (r - g) / range
    };
    ((sector / 6.0).rem_euclid(1.0), range / high, high)
}

fn to_rgb(h: f32, s: f32, v: f32) -> [f32; 3] {
    let sector = (h * 6.0).floor();
    let f = h * 6.0 - sector;
    let (p, q, t) = (v * (1.0 - s), v * (1.0 - s * f), v * (1.0 - s * (1.0 - f)));
    match sector as i32 % 6 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "whole steps are exact")]
mod tests {
    use super::*;

    fn picture() -> Planes {
        let mut picture = image::RgbImage::new(31, 17);
        for (x, y, p) in picture.enumerate_pixels_mut() {
            p.0 = [(x * 8) as u8, (y * 15) as u8, ((x * y) % 256) as u8];
        }
        Planes::new(&picture)
    }

    fn mean(p: &Planes) -> f32 {
        p.planes.iter().flatten().sum::<f32>() / (3 * p.width * p.height) as f32
    }

    #[test]
    fn neutral_settings_change_nothing() {
        let original = picture();
        let mut p = original.clone();
        p.brightness(1.0);
        p.contrast(1.0);
        p.saturation(1.0);
        p.hue(0.0);
        p.flip();
        p.flip();
        for (a, b) in p.planes.iter().flatten().zip(original.planes.iter().flatten()) {
            assert!((a - b).abs() < 1e-2, "{a} {b}");
        }
    }

    #[test]
    fn hue_turns_red_to_green_and_keeps_grey() {
        let mut p = Planes { width: 2, height: 1, planes: [vec![200.0, 77.0], vec![0.0, 77.0], vec![0.0, 77.0]] };
        p.hue(1.0 / 3.0);
        let pixel = |i: usize| [p.planes[0][i].round(), p.planes[1][i].round(), p.planes[2][i].round()];
        assert_eq!(pixel(0), [0.0, 200.0, 0.0]);
        assert_eq!(pixel(1), [77.0; 3]);
    }

    #[test]
    fn blur_has_the_variance_asked_for_and_keeps_the_mean() {
        for sigma in [0.1, 0.5, 1.0, 1.7, 2.0] {
            let n = 41;
            let mut planes = Planes { width: n, height: 1, planes: [vec![0.0; n], vec![0.0; n], vec![0.0; n]] };
            planes.planes[0][n / 2] = 1.0;
            planes.blur(sigma);
            let total: f32 = planes.planes[0].iter().sum();
            let variance: f32 = planes.planes[0].iter().enumerate().map(|(i, v)| v * (i as f32 - 20.0).powi(2)).sum();
            assert!((total - 1.0).abs() < 1e-4, "sigma {sigma}: sum {total}");
            assert!((variance - sigma * sigma).abs() < 0.02, "sigma {sigma}: variance {variance}");
        }
        let mut flat = picture();
        for plane in &mut flat.planes {
            plane.fill(9.0);
        }
        flat.blur(1.3);
        assert!((mean(&flat) - 9.0).abs() < 1e-3);
    }

    #[test]
    fn solarise_inverts_bright_values_only() {
        let mut p = Planes { width: 2, height: 1, planes: [vec![10.0, 250.0], vec![127.0, 128.0], vec![0.0, 255.0]] };
        p.solarise();
        assert_eq!(p.planes, [vec![10.0, 5.0], vec![127.0, 127.0], vec![0.0, 0.0]]);
    }
}
