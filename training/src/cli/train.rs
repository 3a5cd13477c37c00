//! `dino-train train`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::ArgMatches;

use super::public::{self, Public};
use super::resume::Resume;
use super::usage::Usage;
use super::{launch, shape, stop, warmup};
use crate::backbone::BackboneConfig;
use crate::exchange;
use crate::exchange::launcher::Launched;
use crate::run::observer;
use crate::run::recipe::{Method, Preset, Recipe};
use crate::run::state;
use crate::run::trainer::{self, Options, Outcome};
use crate::weights;
use dino_hub::{Location, Want};

/// Train a backbone on a folder of pictures. Labels are not needed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of pictures, at any depth, and of tar files of them; or a tar file, or a pattern like shards-{000000..000099}.tar
    #[arg(long, visible_alias = "data-path", value_name = "DIR")]
    data: PathBuf,
    /// Folder of the run: checkpoints, log.jsonl, curves.svg, report.html and event files for `TensorBoard`
    #[arg(long, visible_alias = "output-dir", value_name = "DIR")]
    out: PathBuf,
    /// Settings of the paper (training/recipes); those of --config and flags count more
    #[arg(long, value_enum, value_name = "NAME")]
    preset: Option<Preset>,
    /// Settings from a file; flags given beside it count more
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Start both backbones from the weights of a checkpoint: a public release, or another run; `hf://OWNER/NAME[@REVISION][/FILE]` names
    /// one on a model hub. Its sizes count where --arch is not given, and with --method dinov2 the settings of --preset `continue_dinov2`
    /// where neither --preset nor --config is. The run measures what the weights can do before its first step, and after each epoch whether
    /// its teacher can do more. A run that goes on has its own
    #[arg(long, value_name = "FILE|DIR|HF", value_parser = dino_program::flags::location())]
    init: Option<Location>,
    /// How that checkpoint is read
    #[command(flatten)]
    network: super::checkpoint::Network,
    /// Checkpoint of the same architecture that --gram-loss-weight holds patches to: an earlier one of the same run, or another run's
    #[arg(long, value_name = "FILE|DIR|HF", value_parser = dino_program::flags::location(), help_heading = "Loss")]
    gram_anchor: Option<Location>,
    /// Go on from the newest checkpoint in --out, or start where it holds none: the same command line for the first start and for each
    /// restart of a job. `--resume` alone means auto
    #[arg(long, value_enum, value_name = "auto", num_args = 0..=1, default_missing_value = "auto")]
    resume: Option<Resume>,
    /// Threads that decode and crop pictures, each of which holds a batch; without it 2, and on a GPU one for each core, 16 at most
    #[arg(long)]
    num_workers: Option<usize>,
    /// Decoded pictures are kept in memory up to this many megabytes
    #[arg(long, default_value_t = 2048, value_name = "MB")]
    cache: usize,
    /// Minutes between checkpoints, beside the one after each epoch
    #[arg(long, value_parser = dino_program::flags::from_zero::<f64>, default_value_t = 10.0)]
    checkpoint_minutes: f64,
    /// Number of newest checkpoints that are kept, beside the best, where --knn-every or --init has the teacher measured
    #[arg(long, default_value_t = 2)]
    keep_checkpoints: usize,
    /// Epochs between checkpoints that stay for good, 0 for none
    #[arg(long, default_value_t = 0)]
    saveckp_freq: usize,
    /// Steps in a row after which a run that has collapsed is stopped, 0 for never
    #[arg(long, default_value_t = 500)]
    collapse_steps: usize,
    /// Keep the inputs of a ViT's blocks alone for the backward pass, and compute the rest again there: the same numbers in less memory,
    /// and a quarter to a third slower
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = clap::builder::BoolishValueParser::new())]
    activation_checkpointing: bool,
    /// Where to compute: cpu, cuda (the first GPU, or the one of this process's number on its machine) or cuda:N
    #[arg(long, value_parser = crate::device::known, default_value = "cpu", value_name = "DEVICE")]
    device: String,
    /// Processes of this machine that train together, each on --batch-size-per-gpu pictures and its share of the cores. For several
    /// machines, start one process each with torchrun, or with the environment variables that it sets
    #[arg(long, value_parser = dino_program::flags::one_to(launch::MOST), default_value_t = 1, value_name = "N")]
    processes: usize,
    /// Minutes that a process waits for another before it gives up
    #[arg(long, value_parser = dino_program::flags::above_zero::<f64>, default_value_t = 10.0)]
    exchange_minutes: f64,
    /// Evaluations in a row below what the weights of --init could do after which the run is ended, 0 for never
    #[arg(long, default_value_t = 5, value_name = "N")]
    stop_below: usize,
    /// Epochs between k-NN figures of the teacher (k = 20), 0 for none. With --init every epoch where it is not given, on up to 5,000
    /// pictures of --data; where they have no classes, it is measured how often two crops of a picture find each other
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
    #[command(flatten)]
    public: Public,
}

