//! A training run from its first step to its last, or to the signal that ends it.
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//!
//! use dino_train::run::{observer, recipe::Recipe, trainer::{Options, Outcome, train}};
//!
//! let recipe: Recipe = toml::from_str(
//!     "dim = 16\ndepth = 1\nheads = 2\nout-dim = 64\nhead-hidden-dim = 32\nglobal-crops-size = 32\nlocal-crops-number = 0\n\
//!      batch-size-per-gpu = 16\nepochs = 1\nwarmup-epochs = 0\nwarmup-teacher-temp-epochs = 0",
//! )?;
//! let run = tempfile::tempdir()?;
//! let options = Options {
//!     data: concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/caltech101-val").into(),
//!     out: run.path().to_owned(),
//!     resume: false, init: None, gram_anchor: None,
//!     workers: 1, cache: 0,
//!     checkpoint_every: Duration::from_secs(600), keep: 1, save_every_epochs: 0,
//!     shown: observer::Options::default(), stop_below: 0,
//!     device: candle_core::Device::Cpu, exchange: dino_train::exchange::alone(),
//!     collapse_steps: 0, activation_checkpointing: false, stop: Arc::default(),
//! };
//! assert_eq!(train(&recipe, &options)?, Outcome::Finished);
//! assert_eq!(dino_train::log::Log::new(run.path()).lines()?.len(), 1);
//! # Ok::<(), anyhow::Error>(())
//! ```

mod advice;
mod anchor;
mod start;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};

use crate::data::loader::{self, Batch, Plan};
use crate::data::pictures::Pictures;
use crate::dino::accumulate::{self, Accumulated};
use crate::dino::learner::{self, Learner, Step, Views};
use crate::dino::loss::TEACHER_VIEWS;
use crate::dino::masks::Masks;
use crate::dino::network::Network;
use crate::exchange::{self, Exchange};
use crate::files;
use crate::log::{Line, Log, Measured, Sums, Teacher};
use crate::ops::across::lost_peer;
use crate::run::diagnostics::{Signs, Watch, feature_std_even};
use crate::run::lock::Lock;
use crate::run::observer::{self, Observer};
use crate::run::random::PerPicture;
use crate::run::recipe::{PrecisionChoice, Recipe, Schedules};
use crate::run::state::{self, Description};
use crate::run::verdict::Verdict;
use crate::show::plot;
use crate::show::progress::{Figures, Parts, Progress};
use crate::weights::{self, init};

/// Where a run reads and writes, and how it treats the machine: nothing here changes what is learnt.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of pictures.
    pub data: PathBuf,
    /// Folder of the run.
    pub out: PathBuf,
    /// Go on from the newest checkpoint of the folder.
    pub resume: bool,
    /// Checkpoint that a new run takes the weights of its backbones from, and how it is read.
    pub init: Option<(PathBuf, weights::Options)>,
    /// Checkpoint of the same architecture that Gram anchoring holds patches to, and how it is read.
    pub gram_anchor: Option<(PathBuf, weights::Options)>,
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
    /// What the run shows of itself.
    pub shown: observer::Options,
    /// Evaluations in a row below what the first weights could do after which a run is ended, 0 for never.
    pub stop_below: usize,
    /// Compute the blocks of a transformer again in the backward pass, instead of keeping what they computed.
    pub activation_checkpointing: bool,
    /// Where tensors live.
    pub device: Device,
    /// The other processes of the run.
    pub exchange: Arc<dyn Exchange>,
    /// Steps in a row after which a collapsed run is stopped, 0 for never.
    pub collapse_steps: usize,
    /// Set from outside to end the run after the step under way.
    pub stop: Arc<AtomicBool>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs are done.
    Finished,
    /// The run has ended, by its last epoch or below its first weights, and it was said whether it helped.
    Judged,
    /// A signal came; a checkpoint was written.
    Stopped,
}

/// Random numbers of initial weights, of stochastic depth, of masks, and of what all pictures of a step have in common.
const WEIGHTS: u64 = 3;
const DROP_PATH: u64 = 4;
const MASKS: u64 = 5;
const OF_STEP: u64 = 18;

