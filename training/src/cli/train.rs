//! `dino-train train`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ArgMatches;
use clap::parser::ValueSource;

use crate::observer;
use crate::recipe::Recipe;
use crate::trainer::{self, Options, Outcome};

/// Train a backbone on a folder of pictures. Labels are not needed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of pictures, at any depth
    #[arg(long, visible_alias = "data-path", value_name = "DIR")]
    data: PathBuf,
    /// Folder of the run: checkpoints, log.jsonl, curves.svg, report.html and event files for `TensorBoard`
    #[arg(long, visible_alias = "output-dir", value_name = "DIR")]
    out: PathBuf,
    /// Settings from a file; flags given beside it count more
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Go on from the newest checkpoint in --out
    #[arg(long)]
    resume: bool,
    /// Threads that decode and crop pictures
    #[arg(long, default_value_t = 2)]
    num_workers: usize,
    /// Decoded pictures are kept in memory up to this many megabytes
    #[arg(long, default_value_t = 2048, value_name = "MB")]
    cache: usize,
    /// Minutes between checkpoints, beside the one after each epoch
    #[arg(long, default_value_t = 10.0)]
    checkpoint_minutes: f64,
    /// Number of newest checkpoints that are kept
    #[arg(long, default_value_t = 3)]
    keep_checkpoints: usize,
    /// Epochs between checkpoints that stay for good, 0 for none
    #[arg(long, default_value_t = 20)]
    saveckp_freq: usize,
    /// Epochs between k-NN figures of the teacher (k = 20), 0 for none
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "What the run shows")]
    knn_every: usize,
    /// Gallery of the k-NN figures, classes as folders. Without it every fifth picture of --data is classified by the others
    #[arg(long, value_name = "DIR", requires = "knn_val", help_heading = "What the run shows")]
    knn_train: Option<PathBuf>,
    /// Pictures that the gallery classifies, in folders of the same names
    #[arg(long, value_name = "DIR", requires = "knn_train", help_heading = "What the run shows")]
    knn_val: Option<PathBuf>,
    /// Epochs between pictures of the teacher's attention, and with --knn-every of its features, for report.html; 0 for none
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "What the run shows")]
    pictures_every: usize,
    /// Picture or folder whose attention is drawn; without it some of --data
    #[arg(long, value_name = "FILE|DIR", help_heading = "What the run shows")]
    watch: Option<PathBuf>,
    #[command(flatten)]
    recipe: Recipe,
}

/// Runs the verb. `matches` are those that `args` come from: they tell flags that were given from defaults.
///
/// # Errors
/// When settings do not fit, or training fails.
pub fn run(args: &Args, matches: &ArgMatches) -> Result<()> {
    let recipe = resolve(args, matches)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        // A second signal ends the program at once.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let options = Options {
        data: args.data.clone(),
        out: args.out.clone(),
        resume: args.resume,
        workers: args.num_workers,
        cache: args.cache.saturating_mul(1 << 20),
        checkpoint_every: Duration::try_from_secs_f64(args.checkpoint_minutes * 60.0).context("--checkpoint-minutes")?,
        keep: args.keep_checkpoints,
        save_every_epochs: args.saveckp_freq,
        shown: observer::Options {
            knn_every: args.knn_every,
            knn_folders: args.knn_train.clone().zip(args.knn_val.clone()),
            pictures_every: args.pictures_every,
            watch: args.watch.clone(),
        },
        device: candle_core::Device::Cpu,
        stop,
    };
    match trainer::train(&recipe, &options)? {
        Outcome::Finished => tracing::info!("finished: {}", args.out.display()),
        Outcome::Stopped => {}
    }
    Ok(())
}

/// The file's settings, then the flags that were given.
fn resolve(args: &Args, matches: &ArgMatches) -> Result<Recipe> {
    let Some(path) = &args.config else { return Ok(args.recipe.clone()) };
    let text = fs_err::read_to_string(path)?;
    let file: toml::Table = text.parse().with_context(|| path.display().to_string())?;
    // The public script's names have underscores.
    let mut settings: toml::Table = file.into_iter().map(|(name, value)| (name.replace('_', "-"), value)).collect();
    let flags = toml::Table::try_from(&args.recipe)?;
    for (name, value) in flags {
        if matches.value_source(&name.replace('-', "_")) == Some(ValueSource::CommandLine) {
            settings.insert(name, value);
        }
    }
    settings.try_into().with_context(|| path.display().to_string())
}
