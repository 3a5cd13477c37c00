//! The embedding of one picture, as JSON:
//!
//! `cargo run --release --package dino-vision --example embed -- models/demo tests/photos/coffee.png`

use std::path::Path;

use anyhow::{Context as _, Result};
use dino_vision::embedding::{self, Pooling};
use dino_vision::media::{self, Limits};
use dino_vision::model::{Model, SessionOptions};
use ndarray::Axis;

/// The CLS token of a picture, of length 1, so that the dot product of two is their cosine similarity.
pub(crate) fn embed(model: &Path, picture: &Path) -> Result<Vec<f32>> {
    let model = Model::open(model)?;
    let mut session = model.sessions(&SessionOptions::default(), 1)?.remove(0);
    let manifest = model.manifest();

    // Untrusted bytes to upright sRGB pixels, then to the model's input `[3, H, W]`.
    let pixels = media::decode(&fs_err::read(picture)?, &Limits::default())?;
    let input = manifest.transform.apply(&pixels);

    let outputs = session.run(input.view().insert_axis(Axis(0)))?;
    let mut rows = embedding::pool(&outputs, manifest.registers as usize, Pooling::Cls)?;
    embedding::normalise(&mut rows);
    Ok(rows.into_iter().collect())
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().context("usage: embed MODEL PICTURE")?;
    let picture = arguments.next().context("usage: embed MODEL PICTURE")?;
    serde_json::to_writer(std::io::stdout(), &embed(model.as_ref(), picture.as_ref())?)?;
    Ok(())
}