/// Trains.
///
/// # Errors
/// When the folder has no pictures that can be read, checkpoints do not fit, the loss is not finite, the run collapses, another
/// process is lost, or a file cannot be written.
pub fn train(recipe: &Recipe, options: &Options) -> Result<Outcome> {
    recipe.check()?;
    recipe.check_on(options.device.is_cpu())?;
    crate::device::allow_tf32(recipe.precision != PrecisionChoice::F32);
    let recipe = &recipe.resolved(options.device.is_cpu());
    let pictures = Arc::new(Pictures::open(&options.data, recipe.shrink, options.cache)?);
    let (rank, world) = (options.exchange.rank(), options.exchange.world());
    let per_step = recipe.pictures_per_step(world);
    let steps_per_epoch = loader::batches(pictures.len(), per_step);
    ensure!(
        steps_per_epoch > 0,
        "{} holds {} pictures, fewer than the {per_step} of one step: lower --batch-size-per-gpu from {}",
        options.data.display(),
        pictures.len(),
        recipe.batch_size_per_gpu
    );
    // Rank 0 alone writes.
    let _lock = if rank == 0 {
        fs_err::create_dir_all(&options.out)?;
        let lock = Lock::take(&options.out)?;
        files::remove_unfinished(&options.out)?;
        Some(lock)
    } else {
        None
    };
    let mut random = loader::generator(recipe.seed, WEIGHTS, 0, 0);
    let mut student = Network::new(recipe.backbone(), recipe.head(), &mut random, &options.device)?;
    if let Some(head) = recipe.ibot_head() {
        student = student.with_ibot_head(head, &mut random, &options.device)?;
    }
    if recipe.lora_rank > 0 {
        student = student.with_adapters(recipe.lora_rank, &mut random, &options.device)?;
    }
    if let Some((path, reading)) = &options.init {
        let notes = init::initialise(&student.backbone, path, reading, &recipe.transform(0));
        notes.with_context(|| format!("--init {}", path.display()))?.iter().for_each(|note| tracing::info!("{note}"));
    }
    if options.activation_checkpointing {
        student.backbone = student.backbone.with_activation_checkpointing();
    }
    let mut learner = Learner::new(student, recipe.optimizer, options.exchange.clone())?;
    recipe.set_losses(&mut learner)?;
    learner.gram = anchor::first(recipe, options, &learner)?;
    let anchor = options.gram_anchor.as_ref().map(|(path, _)| weights::sha256(path)).transpose()?;
    let plan = Plan {
        augmentation: recipe.augmentation(0)?,
        batch: recipe.batch_size_per_gpu,
        rank,
        world,
        seed: recipe.seed,
        workers: options.workers,
    };
    let shown = start::shown(options)?;
    let mut run = Run {
        recipe,
        options,
        plan,
        per_step,
        schedules: recipe.schedules(steps_per_epoch, world),
        steps_per_epoch,
        learner,
        fingerprint: pictures.fingerprint(),
        pictures,
        log: Log::new(&options.out),
        // At the size of the last epochs from the first on: figures that are compared are measured alike.
        observer: Observer::open(shown, rank == 0, &options.out, &options.data, recipe.epochs, &recipe.transform(recipe.epochs))?,
        step: 0,
        stopping: false,
        watch: Watch::new(options.collapse_steps, recipe.head().dim),
        sums: Sums::default(),
        saved: (Instant::now(), None),
        baseline: None,
        anchor,
    };
    run.agree()?;
    run.restore()?;
    run.measure_first_weights()?;
    run.train()
}

/// The checkpoint whose teacher could do most so far, in a run's folder.
const BEST: &str = "best.safetensors";

