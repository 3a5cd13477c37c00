//! `dino-train distill`: a small student learns the features of a frozen teacher.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{Device, Tensor};
use clap::ArgMatches;
use dino_hub::{Location, Want};
use dino_vision::embedding::Pooling;
use dino_vision::model::{Model, Session};
use dino_vision::transform::Transform;
use ndarray::{Array4, s};
use rand::seq::SliceRandom;
use rayon::prelude::*;
use serde::Serialize;

use super::backbone::DeviceArgs;
use super::resume::Resume;
use super::stop;
use super::usage::Usage;
use super::warmup;
use crate::backbone::vit::Vit;
use crate::backbone::{Backbone, BackboneConfig};
use crate::data::augment::CropWindow;
use crate::data::loader::generator;
use crate::data::pictures::Pictures;
use crate::distill::{Means, Progress, Settings, Student};
use crate::files;
use crate::finetune::{self, Stored};
use crate::log::Log;
use crate::run::lock::Lock;
use crate::run::recipe::{Arch, PrecisionChoice, Recipe};
use crate::run::state;
use crate::show::progress;
use crate::weights::{self, init};

/// Train a small transformer to give the features of a frozen teacher. Labels are not needed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model folder of the teacher, a vision transformer; `hf://OWNER/NAME[@REVISION][/FILE]` names one on a model hub.
    #[arg(long, value_name = "MODEL_DIR|HF", value_parser = dino_program::flags::location())]
    teacher: Location,
    /// Folder of pictures, at any depth, and of tar files of them.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Folder of the run: checkpoints that `export` and `knn` read, and log.jsonl.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on from the newest checkpoint in --out, or start where it holds none. `--resume` alone means auto.
    #[arg(long, value_enum, value_name = "auto", num_args = 0..=1, default_missing_value = "auto")]
    resume: Option<Resume>,
    /// Checkpoint that the student starts from, of the student's sizes.
    #[arg(long, value_name = "FILE|DIR|HF", value_parser = dino_program::flags::location())]
    init: Option<Location>,
    #[command(flatten)]
    network: super::checkpoint::Network,
    /// The student: `vit_tiny`, `vit_small` or `vit_base`.
    #[arg(long, default_value_t = Arch::VitSmall)]
    arch: Arch,
    /// Side of the student's patches in pixels.
    #[arg(long, value_parser = dino_program::flags::at_least_one(), default_value_t = 16)]
    patch_size: usize,
    /// Dimension of its features, in place of the arch's own.
    #[arg(long, value_parser = dino_program::flags::one_to(16_384))]
    dim: Option<usize>,
    /// Number of its blocks, in place of the arch's own.
    #[arg(long, value_parser = dino_program::flags::one_to(256))]
    depth: Option<usize>,
    /// Its attention heads, in place of the arch's own.
    #[arg(long, value_parser = dino_program::flags::one_to(1024))]
    heads: Option<usize>,
    /// Side in pixels of the crops that the student sees, a multiple of its patches. The teacher sees the same crop at the size that has as
    /// many of its own patches.
    #[arg(long, value_parser = dino_program::flags::at_least_one(), default_value_t = 224)]
    crop_size: usize,
    /// Decoded pictures are kept in memory up to this many megabytes.
    #[arg(long, default_value_t = 2048, value_name = "MB")]
    cache: usize,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    settings: Settings,
}

/// Purposes of random numbers.
const ORDER: u64 = 15;
const CROPS: u64 = 16;
const WEIGHTS: u64 = 17;

