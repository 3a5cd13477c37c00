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
use rayon::prelude::*;
use serde::Serialize;

use super::backbone::BackboneArgs;
use crate::evaluate::descriptors::{decode, dimensions, is_of_file};
use crate::evaluate::drawn::{self, Folder};
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
    /// the only one (white on black; soft edges are cut at half). Only the first frame's objects are followed. A video of which a file
    /// cannot be read is left out, and named.
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

/// What to do where greys of masks may be objects or soft edges.
const ADVICE: &str = "save objects with a palette, or in black and white alone";

/// Runs the verb.
///
/// # Errors
/// Where no video can be read, there is nothing to measure or to write, or the model does not run.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let sequences = sequences::list(&args.data, &args.set)?;
    ensure!(
        args.out.is_some() || sequences.iter().any(|sequence| sequence.measured().count() > 0),
        "{} has no masks to measure with: those of the first and the last frame are not measured; --out writes the masks that are found",
        args.data.display()
    );
    let backbone = args.backbone.open(0)?;
    let mut eye = Eye { session: backbone.session_of(&backbone.model)?, model: &backbone.model, shorter: args.image_size };
    let leave_out = |sequence: &Sequence, error: &anyhow::Error| tracing::warn!("left out the video {}: {error:#}", sequence.name);
    let mut videos = Vec::new();
    for sequence in &sequences {
        match Video::checked(sequence, &eye) {
            Ok(video) => videos.push(video),
            Err(error) => leave_out(sequence, &error),
        }
    }
    let bar = progress::bar(videos.iter().map(|video| video.sequence.frames.len()).sum(), "frames");
    let (mut regions, mut contours, mut by_object) = (Vec::new(), Vec::new(), BTreeMap::new());
    let (mut followed, mut frames) = (0, 0);
    for video in &videos {
        let sequence = video.sequence;
        let objects = match follow(args, video, &mut eye, &bar) {
            Ok(objects) => objects,
            Err(error) if is_of_file(&error) => {
                bar.suspend(|| leave_out(sequence, &error));
                continue;
            }
            Err(error) => return Err(error.context(format!("video {}", sequence.name))),
        };
        followed += 1;
        frames += sequence.measured().count();
        for (at, (region, contour)) in objects.into_iter().enumerate() {
            regions.push(region);
            contours.push(contour);
            by_object.insert(format!("{}_{}", sequence.name, at + 1), Figures::of(region, contour));
        }
    }
    bar.finish_and_clear();
    let all = sequences.len();
    ensure!(frames > 0 || followed > 0 && args.out.is_some(), "none of the {all} videos of {} could be measured", args.data.display());
    if followed < all {
        tracing::warn!("{} of {all} videos were left out: the figures are of the others", all - followed);
    }
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

/// A video whose masks were read, and whose frames fit.
struct Video<'a> {
    sequence: &'a Sequence,
    /// Its masks are white objects with soft edges.
    is_soft: bool,
}

impl<'a> Video<'a> {
    /// Reads the headers of all frames and the masks that are used, before anything is computed.
    ///
    /// # Errors
    /// Names the first file that cannot be read or does not fit.
    fn checked(sequence: &'a Sequence, eye: &Eye<'_>) -> anyhow::Result<Self> {
        // In the order of the frames, so that the first of several errors is named.
        let sizes: Vec<anyhow::Result<(u32, u32)>> = sequence.frames.par_iter().map(|path| dimensions(path)).collect();
        let sizes: Vec<(u32, u32)> = sizes.into_iter().collect::<anyhow::Result<_>>()?;
        let seen = |at: usize| eye.seen(sizes[at]).with_context(|| sequence.frames[at].display().to_string());
        let first = seen(0)?;
        for (at, path) in sequence.frames.iter().enumerate() {
            ensure!(seen(at)? == first, "{} has not the shape of the first frame", path.display());
        }
        let first_path = &sequence.masks[&0];
        let used: Vec<(usize, &Path)> = std::iter::once((0, first_path.as_path())).chain(sequence.measured()).collect();
        let read = |&(at, path): &(usize, &Path)| -> anyhow::Result<Folder> {
            let stored = drawn::stored(path)?;
            let folder = Folder::of(path, &stored);
            check_size(&stored.into(), path, sizes[at])?;
            Ok(folder)
        };
        let masks: Vec<anyhow::Result<Folder>> = used.par_iter().map(read).collect();
        let folder = masks.into_iter().try_fold(Folder::default(), |folder, mask| mask.map(|mask| folder.merged(mask)))?;
        let video = Self { sequence, is_soft: folder.is_soft(ADVICE)? };
        let objects = Objects::of(&video.read(first_path, sizes[0])?);
        ensure!(!objects.numbers().is_empty(), "{} has no object", first_path.display());
        Ok(video)
    }

    /// The mask of a frame of `size` (width, height).
    fn read(&self, path: &Path, size: (u32, u32)) -> anyhow::Result<Numbers> {
        let numbers = Numbers::read(path)?;
        check_size(&numbers, path, size)?;
        Ok(if self.is_soft { numbers.cut() } else { numbers })
    }
}

/// Follows the objects of a video, and measures each; nothing is measured without masks.
fn follow(args: &Args, video: &Video<'_>, eye: &mut Eye<'_>, bar: &ProgressBar) -> anyhow::Result<Vec<(Statistics, Statistics)>> {
    let sequence = video.sequence;
    let picture = decode(&sequence.frames[0])?;
    let first = video.read(&sequence.masks[&0], picture.dimensions())?;
    let objects = Objects::of(&first);
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
            let truth = video.read(path, picture.dimensions())?;
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

    /// (width, height) to which a frame of `size` is resized.
    fn seen(&self, size: (u32, u32)) -> anyhow::Result<(u32, u32)> {
        match self.model.only_size() {
            Some((height, width)) => Ok((width, height)),
            None => frame::size(size, self.shorter),
        }
    }

    /// The patch tokens `[patches, dim]` of a frame, and their grid.
    fn look(&mut self, picture: &RgbImage) -> anyhow::Result<(Array2<f32>, PatchGrid)> {
        let manifest = self.model.manifest();
        let size = self.seen(picture.dimensions())?;
        let (input, grid) = frame::input(picture, size, &manifest.transform, manifest.patch_size)?;
        let outputs = self.session.run(input.view().insert_axis(Axis(0)))?;
        let features = pool_layer(&outputs, None, manifest.registers as usize, Pooling::Patches)?.index_axis_move(Axis(0), 0);
        ensure!(features.iter().all(|number| number.is_finite()), "the model gives features that are no numbers");
        Ok((features, grid))
    }
}
