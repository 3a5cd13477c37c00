//! Prints what each method of `/segment` takes beside inference, for the 30 × 30 patches of a picture of 480 × 480 with patch 16.
//!
//! `make bench-segment`. The features are the demo model's, of the photos in `tests/photos`, side by side with themselves: 384 dimensions
//! and 6 heads as in ViT-S, with the similarities between patches (on which the eigenvectors' time depends) of a trained model.

#![expect(clippy::print_stdout, reason = "the measurement is the output")]

use std::{hint::black_box, path::Path, time::Instant};

use anyhow::{Context, Result};
use dino_vision::{
    model::{Device, Model, SessionOptions},
    segment::{Method, Options, Patches, guide, segment, structure},
};
use image::imageops::FilterType;
use ndarray::{Axis, concatenate};

const SIDE: u32 = 480;
const PATCHES: u32 = 30;
const ROUNDS: usize = 15;

fn main() -> Result<()> {
    let root = &Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let model = Model::open(&root.join("models/demo"))?;
    let mut session = model.sessions(&SessionOptions { device: Device::Cpu, ..SessionOptions::default() }, 1)?.remove(0);
    let manifest = model.manifest();
    let mut times: Vec<(&str, Vec<f64>)> = Vec::new();
    for name in ["astronaut.png", "chelsea.png", "china.jpg", "coffee.png", "flower.jpg", "rocket.jpg"] {
        let picture = image::open(root.join("tests/photos").join(name))?.resize_exact(SIDE, SIDE, FilterType::CatmullRom).into_rgb8();
        let (input, grid) = manifest.transform.whole_picture(&picture, PATCHES * manifest.patch_size, manifest.patch_size);
        let outputs = session.run(input.view().insert_axis(Axis(0)))?;
        let seen = Patches::of(&outputs, grid);
        let keys = concatenate(Axis(1), &[seen.keys()?, seen.keys()?])?;
        let attention = concatenate(Axis(0), &[seen.attention()?, seen.attention()?])?;
        let patches = Patches::new(Some(attention.view()), Some(keys.view()), grid);
        let structure_of = structure(input.view(), grid);
        let mut note = |what, run: &mut dyn FnMut() -> Result<()>| -> Result<()> {
            let milliseconds = measure(run)?;
            match times.iter_mut().find(|(name, _)| *name == what) {
                Some((_, all)) => all.push(milliseconds),
                None => times.push((what, vec![milliseconds])),
            }
            Ok(())
        };
        for method in Method::ALL {
            let options = Options { method, ..Options::default() };
            note(method.name(), &mut || {
                black_box(segment(&patches, (SIDE, SIDE), structure_of, &options)?);
                Ok(())
            })?;
        }
        note("its score's structure", &mut || {
            black_box(structure(input.view(), grid));
            Ok(())
        })?;
        let found = segment(&patches, (SIDE, SIDE), structure_of, &Options::default())?;
        note("refine=guided", &mut || {
            let mut found = found.clone();
            found.refine(&guide(&picture));
            black_box(found);
            Ok(())
        })?;
        let first = found.objects.first().context("no object to write")?;
        note("format=png", &mut || {
            black_box(first.mask.png()?);
            Ok(())
        })?;
        note("format=rle", &mut || {
            black_box(first.mask.rle());
            Ok(())
        })?;
    }
    println!("milliseconds on one core: mean over {} photos of the fastest of {ROUNDS} rounds, and the slowest photo's", times[0].1.len());
    for (name, all) in times {
        let (mean, most) = (all.iter().sum::<f64>() / all.len() as f64, all.iter().fold(0.0_f64, |most, &time| most.max(time)));
        println!("{name:24} {mean:7.2} {most:7.2}");
    }
    Ok(())
}

/// Milliseconds of the fastest round.
fn measure(run: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        run()?;
        best = best.min(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(best)
}
