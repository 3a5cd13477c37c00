//! `dino-train linear`: the linear evaluation of the DINO paper, and those of DINOv2 for segmentation and depth.

mod dense;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use dino_vision::bulk::Embedder;
use dino_vision::embedding::Pooling;
use dino_vision::head::{Description, LinearHead, Task, Tokens};
use ndarray::{Axis, s};
use rand::seq::SliceRandom;
use serde_json::{Map, Value, json};

use super::backbone::{Backbone, BackboneArgs};
use crate::data::labelled::Labelled;
use crate::data::loader::generator;
use crate::evaluate::features::{self, Batch, View};
use crate::evaluate::figures::Figures;
use crate::evaluate::linear::{Probe, cosine, step_all};
use crate::show::progress;

/// Train a linear head on frozen features of one folder of pictures, and measure it on another: a classifier, or with --task
/// the class or the depth of each pixel.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// What the head tells: the class of a picture, or the class or depth of each pixel.
    #[arg(long, value_enum, default_value_t = Learnt::Classes)]
    task: Learnt,
    /// Pictures to train on: folders directly below DIR are classes, except with --task segmentation and depth.
    #[arg(long, value_name = "DIR")]
    train: PathBuf,
    /// Pictures to measure on, in folders of the same names.
    #[arg(long, value_name = "DIR")]
    val: PathBuf,
    /// CLS tokens of this many last blocks, side by side. The paper takes 4 with ViT-S and 1 with ViT-B [default: 4 of a checkpoint,
    /// else what the model folder gives, which is 1 unless it was exported with --last-blocks].
    #[arg(long, value_parser = dino_program::flags::at_least_one(), value_name = "N")]
    n_last_blocks: Option<usize>,
    /// Add the mean of the last block's patch tokens. The paper does with ViT-B.
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, default_value_t = false)]
    avgpool_patchtokens: bool,
    /// Epochs of training.
    #[arg(long, value_parser = dino_program::flags::at_least_one(), default_value_t = 100)]
    epochs: usize,
    /// Pictures of a batch [default: 128; 16 for segmentation and depth].
    #[arg(long, value_parser = dino_program::flags::at_least_one(), visible_alias = "batch-size-per-gpu", value_name = "N")]
    batch_size: Option<usize>,
    /// Learning rates, each with a head of its own; the best on val is reported. Of a classifier for a batch of 256: the public
    /// script's single rate is 0.001; which is best depends on the backbone [default: 0.001,0.003,0.01,0.03,0.1; 0.001 for
    /// segmentation and depth].
    #[arg(long, value_parser = dino_program::flags::above_zero::<f64>, value_delimiter = ',', value_name = "LR,…")]
    lr: Vec<f64>,
    /// Embed V augmented views of each picture once and go through them in turn, instead of new views in every epoch: as many times
    /// faster as V goes into --epochs, and nearly as good. 0 embeds the pictures once, without augmentation.
    #[arg(long, value_name = "V", num_args = 0..=1, default_missing_value = "8")]
    cached: Option<usize>,
    /// Decoded pictures are kept in memory up to this many megabytes; with segmentation and depth features are, and those beyond it in
    /// a temporary file.
    #[arg(long, default_value_t = 2048, value_name = "MB")]
    cache: usize,
    /// Decides the first weights, the order of pictures and all crops.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder to write the best head to, for `dino-server serve --head NAME=DIR`. Heads in a model folder's `heads` are served with it.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    dense: dense::Args,
}

/// The tasks, as the command line names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Learnt {
    Classes,
    Segmentation,
    Depth,
}

impl Args {
    /// Pictures of a batch for classifiers.
    fn batch(&self) -> usize {
        self.batch_size.unwrap_or(128)
    }

    fn rates(&self) -> Vec<f64> {
        if self.lr.is_empty() { vec![1e-3, 3e-3, 1e-2, 3e-2, 1e-1] } else { self.lr.clone() }
    }
}

/// Random numbers of first weights, and of the order of pictures.
const WEIGHTS: u64 = 6;
const ORDER: u64 = 7;

