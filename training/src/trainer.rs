//! A training run from its first step to its last, or to the signal that ends it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};

use crate::checkpoint::state::{self, Description, Stored};
use crate::checkpoint::{self, init};
use crate::data::loader::{self, Batch, Plan};
use crate::data::pictures::Pictures;
use crate::learner::{self, Learner, Step};
use crate::log::{Line, Log, Sums};
use crate::network::Network;
use crate::plot;
use crate::progress::Progress;
use crate::recipe::{FIXED, Recipe, Schedules};

/// Where a run reads and writes, and how it treats the machine: nothing here changes what is learnt.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of pictures.
    pub data: PathBuf,
    /// Folder of the run.
    pub out: PathBuf,
    /// Go on from the newest checkpoint of the folder.
    pub resume: bool,
    /// Checkpoint that a new run takes the weights of its backbones from.
    pub init: Option<PathBuf>,
    /// Threads that decode and crop.
    pub workers: usize,
    /// Bytes of decoded pictures that are kept in memory.
    pub cache: usize,
    /// A checkpoint at least this often.
    pub checkpoint_every: Duration,
    /// Number of newest checkpoints that stay.
    pub keep: usize,
    /// Epochs between checkpoints that stay for good, 0 for none.
    pub save_every_epochs: usize,
    /// Where tensors live.
    pub device: Device,
    /// Set from outside to end the run after the step under way.
    pub stop: Arc<AtomicBool>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs are done.
    Finished,
    /// A signal came; a checkpoint was written.
    Stopped,
}

/// Random numbers of initial weights and of stochastic depth.
const WEIGHTS: u64 = 3;
const DROP_PATH: u64 = 4;

/// Trains.
///
/// # Errors
/// When the folder has no pictures that can be read, checkpoints do not fit, the loss is not finite, or a file cannot be written.
pub fn train(recipe: &Recipe, options: &Options) -> Result<Outcome> {
    recipe.check()?;
    let recipe = &recipe.resolved();
    let pictures = Arc::new(Pictures::open(&options.data, recipe.shrink, options.cache)?);
    let steps_per_epoch = loader::batches(pictures.len(), recipe.batch_size_per_gpu);
    ensure!(
        steps_per_epoch > 0,
        "{} holds {} pictures, fewer than one batch: lower --batch-size-per-gpu from {}",
        options.data.display(),
        pictures.len(),
        recipe.batch_size_per_gpu
    );
    fs_err::create_dir_all(&options.out)?;
    state::remove_unfinished(&options.out)?;
    let mut random = loader::generator(recipe.seed, WEIGHTS, 0, 0);
    let student = Network::new(recipe.backbone(), recipe.head(), &mut random, &options.device)?;
    if let Some(path) = &options.init {
        let notes = init::initialise(&student.backbone, path, checkpoint::Options::default());
        notes.with_context(|| format!("--init {}", path.display()))?.iter().for_each(|note| tracing::info!("{note}"));
    }
    let mut run = Run {
        recipe,
        options,
        plan: Plan { augmentation: recipe.augmentation()?, batch: recipe.batch_size_per_gpu, seed: recipe.seed, workers: options.workers },
        schedules: recipe.schedules(steps_per_epoch),
        steps_per_epoch,
        learner: Learner::new(student, recipe.optimizer)?,
        fingerprint: pictures.fingerprint(),
        pictures,
        log: Log::new(&options.out),
        step: 0,
        sums: Sums::default(),
        saved: (Instant::now(), None),
    };
    run.restore()?;
    run.train()
}

struct Run<'a> {
    recipe: &'a Recipe,
    options: &'a Options,
    plan: Plan,
    schedules: Schedules,
    steps_per_epoch: usize,
    learner: Learner,
    pictures: Arc<Pictures>,
    /// Of the pictures' names.
    fingerprint: String,
    log: Log,
    /// Steps taken since the start of the run.
    step: usize,
    /// Over the epoch under way.
    sums: Sums,
    /// When, and at which step, a checkpoint was last written.
    saved: (Instant, Option<usize>),
}

