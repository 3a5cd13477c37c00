//! `dino-train pca`: a sheet of pictures beside the colours of their patches, all in one basis.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow, ensure};
use dino_vision::bulk::tree;
use dino_vision::media;
use dino_vision::segment::{ColourBasis, Coloured};
use dino_vision::transform::PatchGrid;
use image::imageops::{self, FilterType};
use image::{ImageFormat, Rgb, RgbImage};
use ndarray::{Array2, Axis, concatenate};

use super::anomaly_eval::Eye;
use super::backbone::BackboneArgs;
use super::usage::Usage;
use crate::evaluate::descriptors::decode;
use crate::show::progress;

/// Draw the patches of pictures as colours, in a basis that is fitted on all of them: the same part has the same colour in every picture.
/// The first principal component tells foreground from background, which is black; three components of the foreground are red, green and
/// blue. `POST /segment?method=pca&basis=COLLECTION` of the server does the same.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Pictures, at any depth.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Picture to write: each picture with its colours to the right, in the order of their names.
    #[arg(long, value_name = "FILE.png")]
    out: PathBuf,
    /// Most pictures; of more, as many are taken evenly from the whole folder. All their patches are in memory.
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=1000))]
    most: u32,
    /// Length in pixels to which the longer side is resized.
    #[arg(long, default_value_t = 480, value_parser = clap::value_parser!(u32).range(16..=4096))]
    image_size: u32,
    /// Longer side of a picture on the sheet.
    #[arg(long, value_name = "PIXELS", default_value_t = 160, value_parser = clap::value_parser!(u32).range(16..=1024))]
    part: u32,
}

/// Pixels between pictures.
const GAP: u32 = 8;

/// A picture that was looked at.
struct Seen {
    small: RgbImage,
    features: Array2<f32>,
    grid: PatchGrid,
}

/// Runs the verb.
///
/// # Errors
/// Where no picture can be read, their patches do not differ, the model does not run, or the file cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let is_png = args.out.extension().is_some_and(|kind| kind.eq_ignore_ascii_case("png"));
    if !is_png {
        return Err(Usage(anyhow!("--out {} does not end in .png", args.out.display())).into());
    }
    let entries = tree::list(&args.images)?.entries;
    ensure!(!entries.is_empty(), "{} holds no pictures", args.images.display());
    let count = entries.len().min(args.most as usize);
    let backbone = args.backbone.open(1)?;
    let mut eye = Eye::open(&backbone.model, backbone.session_of(&backbone.model)?, args.image_size);
    let bar = progress::bar(count, "look");
    let mut seen = Vec::new();
    for at in 0..count {
        let path = &entries[at * entries.len() / count].path;
        match decode(path) {
            Ok(picture) => {
                let (features, grid) = eye.look(&picture)?;
                seen.push(Seen { small: media::within(&picture, args.part).into_owned(), features, grid });
            }
            Err(error) => bar.suspend(|| tracing::warn!("skipped {error:#}")),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    ensure!(!seen.is_empty(), "none of the {count} files could be read as a picture");
    let basis = fitted(&seen)?.context("the patches of these pictures do not differ")?;
    sheet(&seen, &basis, args.part).save_with_format(&args.out, ImageFormat::Png).with_context(|| args.out.display().to_string())?;
    tracing::info!("{} pictures drawn in {}", seen.len(), args.out.display());
    Ok(())
}

/// The basis of patches of all pictures, as many of each as it has its share in all.
fn fitted(seen: &[Seen]) -> anyhow::Result<Option<ColourBasis>> {
    let all: usize = seen.iter().map(|picture| picture.features.nrows()).sum();
    let mut rows = ColourBasis::rows(all).peekable();
    let (mut parts, mut is_border, mut first) = (Vec::new(), Vec::new(), 0);
    for Seen { features, grid, .. } in seen {
        let end = first + features.nrows();
        let chosen: Vec<usize> = std::iter::from_fn(|| rows.next_if(|row| *row < end)).map(|row| row - first).collect();
        first = end;
        is_border.extend(chosen.iter().map(|&patch| grid.is_border(patch)));
        parts.push(features.select(Axis(0), &chosen));
    }
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    Ok(ColourBasis::fit(concatenate(Axis(0), &views)?.view(), &is_border))
}

fn sheet(seen: &[Seen], basis: &ColourBasis, part: u32) -> RgbImage {
    // About as wide as high, and two pictures for each place.
    let columns = ((seen.len() as f64 / 2.0).sqrt().ceil() as u32).max(1);
    let rows = (seen.len() as u32).div_ceil(columns);
    let (across, down) = (2 * part + 2 * GAP, part + GAP);
    let mut sheet = RgbImage::from_pixel(columns * across + GAP, rows * down + GAP, Rgb([255; 3]));
    for (at, Seen { small, features, grid }) in (0..).zip(seen) {
        let (x, y) = (GAP + at % columns * across, GAP + at / columns * down);
        let Coloured { colours, .. } = basis.apply(features.view());
        let colours = RgbImage::from_fn(grid.columns as u32, grid.rows as u32, |column, row| {
            Rgb(colours[row as usize * grid.columns + column as usize].map(|share| (share * 255.0).round() as u8))
        });
        let (width, height) = small.dimensions();
        imageops::replace(&mut sheet, small, x.into(), y.into());
        imageops::replace(
            &mut sheet,
            &imageops::resize(&colours, width, height, FilterType::Nearest),
            (x + part + GAP / 2).into(),
            y.into(),
        );
    }
    sheet
}
