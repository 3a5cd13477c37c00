//! `dino-train attention`: pictures of where a backbone looks.

mod video;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use dino_vision::bulk::{self, Worker, tree};
use dino_vision::embedding::Pooling;
use dino_vision::media::{self, Limits};
use dino_vision::model::Model;
use image::RgbImage;
use ndarray::Axis;

use super::backbone::BackboneArgs;
use crate::evaluate::attention::Attention;
use crate::evaluate::files;
use crate::show::progress;

/// Draw the last block's attention over pictures: a heat map and a mask for each head, and a sheet of all of them.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// A picture, or a folder of pictures at any depth.
    #[arg(long, value_name = "FILE|DIR", required_unless_present = "video")]
    images: Option<PathBuf>,
    /// A folder of frames of one size, in the order of their names: the mean over the heads of each is drawn, and OUT/video.avi shows them
    /// one after another.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["images", "sheets_only"])]
    video: Option<PathBuf>,
    /// Frames in a second of the video.
    #[arg(long, value_name = "N", requires = "video", value_parser = dino_program::flags::above_zero::<f64>, default_value_t = 30.0)]
    fps: f64,
    /// Folder to write to: for each picture a folder of its name with head-N.png, mask-N.png, overlay-N.png and sheet.png; of a video
    /// video.avi and attn-NAME.png for each frame.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Share of the attention's mass that a mask keeps.
    #[arg(long, value_parser = dino_program::flags::part::<f32>, default_value_t = 0.6)]
    threshold: f32,
    /// Length in pixels to which the longer side is resized. Larger is finer, and slower with the square. A model of one size (exported
    /// with --static) sees the whole picture in that size.
    #[arg(long, default_value_t = 480, value_parser = clap::value_parser!(u32).range(1..=4096))]
    image_size: u32,
    /// Write the sheets alone, OUT/NAME.sheet.png.
    #[arg(long)]
    sheets_only: bool,
}

/// Longer side of a part of a sheet.
const PART: u32 = 240;

/// Runs the verb.
///
/// # Errors
/// Where no picture can be read, the model gives no attention, or a file cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let files = match (&args.images, &args.video) {
        (Some(images), _) => files(images)?,
        (None, Some(frames)) => self::frames(frames)?,
        (None, None) => bail!("either --images or --video"),
    };
    let backbone = args.backbone.open(0)?;
    ensure!(
        !backbone.model.manifest().is_convolutional(),
        "{} is a convolutional network, which has no attention: give a vision transformer",
        args.backbone.model
    );
    let mut embedder = backbone.embedder(Pooling::Cls)?;
    if args.video.is_some() {
        return video::draw(args, &mut embedder, &backbone.model, &files);
    }
    let bar = progress::bar(files.len(), "draw");
    let work = |worker: &mut Worker<'_>, index: usize| {
        let (path, name) = &files[index];
        let drawn = draw(args, worker, &backbone.model, path, name);
        bar.inc(1);
        drawn
    };
    let mut written = 0;
    embedder.each(files.len(), work, |range, results| {
        for ((path, _), result) in files[range].iter().zip(results) {
            match result {
                Ok(()) => written += 1,
                Err(error) if error.downcast_ref::<bulk::Error>().is_some_and(bulk::Error::is_of_file) => {
                    bar.suspend(|| tracing::warn!("skipped {}: {error}", path.display()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    ensure!(written > 0, "none of the {} files could be read as a picture", files.len());
    tracing::info!("{written} pictures drawn in {}", args.out.display());
    Ok(())
}

/// Files and the names to write them under.
fn files(images: &Path) -> anyhow::Result<Vec<(PathBuf, String)>> {
    if images.is_dir() {
        let listing = tree::list(images)?;
        for file in &listing.skipped {
            tracing::warn!("skipped {}: {}", file.path.display(), file.reason);
        }
        if listing.entries.is_empty() {
            bail!("{} holds no files", images.display());
        }
        return Ok(listing.entries.into_iter().map(|entry| (entry.path, entry.id)).collect());
    }
    let name = images.file_name().and_then(|name| name.to_str()).with_context(|| format!("{} names no file", images.display()))?;
    ensure!(images.is_file(), "{} is neither a file nor a folder", images.display());
    Ok(vec![(images.to_owned(), name.to_owned())])
}

/// The frames of a video, and their names without what stands behind the dot.
fn frames(folder: &Path) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let paths = files::listed(folder, &files::PICTURES)?;
    ensure!(!paths.is_empty(), "{} holds no frames ({})", folder.display(), files::PICTURES.join(", "));
    let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(paths.into_iter().map(|path| (path.clone(), name(&path))).collect())
}

/// A picture and its attention.
fn look(args: &Args, worker: &mut Worker<'_>, model: &Model, path: &Path) -> anyhow::Result<(RgbImage, Attention)> {
    let bytes = bulk::read(path)?;
    let picture = media::decode(&bytes, &Limits::default()).map_err(bulk::Error::from)?;
    let patch = model.manifest().patch_size;
    let (pixels, grid) = worker.transform().whole_picture_within(&picture, model.only_size(), args.image_size, patch);
    let outputs = worker.run(pixels).map_err(bulk::Error::from)?;
    let Some(attention) = outputs.attention else { bail!("this model does not give its attention: export it from its checkpoint") };
    let attention = Attention::new(attention.index_axis(Axis(0), 0), grid);
    Ok((picture, attention))
}

fn draw(args: &Args, worker: &mut Worker<'_>, model: &Model, path: &Path, name: &str) -> anyhow::Result<()> {
    let (picture, attention) = look(args, worker, model, path)?;
    let sheet = attention.sheet(&picture, args.threshold, PART);
    if args.sheets_only {
        let path = args.out.join(format!("{name}.sheet.png"));
        fs_err::create_dir_all(path.parent().unwrap_or(&args.out))?;
        return write(&sheet, &path);
    }
    let folder = args.out.join(name);
    fs_err::create_dir_all(&folder)?;
    write(&sheet, &folder.join("sheet.png"))?;
    for (map, name) in attention.names().enumerate() {
        let number = name.strip_prefix("head-").unwrap_or(&name);
        write(&attention.heat(map, picture.dimensions()), &folder.join(format!("{name}.png")))?;
        write(&attention.overlay(map, &picture, args.threshold), &folder.join(format!("overlay-{number}.png")))?;
        fs_err::write(folder.join(format!("mask-{number}.png")), attention.mask(map, picture.dimensions(), args.threshold).png()?)?;
    }
    Ok(())
}

fn write(picture: &RgbImage, path: &Path) -> anyhow::Result<()> {
    picture.save_with_format(path, image::ImageFormat::Png).with_context(|| path.display().to_string())
}
