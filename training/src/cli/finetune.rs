//! `dino-train finetune`: a backbone and a classifier, trained together with labels.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{Device, Tensor};
use clap::ArgMatches;
use dino_hub::{Location, Want};
use dino_vision::embedding::Pooling;
use dino_vision::head::{Description, LinearHead, Task, Tokens};
use dino_vision::model::{Model, sha256};
use dino_vision::transform::Transform;
use image::RgbImage;
use ndarray::Array2;
use rand::seq::SliceRandom;
use rayon::prelude::*;
use serde_json::json;

use super::resume::Resume;
use super::stop;
use super::usage::Usage;
use super::warmup;
use crate::backbone::Pass;
use crate::data::augment::random_resized_crop;
use crate::data::labelled::Labelled;
use crate::data::loader::generator;
use crate::evaluate::figures::Figures;
use crate::evaluate::linear::Probe;
use crate::export;
use crate::files;
use crate::finetune::{self, Classifier, Progress, Settings, Start, Stored};
use crate::kernels::matmul::{Precision, has_bf16};
use crate::log::Log;
use crate::run::lock::Lock;
use crate::run::state;
use crate::show::progress;
use crate::weights::{self, Backbone, init};

/// Train a backbone and a linear classifier on it together, with labels, and measure them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Checkpoint to start from: of the public DINO, DINOv2 and DINOv3 releases, or of this trainer; `hf://OWNER/NAME[@REVISION][/FILE]` names one on a
    /// model hub.
    #[arg(long, value_name = "CHECKPOINT|HF", value_parser = dino_program::flags::location())]
    model: Location,
    /// Pictures to train on: folders directly below DIR are classes.
    #[arg(long, value_name = "DIR")]
    train: PathBuf,
    /// Pictures to measure on, in folders of the same names.
    #[arg(long, value_name = "DIR")]
    val: PathBuf,
    /// Folder of the run: checkpoints that `export` reads, log.jsonl, and at the end a model folder with the classifier in it.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on from the newest checkpoint in --out, or start where it holds none. `--resume` alone means auto.
    #[arg(long, value_enum, value_name = "auto", num_args = 0..=1, default_missing_value = "auto")]
    resume: Option<Resume>,
    #[command(flatten)]
    reading: super::checkpoint::Args,
    /// Decoded pictures are kept in memory up to this many megabytes.
    #[arg(long, default_value_t = 2048, value_name = "MB")]
    cache: usize,
    #[command(flatten)]
    settings: Settings,
}

/// Purposes of random numbers.
const ORDER: u64 = 9;
const CROPS: u64 = 10;
const WEIGHTS: u64 = 11;
const DROP_PATH: u64 = 12;
const MIXUP: u64 = 13;
/// Name of the classifier in the model folder.
const HEAD: &str = "finetuned";

/// Runs the verb.
///
/// # Errors
/// When the checkpoint cannot be trained further, settings do not fit, or a file cannot be written.
pub fn run(args: &Args, matches: &ArgMatches) -> Result<()> {
    let mut settings = args.settings.clone();
    warmup::cut(&mut settings.schedule.warmup_epochs, settings.schedule.epochs, matches);
    settings.schedule.check().map_err(Usage)?;
    let checkpoint = args.model.fetch(&Want::Weights)?.path;
    let options = args.reading.options(None);
    let loaded = weights::load(&checkpoint, &options)?;
    let Backbone::Vit(vit) = loaded.backbone else {
        bail!("{} is a convolutional network: finetune trains vision transformers", args.model)
    };
    let precision = if has_bf16() { Precision::Bf16 } else { Precision::F32 };
    let mut notes = loaded.report.notes;
    let backbone = init::vit(vit, settings.drop_path, precision, &Device::Cpu, &mut notes).with_context(|| args.model.to_string())?;
    for note in notes.into_iter().chain(loaded.transform_note) {
        tracing::info!("{note}");
    }
    let (train, val) = Labelled::train_and_val(&args.train, args.cache.saturating_mul(1 << 20), &args.val)?;
    let mut random = generator(settings.seed, WEIGHTS, 0, 0);
    let classifier = Classifier::new(backbone, train.classes().len(), &mut random, &Device::Cpu)?;
    let names: Vec<&str> = (0..train.len()).map(|index| train.name(index)).collect();
    let progress = Progress {
        settings,
        epochs_done: 0,
        classes: train.classes().to_vec(),
        pictures: sha256(names.join("\0").as_bytes()),
        start: Some(Start { weights: loaded.sha256, prefix: options.prefix, ignore: options.ignore }),
    };
    fs_err::create_dir_all(&args.out)?;
    let _lock = Lock::take(&args.out)?;
    files::remove_unfinished(&args.out)?;
    let stop = stop::on_signals()?;
    let mut run = Run { args, transform: loaded.transform, train, val, classifier, progress };
    run.restore()?;
    run.train(&stop)
}

