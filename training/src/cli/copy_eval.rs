//! `dino-train copy-eval`: copies of pictures found again, as the DINO paper measures it on Copydays.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use dino_vision::bulk::{Worker, tree};
use dino_vision::embedding::{Pooling, pool};
use dino_vision::model::Model;
use dino_vision::transform::{Interpolation, Resize, Transform};
use dino_vision::unit_rows;
use image::RgbImage;
use ndarray::{Array2, Axis, concatenate};
use serde::Serialize;

use super::backbone::BackboneArgs;
use crate::evaluate::copydays::{self, Block};
use crate::evaluate::descriptors::{Unreadable, rows};
use crate::evaluate::input::whole_patches;
use crate::evaluate::whitening::Whitening;

/// Find the originals of copies: pictures that were compressed, cropped, or changed by hand (Copydays). Features are CLS beside the
/// generalised mean of the patches; the figure is the mean average precision over the copies of each folder, between 0 and 1. The paper
/// gives that of `strong`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Copydays: the folders `original`, `strong`, `jpegqual/N` and `crops/N`, as many as there are. A strong copy has the first four
    /// letters of its original's name; in the others the pictures have the order of the originals.
    #[arg(long, visible_alias = "data-path", value_name = "DIR")]
    data: PathBuf,
    /// Pictures among which the originals are to be found; the paper takes 10,000.
    #[arg(long, visible_alias = "distractors-path", value_name = "DIR")]
    distractors: Option<PathBuf>,
    /// Other pictures to learn whitening of the features from; the paper takes 20,000.
    #[arg(long, visible_alias = "whitening-path", value_name = "DIR")]
    whitening: Option<PathBuf>,
    /// Side in pixels of the square to which pictures are resized.
    #[arg(long, visible_alias = "imsize", value_name = "PIXELS", default_value_t = 320, value_parser = clap::value_parser!(u32).range(16..=4096))]
    image_size: u32,
}

/// The last line of the output.
#[derive(Debug, Serialize)]
struct Report {
    /// Mean average precision of each folder.
    map: BTreeMap<String, f64>,
    /// Originals.
    originals: usize,
    /// Pictures beside them.
    distractors: usize,
}

/// Runs the verb.
///
/// # Errors
/// Where pictures are missing or cannot be read, or the model does not run.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let blocks = copydays::blocks(&args.data)?;
    let others = |folder: &Option<PathBuf>| folder.as_deref().map(others).transpose();
    let (distractors, whitening) = (others(&args.distractors)?, others(&args.whitening)?);
    let backbone = args.backbone.open(0)?;
    let look = Look::new(&backbone.model, args.image_size);
    let mut embedder = backbone.embedder(Pooling::Cls)?;
    let mut features = |what: &str, files: &[PathBuf], unreadable: Unreadable| -> anyhow::Result<Array2<f32>> {
        rows(what, &mut embedder, files, unreadable, |worker, picture| look.describe(worker, picture))
    };
    let copies =
        blocks.iter().map(|Block { name, files, .. }| features(name, files, Unreadable::Fails)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut database = copies[0].clone();
    if let Some(files) = distractors {
        database = concatenate![Axis(0), database, features("distractors", &files, Unreadable::IsSkipped)?];
    }
    let whitening = match whitening {
        Some(files) => Some(Whitening::learn(features("whitening", &files, Unreadable::IsSkipped)?.view())?),
        None => None,
    };
    let unit = |features: &Array2<f32>| match &whitening {
        Some(whitening) => unit_rows::scaled(whitening.apply(features.view()).view()),
        None => unit_rows::scaled(features.view()),
    };
    let database_rows = unit(&database);
    let precision = |(block, copies): (&Block, &Array2<f32>)| {
        (block.name.clone(), block.mean_average_precision(unit(copies).view(), database_rows.view()))
    };
    let originals = copies[0].nrows();
    print(
        &blocks,
        &Report { map: blocks.iter().zip(&copies).map(precision).collect(), originals, distractors: database.nrows() - originals },
    )
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(blocks: &[Block], report: &Report) -> anyhow::Result<()> {
    println!("{} originals and {} distractors    copies     mAP", report.originals, report.distractors);
    for block in blocks {
        println!("{:<38} {:6}  {:6.3}", block.name, block.files.len(), report.map[&block.name]);
    }
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}

/// All files below a folder.
fn others(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let files: Vec<PathBuf> = tree::list(folder)?.entries.into_iter().map(|entry| entry.path).collect();
    ensure!(!files.is_empty(), "{} holds no files", folder.display());
    Ok(files)
}

/// How a picture becomes a vector.
struct Look {
    transform: Transform,
    patch: u32,
}

impl Look {
    fn new(model: &Model, side: u32) -> Self {
        let (height, width) = model.only_size().unwrap_or((side, side));
        let manifest = model.manifest();
        let resize = Resize::Exact(height, width);
        let transform = Transform { resize, crop: None, interpolation: Interpolation::Bicubic, ..manifest.transform.clone() };
        Self { transform, patch: manifest.patch_size }
    }

    /// CLS and the generalised mean of the patches with exponent 4, side by side.
    fn describe(&self, worker: &mut Worker<'_>, picture: &RgbImage) -> anyhow::Result<Vec<f32>> {
        let (input, _) = whole_patches(&self.transform.apply(picture), self.patch)?;
        let outputs = worker.run(input)?;
        let row = |pooling| pool(&outputs, worker.registers(), pooling).map(|rows| rows.index_axis_move(Axis(0), 0));
        let (cls, patches) = (row(Pooling::Cls)?, row(Pooling::Patches)?);
        let mean = patches.mapv(|value| value.max(1e-6).powi(4)).mean_axis(Axis(0)).context("the model gives no patches")?;
        Ok(cls.into_iter().chain(mean.mapv(|value| value.powf(0.25))).collect())
    }
}