struct Run<'a> {
    recipe: &'a Recipe,
    options: &'a Options,
    plan: Plan,
    /// Pictures of a step, over all processes.
    per_step: usize,
    schedules: Schedules,
    steps_per_epoch: usize,
    learner: Learner,
    pictures: Arc<Pictures>,
    /// Of the pictures' names.
    fingerprint: String,
    log: Log,
    observer: Observer,
    /// Steps taken since the start of the run.
    step: usize,
    /// Whether a process was told to stop.
    stopping: bool,
    watch: Watch,
    /// Over the epoch under way.
    sums: Sums,
    /// When, and at which step, a checkpoint was last written.
    saved: (Instant, Option<usize>),
    /// What the weights that the run began with could do; rank 0 alone knows it.
    baseline: Option<Measured>,
    /// SHA-256 of the file of `--gram-anchor`.
    anchor: Option<String>,
}

impl Run<'_> {
    /// True in the process that reads and writes the run's folder.
    fn leads(&self) -> bool {
        self.plan.rank == 0
    }

    fn train(&mut self) -> Result<Outcome> {
        let epochs = self.recipe.epochs;
        let processes = if self.plan.world > 1 { format!(" on {} processes", self.plan.world) } else { String::new() };
        tracing::info!(
            "{} pictures, {} steps an epoch of {} pictures{processes}, {} parameters",
            self.pictures.len(),
            self.steps_per_epoch,
            self.per_step,
            self.learner.student.groups().map(|group| group.var().elem_count()).sum::<usize>()
        );
        if self.leads() {
            self.advise();
        }
        let mut progress = Progress::new(self.step, self.steps_per_epoch, epochs, self.per_step, self.leads());
        if self.is_unmeasured() {
            self.end_epoch(self.step / self.steps_per_epoch - 1, &mut progress)?;
        }
        while self.step < epochs * self.steps_per_epoch && !self.ends_below()? {
            let epoch = self.step / self.steps_per_epoch;
            if !self.epoch(epoch, &mut progress)? {
                self.save()?;
                progress.say(&format!("stopped after step {}: --resume goes on from there", self.step));
                return Ok(Outcome::Stopped);
            }
            self.end_epoch(epoch, &mut progress)?;
            if self.stopping && epoch + 1 < epochs {
                progress.say(&format!("stopped after epoch {}: --resume goes on from there", epoch + 1));
                return Ok(Outcome::Stopped);
            }
        }
        if self.leads() {
            self.draw();
        }
        let judged = self.judge(&progress)?;
        let broken = self.pictures.broken();
        if broken > 0 {
            progress.say(&format!("{broken} of {} files could not be read", self.pictures.len()));
        }
        Ok(if judged { Outcome::Judged } else { Outcome::Finished })
    }

    /// Whether the run has stayed below its first weights for too long: rank 0 knows, and tells the others.
    fn ends_below(&self) -> Result<bool> {
        let most = self.options.stop_below;
        let ends = self.leads() && most > 0 && Verdict::below(&self.log.lines()?) >= most;
        Ok(exchange::hand_out(&*self.options.exchange, vec![u8::from(ends); usize::from(self.leads())])?.first() == Some(&1))
    }

    /// Says whether the run helped, where it is known.
    fn judge(&self, progress: &Progress) -> Result<bool> {
        let lines = if self.leads() { self.log.lines()? } else { Vec::new() };
        let Some(verdict) = Verdict::of(&lines) else { return Ok(false) };
        let out = self.options.out.display();
        if self.step < self.recipe.epochs * self.steps_per_epoch {
            progress.say(&format!(
                "the run ends after epoch {}: it was below the weights that it began with in {} evaluations in a row (--stop-below)",
                self.step / self.steps_per_epoch,
                self.options.stop_below
            ));
        }
        let next = if verdict.helped() {
            format!("export it with dino-train export --checkpoint {out}/{BEST} --out {out}-model")
        } else {
            "export those weights (the checkpoint of --init), or try a lower --lr or --layer-decay in another --out".to_owned()
        };
        progress.say(&format!("{}: {next}", verdict.sentence()));
        Ok(true)
    }

    /// The steps of an epoch that are left; false if the run was told to stop before its last.
    fn epoch(&mut self, epoch: usize, progress: &mut Progress) -> Result<bool> {
        let (first, end) = (self.step % self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch);
        let (mut since, before) = (Instant::now(), self.step);
        let accumulate = self.recipe.accumulate;
        self.plan.augmentation = self.recipe.augmentation(epoch)?;
        if self.learner.gram.is_none() {
            self.plan.augmentation.anchor_size = None;
        }
        let mut batches = loader::epoch(&self.pictures, self.plan, epoch, first * accumulate..self.steps_per_epoch * accumulate);
        loop {
            let step = self.schedules.at(self.step);
            self.learner.freeze_backbone = self.schedules.freezes_backbone(self.step);
            self.learner.optimizer.layer_decay = self.schedules.layer_decay(self.step);
            let Some(report) = self.take(&mut batches, epoch, &step)? else { break };
            let signs = self.watch.look(&report)?;
            progress.step(self.step, self.figures(&report, signs, &step));
            self.step += 1;
            self.sums.steps += 1;
            self.sums.loss += report.means.loss;
            self.sums.entropy += report.means.teacher_entropy;
            self.sums.koleo += report.means.koleo;
            self.sums.ibot += report.means.ibot;
            self.sums.gram += report.means.gram;
            self.sums.prediction += report.means.prediction;
            self.sums.sigreg += report.means.sigreg;
            self.sums.mean_entropy += signs.mean_entropy;
            self.sums.feature_std += report.feature_std;
            self.stopping = report.stop;
            self.sums.seconds += since.elapsed().as_secs_f64();
            since = Instant::now();
            if self.step == end {
                return Ok(true);
            }
            if self.stopping {
                return Ok(false);
            }
            if self.saved.0.elapsed() >= self.options.checkpoint_every {
                self.save()?;
            }
        }
        ensure!(self.step > before, "none of the {} pictures below {} could be read", self.pictures.len(), self.options.data.display());
        bail!("the pictures of epoch {} ended early, at step {}: a thread that loads them failed", epoch + 1, self.step)
    }

    /// Whether an epoch is trained, and neither measured nor logged: the run was killed in between.
    fn is_unmeasured(&self) -> bool {
        self.step > 0 && self.step.is_multiple_of(self.steps_per_epoch) && self.sums.steps > 0
    }

    /// Logs an epoch, then writes its checkpoint: a line without its checkpoint is taken out by the next run.
    fn end_epoch(&mut self, epoch: usize, progress: &mut Progress) -> Result<()> {
        if self.observer.looks(epoch + 1) {
            // It may take longer than a job has that is told to end.
            self.save()?;
        }
        let measured = self.observer.look(&self.learner.teacher.backbone, &self.options.device, &*self.options.exchange, epoch + 1)?;
        let line = match measured {
            Some(Measured::Knn(knn)) => Line { knn: Some(knn), ..self.line(epoch) },
            Some(Measured::Agreement(agreement)) => Line { agreement: Some(agreement), ..self.line(epoch) },
            None => self.line(epoch),
        };
        let spread = line.feature_std / line.feature_std_even;
        let Line { loss, lr, images_per_second, .. } = line;
        let parts = match line.teacher {
            Some(Teacher { teacher_entropy: entropy, ln_k, kl, .. }) => Parts::Teacher { entropy, ln_k, kl },
            None => Parts::Lejepa { prediction: line.prediction.unwrap_or_default(), sigreg: line.sigreg.unwrap_or_default() },
        };
        progress.epoch(line.epoch, Figures { loss, parts, spread, lr, images_per_second }, measured);
        self.sums = Sums::default();
        // What was written before it was measured is written again.
        self.saved.1 = None;
        self.renew_anchor(epoch)?;
        if !self.leads() {
            return Ok(());
        }
        self.log.append(&line)?;
        self.save()?;
        let every = self.options.save_every_epochs;
        if every > 0 && (epoch + 1).is_multiple_of(every) {
            self.keep_as(&format!("epoch-{:04}.safetensors", epoch + 1))?;
        }
        self.keep_newest_if_best()?;
        self.draw();
        self.observer.show(&line);
        Ok(())
    }

    /// One step over the next batches; none where there are no more.
    fn take(&mut self, batches: &mut impl Iterator<Item = Batch>, epoch: usize, step: &Step) -> Result<Option<learner::Report>> {
        let mut accumulated = Accumulated::default();
        let mut pictures = Vec::new();
        for _ in 0..self.recipe.accumulate {
            let Some(batch) = batches.next() else { return Ok(None) };
            pictures.extend_from_slice(&batch.pictures);
            let added = self.add(&batch, epoch, step.teacher_temp, &mut accumulated);
            if let Err(error) = added {
                // Batch norms ask the other processes: one of those is to blame then, not these pictures.
                if let Some(lost) = lost_peer(&error) {
                    bail!("step {}: {lost}", self.step);
                }
                return Err(error).with_context(|| self.failure(&pictures));
            }
        }
        let stop = self.options.stop.load(Ordering::Relaxed);
        match self.learner.step(accumulated, step, stop) {
            Ok(report) => Ok(Some(report)),
            Err(learner::Error::Device(error)) if lost_peer(&error).is_some() => Err(error).with_context(|| format!("step {}", self.step)),
            // Another process is to blame, not these pictures.
            Err(error @ (learner::Error::Elsewhere(_) | learner::Error::Sums(accumulate::Error::Exchange(_)))) => {
                Err(error).with_context(|| format!("step {}", self.step))
            }
            Err(error) => Err(error).with_context(|| self.failure(&pictures)),
        }
    }

    fn failure(&self, pictures: &[usize]) -> String {
        let names: Vec<&str> = pictures.iter().map(|&index| self.pictures.name(index)).collect();
        format!("step {} failed on {}", self.step, names.join(", "))
    }

    fn add(&self, batch: &Batch, epoch: usize, teacher_temp: f64, accumulated: &mut Accumulated) -> candle_core::Result<()> {
        let draw = |&place: &u64| loader::generator(self.recipe.seed, DROP_PATH, epoch as u64, place);
        let of_step = loader::generator(self.recipe.seed, OF_STEP, epoch as u64, self.step_of(batch));
        let mut random = PerPicture::new(batch.places.iter().map(draw), of_step);
        let tensor = |values: &Vec<f32>, size: u32| {
            let size = size as usize;
            Tensor::from_slice(values, (values.len() / (3 * size * size), 3, size, size), &self.options.device)
        };
        let global = tensor(&batch.global, self.plan.augmentation.global_size)?;
        let local = if batch.local.is_empty() { None } else { Some(tensor(&batch.local, self.plan.augmentation.local_size)?) };
        let anchored = self.plan.augmentation.anchor_size.map(|size| tensor(&batch.anchored, size)).transpose()?;
        let masks = self.masks(batch, epoch)?;
        let views = Views { global: &global, local: local.as_ref(), anchored: anchored.as_ref(), masks: masks.as_ref() };
        self.learner.add(accumulated, views, teacher_temp, &mut random)
    }

    /// The step of an epoch that a batch belongs to.
    fn step_of(&self, batch: &Batch) -> u64 {
        batch.places.first().map_or(0, |place| place / self.per_step as u64)
    }

    /// Patches that the student does not see: drawn for all pictures of the step, of which this batch has some.
    fn masks(&self, batch: &Batch, epoch: usize) -> candle_core::Result<Option<Masks>> {
        let Some(masking) = self.recipe.masking() else { return Ok(None) };
        let side = self.recipe.crop_sizes(epoch).0 / self.recipe.patch_size;
        let mut random = loader::generator(self.recipe.seed, MASKS, epoch as u64, self.step_of(batch));
        let all = masking.draw(TEACHER_VIEWS * self.per_step, (side, side), &mut random);
        let places = batch.places.iter().map(|place| *place as usize % self.per_step);
        let crops = (0..TEACHER_VIEWS).flat_map(|view| places.clone().map(move |place| view * self.per_step + place));
        Masks::new(&crops.map(|crop| all[crop].clone()).collect::<Vec<_>>(), &self.options.device).map(Some)
    }

    /// The highest entropy that the teacher's output can have.
    fn ln_k(&self) -> f64 {
        (self.recipe.out_dim as f64).ln()
    }

    /// What the features' deviation is where they spread evenly.
    fn feature_std_even(&self) -> f64 {
        feature_std_even(self.recipe.head().dim)
    }

    fn figures(&self, report: &learner::Report, signs: Signs, step: &Step) -> Figures {
        let means = &report.means;
        let parts = match self.learner.lejepa {
            Some(_) => Parts::Lejepa { prediction: means.prediction, sigreg: means.sigreg },
            None => Parts::Teacher { entropy: means.teacher_entropy, ln_k: self.ln_k(), kl: signs.kl },
        };
        Figures {
            loss: means.loss,
            parts,
            spread: report.feature_std / self.feature_std_even(),
            lr: step.optimizer.lr,
            ..Figures::default()
        }
    }

    fn line(&self, epoch: usize) -> Line {
        let Sums { steps, seconds, .. } = self.sums;
        let mean = |sum: f64| sum / steps.max(1) as f64;
        let (loss, teacher_entropy) = (mean(self.sums.loss), mean(self.sums.entropy));
        let last = self.schedules.at(self.step.saturating_sub(1));
        let teacher = Teacher {
            ln_k: self.ln_k(),
            teacher_entropy,
            kl: loss - teacher_entropy,
            mean_entropy: mean(self.sums.mean_entropy),
            momentum: last.momentum,
            teacher_temp: last.teacher_temp,
        };
        let lejepa = self.learner.lejepa;
        Line {
            epoch: epoch + 1,
            step: self.step,
            loss,
            teacher: lejepa.is_none().then_some(teacher),
            prediction: lejepa.map(|_| mean(self.sums.prediction)),
            sigreg: lejepa.map(|_| mean(self.sums.sigreg)),
            feature_std: mean(self.sums.feature_std),
            feature_std_even: self.feature_std_even(),
            koleo: (self.learner.koleo_weight > 0.0).then(|| mean(self.sums.koleo)),
            ibot: self.learner.ibot.as_ref().map(|_| mean(self.sums.ibot)),
            gram: self.learner.gram.as_ref().map(|_| mean(self.sums.gram)),
            lr: last.optimizer.lr,
            weight_decay: last.optimizer.weight_decay,
            images_per_second: (steps * self.per_step) as f64 / seconds.max(1e-9),
            seconds,
            broken_pictures: self.pictures.broken(),
            knn: None,
            agreement: None,
            baseline: self.baseline,
        }
    }

    /// Writes a checkpoint, then removes the oldest beyond those that are kept.
    fn save(&mut self) -> Result<()> {
        if !self.leads() {
            return Ok(());
        }
        let path = self.options.out.join(state::file_name(self.step));
        if self.saved.1 != Some(self.step) {
            let description = Description {
                processes: self.plan.world,
                pictures: Some(self.fingerprint.clone()),
                epoch_so_far: self.sums,
                baseline: self.baseline,
                measured: self.observer.fingerprint(),
                gram_anchor: self.anchor.clone(),
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

    /// Keeps the newest checkpoint as the best where its epoch is, among those that were measured in the same way. Also when a run goes on:
    /// it may have been killed between the two.
    fn keep_newest_if_best(&self) -> Result<()> {
        let lines = self.log.lines()?;
        let Some((last, earlier)) = lines.split_last() else { return Ok(()) };
        let Some(newest) = last.measured().filter(|_| last.step == self.step) else { return Ok(()) };
        let is_beaten = |other: &Measured| other.is_comparable(&newest) && other.figure() >= newest.figure();
        if earlier.iter().filter_map(Line::measured).any(|other| is_beaten(&other)) {
            return Ok(());
        }
        self.keep_as(BEST)
    }

    /// Keeps the newest checkpoint under a name that is not removed with the old ones.
    fn keep_as(&self, name: &str) -> Result<()> {
        let (kept, newest) = (self.options.out.join(name), self.options.out.join(state::file_name(self.step)));
        let unfinished = self.options.out.join(format!(".unfinished-{name}"));
        // A link shares the bytes; where the file system has none, they are copied.
        if fs_err::hard_link(&newest, &unfinished).is_err() {
            fs_err::copy(&newest, &unfinished)?;
        }
        Ok(fs_err::rename(&unfinished, &kept)?)
    }
}
