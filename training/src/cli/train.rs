//! `dino-train train`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ArgMatches;
use clap::parser::ValueSource;

use super::public::{self, Public};
use crate::recipe::{Preset, Recipe};
use crate::trainer::{self, Options, Outcome};

/// Train a backbone on a folder of pictures. Labels are not needed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of pictures, at any depth
    #[arg(long, visible_alias = "data-path", value_name = "DIR")]
    data: PathBuf,
    /// Folder of the run: checkpoints, log.jsonl and curves.svg
    #[arg(long, visible_alias = "output-dir", value_name = "DIR")]
    out: PathBuf,
    /// Settings of the paper (training/recipes); those of --config and flags count more
    #[arg(long, value_enum, value_name = "NAME")]
    preset: Option<Preset>,
    /// Settings from a file; flags given beside it count more
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Start both backbones from the weights of a checkpoint: a public release, or another run. A run that goes on has its own
    #[arg(long, value_name = "FILE|DIR")]
    init: Option<PathBuf>,
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
    #[command(flatten)]
    recipe: Recipe,
    #[command(flatten)]
    public: Public,
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
        init: args.init.clone(),
        workers: args.num_workers,
        cache: args.cache.saturating_mul(1 << 20),
        checkpoint_every: Duration::try_from_secs_f64(args.checkpoint_minutes * 60.0).context("--checkpoint-minutes")?,
        keep: args.keep_checkpoints,
        save_every_epochs: args.saveckp_freq,
        device: candle_core::Device::Cpu,
        stop,
    };
    match trainer::train(&recipe, &options)? {
        Outcome::Finished => tracing::info!("finished: {}", args.out.display()),
        Outcome::Stopped => {}
    }
    Ok(())
}

/// The preset's settings, then the file's, then the flags that were given.
fn resolve(args: &Args, matches: &ArgMatches) -> Result<Recipe> {
    args.public.check()?;
    let mut settings = toml::Table::new();
    if let Some(preset) = args.preset {
        settings.extend(table(preset.text())?);
    }
    if let Some(path) = &args.config {
        settings.extend(table(&fs_err::read_to_string(path)?).with_context(|| path.display().to_string())?);
    }
    for (name, value) in toml::Table::try_from(&args.recipe)? {
        if matches.value_source(&name.replace('-', "_")) == Some(ValueSource::CommandLine) {
            settings.insert(name, value);
        }
    }
    if let Some(use_fp16) = args.public.use_fp16 {
        settings.insert("precision".to_owned(), public::precision(use_fp16));
    }
    let source = args.config.as_ref().map_or_else(|| "settings".to_owned(), |path| path.display().to_string());
    settings.try_into().context(source)
}

/// Settings of a file, in our spelling: the public script's names have underscores.
fn table(text: &str) -> Result<toml::Table> {
    let table: toml::Table = text.parse()?;
    let mut settings: toml::Table = table.into_iter().map(|(name, value)| (name.replace('_', "-"), value)).collect();
    if let Some(use_fp16) = settings.remove("use-fp16").and_then(|value| value.as_bool()) {
        settings.insert("precision".to_owned(), public::precision(use_fp16));
    }
    Ok(settings)
}
