//! `dino-train video-eval`: objects followed through videos by the likeness of patches alone, measured as DAVIS 2017 does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use dino_vision::embedding::{Pooling, pool_layer};
use dino_vision::model::{Model, Session};
use dino_vision::transform::PatchGrid;
use image::RgbImage;
use indicatif::ProgressBar;
use ndarray::{Array2, Axis};
use serde::Serialize;

use super::backbone::BackboneArgs;
use crate::evaluate::descriptors::decode;
use crate::evaluate::video::frame;
use crate::evaluate::video::labels::{Numbers, Objects, check_size, mask};
use crate::evaluate::video::measures::{Figures, Statistics, contour, region};
use crate::evaluate::video::propagation::{Propagation, Settings};
use crate::evaluate::video::sequences::{self, Sequence};
use crate::show::progress;

/// Follow the objects of a video's first mask through its frames by the likeness of patches, without any training, and measure the masks
/// as DAVIS 2017 does (semi-supervised): region similarity J and contour accuracy F, between 0 and 1.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Videos: DAVIS 2017 (JPEGImages/480p, Annotations/480p, ImageSets/2017), or a folder that has for each video a folder with `frames`
    /// and `masks` of the same names. Masks are PNG files whose numbers, by palette or as greys, are objects; 255 is left out, unless it is
    /// the only one (white on black). Only the first frame's objects are followed.
    #[arg(long, visible_alias = "data-path", value_name = "DIR")]
    data: PathBuf,
    /// Which sequences of DAVIS: those that ImageSets/2017/SET.txt names.
    #[arg(long, value_name = "SET", default_value = "val")]
    set: String,
    /// Folder to write the masks to, as OUT/VIDEO/FRAME.png with a palette: what DAVIS's own evaluation reads.
    #[arg(long, visible_alias = "output-dir", value_name = "DIR")]
    out: Option<PathBuf>,
    /// Frames before a frame that it takes labels from, beside the first.
    #[arg(long, value_name = "N", default_value_t = Settings::default().last_frames, value_parser = dino_program::flags::at_least_one())]
    n_last_frames: usize,
    /// Rows and columns of patches around a patch in which it looks for its like; 0 looks everywhere.
    #[arg(long, value_name = "N", default_value_t = Settings::default().neighbourhood)]
    size_mask_neighborhood: usize,
    /// Patches that a patch takes its label from.
    #[arg(long, value_name = "N", default_value_t = Settings::default().top_k, value_parser = dino_program::flags::at_least_one())]
    topk: usize,
    /// Length in pixels to which the shorter side of a frame is resized; the longer side is cut down to a multiple of 64. DAVIS's figures
    /// are measured at 480.
    #[arg(long, value_name = "PIXELS", default_value_t = 480, value_parser = clap::value_parser!(u32).range(64..=4096))]
    image_size: u32,
}

/// The last line of the output.
#[derive(Debug, Serialize)]
struct Report {
    /// Means over all objects; null where no mask but those of first frames was given.
    #[serde(flatten)]
    figures: Option<Figures>,
    /// Of each object: `VIDEO_N`, counted from 1, as DAVIS names them.
    sequences: BTreeMap<String, Figures>,
    /// Frames that were measured.
    frames: usize,
}

/// Runs the verb.
///
/// # Errors
/// Where a video cannot be read, there is nothing to measure or to write, or the model does not run.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let sequences = sequences::list(&args.data, &args.set)?;
    let frames = sequences.iter().map(|sequence| sequence.measured().count()).sum();
    ensure!(
        frames > 0 || args.out.is_some(),
        "{} has no masks to measure with: those of the first and the last frame are not measured; --out writes the masks that are found",
        args.data.display()
    );
    let backbone = args.backbone.open(0)?;
    let mut eye = Eye { session: backbone.session_of(&backbone.model)?, model: &backbone.model, shorter: args.image_size };
    let bar = progress::bar(sequences.iter().map(|sequence| sequence.frames.len()).sum(), "frames");
    let (mut regions, mut contours, mut by_object) = (Vec::new(), Vec::new(), BTreeMap::new());
    for sequence in &sequences {
        let objects = follow(args, sequence, &mut eye, &bar).with_context(|| format!("video {}", sequence.name))?;
        for (at, (region, contour)) in objects.into_iter().enumerate() {
            regions.push(region);
            contours.push(contour);
            by_object.insert(format!("{}_{}", sequence.name, at + 1), Figures::of(region, contour));
        }
    }
    bar.finish_and_clear();
    let means = Statistics::mean_of(&regions).zip(Statistics::mean_of(&contours));
    print(&Report { figures: means.map(|(region, contour)| Figures::of(region, contour)), sequences: by_object, frames })
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(report: &Report) -> anyhow::Result<()> {
    println!("{:<24} J&F-Mean  J-Mean  J-Recall  J-Decay  F-Mean  F-Recall  F-Decay", format!("{} frames", report.frames));
    let rows = report.sequences.iter().map(|(name, figures)| (name.as_str(), *figures));
    for (name, figures) in rows.chain(report.figures.map(|figures| ("all", figures))) {
        let Figures { both, region_mean, region_recall, region_decay, contour_mean, contour_recall, contour_decay } = figures;
        println!(
            "{name:<24} {both:8.3}  {region_mean:6.3}  {region_recall:8.3}  {region_decay:7.3}  {contour_mean:6.3}  {contour_recall:8.3}  {contour_decay:7.3}"
        );
    }
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}

