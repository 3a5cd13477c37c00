//! `dino-train tsne`: a picture of the latent space.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow, bail};
use dino_vision::embedding::Pooling;
use dino_vision::head::Tokens;
use dino_vision::tsne;
use ndarray::Array2;
use rand::RngExt as _;
use rand_distr::StandardNormal;
use serde_json::json;

use super::backbone::BackboneArgs;
use super::usage::Usage;
use crate::data::labelled::Labelled;
use crate::data::loader::generator;
use crate::evaluate::features::{self, View};
use crate::show::scatter::Scatter;

/// Random numbers of the start.
const STARTS: u64 = 8;
/// What the legend calls pictures in no class folder; they have no class in the list of places.
const UNKNOWN: &str = "no class";

/// Draw the features of pictures as a map on which like lies beside like, coloured by class.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Pictures. Folders directly below DIR are classes, which have colours; none are needed.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Picture to write; the places go beside it, into a file of the same name that ends in .json.
    #[arg(long, value_name = "FILE.svg|FILE.png")]
    out: PathBuf,
    /// Effective number of neighbours of each picture.
    #[arg(long, value_parser = dino_program::flags::from_one::<f32>, default_value_t = tsne::Options::default().perplexity)]
    perplexity: f32,
    /// Steps of gradient descent.
    #[arg(long, default_value_t = tsne::Options::default().steps)]
    steps: usize,
    /// Start from random places of this seed, instead of the principal components.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// Runs the verb.
///
/// # Errors
/// Where there are too few pictures that can be read, the model does not run, or a file cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let kind = args.out.extension().and_then(|kind| kind.to_str()).unwrap_or_default().to_ascii_lowercase();
    if kind != "svg" && kind != "png" {
        return Err(Usage(anyhow!("--out {} ends neither in .svg nor in .png", args.out.display())).into());
    }
    let pictures = Labelled::open_any(&args.images, 0, UNKNOWN)?;
    let mut embedder = args.backbone.open(0)?.embedder(Pooling::Cls)?;
    let tokens = Tokens { n_last_blocks: 1, avgpool_patchtokens: false };
    let batch = features::all("embed", &mut embedder, &pictures, View::Evaluation, tokens)?;
    let start = args.seed.map(|seed| {
        let mut random = generator(seed, STARTS, 0, 0);
        Array2::from_shape_simple_fn((batch.features.nrows(), 2), || random.sample::<f64, _>(StandardNormal))
    });
    let options = tsne::Options { perplexity: args.perplexity, steps: args.steps, start };
    let places = tsne::map(batch.features, &options)?;
    Labelled::count_skipped(&[&pictures]);
    // Rows are the pictures that could be read, in order.
    let titles: Vec<String> = batch.pictures.iter().map(|&index| pictures.name(index).to_owned()).collect();
    let names = pictures.classes();
    let scatter = Scatter { places: places.view(), classes: &batch.classes, names, titles: &titles };
    match kind.as_str() {
        "svg" => fs_err::write(&args.out, scatter.svg())?,
        "png" => scatter.pixels().save_with_format(&args.out, image::ImageFormat::Png).with_context(|| args.out.display().to_string())?,
        _ => bail!("--out ends neither in .svg nor in .png"),
    }
    let points: Vec<_> = places
        .rows()
        .into_iter()
        .zip(batch.classes.iter().zip(&titles))
        .map(|(place, (&class, file))| {
            let class = Some(&names[class as usize]).filter(|name| *name != UNKNOWN);
            json!({"x": place[0], "y": place[1], "class": class, "file": file})
        })
        .collect();
    let list = args.out.with_extension("json");
    fs_err::write(&list, serde_json::to_string(&points)?)?;
    tracing::info!("{} points drawn in {}, their places are in {}", points.len(), args.out.display(), list.display());
    Ok(())
}
