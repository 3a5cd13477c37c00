//! The multi-crop augmentation of the paper, with the public code's probabilities and ranges.
//!
//! ```
//! use dino_train::data::{augment::Augmentation, loader::generator};
//!
//! let augmentation = Augmentation {
//!     global_size: 32, global_scale: (0.4, 1.0), anchor_size: None, local_crops: 1, local_size: 16, local_scale: (0.05, 0.4), blur_sigma: (0.1, 0.4),
//! };
//! let picture = image::RgbImage::from_fn(60, 40, |x, y| image::Rgb([x as u8, y as u8, 90]));
//! let crop = |seed| {
//!     let mut crop = vec![0.0; augmentation.global_len()];
//!     augmentation.global(&picture, 0, &mut generator(seed, 0, 0, 0), &mut crop, &mut []);
//!     crop
//! };
//! assert_eq!(crop(1), crop(1));
//! assert_ne!(crop(1), crop(2));
//! ```

use dino_vision::transform::{IMAGENET_MEAN, IMAGENET_STD};
use fast_image_resize::FilterType;
use image::RgbImage;
use rand::RngExt;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::colour::Planes;
use super::pictures::{resample, resample_with};

/// Which crops are taken of each picture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Augmentation {
    /// Side of the two global crops in pixels.
    pub global_size: u32,
    /// Share of the picture's area that a global crop covers, lowest and highest.
    pub global_scale: (f64, f64),
    /// Side in pixels of the global crops as the anchor of Gram anchoring sees them, without changes of colour and blur; `None` where
    /// it sees those of the networks.
    pub anchor_size: Option<u32>,
    /// Number of local crops.
    pub local_crops: usize,
    /// Side of the local crops in pixels.
    pub local_size: u32,
    /// Share of the picture's area that a local crop covers, lowest and highest.
    pub local_scale: (f64, f64),
    /// Deviation of the Gaussian blur in pixels of the crop, lowest and highest.
    pub blur_sigma: (f64, f64),
}

/// What differs between the kinds of crop: the chances of a blur and of solarisation.
struct Kind {
    blur: f64,
    solarise: f64,
}

impl Augmentation {
    /// Values of one global crop.
    pub fn global_len(&self) -> usize {
        3 * (self.global_size * self.global_size) as usize
    }

    /// Values of one local crop.
    pub fn local_len(&self) -> usize {
        3 * (self.local_size * self.local_size) as usize
    }

    /// Values of one global crop as the anchor sees it; 0 where it sees none of its own.
    pub fn anchor_len(&self) -> usize {
        3 * self.anchor_size.map_or(0, |size| (size * size) as usize)
    }

    /// Writes global crop number `view` (0 or 1) of a picture, `[3, size, size]`, normalised, and what the anchor sees of it.
    pub fn global(&self, picture: &RgbImage, view: usize, random: &mut impl rand::Rng, out: &mut [f32], anchored: &mut [f32]) {
        let kind = if view == 0 { Kind { blur: 1.0, solarise: 0.0 } } else { Kind { blur: 0.1, solarise: 0.2 } };
        let CropWindow { window, flip } = self.crop(picture, self.global_size, self.global_scale, &kind, random, out);
        if let Some(size) = self.anchor_size {
            let mut planes = Planes::new(&resample(picture, window, size, size));
            if flip {
                planes.flip();
            }
            planes.normalise(IMAGENET_MEAN, IMAGENET_STD, anchored);
        }
    }

    /// Writes one local crop of a picture, `[3, size, size]`, normalised.
    pub fn local(&self, picture: &RgbImage, random: &mut impl rand::Rng, out: &mut [f32]) {
        self.crop(picture, self.local_size, self.local_scale, &Kind { blur: 0.5, solarise: 0.0 }, random, out);
    }

