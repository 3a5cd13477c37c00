//! What features can do where no classes are known: whether two crops of a picture find each other among those of many.
//!
//! ```
//! use std::sync::Arc;
//!
//! use candle_core::Device;
//! use dino_train::backbone::{Backbone, vit::VitConfig};
//! use dino_train::data::{labelled::Labelled, loader::generator};
//! use dino_train::evaluate::agreement::Crops;
//! use dino_vision::transform::Transform;
//!
//! let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/caltech101-val");
//! let pictures = Arc::new(Labelled::open(folder.as_ref(), 0, &[])?);
//! let crops = Crops::new(&pictures, Transform { crop: Some((32, 32)), ..Transform::evaluation() })?;
//!
//! let config = VitConfig { img_size: 32, patch_size: 16, dim: 16, depth: 1, heads: 2, ..VitConfig::default() };
//! let backbone = Backbone::new(config.into(), &mut generator(0, 0, 0, 0), &Device::Cpu)?;
//! assert!((0.0..=100.0).contains(&crops.measure(&backbone, &Device::Cpu)?.agreement));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::sync::Arc;

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use dino_vision::transform::Transform;
use dino_vision::unit_rows;
use image::RgbImage;
use ndarray::Array2;
use rayon::prelude::*;

use crate::backbone::{Backbone, Pass};
use crate::data::augment::random_resized_crop;
use crate::data::labelled::Labelled;
use crate::data::loader::generator;
use crate::log::Agreement;

/// Most pictures that are looked at, spread over all.
const PICTURES: usize = 512;
/// Most bytes that their crops take: they stay in memory for the whole run.
const CROP_BYTES: usize = 256 << 20;
/// Crops of a batch.
const BATCH: usize = 64;
/// Purpose of the random numbers of crops: the same in each evaluation and each run.
const CROPS: u64 = 14;

/// Two crops of each of some pictures.
#[derive(Debug)]
pub struct Crops {
    transform: Transform,
    views: [Vec<RgbImage>; 2],
}

impl Crops {
    /// Crops some of the pictures at the size of the transform.
    ///
    /// # Errors
    /// When fewer than two can be read.
    pub fn new(pictures: &Arc<Labelled>, transform: Transform) -> Result<Self> {
        let side = transform.output_size().map_or(1, |(height, width)| height as usize * width as usize);
        let count = pictures.len().min(PICTURES).min((CROP_BYTES / (2 * 3 * side.max(1))).max(2));
        let crops = |place: usize| {
            let index = place * pictures.len() / count;
            let picture = pictures.get(index)?;
            let size = transform.output_size().unwrap_or((picture.height(), picture.width()));
            let mut random = generator(0, CROPS, 0, index as u64);
            Some((random_resized_crop(&picture, size, &mut random), random_resized_crop(&picture, size, &mut random)))
        };
        let (first, second): (Vec<_>, Vec<_>) = (0..count).into_par_iter().map(crops).collect::<Vec<_>>().into_iter().flatten().unzip();
        ensure!(first.len() > 1, "two pictures that can be read are the least that features are measured on");
        Ok(Self { transform, views: [first, second] })
    }

    /// The share of first crops that are nearest to the second crop of their own picture.
    ///
    /// # Errors
    /// When the device fails.
    pub fn measure(&self, backbone: &Backbone, device: &Device) -> Result<Agreement> {
        let [first, second] = [self.embed(0, backbone, device)?, self.embed(1, backbone, device)?];
        let similarities = first.dot(&second.t());
        let found = similarities.rows().into_iter().enumerate().filter(|(own, row)| {
            // Others that are as near count against it: features that are all the same find nothing.
            row.iter().enumerate().all(|(other, similarity)| other == *own || *similarity < row[*own])
        });
        let pictures = first.nrows();
        Ok(Agreement { pictures, agreement: 100.0 * found.count() as f64 / pictures as f64 })
    }

    /// Features of length 1, `[pictures, dim]`.
    fn embed(&self, view: usize, backbone: &Backbone, device: &Device) -> Result<Array2<f32>> {
        let mut features = Vec::new();
        for crops in self.views[view].chunks(BATCH) {
            let (width, height) = crops[0].dimensions();
            let pixels: Vec<f32> = crops.iter().flat_map(|crop| self.transform.normalise(crop)).collect();
            let pixels = Tensor::from_vec(pixels, (crops.len(), 3, height as usize, width as usize), device)?;
            let rows = backbone.features(&[pixels], &mut Pass::Frozen)?;
            features.extend(rows.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?);
        }
        let rows = self.views[view].len();
        Ok(unit_rows::scaled(Array2::from_shape_vec((rows, features.len() / rows), features)?.view()))
    }
}
