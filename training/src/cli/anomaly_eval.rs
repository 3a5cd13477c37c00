//! `dino-train anomaly-eval`: anomaly detection from good pictures alone, measured.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use dino_vision::anomaly::{DEFAULT_TOP, ROTATIONS, distances_of_floats, enlarged, foreground, mean_of_largest, rotated};
use dino_vision::bulk::names::Finder;
use dino_vision::bulk::tree;
use dino_vision::embedding::{Pooling, pool_layer};
use dino_vision::model::{Manifest, Model, Session};
use dino_vision::transform::PatchGrid;
use dino_vision::unit_rows;
use image::RgbImage;
use ndarray::{Array2, Axis, concatenate};
use serde::Serialize;

use super::backbone::BackboneArgs;
use super::segment_eval::mask_of;
use super::segment_eval::untrained::untrained;
use crate::evaluate::anomaly::{Pixels, auroc};
use crate::evaluate::descriptors::decode;
use crate::evaluate::segmentation::Truth;
use crate::evaluate::{drawn, files};

/// Folder of the test pictures that are good.
const GOOD: &str = "good";

/// Compare pictures with good ones as `POST /collections/{c}/anomaly` does, and measure how well the scores and maps tell what is
/// anomalous. The folders are those of `MVTec AD`: `train/good`, `test/good` and a folder for each kind of defect beside it, and
/// `ground_truth`. Patches are compared as floats, where a collection holds bytes.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Good pictures to compare with.
    #[arg(long, value_name = "DIR")]
    normal: PathBuf,
    /// Pictures to measure with: good ones in the folder `good`, anomalous ones in the others.
    #[arg(long, value_name = "DIR")]
    test: PathBuf,
    /// Masks of the anomalous ones, below DIR as the pictures are below theirs, with the same names ending in `_mask.png` or `.png`:
    /// white on black, or numbers, of which 255 is left out. Without it only the scores of whole pictures are measured.
    #[arg(long, value_name = "DIR")]
    masks: Option<PathBuf>,
    /// Longer side in pixels at which the model sees a picture.
    #[arg(long, default_value_t = 480, value_parser = clap::value_parser!(u32).range(16..=4096))]
    segment_size: u32,
    /// Compare with good pictures turned by 45, 90, … 315 degrees too.
    #[arg(long)]
    rotations: bool,
    /// Leave out the background of the test pictures, by the first principal component.
    #[arg(long)]
    masking: bool,
    /// Share of the patches, those with the largest distances, that make a score.
    #[arg(long, value_parser = dino_program::flags::part::<f64>, default_value_t = DEFAULT_TOP)]
    top: f64,
    /// Measure beside it an untrained transformer of the model's shape.
    #[arg(long)]
    baselines: bool,
}

/// The last line of the output.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    figures: Figures,
    /// Good pictures that were compared with.
    normal: usize,
    /// Pictures that were measured with.
    pictures: usize,
    /// Those of an untrained transformer, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    untrained: Option<Figures>,
}

/// Between 0 and 1.
#[derive(Clone, Copy, Debug, Serialize)]
struct Figures {
    /// Area under the receiver operating characteristic of the pictures' scores.
    image_auroc: f64,
    /// The same of the pixels of the maps; null without masks.
    pixel_auroc: Option<f64>,
    /// Per-region overlap up to 0.3 of the good pixels; null without masks.
    pro: Option<f64>,
}

/// Runs the verb.
///
/// # Errors
/// Where there are no pictures of both kinds, or the model does not run.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let test = Test::list(args)?;
    let backbone = args.backbone.open(1)?;
    let (figures, normal, pictures) =
        measure(args, &test, &mut Eye::open(&backbone.model, backbone.session_of(&backbone.model)?, args.segment_size))?;
    let untrained = if args.baselines {
        ensure!(!backbone.model.manifest().is_convolutional(), "--baselines: the model is no transformer");
        let folder = tempfile::tempdir()?;
        let model = untrained(backbone.model.manifest(), folder.path()).context("the untrained transformer")?;
        Some(measure(args, &test, &mut Eye::open(&model, backbone.session_of(&model)?, args.segment_size))?.0)
    } else {
        None
    };
    print(&Report { figures, normal, pictures, untrained })
}

