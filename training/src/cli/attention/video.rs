//! A video of where a backbone looks, frame by frame.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use dino_vision::bulk::{Embedder, Worker};
use dino_vision::model::Model;
use image::codecs::jpeg::JpegEncoder;

use super::{Args, look, write};
use crate::show::avi::Avi;
use crate::show::progress;

/// Quality of the video's pictures.
const QUALITY: u8 = 90;

/// Draws the mean over the heads of each frame as OUT/attn-NAME.png, and all of them as OUT/video.avi.
pub(super) fn draw(args: &Args, embedder: &mut Embedder, model: &Model, files: &[(PathBuf, String)]) -> anyhow::Result<()> {
    fs_err::create_dir_all(&args.out)?;
    let bar = progress::bar(files.len(), "draw");
    let work = |worker: &mut Worker<'_>, index: usize| -> anyhow::Result<((u32, u32), Vec<u8>)> {
        let (path, name) = &files[index];
        let (picture, attention) = look(args, worker, model, path).with_context(|| path.display().to_string())?;
        let mean = attention.names().count() - 1;
        let heat = attention.heat(mean, picture.dimensions());
        write(&heat, &args.out.join(format!("attn-{name}.png")))?;
        let mut jpeg = Vec::new();
        heat.write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, QUALITY))?;
        bar.inc(1);
        Ok((heat.dimensions(), jpeg))
    };
    let path = args.out.join("video.avi");
    let mut video: Option<(Avi, (u32, u32))> = None;
    embedder.each(files.len(), work, |range, results| {
        for ((path_of_frame, _), result) in files[range].iter().zip(results) {
            let (size, jpeg) = result?;
            if video.is_none() {
                video = Some((Avi::create(&path, size, args.fps)?, size));
            }
            let Some((video, first)) = &mut video else { continue };
            ensure!(size == *first, "{} has {size:?} pixels, and the first frame {first:?}", path_of_frame.display());
            video.add(&jpeg).with_context(|| path.display().to_string())?;
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    if let Some((video, _)) = video {
        video.finish()?;
    }
    tracing::info!("{} frames drawn in {}", files.len(), path.display());
    Ok(())
}
