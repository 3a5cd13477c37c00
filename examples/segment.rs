//! The mask of what stands out in a picture, as a PNG file, white on black:
//!
//! `cargo run --release --package dino-vision --example segment -- models/demo tests/photos/coffee.png mask.png`

use std::path::Path;

use anyhow::{Context as _, Result};
use dino_vision::media::{self, Limits};
use dino_vision::model::{Model, SessionOptions};
use dino_vision::segment::{self, Method, Object, Options, Patches};
use ndarray::Axis;

/// Length in pixels that the longer side of a picture gets before the model sees it.
const LONGER_SIDE: u32 = 480;

/// The object that the normalised cut (`TokenCut`) finds first.
pub(crate) fn find(model: &Path, picture: &Path) -> Result<Object> {
    let model = Model::open(model)?;
    let mut session = model.sessions(&SessionOptions::default(), 1)?.remove(0);
    let manifest = model.manifest();
    let pixels = media::decode(&fs_err::read(picture)?, &Limits::default())?;

    // Masks are of the whole picture: no crop, both sides stretched to whole patches.
    let (input, grid) = manifest.transform.whole_picture(&pixels, LONGER_SIDE, manifest.patch_size);
    let outputs = session.run(input.view().insert_axis(Axis(0)))?;

    let structure = segment::structure(input.view(), grid);
    let options = Options { method: Method::Ncut, ..Options::default() };
    let found = segment::segment(&Patches::of(&outputs, grid), pixels.dimensions(), structure, &options)?;
    found.objects.into_iter().next().context("nothing stands out in this picture")
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, picture, out] = &arguments[..] else { anyhow::bail!("usage: segment MODEL PICTURE MASK.png") };
    let object = find(model.as_ref(), picture.as_ref())?;
    fs_err::write(out, object.mask.png()?)?;
    Ok(())
}