/// Figures of one model, and how many pictures they are of.
fn measure(args: &Args, test: &Test, eye: &mut Eye<'_>) -> anyhow::Result<(Figures, usize, usize)> {
    let (stored, normal) = stored(args, eye)?;
    let (mut scores, mut pixels) = (Vec::new(), Pixels::default());
    for Picture { path, is_anomalous, mask } in &test.0 {
        let Some((picture, drawn)) = read(path, mask.as_deref()) else { continue };
        let (features, grid) = eye.look(&picture)?;
        let mut distances = distances_of_floats(unit_rows::scaled(features.view()).view(), stored.view())?;
        if args.masking {
            let flags = foreground(features.view(), grid);
            distances.iter_mut().zip(flags).filter(|(_, is_foreground)| !is_foreground).for_each(|(distance, _)| *distance = 0.0);
        }
        scores.push((mean_of_largest(&distances, args.top), *is_anomalous));
        if args.masks.is_some() {
            let map = enlarged(&distances, grid, picture.dimensions()).values;
            let good = || Truth { pixels: vec![false; map.len()], void: vec![false; map.len()], boxes: Vec::new() };
            let Truth { pixels: drawn, void, .. } = drawn.unwrap_or_else(good);
            pixels.add(&map, &drawn, &void, picture.width() as usize);
        }
    }
    let Some(image_auroc) = auroc(&scores) else {
        bail!("{} has no readable pictures of both kinds: good ones in {GOOD}, and others", args.test.display())
    };
    Ok((Figures { image_auroc, pixel_auroc: pixels.auroc(), pro: pixels.pro() }, normal, scores.len()))
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(report: &Report) -> anyhow::Result<()> {
    let or_none = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.4}"));
    println!("{} pictures against {} good ones", report.pictures, report.normal);
    let rows = [("", Some(report.figures)), ("untrained: ", report.untrained)];
    for (name, figures) in rows.into_iter().filter_map(|(name, figures)| Some((name, figures?))) {
        let (pixels, pro) = (or_none(figures.pixel_auroc), or_none(figures.pro));
        println!("{name}image AUROC {:.4}    pixel AUROC {pixels}    PRO {pro}", figures.image_auroc);
    }
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}

/// A picture to measure with.
struct Picture {
    path: PathBuf,
    is_anomalous: bool,
    mask: Option<PathBuf>,
}

struct Test(Vec<Picture>);

impl Test {
    fn list(args: &Args) -> anyhow::Result<Self> {
        let (mut pictures, finder) = (Vec::new(), Finder::default());
        let listing = tree::list(&args.test)?;
        for file in &listing.skipped {
            tracing::warn!("skipped {}: {}", file.path.display(), file.reason);
        }
        for entry in listing.entries {
            let Some(class) = entry.class else {
                tracing::warn!("left out {}: it is in no folder of {}", entry.path.display(), args.test.display());
                continue;
            };
            let is_anomalous = class != GOOD;
            let masks = args.masks.as_deref().filter(|_| is_anomalous);
            let mask = masks.and_then(|masks| mask_of(&entry.path, &args.test, masks, &finder));
            match masks {
                Some(masks) if mask.is_none() => {
                    let path = entry.path.display();
                    ensure!(!files::is_picture(&entry.path), "{path} has no mask below {}", masks.display());
                    tracing::warn!("skipped {path}: it is no picture");
                }
                _ => pictures.push(Picture { path: entry.path, is_anomalous, mask }),
            }
        }
        ensure!(!pictures.is_empty(), "{} has no pictures in folders: good ones are in {GOOD}", args.test.display());
        Ok(Self(pictures))
    }
}

/// A picture with what was drawn over it; `None` after a warning where one of them cannot be read.
fn read(picture: &Path, mask: Option<&Path>) -> Option<(RgbImage, Option<Truth>)> {
    let read = || -> anyhow::Result<_> {
        let picture = decode(picture)?;
        let drawn = mask.map(|mask| drawn::read(mask, picture.dimensions())).transpose()?;
        Ok((picture, drawn))
    };
    read().inspect_err(|error| tracing::warn!("skipped {error:#}")).ok()
}

/// The patches of all good pictures, each of length 1, and the number of pictures.
fn stored(args: &Args, eye: &mut Eye<'_>) -> anyhow::Result<(Array2<f32>, usize)> {
    let (mut parts, mut count) = (Vec::new(), 0);
    for entry in tree::list(&args.normal)?.entries {
        let Some((picture, _)) = read(&entry.path, None) else { continue };
        count += 1;
        for turn in 0..if args.rotations { ROTATIONS } else { 1 } {
            parts.push(unit_rows::scaled(eye.look(&rotated(&picture, turn))?.0.view()));
        }
    }
    ensure!(count > 0, "{} has no readable picture", args.normal.display());
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    Ok((concatenate(Axis(0), &views)?, count))
}

/// A model that looks at whole pictures.
pub(super) struct Eye<'a> {
    session: Session,
    model: &'a Model,
    side: u32,
}

impl<'a> Eye<'a> {
    pub(super) fn open(model: &'a Model, session: Session, side: u32) -> Self {
        Self { session, model, side }
    }

    /// The patch tokens `[patches, dim]` of a picture, and their grid.
    pub(super) fn look(&mut self, picture: &RgbImage) -> anyhow::Result<(Array2<f32>, PatchGrid)> {
        let Manifest { transform, patch_size, registers, .. } = self.model.manifest();
        let (input, grid) = transform.whole_picture_within(picture, self.model.only_size(), self.side, *patch_size);
        let outputs = self.session.run(input.view().insert_axis(Axis(0)))?;
        let features = pool_layer(&outputs, None, *registers as usize, Pooling::Patches)?.index_axis_move(Axis(0), 0);
        let grid = match (&outputs.last_hidden_state, &outputs.feature_map) {
            (None, Some(map)) => PatchGrid { rows: map.dim().2, columns: map.dim().3 },
            _ => grid,
        };
        Ok((features, grid))
    }
}
