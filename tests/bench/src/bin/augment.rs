//! Times the multi-crop augmentation on one core, two crops of 224 pixels and eight of 96, and prints one JSON line: what
//! `make bench-train` compares with torchvision.

#![expect(clippy::print_stdout, reason = "the measurement is the output")]

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use dino_train::data::augment::Augmentation;
use dino_train::data::loader::generator;
use dino_train::data::pictures::Pictures;
use dino_train::run::recipe::Recipe;

#[derive(Parser)]
struct Args {
    /// Folder of pictures
    #[arg(long)]
    images: PathBuf,
    /// Times that the folder is gone through
    #[arg(long, default_value_t = 4)]
    repeats: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    // The public script's crops.
    let augmentation = Recipe::default().augmentation(0)?;
    println!("{}", serde_json::json!({ "cached": speed(&args, &augmentation, 4 << 30)?, "decoded": speed(&args, &augmentation, 0)? }));
    Ok(())
}

/// Pictures per second, with a cache of decoded pictures of this many bytes.
fn speed(args: &Args, augmentation: &Augmentation, cache: usize) -> Result<f64> {
    let pictures = Pictures::open(&args.images, None, cache)?;
    let (mut global, mut local) = (vec![0.0; augmentation.global_len()], vec![0.0; augmentation.local_len()]);
    if cache > 0 {
        (0..pictures.len()).for_each(|index| drop(pictures.get(index)));
    }
    let (since, mut done) = (Instant::now(), 0);
    for round in 0..args.repeats {
        for index in 0..pictures.len() {
            let Some(picture) = pictures.get(index) else { continue };
            let mut random = generator(0, 0, round as u64, index as u64);
            (0..2).for_each(|view| augmentation.global(&picture, view, &mut random, &mut global, &mut []));
            (0..augmentation.local_crops).for_each(|_| augmentation.local(&picture, &mut random, &mut local));
            done += 1;
        }
    }
    anyhow::ensure!(done > 0, "no picture below {} can be read", args.images.display());
    Ok(f64::from(done) / since.elapsed().as_secs_f64())
}
