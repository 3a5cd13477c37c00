//! `dino-train linear --task segmentation|depth`: linear heads over all patches.

mod depth;
mod pairs;
mod report;
mod segmentation;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use dino_vision::bulk::{self, Embedder, Worker};
use dino_vision::dense;
use dino_vision::embedding::Pooling;
use dino_vision::head::{DepthRange, Description, LinearHead, Task, Tokens};
use dino_vision::media::{self, Limits};
use dino_vision::transform::PatchGrid;
use image::{Rgb, RgbImage};
use ndarray::{Array1, Array2, Array3, ArrayView2, s};
use rand::RngExt as _;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use self::pairs::Pair;
use super::super::Usage;
use super::super::backbone::Backbone;
use super::super::knn::warn_of;
use crate::data::loader::generator;
use crate::evaluate::copies::{self, Fingerprint, Named};
use crate::evaluate::dense::{Cache, Example, Objective, Probe, schedule, step};
use crate::evaluate::descriptors::decode;
use crate::evaluate::video::labels::nearest;
use crate::show::progress;

/// The flags of dense heads.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Masks of the pictures: below DIR as the pictures are below theirs, NAME.png or `NAME_mask.png`. For segmentation PNG files of class
    /// numbers, by palette or as greys; 255 is left out, or where 0 and 255 are the only numbers, the object. For depth grey PNG
    /// files of 16 bits; 0 is not known.
    #[arg(long, value_name = "DIR", help_heading = "Segmentation and depth")]
    masks: Option<PathBuf>,
    /// Masks of the pictures of --val, where they are in another folder than --masks.
    #[arg(long, value_name = "DIR", help_heading = "Segmentation and depth")]
    val_masks: Option<PathBuf>,
    /// Names of the classes, one a line, from number 0 on; without it the numbers are the names.
    #[arg(long, value_name = "FILE", help_heading = "Segmentation and depth")]
    classes: Option<PathBuf>,
    /// Number 0 of the masks is left out, and 1 is the first class, as in ADE20K.
    #[arg(long, help_heading = "Segmentation and depth")]
    reduce_zero_label: bool,
    /// Longer side in pixels at which the model sees pictures [default: the model folder's recommendation for masks, else 480].
    #[arg(long, value_parser = clap::value_parser!(u32).range(16..=4096), value_name = "PIXELS", help_heading = "Segmentation and depth")]
    image_size: Option<u32>,
    /// Learn from mirrored pictures too.
    #[arg(long, value_name = "BOOL", help_heading = "Segmentation and depth")]
    mirror: Option<bool>,
    /// What the numbers of depth maps are divided by: 1000 for millimetres to metres, 256 for KITTI [default: 1000].
    #[arg(long, value_parser = dino_program::flags::above_zero::<f32>, value_name = "NUMBER", help_heading = "Segmentation and depth")]
    depth_scale: Option<f32>,
    /// Depth of the first bin [default: 0.001].
    #[arg(long, value_parser = dino_program::flags::above_zero::<f32>, value_name = "DEPTH", help_heading = "Segmentation and depth")]
    min_depth: Option<f32>,
    /// Depth of the last bin; what is farther away is left out [default: 10, that of rooms; KITTI's is 80].
    #[arg(long, value_parser = dino_program::flags::above_zero::<f32>, value_name = "DEPTH", help_heading = "Segmentation and depth")]
    max_depth: Option<f32>,
}

/// Random numbers of first weights, of the order of pictures, and of which are mirrored.
const WEIGHTS: u64 = 14;
const ORDER: u64 = 15;
const MIRROR: u64 = 16;
/// Pictures between two visits of the cache: their features are in memory at once.
const CHUNK: usize = 32;
/// Pictures of a batch, and the learning rate, of the public configurations.
const BATCH: usize = 16;
const RATE: f64 = 1e-3;
/// The longer side of a picture without a recommendation.
const SIZE: u32 = 480;