/// Runs the verb. `matches` are those that `args` come from: they tell flags that were given from defaults.
///
/// # Errors
/// When settings do not fit, or training fails.
pub fn run(args: &Args, matches: &ArgMatches) -> Result<()> {
    let mut settings = settings(args, matches).map_err(Usage)?;
    // A run that goes on has weights of its own: a restarted job does not need the hub.
    let goes_on = args.resume.is_some() && !state::list(&args.out)?.is_empty();
    // Before the signals are caught: a download has no checkpoint to write.
    let init = args.init.as_ref().filter(|_| !goes_on).map(|init| init.fetch(&Want::Weights)).transpose()?;
    if !settings.contains_key("arch") {
        let own = match &init {
            _ if goes_on => shape::of_run(&args.out)?,
            Some(found) => shape::of_checkpoint(&found.path, &args.network.options())?,
            None => toml::Table::new(),
        };
        for (name, value) in own {
            settings.entry(name).or_insert(value);
        }
    }
    let recipe = resolve(settings, args, matches, goes_on).map_err(Usage)?;
    recipe.check().and_then(|()| recipe.check_on(args.device == "cpu")).map_err(Usage)?;
    if args.activation_checkpointing && !matches!(recipe.backbone(), BackboneConfig::Vit(_)) {
        return Err(Usage(anyhow!("--activation-checkpointing is for vision transformers: leave it out")).into());
    }
    let gram_anchor = args.gram_anchor.as_ref().map(|anchor| anchor.fetch(&Want::Weights)).transpose()?.map(|found| found.path);
    let stop = stop::on_signals()?;
    let launched = Launched::from_environment()?;
    // The processes that a launcher starts have the same arguments, and these variables.
    if args.processes != 1 && launched.is_none() {
        return launch::run(args.processes, &stop);
    }
    // The processes of a machine share its cores and its memory.
    let neighbours = launched.map_or(1, |launched| launched.local_world);
    let cores = (dino_vision::cores::available() / neighbours).max(1);
    if neighbours > 1 && std::env::var_os("RAYON_NUM_THREADS").is_none() {
        rayon::ThreadPoolBuilder::new().num_threads(cores).build_global()?;
    }
    let device = crate::device::open(&args.device)?;
    // A GPU takes more crops than two cores make; the CPU's cores have the steps to do.
    let workers = args.num_workers.unwrap_or(if device.is_cpu() { 2 } else { cores.min(16) });
    let exchange_timeout = minutes(args.exchange_minutes, "--exchange-minutes")?;
    let options = Options {
        data: args.data.clone(),
        out: args.out.clone(),
        resume: args.resume.is_some(),
        init: init.map(|found| (found.path, args.network.options())),
        // The flags are for one of the two: --init, where it is there.
        gram_anchor: gram_anchor.map(|path| (path, if args.init.is_some() { weights::Options::default() } else { args.network.options() })),
        workers,
        cache: args.cache.saturating_mul(1 << 20) / neighbours,
        checkpoint_every: minutes(args.checkpoint_minutes, "--checkpoint-minutes")?,
        keep: args.keep_checkpoints,
        save_every_epochs: args.saveckp_freq,
        shown: observer::Options {
            knn_every: args.knn_every,
            compares: false,
            knn_folders: args.knn_train.clone().zip(args.knn_val.clone()),
            pictures_every: args.pictures_every,
            watch: args.watch.clone(),
        },
        stop_below: args.stop_below,
        activation_checkpointing: args.activation_checkpointing,
        exchange: exchange::from_environment(&device, exchange_timeout)?,
        device,
        collapse_steps: args.collapse_steps,
        stop,
    };
    match trainer::train(&recipe, &options)? {
        // Rank 0 says it for all.
        Outcome::Finished if options.exchange.rank() == 0 => {
            let out = args.out.display();
            tracing::info!(
                "finished: {out}. How good it is: dino-train knn --model {out} --train TRAIN --val VAL, two folders with a folder for each class"
            );
            tracing::info!(
                "to serve it: dino-train export --checkpoint {out} --out {out}-model, then dino-server serve --model {out}-model"
            );
        }
        Outcome::Finished | Outcome::Judged | Outcome::Stopped => {}
    }
    Ok(())
}