    fn crop(
        &self,
        picture: &RgbImage,
        size: u32,
        scale: (f64, f64),
        kind: &Kind,
        random: &mut impl rand::Rng,
        out: &mut [f32],
    ) -> CropWindow {
        let drawn = CropWindow::draw(picture.dimensions(), scale, random);
        let mut planes = Planes::new(&resample(picture, drawn.window, size, size));
        if drawn.flip {
            planes.flip();
        }
        if random.random_bool(0.8) {
            jitter(&mut planes, random);
        }
        if random.random_bool(0.2) {
            planes.grey();
        }
        if random.random_bool(kind.blur) {
            let (low, high) = (self.blur_sigma.0 as f32, self.blur_sigma.1 as f32);
            planes.blur(if low < high { random.random_range(low..high) } else { low });
        }
        if random.random_bool(kind.solarise) {
            planes.solarise();
        }
        planes.normalise(IMAGENET_MEAN, IMAGENET_STD, out);
        drawn
    }
}

/// torchvision's `RandomResizedCrop` with its defaults (8 % to all of the area, 3/4 to 4/3, bilinear), then a flip by chance: what
/// supervised training on pictures `(height, width)` sees.
pub fn random_resized_crop(picture: &RgbImage, (height, width): (u32, u32), random: &mut impl rand::Rng) -> RgbImage {
    CropWindow::draw(picture.dimensions(), (0.08, 1.0), random).crop(picture, width, height)
}

/// A window of a picture, by chance, flipped or not.
#[derive(Clone, Copy, Debug)]
pub struct CropWindow {
    /// Left, top, width, height in pixels.
    window: (f64, f64, f64, f64),
    flip: bool,
}

impl CropWindow {
    /// As [`random_resized_crop`] takes one, of a share of the area within `scale`.
    pub fn draw(size: (u32, u32), scale: (f64, f64), random: &mut impl rand::Rng) -> Self {
        Self { window: window(size, scale, random), flip: random.random_bool(0.5) }
    }

    /// A window within this one.
    #[must_use]
    pub fn part(&self, scale: (f64, f64), random: &mut impl rand::Rng) -> Self {
        let (left, top, width, height) = self.window;
        let part = Self::draw((width as u32, height as u32), scale, random);
        Self { window: (left + part.window.0, top + part.window.1, part.window.2, part.window.3), ..part }
    }

    /// What it shows, in `width` x `height` pixels.
    pub fn crop(&self, picture: &RgbImage, width: u32, height: u32) -> RgbImage {
        let mut crop = resample_with(FilterType::Bilinear, picture, self.window, width, height);
        if self.flip {
            image::imageops::flip_horizontal_in_place(&mut crop);
        }
        crop
    }
}

/// `ColorJitter(0.4, 0.4, 0.2, 0.1)`: the four changes in random order.
fn jitter(planes: &mut Planes, random: &mut impl rand::Rng) {
    let brightness = random.random_range(0.6..1.4);
    let contrast = random.random_range(0.6..1.4);
    let saturation = random.random_range(0.8..1.2);
    let hue = random.random_range(-0.1..0.1);
    let mut order = [0, 1, 2, 3];
    order.shuffle(random);
    for change in order {
        match change {
            0 => planes.brightness(brightness),
            1 => planes.contrast(contrast),
            2 => planes.saturation(saturation),
            _ => planes.hue(hue),
        }
    }
}

/// The window of a `RandomResizedCrop`, (left, top, width, height): an area and an aspect ratio of 3/4 to 4/3 by
/// chance, ten tries; then the largest centred window of an allowed ratio.
fn window((width, height): (u32, u32), scale: (f64, f64), random: &mut impl rand::Rng) -> (f64, f64, f64, f64) {
    let area = f64::from(width) * f64::from(height);
    let ratios = (3.0_f64 / 4.0, 4.0_f64 / 3.0);
    for _ in 0..10 {
        let target = area * uniform(scale, random);
        let ratio = uniform((ratios.0.ln(), ratios.1.ln()), random).exp();
        let (w, h) = ((target * ratio).sqrt().round() as u32, (target / ratio).sqrt().round() as u32);
        if w > 0 && w <= width && h > 0 && h <= height {
            let (left, top) = (random.random_range(0..=width - w), random.random_range(0..=height - h));
            return (f64::from(left), f64::from(top), f64::from(w), f64::from(h));
        }
    }
    let ratio = f64::from(width) / f64::from(height);
    let (w, h) = if ratio < ratios.0 {
        (f64::from(width), (f64::from(width) / ratios.0).round())
    } else if ratio > ratios.1 {
        ((f64::from(height) * ratios.1).round(), f64::from(height))
    } else {
        (f64::from(width), f64::from(height))
    };
    (((f64::from(width) - w) / 2.0).floor(), ((f64::from(height) - h) / 2.0).floor(), w, h)
}