impl Args {
    /// Refuses the flags of dense heads for a classifier.
    pub(super) fn refuse(&self) -> Result<(), Usage> {
        let given = [
            (self.masks.is_some(), "--masks"),
            (self.val_masks.is_some(), "--val-masks"),
            (self.classes.is_some(), "--classes"),
            (self.reduce_zero_label, "--reduce-zero-label"),
            (self.image_size.is_some(), "--image-size"),
            (self.mirror.is_some(), "--mirror"),
            (self.is_of_depth(), "--depth-scale, --min-depth and --max-depth"),
        ];
        let named = given.into_iter().find_map(|(given, name)| given.then_some(name));
        named.map_or(Ok(()), |name| Err(Usage(anyhow!("{name}: give --task segmentation or --task depth with it"))))
    }

    fn is_of_depth(&self) -> bool {
        self.depth_scale.or(self.min_depth).or(self.max_depth).is_some()
    }
}

/// A task: how its masks are read, judged and drawn.
trait Kind: Objective<Label: PartialEq> + Sized {
    const TASK: Task;
    /// What is wrong with masks of which no pixel is known, and what to do.
    const NOTHING_KNOWN: &'static str;
    /// What pictures say of a head.
    type Score: Send;

    /// What is known of each pixel of a picture of `size` (width, height).
    fn read(&self, mask: &Path, size: (u32, u32)) -> Result<Vec<Self::Label>>;
    /// Whether a pixel with this label is learnt from and measured.
    fn is_known(&self, label: Self::Label) -> bool;
    /// A head before training.
    fn start(&self, features: usize, lr: f64, random: &mut ChaCha8Rng) -> Probe;
    /// What a head says of each cell of a grid over the picture.
    fn answer(&self, logits: ArrayView2<'_, f32>, patches: PatchGrid, grid: PatchGrid) -> Vec<Self::Label>;
    /// What no picture says.
    fn nothing(&self) -> Self::Score;
    /// Compares the answer with the truth, for one picture.
    fn score(&self, truth: &[Self::Label], answer: &[Self::Label]) -> Self::Score;
    /// Adds what a further picture says: the score of all takes little more memory than that of one.
    fn add(all: &mut Self::Score, picture: Self::Score);
    /// The figures of one head.
    ///
    /// # Errors
    /// Where no picture has a pixel that is known.
    fn figures(&self, all: &Self::Score) -> Result<Figures>;
    /// `None` of what is not known.
    fn colour(&self, label: Self::Label) -> Option<Rgb<u8>>;
    /// Names and colours of what is drawn.
    fn legend(&self) -> Vec<(String, Rgb<u8>)>;
    /// Names of the classes, and the range of depths.
    fn describe(&self) -> (Vec<String>, Option<DepthRange>);
}

/// How good a head is.
struct Figures {
    /// The higher, the better.
    rank: f64,
    /// The figures of the table, with their names.
    columns: Vec<(&'static str, f64)>,
    /// More of the best head.
    more: Map<String, Value>,
}

/// Trains and measures segmentation heads.
pub(super) fn segmentation(args: &super::Args) -> Result<()> {
    refuse_classifiers(args)?;
    if args.dense.is_of_depth() {
        return Err(Usage(anyhow!("--depth-scale, --min-depth and --max-depth belong to --task depth")).into());
    }
    if let Some(name) = args.out.as_deref().and_then(Path::file_name).and_then(OsStr::to_str) {
        Task::Segmentation.check_name(name).map_err(|error| Usage(anyhow!("--out: {error}")))?;
    }
    let (train, val) = pairs(args)?;
    let names = args.dense.classes.as_deref();
    let kind = segmentation::Classes::of(&train, &val, names, args.dense.reduce_zero_label)?;
    run(args, &kind, &train, &val)
}

/// Trains and measures depth heads.
pub(super) fn depth(args: &super::Args) -> Result<()> {
    refuse_classifiers(args)?;
    let Args { depth_scale, min_depth, max_depth, .. } = args.dense;
    if args.dense.classes.is_some() || args.dense.reduce_zero_label {
        return Err(Usage(anyhow!("--classes and --reduce-zero-label belong to --task segmentation")).into());
    }
    let range = DepthRange { min: min_depth.unwrap_or(1e-3), max: max_depth.unwrap_or(10.0) };
    if range.min >= range.max {
        return Err(Usage(anyhow!("--min-depth {} must be less than --max-depth {}", range.min, range.max)).into());
    }
    if !range.is_valid() {
        let (least, most) = DepthRange::BOUNDS;
        return Err(Usage(anyhow!("--min-depth and --max-depth must lie between {least:e} and {most:e}")).into());
    }
    let (train, val) = pairs(args)?;
    let steps = args.epochs * train.len().div_ceil(args.batch_size.unwrap_or(BATCH));
    run(args, &depth::Bins::new(range, depth_scale.unwrap_or(1000.0), steps), &train, &val)
}

fn refuse_classifiers(args: &super::Args) -> Result<(), Usage> {
    let given = [
        (args.n_last_blocks.is_some(), "--n-last-blocks"),
        (args.avgpool_patchtokens, "--avgpool-patchtokens"),
        (args.cached.is_some(), "--cached"),
    ];
    let named = given.into_iter().find_map(|(given, name)| given.then_some(name));
    named.map_or(Ok(()), |name| Err(Usage(anyhow!("{name} belongs to --task classes: dense heads look at the last block's patch tokens"))))
}

fn pairs(args: &super::Args) -> Result<(Vec<Pair>, Vec<Pair>)> {
    let Some(masks) = &args.dense.masks else {
        return Err(Usage(anyhow!("--task segmentation and depth need --masks DIR, with a mask for each picture")).into());
    };
    let train = pairs::list(&args.train, masks)?;
    let val = pairs::list(&args.val, args.dense.val_masks.as_ref().unwrap_or(masks))?;
    pairs::check_masks(&train, &val)?;
    Ok((train, val))
}

/// Reads all masks before anything is computed: their kind, size and classes, and that there is something to learn from or to measure.
/// Pictures whose headers cannot be read are skipped here, too.
fn check<K: Kind>(kind: &K, what: &str, pairs: &[Pair]) -> Result<()> {
    let has_known = |pair: &Pair| -> Result<bool> {
        let header = bulk::read(&pair.picture).map(|bytes| media::dimensions(&bytes, &Limits::default()));
        let Ok(Ok(size)) = header else { return Ok(false) };
        Ok(kind.read(&pair.mask, size)?.into_iter().any(|label| kind.is_known(label)))
    };
    // In the order of the pictures, so that the first of several errors is named.
    let mut known = false;
    for has_known in pairs.par_iter().map(has_known).collect::<Vec<Result<bool>>>() {
        known |= has_known?;
    }
    ensure!(known, "none of the masks of {what} tells anything: {}", K::NOTHING_KNOWN);
    Ok(())
}

/// What sees pictures.
struct Eye {
    embedder: Embedder,
    only_size: Option<(u32, u32)>,
    patch: u32,
    size: u32,
    task: Task,
}

impl Eye {
    fn open(backbone: &Backbone, task: Task, size: Option<u32>) -> Result<Self> {
        let manifest = backbone.model.manifest();
        let recommended = manifest.segment.as_ref().map(|segment| segment.size);
        let embedder = backbone.embedder(Pooling::Cls)?;
        let (only_size, patch) = (backbone.model.only_size(), manifest.patch_size);
        Ok(Self { embedder, only_size, patch, size: size.or(recommended).unwrap_or(SIZE), task })
    }

