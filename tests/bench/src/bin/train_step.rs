//! Times whole DINO steps, two global and eight local crops of random pixels, and prints one JSON line: what `make bench-train` compares.
//!
//! `cargo run --release --package dino-bench --bin train_step -- --dim 192 --depth 12 --heads 3 --patch 16 --global 224 --local 96 --batch 8`

#![expect(clippy::print_stdout, reason = "the measurement is the output")]

use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use clap::Parser;
use dino_train::backbone::BackboneConfig;
use dino_train::backbone::convnext::{ConvnextConfig, LAYER_SCALE};
use dino_train::backbone::parameters::Random;
use dino_train::backbone::vit::VitConfig;
use dino_train::dino::accumulate::Accumulated;
use dino_train::dino::head::HeadConfig;
use dino_train::dino::learner::{Learner, Step, Views};
use dino_train::dino::network::Network;
use dino_train::dino::optimizer::{Algorithm, Settings};
use dino_train::exchange::alone;
use dino_train::kernels::matmul::{Precision, has_bf16};
use rand::SeedableRng;

#[derive(Parser)]
struct Args {
    /// `ConvNeXt` tiny, whose sizes are fixed, in place of a vision transformer of the following ones
    #[arg(long)]
    convnext: bool,
    #[arg(long, default_value_t = 192)]
    dim: usize,
    #[arg(long, default_value_t = 6)]
    depth: usize,
    #[arg(long, default_value_t = 3)]
    heads: usize,
    #[arg(long, default_value_t = 8)]
    patch: usize,
    #[arg(long, default_value_t = 48)]
    global: usize,
    #[arg(long, default_value_t = 24)]
    local: usize,
    #[arg(long, default_value_t = 8)]
    locals: usize,
    #[arg(long, default_value_t = 32)]
    batch: usize,
    #[arg(long, default_value_t = 1024)]
    out: usize,
    #[arg(long, default_value_t = 512)]
    hidden: usize,
    #[arg(long, default_value_t = 128)]
    bottleneck: usize,
    /// Products in bfloat16
    #[arg(long)]
    bf16: bool,
    /// Compute blocks again in the backward pass
    #[arg(long)]
    activation_checkpointing: bool,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    #[arg(long, default_value_t = 8)]
    steps: usize,
}

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let args = Args::parse();
    anyhow::ensure!(!args.bf16 || has_bf16(), "this processor has no bfloat16 products");
    // SAFETY: this is the first statement of the program, and no other thread has been started.
    unsafe { dino_train::process::prepare() };
    rayon::ThreadPoolBuilder::new().num_threads(args.threads).build_global()?;
    let precision = if args.bf16 { Precision::Bf16 } else { Precision::F32 };
    let backbone = backbone(&args, precision);
    let head = HeadConfig {
        dim: backbone.dim(),
        hidden: args.hidden,
        bottleneck: args.bottleneck,
        out: Some(args.out),
        batch_norm: false,
        norm_last_layer: true,
        precision,
    };
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let mut student = Network::new(backbone, head, &mut random, &Device::Cpu)?;
    if args.activation_checkpointing {
        student.backbone = student.backbone.with_activation_checkpointing();
    }
    let mut learner = Learner::new(student, Algorithm::Adamw, alone())?;
    let mut pixels = |count: usize, side: usize| -> Result<Tensor> {
        let values: Vec<f32> = (0..count * 3 * side * side).map(|_| random.normal()).collect();
        Ok(Tensor::from_vec(values, (count, 3, side, side), &Device::Cpu)?)
    };
    let (global, local) = (pixels(2 * args.batch, args.global)?, pixels(args.locals * args.batch, args.local)?);
    let settings = Settings { lr: 5e-4, weight_decay: 0.04, clip: 3.0, freeze_last_layer: false };
    let step = Step { optimizer: settings, momentum: 0.996, teacher_temp: 0.04 };
    let mut seconds = Vec::new();
    for number in 0..args.warmup + args.steps {
        let since = Instant::now();
        let mut accumulated = Accumulated::default();
        let views = Views { global: &global, local: Some(&local), masks: None };
        learner.add(&mut accumulated, views, step.teacher_temp, &mut random)?;
        let report = learner.step(accumulated, &step, false)?;
        anyhow::ensure!(report.means.loss.is_finite(), "the loss is {}", report.means.loss);
        if number >= args.warmup {
            seconds.push(since.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    println!("{}", serde_json::json!({ "images_per_second": args.batch as f64 / median, "step_ms": 1e3 * median, "peak_mb": peak_mb()? }));
    Ok(())
}

fn backbone(args: &Args, precision: Precision) -> BackboneConfig {
    if args.convnext {
        let (depths, dims, layer_scale) = ([3, 3, 9, 3], [96, 192, 384, 768], Some(LAYER_SCALE));
        return ConvnextConfig { depths, dims, drop_path: 0.0, layer_scale, precision }.into();
    }
    let (dim, depth, heads) = (args.dim, args.depth, args.heads);
    VitConfig { img_size: args.global, patch_size: args.patch, dim, depth, heads, precision, ..VitConfig::default() }.into()
}

/// Largest resident size of this process.
fn peak_mb() -> Result<f64> {
    let status = fs_err::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes / 1024.0)
}
