//! k-NN figures of the teacher while it is trained, without an export. In a run of several processes each of them embeds its share
//! of the pictures, and rank 0 takes the vote.
//!
//! Nothing here draws random numbers or changes the networks: a run with it learns the same as one without.
//!
//! ```
//! use std::sync::Arc;
//!
//! use candle_core::Device;
//! use dino_train::backbone::{Backbone, vit::VitConfig};
//! use dino_train::data::{labelled::Labelled, loader::generator};
//! use dino_train::{evaluate::online::Online, exchange::Alone};
//! use dino_vision::transform::Transform;
//!
//! let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/caltech101-val");
//! let pictures = Arc::new(Labelled::open(folder.as_ref(), 0, &[])?);
//! let online = Online::split(&pictures, 20, Transform { crop: Some((32, 32)), ..Transform::evaluation() })?;
//!
//! let config = VitConfig { img_size: 32, patch_size: 16, dim: 16, depth: 1, heads: 2, ..VitConfig::default() };
//! let backbone = Backbone::new(config.into(), &mut generator(0, 0, 0, 0), &Device::Cpu)?;
//! let (figures, queries) = online.measure(&backbone, &Device::Cpu, &Alone)?.unwrap();
//! assert_eq!((figures.pictures, queries.features.dim()), (4, (4, 16)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result, ensure};
use candle_core::{Device, Tensor};
use dino_vision::transform::Transform;
use dino_vision::vote::{DEFAULT_K, DEFAULT_TEMPERATURE};
use image::RgbImage;
use ndarray::Array2;
use rayon::prelude::*;

use super::knn::{self, Features};
use crate::backbone::{Backbone, Pass};
use crate::data::labelled::Labelled;
use crate::exchange::Exchange;
use crate::log::Knn;

/// One in this many pictures is classified where a folder is split.
const SPLIT: usize = 5;
/// Pictures of a batch.
const BATCH: usize = 64;
/// Bytes of cropped pictures that are kept from one evaluation to the next, for each set.
const KEPT: usize = 256 << 20;

/// A gallery and queries that are embedded again and again.
#[derive(Debug)]
pub struct Online {
    transform: Transform,
    gallery: Set,
    queries: Set,
}

/// Features of pictures and what they are of.
#[derive(Clone, Debug)]
pub struct Embedded {
    /// `[n, D]`.
    pub features: Array2<f32>,
    /// Class of each row.
    pub classes: Vec<u32>,
    /// Path of each row's picture below its folder.
    pub names: Vec<String>,
}

#[derive(Debug)]
struct Set {
    pictures: Arc<Labelled>,
    chosen: Vec<usize>,
    /// The first of them, cropped; none for one that cannot be read.
    kept: Vec<OnceLock<Option<RgbImage>>>,
}

impl Set {
    fn new(pictures: &Arc<Labelled>, chosen: Vec<usize>, transform: &Transform) -> Result<Self> {
        let (height, width) = transform.output_size().context("the evaluation transform has no fixed size")?;
        let kept = chosen.len().min(KEPT / (3 * height * width).max(1) as usize);
        Ok(Self { pictures: Arc::clone(pictures), chosen, kept: (0..kept).map(|_| OnceLock::new()).collect() })
    }

    /// Name and class of each picture.
    fn listed(&self) -> impl Iterator<Item = (&str, u32)> {
        self.chosen.iter().map(|&index| (self.pictures.name(index), self.pictures.class(index)))
    }
}

impl Online {
    /// Opens a gallery and queries; without them every fifth picture of `data` is classified by the others.
    ///
    /// # Errors
    /// When a folder is missing or has no class folders, or the transform gives no fixed size.
    pub fn open(folders: Option<(PathBuf, PathBuf)>, data: &Path, transform: Transform) -> Result<Self> {
        if let Some((train, val)) = folders {
            let train = Arc::new(Labelled::open(&train, 0, &[])?);
            let val = Arc::new(Labelled::open(&val, 0, train.classes())?);
            let gallery = Set::new(&train, (0..train.len()).collect(), &transform)?;
            let queries = Set::new(&val, (0..val.len()).collect(), &transform)?;
            return Ok(Self { transform, gallery, queries });
        }
        let all = Labelled::open(data, 0, &[]).context("--knn-every needs classes: folders below --data, or --knn-train and --knn-val")?;
        Self::split(&Arc::new(all), usize::MAX, transform)
    }

    /// Every fifth picture is classified by the others; of more than `most` pictures some are taken, spread over all.
    ///
    /// # Errors
    /// When there is one picture alone, or the transform gives no fixed size.
    pub fn split(all: &Arc<Labelled>, most: usize, transform: Transform) -> Result<Self> {
        let count = all.len().min(most);
        let chosen = (0..count).map(|place| (place, (place as u128 * all.len() as u128 / count as u128) as usize));
        let (val, train): (Vec<_>, Vec<_>) = chosen.partition(|(place, _)| place % SPLIT == 0);
        ensure!(!train.is_empty(), "k-NN figures need more than one picture in class folders");
        let set = |part: Vec<(usize, usize)>| Set::new(all, part.into_iter().map(|(_, index)| index).collect(), &transform);
        let (gallery, queries) = (set(train)?, set(val)?);
        Ok(Self { transform, gallery, queries })
    }

