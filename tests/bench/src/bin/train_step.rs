//! Times whole steps of a method, two global and eight local crops of random pixels, and prints one JSON line: what `make bench-train`
//! compares.
//!
//! `cargo run --release --package dino-bench --bin train_step -- --dim 192 --depth 12 --heads 3 --patch 16 --global 224 --local 96 --batch 8`

#![expect(clippy::print_stdout, reason = "the measurement is the output")]

use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use clap::Parser;
use dino_train::backbone::parameters::Random;
use dino_train::dino::accumulate::Accumulated;
use dino_train::dino::learner::{Learner, Step, Views};
use dino_train::dino::loss::{Centering, TEACHER_VIEWS};
use dino_train::dino::masks::Masks;
use dino_train::dino::network::Network;
use dino_train::dino::optimizer::Settings;
use dino_train::exchange::alone;
use dino_train::kernels::matmul::has_bf16;
use dino_train::run::recipe::{Arch, Method, PrecisionChoice, Recipe};
use rand::SeedableRng;

#[derive(Parser)]
struct Args {
    /// What is learnt; dinov2 with Sinkhorn-Knopp, and one head for CLS and patches
    #[arg(long, value_enum, default_value_t = Method::Dino)]
    method: Method,
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
    let recipe = recipe(&args);
    recipe.check()?;
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let mut student = Network::new(recipe.backbone(), recipe.head(), &mut random, &Device::Cpu)?;
    if args.activation_checkpointing {
        student.backbone = student.backbone.with_activation_checkpointing();
    }
    let mut learner = Learner::new(student, recipe.optimizer, alone())?;
    recipe.set_losses(&mut learner)?;
    let mut pixels = |count: usize, side: usize| -> Result<Tensor> {
        let values: Vec<f32> = (0..count * 3 * side * side).map(|_| random.normal()).collect();
        Ok(Tensor::from_vec(values, (count, 3, side, side), &Device::Cpu)?)
    };
    let (global, local) = (pixels(TEACHER_VIEWS * args.batch, args.global)?, pixels(args.locals * args.batch, args.local)?);
    let settings = Settings { lr: 5e-4, weight_decay: 0.04, clip: 3.0, freeze_last_layer: false };
    let step = Step { optimizer: settings, momentum: 0.996, teacher_temp: 0.04 };
    let side = args.global / args.patch;
    let mut seconds = Vec::new();
    for number in 0..args.warmup + args.steps {
        let since = Instant::now();
        let mut accumulated = Accumulated::default();
        let drawn = recipe.masking().map(|masking| masking.draw(TEACHER_VIEWS * args.batch, (side, side), &mut random));
        let masks = drawn.map(|crops| Masks::new(&crops, &Device::Cpu)).transpose()?;
        let views = Views { global: &global, local: Some(&local), anchored: None, masks: masks.as_ref() };
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

/// The settings of a run with such steps, without stochastic depth.
fn recipe(args: &Args) -> Recipe {
    let of_vit = |value| (!args.convnext).then_some(value);
    Recipe {
        arch: if args.convnext { Arch::ConvnextTiny } else { Arch::VitSmall },
        patch_size: args.patch,
        dim: of_vit(args.dim),
        depth: of_vit(args.depth),
        heads: of_vit(args.heads),
        drop_path_rate: 0.0,
        out_dim: args.out,
        head_hidden_dim: args.hidden,
        head_bottleneck_dim: args.bottleneck,
        centering: if args.method == Method::Dinov2 { Centering::SinkhornKnopp } else { Centering::Centering },
        method: args.method,
        precision: if args.bf16 { PrecisionChoice::Bf16 } else { PrecisionChoice::F32 },
        global_crops_size: args.global,
        local_crops_number: args.locals,
        local_crops_size: args.local,
        ..Recipe::default()
    }
}

/// Largest resident size of this process.
fn peak_mb() -> Result<f64> {
    let status = fs_err::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes / 1024.0)
}
