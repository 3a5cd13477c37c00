//! A video of where a backbone looks, frame by frame.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use dino_vision::bulk::{Embedder, Worker};
use dino_vision::model::Model;
use image::codecs::jpeg::JpegEncoder;

use super::{Args, look, write};
use crate::evaluate::descriptors::{dimensions, is_of_file};
use crate::show::avi::Avi;
use crate::show::progress;

/// Quality of the video's pictures.
const QUALITY: u8 = 90;

/// Draws the mean over the heads of each frame as OUT/attn-NAME.png, and all of them as OUT/video.avi. Frames that cannot be read are
/// skipped with a warning.
pub(super) fn draw(args: &Args, embedder: &mut Embedder, model: &Model, files: &[(PathBuf, String)]) -> anyhow::Result<()> {
    let (size, frames) = of_one_size(files)?;
    fs_err::create_dir_all(&args.out)?;
    let bar = progress::bar(frames.len(), "draw");
    let work = |worker: &mut Worker<'_>, index: usize| -> anyhow::Result<Vec<u8>> {
        let (path, name) = frames[index];
        let looked = look(args, worker, model, path).with_context(|| path.display().to_string());
        bar.inc(1);
        let (picture, attention) = looked?;
        let mean = attention.names().count() - 1;
        let heat = attention.heat(mean, picture.dimensions());
        write(&heat, &args.out.join(format!("attn-{name}.png")))?;
        let mut jpeg = Vec::new();
        heat.write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, QUALITY))?;
        Ok(jpeg)
    };
    let path = args.out.join("video.avi");
    let (mut video, mut written): (Option<Avi>, usize) = (None, 0);
    embedder.each(frames.len(), work, |_, results| -> anyhow::Result<()> {
        for result in results {
            let jpeg = match result {
                Err(error) if is_of_file(&error) => {
                    bar.suspend(|| tracing::warn!("skipped {error:#}"));
                    continue;
                }
                result => result?,
            };
            if video.is_none() {
                video = Some(Avi::create(&path, size, args.fps)?);
            }
            let Some(video) = &mut video else { continue };
            video.add(&jpeg).with_context(|| path.display().to_string())?;
            written += 1;
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    let video = video.with_context(|| none_of(files))?;
    video.finish()?;
    tracing::info!("{written} frames drawn in {}", path.display());
    Ok(())
}

/// File of a frame, and its name.
type Frame = (PathBuf, String);

/// The size of the frames, and those whose headers can be read, before any of them is drawn.
fn of_one_size(files: &[Frame]) -> anyhow::Result<((u32, u32), Vec<&Frame>)> {
    let (mut size, mut frames) = (None, Vec::new());
    for file in files {
        match dimensions(&file.0) {
            Ok(found) => {
                let first = *size.get_or_insert(found);
                ensure!(found == first, "{} has {found:?} pixels, and the first frame {first:?}", file.0.display());
                frames.push(file);
            }
            Err(error) => tracing::warn!("skipped {error:#}"),
        }
    }
    Ok((size.with_context(|| none_of(files))?, frames))
}

fn none_of(files: &[Frame]) -> String {
    format!("none of the {} frames could be read as a picture", files.len())
}