/// Runs the verb.
///
/// # Errors
/// When teacher and student do not fit, settings do not, or a file cannot be written.
pub fn run(args: &Args, matches: &ArgMatches) -> Result<()> {
    let mut settings = args.settings.clone();
    warmup::cut(&mut settings.schedule.warmup_epochs, settings.schedule.epochs, matches);
    settings.schedule.check().map_err(Usage)?;
    let recipe = Recipe {
        arch: args.arch,
        patch_size: args.patch_size,
        dim: args.dim,
        depth: args.depth,
        heads: args.heads,
        global_crops_size: args.crop_size,
        // Not used, and a multiple of the patches too.
        local_crops_size: args.crop_size,
        drop_path_rate: 0.0,
        precision: PrecisionChoice::Auto,
        ..Recipe::default()
    };
    let BackboneConfig::Vit(config) = recipe.backbone() else {
        return Err(Usage(anyhow::anyhow!("--arch {}: students are vision transformers", args.arch)).into());
    };
    recipe.check().map_err(|error| Usage(error.context("the student (--crop-size is its --global-crops-size)")))?;
    settings.check_local_crops(args.patch_size).map_err(Usage)?;
    if args.init.is_none() && args.network.options() != weights::Options::default() {
        return Err(Usage(anyhow::anyhow!("--prefix and --ignore say how the checkpoint of --init is read")).into());
    }
    let teacher = Teacher::open(args, config.grid())?;
    let pictures = Pictures::open(&args.data, None, args.cache.saturating_mul(1 << 20))?;
    let mut random = generator(settings.seed, WEIGHTS, 0, 0);
    let backbone = Vit::new(config, &mut random, &Device::Cpu)?;
    if let Some(location) = &args.init {
        let path = location.fetch(&Want::Weights)?.path;
        let notes = init::initialise(&Backbone::Vit(backbone.clone()), &path, &args.network.options(), &recipe.transform(0));
        notes
            .with_context(|| format!("--init {location}: a student has MLPs of GELU and a table of positions"))?
            .iter()
            .for_each(|note| tracing::info!("{note}"));
    }
    let student = Student::new(backbone, teacher.dim, &mut random, &Device::Cpu)?;
    let progress = Progress {
        settings,
        epochs_done: 0,
        teacher: teacher.fingerprint.clone(),
        pictures: pictures.fingerprint(),
        student: recipe.clone(),
    };
    fs_err::create_dir_all(&args.out)?;
    let _lock = Lock::take(&args.out)?;
    files::remove_unfinished(&args.out)?;
    let stop = stop::on_signals()?;
    let mut run = Run { args, transform: recipe.transform(0), teacher, pictures, student, progress };
    run.restore()?;
    run.train(&stop)
}

/// The frozen network, and the size at which it sees crops.
struct Teacher {
    session: Session,
    transform: Transform,
    fingerprint: String,
    dim: usize,
    registers: usize,
    /// Side of its crops in pixels.
    side: u32,
}

impl Teacher {
    /// Opens a transformer for crops of `grid` patches a side.
    fn open(args: &Args, grid: usize) -> Result<Self> {
        let path = args.teacher.fetch(&Want::Graph { precision: args.device.precision.to_string() })?.path;
        let model = Model::open(&path)?;
        let manifest = model.manifest();
        ensure!(
            !manifest.is_convolutional(),
            "{} is a convolutional network: the teacher has to give the tokens of patches, as a vision transformer does",
            args.teacher
        );
        let session = args.device.session(&model)?;
        Ok(Self {
            session,
            transform: manifest.transform.clone(),
            fingerprint: model.fingerprint(Pooling::Cls),
            dim: manifest.dim as usize,
            registers: manifest.registers as usize,
            side: grid as u32 * manifest.patch_size,
        })
    }

    /// CLS `[n, dim]` and patches `[n, patches, dim]` of `n` crops.
    fn features(&mut self, pixels: Vec<f32>, n: usize) -> Result<(Tensor, Tensor)> {
        let side = self.side as usize;
        let outputs = self.session.run(Array4::from_shape_vec((n, 3, side, side), pixels)?.view())?;
        let tokens = outputs.last_hidden_state.context("the teacher does not give its tokens: export it from its checkpoint")?;
        let prefix = 1 + self.registers;
        let (_, count, dim) = tokens.dim();
        ensure!(count > prefix && dim == self.dim, "the teacher gives {count} tokens of {dim} numbers, other than its manifest says");
        let (cls, patches) = (tokens.slice(s![.., 0, ..]), tokens.slice(s![.., prefix.., ..]));
        Ok((
            Tensor::from_vec(cls.iter().copied().collect::<Vec<f32>>(), (n, dim), &Device::Cpu)?,
            Tensor::from_vec(patches.iter().copied().collect::<Vec<f32>>(), (n, count - prefix, dim), &Device::Cpu)?,
        ))
    }
}