/// Runs the verb.
///
/// # Errors
/// Where there is nothing readable to evaluate, or the model does not run or does not give the blocks.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match args.task {
        Learnt::Classes => args.dense.refuse()?,
        Learnt::Segmentation => return dense::segmentation(args),
        Learnt::Depth => return dense::depth(args),
    }
    let backbone = args.backbone.open(args.n_last_blocks.unwrap_or(4))?;
    let tokens = tokens(args, &backbone)?;
    let cache = args.cache.saturating_mul(1 << 20);
    let (train, val) = Labelled::train_and_val(&args.train, cache, &args.val)?;
    let mut embedder = backbone.embedder(Pooling::Cls)?;
    let measured = features::all("val", &mut embedder, &val, View::Evaluation, tokens)?;
    ensure!(!measured.classes.is_empty(), "none of the pictures below {} could be read", args.val.display());

    let width = measured.features.ncols();
    let probe = |&lr: &f64| Probe::new(train.classes().len(), width, lr, &mut generator(args.seed, WEIGHTS, 0, 0));
    let mut probes: Vec<Probe> = args.rates().iter().map(probe).collect();
    match args.cached {
        None => train_anew(args, &mut embedder, &train, tokens, &mut probes)?,
        Some(views) => train_cached(args, views, &mut embedder, &train, tokens, &mut probes)?,
    }
    Labelled::count_skipped(&[&train, &val]);
    let figures: Vec<Figures> = probes.iter().map(|probe| probe.figures(measured.features.view(), &measured.classes)).collect();
    // Of equal ones the first.
    let best = (0..probes.len()).rev().max_by(|&a, &b| figures[a].top1.total_cmp(&figures[b].top1)).context("--lr names no rate")?;
    let report = report(args, tokens, &probes, &figures, best);
    if let Some(out) = &args.out {
        save(&backbone, &train, tokens, &probes[best], &report, out)?;
    }
    print(&probes, &figures, best, &report, measured.classes.len());
    Ok(())
}

fn tokens(args: &Args, backbone: &Backbone) -> anyhow::Result<Tokens> {
    let manifest = backbone.model.manifest();
    let given = (manifest.last_blocks as usize).max(1);
    let n_last_blocks = match args.n_last_blocks {
        Some(wanted) if wanted > given && !backbone.was_exported() => anyhow::bail!(
            "{} gives the last {given} blocks: give the checkpoint itself, a folder exported with --last-blocks {wanted}, or \
             --n-last-blocks {given}",
            args.backbone.model
        ),
        Some(wanted) => {
            ensure!(wanted <= given, "--n-last-blocks {wanted}: this backbone has {given} blocks to look at");
            wanted
        }
        None => given,
    };
    Ok(Tokens { n_last_blocks, avgpool_patchtokens: args.avgpool_patchtokens })
}