fn uniform((low, high): (f64, f64), random: &mut impl rand::Rng) -> f64 {
    low + (high - low) * random.random::<f64>()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn windows_lie_inside_and_keep_to_area_and_ratio() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for size in [(100, 100), (300, 97), (1, 1), (1, 500), (2000, 3)] {
            for _ in 0..200 {
                let (x, y, w, h) = window(size, (0.05, 0.4), &mut random);
                assert!(x >= 0.0 && y >= 0.0 && w >= 1.0 && h >= 1.0, "{size:?}: {x} {y} {w} {h}");
                assert!(x + w <= f64::from(size.0) && y + h <= f64::from(size.1), "{size:?}: {x} {y} {w} {h}");
            }
        }
        let areas: Vec<f64> = (0..500).map(|_| window((200, 200), (0.05, 0.4), &mut random)).map(|w| w.2 * w.3 / 40_000.0).collect();
        assert!(areas.iter().all(|a| (0.045..0.41).contains(a)));
        let mean = areas.iter().sum::<f64>() / 500.0;
        assert!((mean - 0.225).abs() < 0.03, "{mean}");
    }

    const AUGMENTATION: Augmentation = Augmentation {
        global_size: 48,
        global_scale: (0.4, 1.0),
        anchor_size: None,
        local_crops: 1,
        local_size: 24,
        local_scale: (0.05, 0.4),
        blur_sigma: (0.1, 2.0),
    };

    #[test]
    fn crops_depend_on_the_seed_alone() {
        let picture = RgbImage::from_fn(120, 90, |x, y| image::Rgb([x as u8, y as u8, (x ^ y) as u8]));
        let draw = |seed| {
            let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let (mut global, mut local) = (vec![0.0; AUGMENTATION.global_len()], vec![0.0; AUGMENTATION.local_len()]);
            AUGMENTATION.global(&picture, 1, &mut random, &mut global, &mut []);
            AUGMENTATION.local(&picture, &mut random, &mut local);
            (global, local)
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
        assert!(draw(5).0.iter().all(|v| v.is_finite() && v.abs() < 3.0));
    }

    /// Of a picture that is red on its left and green on its right: the window and its side are told apart.
    #[test]
    fn an_anchor_sees_the_same_window_without_its_colours_changed() {
        let picture = RgbImage::from_fn(120, 90, |x, y| image::Rgb([255 - 2 * x as u8, 2 * x as u8, 2 * y as u8]));
        let plain = Augmentation { global_size: 24, ..AUGMENTATION };
        let larger = Augmentation { anchor_size: Some(48), ..plain };
        for seed in 0..40 {
            let random = || rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let (mut crop, mut same, mut anchored) =
                (vec![0.0; plain.global_len()], vec![0.0; plain.global_len()], vec![0.0; larger.anchor_len()]);
            plain.global(&picture, 0, &mut random(), &mut crop, &mut []);
            larger.global(&picture, 0, &mut random(), &mut same, &mut anchored);
            assert_eq!(crop, same, "the networks see what they see without an anchor");
            let drawn = CropWindow::draw(picture.dimensions(), plain.global_scale, &mut random());
            for (x, y, pixel) in drawn.crop(&picture, 48, 48).enumerate_pixels() {
                for channel in 0..3 {
                    let wanted = (f32::from(pixel[channel]) / 255.0 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel];
                    let got = anchored[(channel * 48 + y as usize) * 48 + x as usize];
                    assert!((got - wanted).abs() < 0.1, "{seed}: {got}, not {wanted} at {x} {y}");
                }
            }
        }
    }
}