/// Normalised pixels of crops of some pictures.
#[derive(Default)]
struct Batch {
    /// Pictures that could be read.
    count: usize,
    /// As the student sees them.
    seen: Vec<f32>,
    /// The same as the teacher sees them.
    taught: Vec<f32>,
    /// Local ones: the first of each picture, then the second of each, and so on.
    local: Vec<f32>,
}

struct Run<'a> {
    args: &'a Args,
    transform: Transform,
    teacher: Teacher,
    pictures: Pictures,
    student: Student,
    progress: Progress,
}

impl Run<'_> {
    fn log(&self) -> Log {
        Log::new(&self.args.out)
    }

    fn restore(&mut self) -> Result<()> {
        let out = self.args.out.display();
        let Some((newest, stored)) = state::newest(&self.args.out, self.args.resume.is_some(), Stored::<Progress>::open)? else {
            return self.log().set_aside();
        };
        if let Some((name, change)) = self.progress.student.differences(&stored.progress.student).first() {
            bail!("{out} was begun with another student, --{name} ({change}): give the old one, or choose another --out");
        }
        ensure!(
            Progress { epochs_done: 0, ..stored.progress.clone() } == self.progress,
            "{out} was begun with other settings, another teacher or other pictures: give the old ones, or choose another --out ({})",
            serde_json::to_string(&stored.progress.settings)?
        );
        stored.restore(&mut self.student)?;
        self.progress = stored.progress;
        self.log().keep_epochs(self.progress.epochs_done)?;
        tracing::info!("going on from {} (epoch {})", newest.display(), self.progress.epochs_done);
        Ok(())
    }

    fn train(&mut self, stop: &AtomicBool) -> Result<()> {
        let epochs = self.progress.settings.schedule.epochs;
        let mut last = None;
        while self.progress.epochs_done < epochs {
            let (epoch, started) = (self.progress.epochs_done, Instant::now());
            let Some(means) = self.epoch(epoch, stop)? else {
                tracing::info!("stopped in epoch {}: --resume goes on from its beginning", epoch + 1);
                return Ok(());
            };
            let Means { loss, cls_cosine, patch_cosine, local_cosine } = means;
            let of_local = local_cosine.map_or_else(String::new, |cosine| format!(", of CLS of local crops {cosine:.4}"));
            tracing::info!(
                "epoch {} of {epochs}: loss {loss:.4}, cosine of CLS {cls_cosine:.4}, of patches {patch_cosine:.4}{of_local}",
                epoch + 1
            );
            let seconds = started.elapsed().as_secs_f64();
            self.log().append_json(&Line { epoch: epoch + 1, means, images_per_second: self.pictures.len() as f64 / seconds, seconds })?;
            last = Some(means);
            self.progress.epochs_done += 1;
            self.save()?;
            if stop.load(Ordering::Relaxed) && epoch + 1 < epochs {
                tracing::info!("stopped after epoch {}: --resume goes on from there", epoch + 1);
                return Ok(());
            }
        }
        let out = self.args.out.display();
        tracing::info!(
            "finished. How good it is: dino-train knn --model {out} --train TRAIN --val VAL; to serve it: dino-train export --checkpoint {out} --out {out}-model"
        );
        print(epochs, last)
    }

    /// Means of an epoch, nothing if it was stopped.
    fn epoch(&mut self, epoch: usize, stop: &AtomicBool) -> Result<Option<Means>> {
        let settings = self.progress.settings.clone();
        let mut order: Vec<usize> = (0..self.pictures.len()).collect();
        order.shuffle(&mut generator(settings.seed, ORDER, epoch as u64, 0));
        let steps_per_epoch = order.len().div_ceil(settings.schedule.batch_size);
        let bar = progress::bar(order.len(), &format!("epoch {}/{}", epoch + 1, settings.schedule.epochs));
        let (mut sums, mut rows) = (Means::default(), 0);
        for (number, chosen) in order.chunks(settings.schedule.batch_size).enumerate() {
            let batch = self.batch(chosen, epoch);
            let count = batch.count;
            if count == 0 {
                continue;
            }
            let (cls, patches) = self.teacher.features(batch.taught, count)?;
            let tensor = |pixels: Vec<f32>, side: usize| Tensor::from_vec(pixels, ((), 3, side, side), &Device::Cpu);
            let mut crops = vec![tensor(batch.seen, self.args.crop_size)?];
            if settings.local_crops_number > 0 {
                crops.push(tensor(batch.local, settings.local_crops_size)?);
            }
            let step = epoch * steps_per_epoch + number;
            // Without stochastic depth nothing is drawn.
            let mut random = generator(settings.seed, WEIGHTS, 1, step as u64);
            let means = self.student.step(&crops, (&cls, &patches), &settings, (step, steps_per_epoch), &mut random);
            sums.add(&means.with_context(|| format!("step {step}"))?, count as f64);
            rows += count;
            bar.inc(chosen.len() as u64);
            if stop.load(Ordering::Relaxed) && number + 1 < steps_per_epoch {
                return Ok(None);
            }
        }
        bar.finish_and_clear();
        ensure!(rows > 0, "none of the pictures below {} could be read", self.args.data.display());
        let mut means = Means::default();
        means.add(&sums, 1.0 / rows as f64);
        Ok(Some(means))
    }

    /// Crops of those pictures that can be read.
    fn batch(&self, chosen: &[usize], epoch: usize) -> Batch {
        let (pictures, settings, side) = (&self.pictures, &self.progress.settings, self.args.crop_size);
        let (transform, teacher) = (&self.transform, (&self.teacher.transform, self.teacher.side));
        let crops = |&index: &usize| {
            let picture = pictures.get(index)?;
            let mut random = generator(settings.seed, CROPS, epoch as u64, index as u64);
            let window = CropWindow::draw(picture.dimensions(), (settings.crop_scale, 1.0), &mut random);
            let seen = |window: &CropWindow, side: usize| transform.normalise(&window.crop(&picture, side as u32, side as u32));
            let scale = (settings.local_crops_scale[0], settings.local_crops_scale[1]);
            let mut local = || seen(&window.part(scale, &mut random), settings.local_crops_size);
            let local: Vec<_> = (0..settings.local_crops_number).map(|_| local()).collect();
            let taught = teacher.0.normalise(&window.crop(&picture, teacher.1, teacher.1));
            Some((seen(&window, side), taught, local))
        };
        let crops: Vec<_> = chosen.par_iter().map(crops).collect::<Vec<_>>().into_iter().flatten().collect();
        let mut batch = Batch { count: crops.len(), ..Batch::default() };
        for number in 0..settings.local_crops_number {
            batch.local.extend(crops.iter().flat_map(|(.., local)| &local[number]));
        }
        for (seen, taught, _) in crops {
            batch.seen.extend(seen);
            batch.taught.extend(taught);
        }
        batch
    }

    fn save(&mut self) -> Result<()> {
        finetune::save(&self.args.out, self.progress.epochs_done, &mut self.student, &self.transform, &self.progress)
    }
}

/// A line of log.jsonl.
#[derive(Serialize)]
struct Line {
    epoch: usize,
    #[serde(flatten)]
    means: Means,
    images_per_second: f64,
    seconds: f64,
}

#[derive(Serialize)]
struct Summary {
    epochs: usize,
    #[serde(flatten)]
    means: Means,
}

/// The last line of stdout.
#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(epochs: usize, last: Option<Means>) -> Result<()> {
    // A run that was done before has nothing new to say.
    if let Some(means) = last {
        println!("{}", serde_json::to_string(&Summary { epochs, means })?);
    }
    Ok(())
}