impl Run<'_> {
    /// Goes on from the newest checkpoint that is whole, where that was asked for.
    fn restore(&mut self) -> Result<()> {
        let out = self.options.out.display();
        let mut found = state::list(&self.options.out)?;
        if !self.options.resume {
            ensure!(found.is_empty(), "{out} already holds checkpoints: add --resume to go on, or choose another --out");
            return Ok(());
        }
        if found.is_empty() {
            tracing::info!("{out} holds no checkpoint: the run starts at its beginning");
            return Ok(());
        }
        let mut unusable = Vec::new();
        while let Some(path) = found.pop() {
            match Stored::open(&path) {
                Ok(stored) => {
                    self.go_on_from(&path, &stored)?;
                    return set_aside(&unusable);
                }
                Err(error) => {
                    tracing::warn!("{error:#}: an older checkpoint is tried");
                    unusable.push(path);
                }
            }
        }
        bail!("none of the {} checkpoints in {out} can be used: move them away to start anew", unusable.len())
    }

    fn go_on_from(&mut self, path: &Path, stored: &Stored) -> Result<()> {
        self.check_settings(&stored.description)?;
        stored.restore(&mut self.learner).with_context(|| path.display().to_string())?;
        self.step = stored.description.step;
        self.sums = stored.description.epoch_so_far;
        self.saved.1 = Some(self.step);
        self.log.go_back_to(self.step)?;
        tracing::info!("going on from {} (epoch {}, step {})", path.display(), self.step / self.steps_per_epoch, self.step);
        Ok(())
    }

    fn check_settings(&self, stored: &Description) -> Result<()> {
        for (name, change) in self.recipe.differences(&stored.recipe) {
            if FIXED.contains(&name.as_str()) {
                bail!("the run cannot go on with another --{name} ({change}): give the old one, or start anew in another --out");
            }
            tracing::warn!("--{name} has changed since the checkpoint: {change}");
        }
        ensure!(
            stored.pictures.as_ref().is_none_or(|pictures| *pictures == self.fingerprint),
            "the pictures below {} are not those of the run (other names): give the old folder, or start anew in another --out",
            self.options.data.display()
        );
        ensure!(
            stored.steps_per_epoch == self.steps_per_epoch,
            "an epoch of the checkpoint had {} steps, one over {} has {}: the pictures are not those of the run",
            stored.steps_per_epoch,
            self.options.data.display(),
            self.steps_per_epoch
        );
        Ok(())
    }

    fn train(&mut self) -> Result<Outcome> {
        let epochs = self.recipe.epochs;
        tracing::info!(
            "{} pictures, {} steps an epoch, {} parameters",
            self.pictures.len(),
            self.steps_per_epoch,
            self.learner.student.groups().map(|group| group.var().elem_count()).sum::<usize>()
        );
        let mut progress = Progress::new(self.step, self.steps_per_epoch, epochs, self.plan.batch, self.recipe.out_dim);
        while self.step < epochs * self.steps_per_epoch {
            let epoch = self.step / self.steps_per_epoch;
            if !self.epoch(epoch, &mut progress)? {
                self.save()?;
                progress.say(&format!("stopped after step {}: --resume goes on from there", self.step));
                return Ok(Outcome::Stopped);
            }
            self.end_epoch(epoch, &progress)?;
            if self.options.stop.load(Ordering::Relaxed) && epoch + 1 < epochs {
                progress.say(&format!("stopped after epoch {}: --resume goes on from there", epoch + 1));
                return Ok(Outcome::Stopped);
            }
        }
        self.draw();
        let broken = self.pictures.broken();
        if broken > 0 {
            progress.say(&format!("{broken} of {} files could not be read", self.pictures.len()));
        }
        Ok(Outcome::Finished)
    }

    /// The steps of an epoch that are left; false if the run was told to stop before its last.
    fn epoch(&mut self, epoch: usize, progress: &mut Progress) -> Result<bool> {
        let (first, end) = (self.step % self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch);
        let (mut since, before) = (Instant::now(), self.step);
        for batch in loader::epoch(&self.pictures, self.plan, epoch, first) {
            let step = self.schedules.at(self.step);
            let report = self.take(&batch, &step)?;
            progress.step(self.step, report.loss, report.teacher_entropy, step.optimizer.lr);
            self.step += 1;
            self.sums.steps += 1;
            self.sums.loss += report.loss;
            self.sums.entropy += report.teacher_entropy;
            self.sums.seconds += since.elapsed().as_secs_f64();
            since = Instant::now();
            if self.step == end {
                return Ok(true);
            }
            if self.options.stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            if self.saved.0.elapsed() >= self.options.checkpoint_every {
                self.save()?;
            }
        }
        ensure!(self.step > before, "none of the {} pictures below {} could be read", self.pictures.len(), self.options.data.display());
        bail!("the pictures of epoch {} ended early, at step {}: a thread that loads them failed", epoch + 1, self.step)
    }

    /// Logs an epoch, then writes its checkpoint: a line without its checkpoint is taken out by the next run.
    fn end_epoch(&mut self, epoch: usize, progress: &Progress) -> Result<()> {
        let line = self.line(epoch);
        progress.say(&format!(
            "epoch {} of {}: loss {:.4}, teacher entropy {:.3} of {:.3}, {:.1} images/s",
            line.epoch, self.recipe.epochs, line.loss, line.teacher_entropy, line.ln_k, line.images_per_second
        ));
        self.log.append(&line)?;
        self.sums = Sums::default();
        self.save()?;
        self.keep_for_good(epoch)?;
        self.draw();
        Ok(())
    }

    fn take(&mut self, batch: &Batch, step: &Step) -> Result<learner::Report> {
        let mut random = loader::generator(self.recipe.seed, DROP_PATH, self.step as u64, 0);
        let tensor = |values: &Vec<f32>, size: u32| {
            let size = size as usize;
            Tensor::from_slice(values, (values.len() / (3 * size * size), 3, size, size), &self.options.device)
        };
        let global = tensor(&batch.global, self.plan.augmentation.global_size)?;
        let local = if batch.local.is_empty() { None } else { Some(tensor(&batch.local, self.plan.augmentation.local_size)?) };
        self.learner.step(&global, local.as_ref(), step, &mut random).with_context(|| {
            let names: Vec<&str> = batch.pictures.iter().map(|&index| self.pictures.name(index)).collect();
            format!("step {} failed on {}", self.step, names.join(", "))
        })
    }

    fn line(&self, epoch: usize) -> Line {
        let Sums { steps, loss, entropy, seconds } = self.sums;
        let (loss, teacher_entropy) = (loss / steps.max(1) as f64, entropy / steps.max(1) as f64);
        let last = self.schedules.at(self.step.saturating_sub(1));
        Line {
            epoch: epoch + 1,
            step: self.step,
            loss,
            ln_k: (self.recipe.out_dim as f64).ln(),
            teacher_entropy,
            kl: loss - teacher_entropy,
            lr: last.optimizer.lr,
            weight_decay: last.optimizer.weight_decay,
            momentum: last.momentum,
            teacher_temp: last.teacher_temp,
            images_per_second: (steps * self.plan.batch) as f64 / seconds.max(1e-9),
            seconds,
            broken_pictures: self.pictures.broken(),
        }
    }

    /// Writes a checkpoint, then removes the oldest beyond those that are kept.
    fn save(&mut self) -> Result<()> {
        let path = self.options.out.join(state::file_name(self.step));
        if self.saved.1 != Some(self.step) {
            let description = Description {
                pictures: Some(self.fingerprint.clone()),
                epoch_so_far: self.sums,
                ..Description::new(self.recipe, &self.learner, self.step, self.steps_per_epoch)
            };
            state::save(&path, &self.learner, &description)?;
        }
        self.saved = (Instant::now(), Some(self.step));
        let found = state::list(&self.options.out)?;
        for old in found.iter().rev().filter(|old| **old <= path).skip(self.options.keep.max(1)) {
            fs_err::remove_file(old)?;
        }
        Ok(())
    }

    /// Draws the curves. A run does not end for a picture that cannot be written.
    fn draw(&self) {
        let drawn = self.log.lines().and_then(|lines| plot::curves(&lines, &self.options.out.join("curves.svg")));
        if let Err(error) = drawn {
            tracing::warn!("{error:#}");
        }
    }

    fn keep_for_good(&self, epoch: usize) -> Result<()> {
        let every = self.options.save_every_epochs;
        if every > 0 && (epoch + 1).is_multiple_of(every) {
            let kept = self.options.out.join(format!("epoch-{:04}.safetensors", epoch + 1));
            let newest = self.options.out.join(state::file_name(self.step));
            // A link shares the bytes; where the file system has none, they are copied.
            if !kept.exists() && fs_err::hard_link(&newest, &kept).is_err() {
                fs_err::copy(&newest, &kept)?;
            }
        }
        Ok(())
    }
}

/// Gives checkpoints that cannot be used another name, so that they are neither tried again nor counted.
fn set_aside(paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        fs_err::rename(path, path.with_extension("damaged"))?;
    }
    Ok(())
}