struct Run<'a> {
    args: &'a Args,
    transform: Transform,
    train: Labelled,
    val: Labelled,
    classifier: Classifier,
    progress: Progress,
}

impl Run<'_> {
    fn restore(&mut self) -> Result<()> {
        let out = self.args.out.display();
        let Some((newest, stored)) = state::newest(&self.args.out, self.args.resume.is_some(), Stored::<Progress>::open)? else {
            return self.log().set_aside();
        };
        let (old, new) = (&stored.progress, &self.progress);
        ensure!(
            old.settings == new.settings,
            "{out} was begun with other settings: give the old ones, or choose another --out ({})",
            serde_json::to_string(&old.settings)?
        );
        ensure!(
            old.pictures == new.pictures && old.classes == new.classes,
            "the pictures of --train are not those of the run: give the old folder, or choose another --out"
        );
        self.check_network(&stored)?;
        stored.restore(&mut self.classifier)?;
        let start = self.progress.start.take();
        self.progress = Progress { start, ..stored.progress };
        self.log().keep_epochs(self.progress.epochs_done)?;
        tracing::info!("going on from {} (epoch {})", newest.display(), self.progress.epochs_done);
        Ok(())
    }

    /// Whether the run goes on with the network that it began with, and shows it pictures in the same way.
    fn check_network(&self, stored: &Stored<Progress>) -> Result<()> {
        let out = self.args.out.display();
        let change = stored.progress.start.as_ref().zip(self.progress.start.as_ref()).and_then(|(old, new)| old.change(new));
        let heads = self.classifier.backbone.config().heads;
        let change = change.or_else(|| (stored.heads != heads).then(|| ("--heads", format!("{} -> {heads}", stored.heads))));
        if let Some((flag, change)) = change {
            bail!("{out} was begun with another {flag} ({change}): give the old one, or choose another --out");
        }
        ensure!(
            stored.transform == self.transform,
            "{out} was begun with another transform of pictures (--size, --crop, --mean, --std, --interpolation, or a file beside --model): \
             give the old one, or choose another --out ({})",
            serde_json::to_string(&stored.transform)?
        );
        Ok(())
    }

    fn log(&self) -> Log {
        Log::new(&self.args.out)
    }

    fn train(&mut self, stop: &AtomicBool) -> Result<()> {
        let epochs = self.progress.settings.schedule.epochs;
        let mut figures = None;
        while self.progress.epochs_done < epochs {
            let epoch = self.progress.epochs_done;
            let started = Instant::now();
            let Some(loss) = self.epoch(epoch, stop)? else {
                tracing::info!("stopped in epoch {}: --resume goes on from its beginning", epoch + 1);
                return Ok(());
            };
            let seconds = started.elapsed().as_secs_f64();
            let measured = self.measure()?;
            figures = Some(measured);
            let line = json!({
                "epoch": epoch + 1, "loss": loss, "top1": measured.top1, "top5": measured.top5, "mean_class": measured.mean_class,
                "images_per_second": self.train.len() as f64 / seconds, "seconds": seconds,
            });
            tracing::info!("epoch {} of {epochs}: loss {loss:.4}, top-1 {:.2} % on val", epoch + 1, measured.top1);
            self.log().append_json(&line)?;
            self.progress.epochs_done += 1;
            self.save()?;
            if stop.load(Ordering::Relaxed) && epoch + 1 < epochs {
                tracing::info!("stopped after epoch {}: --resume goes on from there", epoch + 1);
                return Ok(());
            }
        }
        let figures = match figures {
            Some(figures) => figures,
            None => self.measure()?,
        };
        self.export(&figures)?;
        Labelled::count_skipped(&[&self.train, &self.val]);
        print(&figures, epochs)
    }

    /// Mean loss of an epoch, nothing if it was stopped.
    fn epoch(&mut self, epoch: usize, stop: &AtomicBool) -> Result<Option<f64>> {
        let settings = &self.progress.settings;
        let mut order: Vec<usize> = (0..self.train.len()).collect();
        order.shuffle(&mut generator(settings.seed, ORDER, epoch as u64, 0));
        let steps_per_epoch = order.len().div_ceil(settings.schedule.batch_size);
        let bar = progress::bar(order.len(), "train");
        let (mut loss, mut rows) = (0.0, 0);
        for (number, chosen) in order.chunks(settings.schedule.batch_size).enumerate() {
            let step = epoch * steps_per_epoch + number;
            let crop = |picture: &RgbImage, index: usize| {
                let size = self.transform.output_size().unwrap_or((picture.height(), picture.width()));
                random_resized_crop(picture, size, &mut generator(settings.seed, CROPS, epoch as u64, index as u64))
            };
            let Some((mut pixels, shape, classes)) = batch(&self.train, chosen, &self.transform, crop) else { continue };
            let count = self.train.classes().len();
            let mut targets = finetune::targets(&classes, count, settings.smoothing);
            if settings.mixup > 0.0 {
                let mut random = generator(settings.seed, MIXUP, step as u64, 0);
                finetune::mix(&mut pixels, &mut targets, classes.len(), settings.mixup, &mut random);
            }
            let pixels = Tensor::from_vec(pixels, shape, &Device::Cpu)?;
            let targets = Tensor::from_vec(targets, (classes.len(), count), &Device::Cpu)?;
            let lr = settings.schedule.lr_at(step, steps_per_epoch);
            let mut random = generator(settings.seed, DROP_PATH, step as u64, 0);
            let value = self.classifier.step(&pixels, &targets, settings, lr, &mut random).with_context(|| format!("step {step}"))?;
            loss += value * classes.len() as f64;
            rows += classes.len();
            bar.inc(chosen.len() as u64);
            bar.set_prefix(format!("epoch {}/{} loss {:.3}", epoch + 1, settings.schedule.epochs, loss / rows as f64));
            if stop.load(Ordering::Relaxed) && number + 1 < steps_per_epoch {
                return Ok(None);
            }
        }
        bar.finish_and_clear();
        ensure!(rows > 0, "none of the pictures below {} could be read", self.args.train.display());
        Ok(Some(loss / rows as f64))
    }

    fn measure(&self) -> Result<Figures> {
        let order: Vec<usize> = (0..self.val.len()).collect();
        let (mut features, mut classes) = (Vec::new(), Vec::new());
        for chosen in order.chunks(self.progress.settings.schedule.batch_size) {
            let crop = |picture: &RgbImage, _| self.transform.pixels(picture);
            let Some((pixels, shape, own)) = batch(&self.val, chosen, &self.transform, crop) else { continue };
            let pixels = Tensor::from_vec(pixels, shape, &Device::Cpu)?;
            features.extend(self.classifier.backbone.features(&[pixels], &mut Pass::Frozen)?.flatten_all()?.to_vec1::<f32>()?);
            classes.extend(own);
        }
        ensure!(!classes.is_empty(), "none of the pictures below {} could be read", self.args.val.display());
        let features = Array2::from_shape_vec((classes.len(), features.len() / classes.len()), features)?;
        let (weight, bias) = self.classifier.weights()?;
        Ok(Probe::from_weights(weight, bias, 0.0).figures(features.view(), &classes))
    }

    fn save(&mut self) -> Result<()> {
        finetune::save(&self.args.out, self.progress.epochs_done, &mut self.classifier, &self.transform, &self.progress)
    }

    /// The model folder of the last checkpoint, with the classifier in it.
    fn export(&self, figures: &Figures) -> Result<()> {
        let folder = self.args.out.join("model");
        let newest = self.args.out.join(finetune::file_name(self.progress.epochs_done));
        export::export(&newest, &folder, &export::Options::default())?;
        let (weight, bias) = self.classifier.weights()?;
        let description = Description {
            format: Task::Classes.format(),
            task: Task::Classes,
            size: None,
            depth: None,
            classes: self.progress.classes.clone(),
            tokens: Tokens { n_last_blocks: 1, avgpool_patchtokens: false },
            model_fingerprint: Model::open(&folder)?.fingerprint(Pooling::Cls),
            weights_sha256: String::new(),
            training: json!({"top1": figures.top1, "top5": figures.top5, "mean_class": figures.mean_class, "settings": self.progress.settings}),
            made_by: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        LinearHead::new(description, weight, bias).save(&folder.join("heads").join(HEAD))?;
        tracing::info!("{} holds the model and its head `{HEAD}`", folder.display());
        Ok(())
    }
}