/// New views of every picture in every epoch, as the public code does it.
fn train_anew(args: &Args, embedder: &mut Embedder, train: &Labelled, tokens: Tokens, probes: &mut [Probe]) -> anyhow::Result<()> {
    let bar = progress::bar(args.epochs * train.len(), "train");
    for epoch in 0..args.epochs {
        let view = View::Augmented { seed: args.seed, number: epoch as u64 };
        let share = cosine(epoch, args.epochs);
        let mut rest: Option<Batch> = None;
        let mut taken = 0;
        features::stream(embedder, train, &order(args, train.len(), epoch), view, tokens, |batch| {
            bar.inc(batch.classes.len() as u64);
            taken += batch.classes.len();
            rest = Some(steps(args, rest.take(), batch, share, probes));
        })?;
        ensure!(taken > 0, "none of the pictures below {} could be read", args.train.display());
        if let Some(rest) = rest.filter(|rest| !rest.classes.is_empty()) {
            step_all(probes, rest.features.view(), &rest.classes, share, args.batch());
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Takes all full batches of what was left and what has come, and returns what is left then.
fn steps(args: &Args, rest: Option<Batch>, new: Batch, share: f64, probes: &mut [Probe]) -> Batch {
    let all = match rest {
        Some(mut rest) => {
            rest.features.append(Axis(0), new.features.view()).expect("rows of one length");
            rest.classes.extend(new.classes);
            rest.pictures.extend(new.pictures);
            rest
        }
        None => new,
    };
    let full = all.classes.len() / args.batch() * args.batch();
    for at in (0..full).step_by(args.batch()) {
        let rows = at..at + args.batch();
        step_all(probes, all.features.slice(s![rows.clone(), ..]), &all.classes[rows], share, args.batch());
    }
    Batch {
        features: all.features.slice(s![full.., ..]).to_owned(),
        classes: all.classes[full..].to_vec(),
        pictures: all.pictures[full..].to_vec(),
        fingerprints: Vec::new(),
    }
}

/// Views that are embedded once.
fn train_cached(
    args: &Args,
    views: usize,
    embedder: &mut Embedder,
    train: &Labelled,
    tokens: Tokens,
    probes: &mut [Probe],
) -> anyhow::Result<()> {
    let mut kept = Vec::new();
    for number in 0..views.max(1) {
        let view = if views == 0 { View::Evaluation } else { View::Augmented { seed: args.seed, number: number as u64 } };
        kept.push(features::all(&format!("view {} of {}", number + 1, views.max(1)), embedder, train, view, tokens)?);
    }
    ensure!(!kept[0].classes.is_empty(), "none of the pictures below {} could be read", args.train.display());
    let bar = progress::bar(args.epochs, "train");
    for epoch in 0..args.epochs {
        let batch = &kept[epoch % kept.len()];
        for rows in order(args, batch.classes.len(), epoch).chunks(args.batch()) {
            let classes: Vec<u32> = rows.iter().map(|&row| batch.classes[row]).collect();
            step_all(probes, batch.features.select(Axis(0), rows).view(), &classes, cosine(epoch, args.epochs), args.batch());
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

fn order(args: &Args, count: usize, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(&mut generator(args.seed, ORDER, epoch as u64, 0));
    order
}

/// The last line of stdout: the best figures, then those of each rate.
fn report(args: &Args, tokens: Tokens, probes: &[Probe], figures: &[Figures], best: usize) -> Value {
    let by_lr: Map<String, Value> = probes.iter().zip(figures).map(|(probe, figures)| (probe.lr.to_string(), json!(figures))).collect();
    json!({
        "top1": figures[best].top1,
        "top5": figures[best].top5,
        "mean_class": figures[best].mean_class,
        "lr": probes[best].lr,
        "epochs": args.epochs,
        "n_last_blocks": tokens.n_last_blocks,
        "avgpool_patchtokens": tokens.avgpool_patchtokens,
        "augmentation": args.cached.map_or("new views in each epoch".to_owned(), |views| format!("{views} cached views")),
        "by_lr": by_lr,
    })
}

fn save(backbone: &Backbone, train: &Labelled, tokens: Tokens, probe: &Probe, report: &Value, out: &Path) -> anyhow::Result<()> {
    let description = Description {
        format: Task::Classes.format(),
        task: Task::Classes,
        size: None,
        depth: None,
        classes: train.classes().to_vec(),
        tokens,
        model_fingerprint: backbone.model.fingerprint(Pooling::Cls),
        weights_sha256: String::new(),
        training: report.clone(),
        made_by: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    LinearHead::new(description, probe.weight.clone(), probe.bias.clone()).save(out)?;
    tracing::info!("the classifier is in {}", out.display());
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(probes: &[Probe], figures: &[Figures], best: usize, report: &Value, count: usize) {
    println!("{count} pictures    top-1    top-5    mean over classes");
    for (at, (probe, figures)) in probes.iter().zip(figures).enumerate() {
        let mark = if at == best { "  best on val" } else { "" };
        println!("lr = {:<8} {:8.2} {:8.2} {:8.2}{mark}", probe.lr, figures.top1, figures.top5, figures.mean_class);
    }
    println!("{report}");
}