    /// What `work` makes of each picture that can be read, in their order, some at a time. Pictures that cannot be read are skipped with a
    /// warning; any other error ends it.
    fn each<T: Send>(
        &mut self,
        what: &str,
        pairs: &[Pair],
        work: impl Fn(&mut Look<'_, '_>, &Pair, &RgbImage) -> Result<T> + Sync,
        mut sink: impl FnMut(usize, T) -> Result<()>,
    ) -> Result<()> {
        let bar = progress::bar(pairs.len(), what);
        let mut read = 0;
        let (only_size, patch, size, task) = (self.only_size, self.patch, self.size, self.task);
        for (number, chunk) in pairs.chunks(CHUNK).enumerate() {
            let work = |worker: &mut Worker<'_>, at: usize| -> Result<Option<T>> {
                let picture = match decode(&chunk[at].picture) {
                    Ok(picture) => picture,
                    Err(error) => {
                        bar.suspend(|| tracing::warn!("skipped {error:#}"));
                        return Ok(None);
                    }
                };
                let mut look = Look { worker, only_size, patch, size, task };
                work(&mut look, &chunk[at], &picture).map(Some)
            };
            self.embedder.each(chunk.len(), work, |range, made| -> Result<()> {
                for (at, made) in range.zip(made) {
                    bar.inc(1);
                    if let Some(made) = made? {
                        read += 1;
                        sink(number * CHUNK + at, made)?;
                    }
                }
                Ok(())
            })?;
        }
        bar.finish_and_clear();
        ensure!(read > 0, "none of the {} pictures of {what} could be read", pairs.len());
        Ok(())
    }
}

/// One thread's way to see pictures.
struct Look<'a, 'b> {
    worker: &'a mut Worker<'b>,
    only_size: Option<(u32, u32)>,
    patch: u32,
    size: u32,
    task: Task,
}

impl Look<'_, '_> {
    fn input(&self, picture: &RgbImage) -> (Array3<f32>, PatchGrid) {
        self.worker.transform().whole_picture_within(picture, self.only_size, self.size, self.patch)
    }

