//! A few pictures whose attention is drawn again and again during a run.
//!
//! ```
//! use candle_core::Device;
//! use dino_train::backbone::vit::{Vit, VitConfig};
//! use dino_train::{data::loader::generator, evaluate::watch::Watch};
//! use dino_vision::transform::Transform;
//!
//! let picture = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/photos/chelsea.png");
//! let watch = Watch::open(picture.as_ref(), Transform { crop: Some((32, 32)), ..Transform::evaluation() })?;
//! let config = VitConfig { img_size: 32, patch_size: 16, dim: 16, depth: 1, heads: 2, ..VitConfig::default() };
//! let vit = Vit::new(config, &mut generator(0, 0, 0, 0), &Device::Cpu)?;
//! let folder = tempfile::tempdir()?;
//! watch.draw(&vit, &Device::Cpu, 7, folder.path())?;
//! assert_eq!(std::fs::read_dir(folder.path())?.count(), 2, "the picture, and where the backbone looks");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use candle_core::{Device, Tensor};
use dino_vision::bulk;
use dino_vision::media::{self, Limits};
use dino_vision::transform::Transform;
use image::{RgbImage, imageops};
use ndarray::Array2;

use super::attention::Attention;
use crate::backbone::vit::Vit;
use crate::data::pictures::Pictures;
use crate::files::write_atomically;

/// Pictures of a folder that are watched, spread over it.
const WATCHED: usize = 4;
/// Longer side of what is drawn, in pixels.
const TILE: u32 = 160;
/// Most patches of a picture: the matrix of attention weights grows with their square.
const PATCHES: usize = 1024;

/// Pictures that are watched.
#[derive(Debug)]
pub struct Watch {
    pictures: Vec<RgbImage>,
    transform: Transform,
}

impl Watch {
    /// A picture, or some of a folder.
    ///
    /// # Errors
    /// When none can be read.
    pub fn open(images: &Path, transform: Transform) -> Result<Self> {
        let mut found = Vec::new();
        if images.is_dir() {
            let pictures = Pictures::open(images, None, 0)?;
            let count = pictures.len().min(WATCHED);
            // In the middle of equal parts; in place of one that cannot be read the next.
            for part in 0..count {
                let (from, to) = ((2 * part + 1) * pictures.len() / (2 * count), (part + 1) * pictures.len() / count);
                found.extend((from..to).find_map(|index| pictures.get(index)).map(|picture| picture.as_ref().clone()));
            }
        } else {
            found.push(media::decode(&bulk::read(images).with_context(|| images.display().to_string())?, &Limits::default())?);
        }
        ensure!(!found.is_empty(), "none of the pictures of {} can be read", images.display());
        Ok(Self { pictures: found, transform })
    }

    /// Draws where a backbone looks, one file for each picture, `attention-EPOCH-NUMBER.png`: the mean over the heads as a heat map, and the
    /// most concentrated share of 60 % over the picture. The pictures themselves are `picture-NUMBER.png`.
    ///
    /// # Errors
    /// When the device fails, or a file cannot be written.
    pub fn draw(&self, backbone: &Vit, device: &Device, epoch: usize, folder: &Path) -> Result<()> {
        fs_err::create_dir_all(folder)?;
        let patch = backbone.config().patch_size as u32;
        let crop = self.transform.output_size().map_or(2 * patch, |(height, width)| height.max(width));
        let cells = |side: u32| ((side / patch) as usize).pow(2);
        // Twice the size of training shows finer maps.
        let side = if cells(2 * crop) <= PATCHES { 2 * crop } else { crop };
        for (number, picture) in self.pictures.iter().enumerate() {
            let (pixels, grid) = self.transform.whole_picture(picture, side, patch);
            let (height, width) = (pixels.dim().1, pixels.dim().2);
            let pixels = Tensor::from_vec(pixels.into_raw_vec_and_offset().0, (1, 3, height, width), device)?;
            // [1, heads, T, T]: the row of the CLS token.
            let weights = backbone.last_attention(&pixels)?.squeeze(0)?.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
            // Registers stand between CLS and the patches.
            let registers = backbone.config().registers;
            let patches = weights.dim(1)? - 1 - registers;
            let weights = Tensor::cat(&[weights.narrow(1, 0, 1)?, weights.narrow(1, 1 + registers, patches)?], 1)?;
            let (heads, tokens) = weights.dims2()?;
            let weights = Array2::from_shape_vec((heads, tokens), weights.flatten_all()?.to_vec1::<f32>()?)?;
            let attention = Attention::new(weights.view(), grid);
            let small = tile(picture);
            let (width, height) = small.dimensions();
            let mut both = RgbImage::new(width, 2 * height);
            imageops::replace(&mut both, &attention.heat(heads, (width, height)), 0, 0);
            imageops::replace(&mut both, &attention.overlay(heads, &small, 0.6), 0, i64::from(height));
            write(&both, &folder.join(format!("attention-{epoch:04}-{number}.png")))?;
            let original = folder.join(format!("picture-{number}.png"));
            if !original.exists() {
                write(&small, &original)?;
            }
        }
        Ok(())
    }
}

fn tile(picture: &RgbImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    let scale = f64::from(TILE) / f64::from(width.max(height));
    let side = |length: u32| ((f64::from(length) * scale).round() as u32).max(1);
    imageops::resize(picture, side(width), side(height), imageops::FilterType::Triangle)
}

fn write(picture: &RgbImage, path: &Path) -> Result<()> {
    let mut bytes = Vec::new();
    picture.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png)?;
    write_atomically(path, &bytes)
}