fn minutes(minutes: f64, flag: &'static str) -> Result<Duration> {
    Ok(Duration::try_from_secs_f64(minutes * 60.0).context(flag).map_err(Usage)?)
}

/// The preset's settings, then the file's, then the flags that were given.
fn settings(args: &Args, matches: &ArgMatches) -> Result<toml::Table> {
    args.public.check()?;
    ensure!(
        args.init.is_some() || args.gram_anchor.is_some() || args.network.options() == weights::Options::default(),
        "--prefix and --ignore say how the checkpoint of --init is read, or without it that of --gram-anchor"
    );
    let mut settings = toml::Table::new();
    let goes_on_from_weights = args.init.is_some() && args.config.is_none() && args.recipe.method == Method::Dinov2;
    let preset = args.preset.or_else(|| {
        goes_on_from_weights.then(|| {
            tracing::info!("settings are those of --preset continue_dinov2, and the flags that are given");
            Preset::ContinueDinov2
        })
    });
    if let Some(preset) = preset {
        settings.extend(table(preset.text())?);
    }
    if let Some(path) = &args.config {
        settings.extend(table(&fs_err::read_to_string(path)?).with_context(|| path.display().to_string())?);
    }
    for (name, value) in toml::Table::try_from(&args.recipe)? {
        if warmup::is_given(matches, &name) {
            settings.insert(name, value);
        }
    }
    if let Some(use_fp16) = args.public.use_fp16 {
        settings.insert("precision".to_owned(), public::precision(use_fp16));
    }
    Ok(settings)
}

/// Weight decay of residual networks with --method lejepa, as its public code advises.
const LEJEPA_RESNET_DECAY: f64 = 5e-4;

/// Adds what a method has instead of the defaults, where it was not given.
fn add_defaults_of_method(settings: &mut toml::Table) -> Result<()> {
    let is = |name: &str, value: &str| settings.get(name).and_then(toml::Value::as_str).is_some_and(|found| found.starts_with(value));
    if !is("method", "lejepa") {
        return Ok(());
    }
    let mut own = table(Preset::Lejepa.text())?;
    if is("arch", "resnet") {
        own.extend(["weight-decay", "weight-decay-end"].map(|name| (name.to_owned(), LEJEPA_RESNET_DECAY.into())));
    }
    for (name, value) in own {
        settings.entry(name).or_insert(value);
    }
    Ok(())
}