    /// Names of the classes, by their numbers.
    pub fn classes(&self) -> &[String] {
        self.queries.pictures.classes()
    }

    /// The same for all processes that see the same pictures.
    pub fn fingerprint(&self) -> String {
        let names = self.gallery.listed().chain(self.queries.listed()).map(|(name, class)| format!("{name}\0{class}\0"));
        dino_vision::model::sha256(names.collect::<String>().as_bytes())
    }

    /// The figures of a backbone, and the features of the queries; in rank 0 alone. All processes of `exchange` make this call.
    ///
    /// # Errors
    /// When no picture can be read, features cannot be compared, the device fails, or another process is lost.
    pub fn measure(&self, backbone: &Backbone, device: &Device, exchange: &dyn Exchange) -> Result<Option<(Knn, Embedded)>> {
        let [gallery, queries] = [&self.gallery, &self.queries].map(|set| self.embed(set, backbone, device, exchange));
        let (Some(gallery), Some(queries)) = (gallery?, queries?) else { return Ok(None) };
        let train = Features::new("train", gallery.features, gallery.classes)?;
        let val = Features::new("val", queries.features.clone(), queries.classes.clone())?;
        let k = DEFAULT_K.min(train.len());
        let knn::Report(report) = knn::evaluate(&train, &val, &[k], DEFAULT_TEMPERATURE)?;
        let (_, figures) = report.first().context("one k, one line")?;
        let (top1, top5, mean_class) = (figures.top1, figures.top5, figures.mean_class);
        Ok(Some((Knn { k, top1, top5, mean_class, pictures: val.len() }, queries)))
    }

    /// Features of a set; none in ranks other than 0, which need them no more.
    fn embed(&self, set: &Set, backbone: &Backbone, device: &Device, exchange: &dyn Exchange) -> Result<Option<Embedded>> {
        let (rank, world, width) = (exchange.rank(), exchange.world(), 1 + backbone.config().dim());
        let (mut features, mut classes, mut names) = (Vec::new(), Vec::new(), Vec::new());
        // One batch of each process at a time: what is sent stays small, and no process waits long for another.
        for start in (0..set.chosen.len()).step_by(world * BATCH) {
            let count = (world * BATCH).min(set.chosen.len() - start);
            // Of each picture 1 and its features, or zeros where it cannot be read.
            let mut rows = vec![0.0; count * width];
            let own = (rank * BATCH).min(count)..((rank + 1) * BATCH).min(count);
            self.embed_batch(set, start, own, backbone, device, &mut rows)?;
            exchange.sum(&mut rows)?;
            if rank > 0 {
                continue;
            }
            for (at, row) in (start..).zip(rows.chunks_exact(width)).filter(|(_, row)| row[0] > 0.0) {
                features.extend_from_slice(&row[1..]);
                classes.push(set.pictures.class(set.chosen[at]));
                names.push(set.pictures.name(set.chosen[at]).to_owned());
            }
        }
        if rank > 0 {
            return Ok(None);
        }
        ensure!(!classes.is_empty(), "none of the pictures for --knn-every can be read");
        let features = Array2::from_shape_vec((classes.len(), width - 1), features)?;
        Ok(Some(Embedded { features, classes, names }))
    }

    /// Embeds the pictures `start + own` of a set into the rows `own` of `rows`.
    fn embed_batch(
        &self,
        set: &Set,
        start: usize,
        own: Range<usize>,
        backbone: &Backbone,
        device: &Device,
        rows: &mut [f32],
    ) -> Result<()> {
        let crops: Vec<Option<RgbImage>> = own.clone().into_par_iter().map(|at| self.crop(set, start + at)).collect();
        let Some((width, height)) = crops.iter().flatten().next().map(RgbImage::dimensions) else { return Ok(()) };
        let read: Vec<(usize, &RgbImage)> = own.zip(&crops).filter_map(|(at, crop)| Some((at, crop.as_ref()?))).collect();
        let pixels: Vec<f32> = read.iter().flat_map(|(_, crop)| self.transform.normalise(crop)).collect();
        let pixels = Tensor::from_vec(pixels, (read.len(), 3, height as usize, width as usize), device)?;
        let features = backbone.features(&[pixels], &mut Pass::Frozen)?.to_device(&Device::Cpu)?.to_vec2::<f32>()?;
        for ((at, _), features) in read.iter().zip(features) {
            let row = &mut rows[at * (1 + features.len())..][..=features.len()];
            row[0] = 1.0;
            row[1..].copy_from_slice(&features);
        }
        Ok(())
    }

    fn crop(&self, set: &Set, at: usize) -> Option<RgbImage> {
        let make = || set.pictures.get(set.chosen[at]).map(|picture| self.transform.pixels(&picture));
        set.kept.get(at).map_or_else(make, |kept| kept.get_or_init(make).clone())
    }
}