/// Follows the objects of a video, and measures each; nothing is measured without masks.
fn follow(args: &Args, sequence: &Sequence, eye: &mut Eye<'_>, bar: &ProgressBar) -> anyhow::Result<Vec<(Statistics, Statistics)>> {
    let first_path = &sequence.masks[&0];
    let (picture, first) = (decode(&sequence.frames[0])?, Numbers::read(first_path)?);
    check_size(&first, first_path, picture.dimensions())?;
    let objects = Objects::of(&first);
    ensure!(!objects.numbers().is_empty(), "{} has no object", first_path.display());
    let (features, grid) = eye.look(&picture)?;
    let settings = Settings { last_frames: args.n_last_frames, top_k: args.topk, neighbourhood: args.size_mask_neighborhood };
    let mut propagation = Propagation::new(settings, grid, features.view(), objects.shares(&first, grid));
    save(args, sequence, 0, &first)?;
    bar.inc(1);
    let measured: BTreeMap<usize, &Path> = sequence.measured().collect();
    let mut values = vec![(Vec::new(), Vec::new()); objects.numbers().len()];
    for (at, path) in sequence.frames.iter().enumerate().skip(1) {
        let picture = decode(path)?;
        let (features, found) = eye.look(&picture)?;
        ensure!(found == grid, "{} has not the shape of the first frame", path.display());
        let found = objects.pixels(propagation.next(features.view()), grid, eye.patch(), picture.dimensions());
        save(args, sequence, at, &found)?;
        if let Some(path) = measured.get(&at) {
            let truth = Numbers::read(path)?;
            check_size(&truth, path, picture.dimensions())?;
            for (number, (regions, contours)) in objects.numbers().iter().zip(&mut values) {
                let (truth, found) = (mask(&truth, *number), mask(&found, *number));
                regions.push(region(&truth, &found));
                contours.push(contour(&truth, &found, picture.width() as usize));
            }
        }
        bar.inc(1);
    }
    Ok(values.iter().filter_map(|(regions, contours)| Statistics::of(regions).zip(Statistics::of(contours))).collect())
}

/// Writes the mask of a frame, where a folder was given.
fn save(args: &Args, sequence: &Sequence, frame: usize, numbers: &Numbers) -> anyhow::Result<()> {
    let Some(out) = &args.out else { return Ok(()) };
    let folder = out.join(&sequence.name);
    fs_err::create_dir_all(&folder)?;
    let name = sequence.frames[frame].with_extension("png");
    numbers.write(&folder.join(name.file_name().unwrap_or_default()))
}

/// A model that looks at frames.
struct Eye<'a> {
    session: Session,
    model: &'a Model,
    shorter: u32,
}

impl Eye<'_> {
    /// Side of a patch in pixels.
    fn patch(&self) -> usize {
        self.model.manifest().patch_size as usize
    }

    /// The patch tokens `[patches, dim]` of a frame, and their grid.
    fn look(&mut self, picture: &RgbImage) -> anyhow::Result<(Array2<f32>, PatchGrid)> {
        let manifest = self.model.manifest();
        let size = match self.model.only_size() {
            Some((height, width)) => (width, height),
            None => frame::size(picture.dimensions(), self.shorter)?,
        };
        let (input, grid) = frame::input(picture, size, &manifest.transform, manifest.patch_size)?;
        let outputs = self.session.run(input.view().insert_axis(Axis(0)))?;
        let features = pool_layer(&outputs, None, manifest.registers as usize, Pooling::Patches)?.index_axis_move(Axis(0), 0);
        ensure!(features.iter().all(|number| number.is_finite()), "the model gives features that are no numbers");
        Ok((features, grid))
    }
}