/// Pixels `[n, 3, h, w]` of those pictures that can be read, their shape, and their classes.
type Batch = (Vec<f32>, (usize, usize, usize, usize), Vec<u32>);

/// Crops pictures on all cores; none if none of them can be read.
fn batch(
    pictures: &Labelled,
    chosen: &[usize],
    transform: &Transform,
    crop: impl Fn(&RgbImage, usize) -> RgbImage + Sync,
) -> Option<Batch> {
    let crops: Vec<Option<RgbImage>> = chosen.par_iter().map(|&index| pictures.get(index).map(|picture| crop(&picture, index))).collect();
    let (width, height) = crops.iter().flatten().next()?.dimensions();
    let (mut pixels, mut classes) = (Vec::new(), Vec::new());
    for (&index, crop) in chosen.iter().zip(&crops) {
        let Some(crop) = crop else { continue };
        pixels.extend(transform.normalise(crop));
        classes.push(pictures.class(index));
    }
    Some((pixels, (classes.len(), 3, height as usize, width as usize), classes))
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(figures: &Figures, epochs: usize) -> Result<()> {
    println!("after {epochs} epochs: top-1 {:.2}, top-5 {:.2}, mean over classes {:.2}", figures.top1, figures.top5, figures.mean_class);
    println!("{}", serde_json::to_string(figures)?);
    Ok(())
}