    /// `[patches, F]` and their grid.
    fn features(&mut self, input: Array3<f32>, grid: PatchGrid) -> Result<(Array2<f32>, PatchGrid)> {
        let outputs = self.worker.run(input)?;
        Ok(dense::features(self.task, &outputs, self.worker.registers(), grid)?)
    }
}

fn run<K: Kind>(args: &super::Args, kind: &K, train: &[Pair], val: &[Pair]) -> Result<()> {
    check(kind, "train", train)?;
    check(kind, "val", val)?;
    let backbone = args.backbone.open(1)?;
    let mut eye = Eye::open(&backbone, K::TASK, args.dense.image_size)?;
    let mirrored = args.dense.mirror.unwrap_or(true);
    let (cache, of_train) = embed(kind, &mut eye, train, mirrored, args.cache.saturating_mul(1 << 20))?;
    let probes = learn(args, kind, &cache, mirrored)?;
    let served: Vec<(Array2<f32>, Array1<f32>)> = probes.iter().map(Probe::served).collect();
    let mut scores: Vec<K::Score> = served.iter().map(|_| kind.nothing()).collect();
    let judge = |look: &mut Look<'_, '_>, pair: &Pair, picture: &RgbImage| -> Result<(Vec<K::Score>, Fingerprint)> {
        let truth = kind.read(&pair.mask, picture.dimensions())?;
        let (input, grid) = look.input(picture);
        let (features, patches) = look.features(input, grid)?;
        let of = |(weight, bias): &(Array2<f32>, Array1<f32>)| {
            let logits = features.dot(&weight.t()) + bias;
            kind.score(&truth, &kind.answer(logits.view(), patches, whole(picture)))
        };
        Ok((served.iter().map(of).collect(), Fingerprint::of(picture)))
    };
    let mut of_val = Named::default();
    eye.each("val", val, judge, |at, (made, fingerprint)| {
        of_val.names.push(val[at].picture.display().to_string());
        of_val.fingerprints.push(fingerprint);
        scores.iter_mut().zip(made).for_each(|(all, picture)| K::add(all, picture));
        Ok(())
    })?;
    let measured = of_val.names.len();
    let copies = copies::of(&of_val, &of_train)?;
    if !copies.is_empty() {
        warn_of(&copies, measured);
    }
    let figures: Vec<Figures> = scores.iter().map(|all| kind.figures(all)).collect::<Result<_>>()?;
    // Of equal ones the first.
    let best = (0..figures.len()).rev().max_by(|&a, &b| figures[a].rank.total_cmp(&figures[b].rank)).context("--lr names no rate")?;
    let summary = summary(args, K::TASK, eye.size, &probes, &figures, best, measured);
    if let Some(out) = &args.out {
        save(&backbone, kind, eye.size, &served[best], &summary, out)?;
        let shown = report::Report { kind, head: &served[best], figures: &figures[best], summary: &summary };
        shown.write(&mut eye, val, &out.join(report::FILE))?;
    }
    print(&probes, &figures, best, &summary, measured);
    Ok(())
}

/// The grid of a picture's own pixels.
fn whole(picture: &RgbImage) -> PatchGrid {
    PatchGrid { rows: picture.height() as usize, columns: picture.width() as usize }
}

/// Features and labels of all pictures, and what copies of them are known by; each picture is followed by its mirror image where that was asked for. Labels are seen at the size of the
/// model's input by nearest neighbour.
fn embed<K: Kind>(kind: &K, eye: &mut Eye, pairs: &[Pair], mirrored: bool, memory: usize) -> Result<(Cache<K::Label>, Named)> {
    let mut cache = Cache::new(memory);
    let work = |look: &mut Look<'_, '_>, pair: &Pair, picture: &RgbImage| -> Result<(Vec<Example<K::Label>>, Fingerprint)> {
        let labels = kind.read(&pair.mask, picture.dimensions())?;
        let (input, grid) = look.input(picture);
        let (_, height, width) = input.dim();
        let (rows, columns) = (nearest(picture.height() as usize, height), nearest(picture.width() as usize, width));
        let at = |row: usize, column: usize| labels[row * picture.width() as usize + column];
        let size = PatchGrid { rows: height, columns: width };
        let mut examples = Vec::new();
        let flipped = mirrored.then(|| input.slice(s![.., .., ..;-1]).to_owned());
        for (input, is_mirrored) in [(Some(input), false), (flipped, true)] {
            let Some(input) = input else { continue };
            let (features, grid) = look.features(input, grid)?;
            let column = |place: usize| columns[if is_mirrored { width - 1 - place } else { place }];
            let labels = rows.iter().flat_map(|&row| (0..width).map(move |place| (row, place))).map(|(row, place)| at(row, column(place)));
            examples.push(Example { features: Arc::new(features), grid, labels: labels.collect(), size });
        }
        Ok((examples, Fingerprint::of(picture)))
    };
    let (mut named, mut known) = (Named::default(), false);
    eye.each("train", pairs, work, |at, (examples, fingerprint)| {
        named.names.push(pairs[at].picture.display().to_string());
        named.fingerprints.push(fingerprint);
        known = known || examples.iter().flat_map(|example| example.labels.iter()).any(|label| kind.is_known(*label));
        examples.into_iter().try_for_each(|example| cache.push(example))
    })?;
    ensure!(known, "the masks of train tell nothing at the size that the model sees: {}", K::NOTHING_KNOWN);
    if cache.on_disk() > 0 {
        tracing::info!("{} MB of features are in a temporary file: --cache is full", cache.on_disk() >> 20);
    }
    Ok((cache, named))
}

/// Trains a head for each learning rate on the same batches.
fn learn<K: Kind>(args: &super::Args, kind: &K, cache: &Cache<K::Label>, mirrored: bool) -> Result<Vec<Probe>> {
    let width = cache.get(0)?.features.ncols();
    let rates = if args.lr.is_empty() { vec![RATE] } else { args.lr.clone() };
    let mut probes: Vec<Probe> = rates.iter().map(|&lr| kind.start(width, lr, &mut generator(args.seed, WEIGHTS, 0, 0))).collect();
    let views = if mirrored { 2 } else { 1 };
    let pictures = cache.len() / views;
    let batch_size = args.batch_size.unwrap_or(BATCH);
    let steps = args.epochs * pictures.div_ceil(batch_size);
    let bar = progress::bar(steps, "steps");
    let mut number = 0;
    for epoch in 0..args.epochs {
        let mut order: Vec<usize> = (0..pictures).collect();
        order.shuffle(&mut generator(args.seed, ORDER, epoch as u64, 0));
        for chosen in order.chunks(batch_size) {
            let view =
                |&picture: &usize| views * picture + generator(args.seed, MIRROR, epoch as u64, picture as u64).random_range(0..views);
            let batch: Vec<Example<K::Label>> = chosen.iter().map(|picture| cache.get(view(picture))).collect::<Result<_>>()?;
            let share = schedule::share(number, steps, schedule::warmup(steps));
            let losses = step(kind, &mut probes, &batch, number, share);
            for (loss, probe) in losses.iter().zip(&probes) {
                ensure!(loss.is_finite(), "the loss with --lr {} is {loss} in step {number}: lower the rate", probe.lr);
            }
            number += 1;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(probes)
}

/// The last line of stdout: the best figures, then those of each rate.
fn summary(args: &super::Args, task: Task, size: u32, probes: &[Probe], figures: &[Figures], best: usize, pictures: usize) -> Value {
    let columns = |figures: &Figures| -> Map<String, Value> {
        figures.columns.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect()
    };
    let by_lr: Map<String, Value> = probes.iter().zip(figures).map(|(probe, of)| (probe.lr.to_string(), columns(of).into())).collect();
    let mut summary = Map::from_iter([("task".to_owned(), json!(task.name()))]);
    summary.extend(columns(&figures[best]));
    summary.extend(figures[best].more.clone());
    summary.extend([
        ("lr".to_owned(), json!(probes[best].lr)),
        ("epochs".to_owned(), json!(args.epochs)),
        ("image_size".to_owned(), json!(size)),
        ("pictures".to_owned(), json!(pictures)),
        ("by_lr".to_owned(), by_lr.into()),
    ]);
    summary.into()
}

fn save<K: Kind>(
    backbone: &Backbone,
    kind: &K,
    size: u32,
    (weight, bias): &(Array2<f32>, Array1<f32>),
    summary: &Value,
    out: &Path,
) -> Result<()> {
    let (classes, depth) = kind.describe();
    let description = Description {
        format: K::TASK.format(),
        task: K::TASK,
        classes,
        size: Some(size),
        depth,
        tokens: Tokens { n_last_blocks: 1, avgpool_patchtokens: false },
        model_fingerprint: backbone.model.fingerprint(Pooling::Cls),
        weights_sha256: String::new(),
        training: summary.clone(),
        made_by: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    LinearHead::new(description, weight.clone(), bias.clone()).save(out)?;
    tracing::info!("the head is in {}: {} answers with it", out.display(), K::TASK.route());
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(probes: &[Probe], figures: &[Figures], best: usize, summary: &Value, pictures: usize) {
    let names: Vec<String> = figures[best].columns.iter().map(|(name, _)| format!("{name:>14}")).collect();
    println!("{:<13}{}", format!("{pictures} pictures"), names.concat());
    for (at, (probe, figures)) in probes.iter().zip(figures).enumerate() {
        let mark = if at == best { "  best on val" } else { "" };
        let values: Vec<String> = figures.columns.iter().map(|(_, value)| format!("{value:14.3}")).collect();
        println!("lr = {:<8}{}{mark}", probe.lr, values.concat());
    }
    println!("{summary}");
}