/// The recipe of settings; `goes_on` where the run has a checkpoint.
fn resolve(mut settings: toml::Table, args: &Args, matches: &ArgMatches, goes_on: bool) -> Result<Recipe> {
    add_defaults_of_method(&mut settings)?;
    let source = args.config.as_ref().map_or_else(|| "settings".to_owned(), |path| path.display().to_string());
    let mut recipe: Recipe = settings.try_into().context(source)?;
    warmup::cut(&mut recipe.warmup_epochs, recipe.epochs, matches);
    warmup::cut_freeze(&mut recipe.freeze_backbone_epochs, recipe.epochs, matches);
    ensure!(
        args.gram_anchor.is_none() || recipe.gram_loss_weight > 0.0,
        "--gram-anchor names the checkpoint that --gram-loss-weight holds patches to: give both, or neither"
    );
    ensure!(
        recipe.gram_loss_weight == 0.0 || args.gram_anchor.is_some() || recipe.gram_update_epochs > 0,
        "--gram-loss-weight holds patches to an anchor: give --gram-anchor CHECKPOINT, or --gram-update-epochs N for the run's own teacher"
    );
    ensure!(
        args.init.is_some() || goes_on || (recipe.lora_rank == 0 && recipe.freeze_backbone_epochs == 0),
        "--lora-rank and --freeze-backbone-epochs keep the weights of --init: give it, or leave them out"
    );
    Ok(recipe)
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

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, FromArgMatches as _, Parser};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn recipe(flags: &[&str]) -> Recipe {
        let line = [&["train", "--data", "pictures", "--out", "run"], flags].concat();
        let matches = Line::command().try_get_matches_from(line).unwrap();
        let args = Line::from_arg_matches(&matches).unwrap().args;
        resolve(settings(&args, &matches).unwrap(), &args, &matches, false).unwrap()
    }

    #[test]
    fn going_on_from_weights_has_settings_of_its_own_and_flags_count_more() {
        let going_on = recipe(&["--init", "weights.pth", "--method", "dinov2", "--epochs", "1", "--layer-decay", "0.5"]);
        assert!(going_on.lr < Recipe::default().lr && (going_on.layer_decay - 0.5).abs() < 1e-9, "{going_on:?}");
        assert_eq!((going_on.warmup_epochs, going_on.freeze_backbone_epochs), (0, 0), "cut to the run");
        assert_eq!(recipe(&["--init", "weights.pth"]), Recipe::default());
    }

    #[test]
    fn a_method_has_defaults_of_its_own_and_what_is_given_counts_more() {
        let decay = |recipe: &Recipe| vec![recipe.weight_decay, recipe.weight_decay_end];
        let own = recipe(&["--method", "lejepa"]);
        own.check().unwrap();
        assert_eq!((decay(&own), own.head_bottleneck_dim, own.clip_grad), (vec![0.05; 2], 128, 0.0));
        assert_eq!(recipe(&["--preset", "lejepa"]), own);
        let given = recipe(&["--method", "lejepa", "--weight-decay-end", "0.2", "--head-bottleneck-dim", "16"]);
        assert_eq!((decay(&given), given.head_bottleneck_dim), (vec![0.05, 0.2], 16));
        assert_eq!(vec![5e-4; 2], decay(&recipe(&["--method", "lejepa", "--arch", "resnet18"])));
        // Of another preset they are given too.
        assert_eq!(vec![0.04, 0.4], decay(&recipe(&["--preset", "vit_small_16", "--method", "lejepa"])));
    }

    #[test]
    fn a_warm_up_that_was_not_asked_for_fits_the_run() {
        let short = recipe(&["--epochs", "1"]);
        assert_eq!(short.warmup_epochs, 0);
        short.check().unwrap();
        let step = short.schedules(1, 1).at(0);
        assert!(step.optimizer.lr > 0.0, "the only step learns");
        assert_eq!(recipe(&["--epochs", "4"]).warmup_epochs, 3);
        assert_eq!(recipe(&["--epochs", "30"]).warmup_epochs, Recipe::default().warmup_epochs);
        // One that was asked for is refused where it does not fit.
        assert!(recipe(&["--epochs", "1", "--warmup-epochs", "2"]).check().unwrap_err().to_string().contains("--warmup-epochs 2"));
    }
}
