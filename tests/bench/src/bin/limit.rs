//! What a server can reach at most on this machine: ONNX Runtime alone on one picture's input over and over, and the same with the
//! picture decoded and transformed each time, one session of one thread on each core. Prints one JSON line, for `make bench`.
//!
//! `limit --model FOLDER --file PICTURE [--precision int8] [--device openvino] [--seconds S]`

#![expect(clippy::print_stdout, reason = "the measurement is the output")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use dino_vision::media::{self, Limits};
use dino_vision::model::{Device, Model, Precision, Session, SessionOptions, runtime};
use dino_vision::placement::{Placement, Workload};
use ndarray::{Array4, Axis};

#[derive(Parser)]
struct Args {
    /// Model folder
    #[arg(long)]
    model: PathBuf,
    /// Picture
    #[arg(long)]
    file: PathBuf,
    /// Which of the model's files
    #[arg(long, default_value = "f32")]
    precision: Precision,
    /// What runs it
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Seconds for each measurement
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

fn main() -> Result<()> {
    // SAFETY: this is the first statement of the program, and no other thread has been started.
    unsafe { runtime::disable_telemetry() };
    let args = Args::parse();
    let model = Model::open(&args.model)?;
    let options = SessionOptions { device: args.device, precision: args.precision, ..SessionOptions::default() };
    // Sessions as the server lays them out.
    let Placement { sessions, agreement, .. } = Placement::of(&model, &options, Workload::default())?;
    let mut sessions: Vec<_> = sessions.into_iter().map(|engine| engine.0).collect();
    let bytes = fs_err::read(&args.file)?;
    let transform = &model.manifest().transform;
    let input = || -> Result<Array4<f32>> { Ok(transform.apply(&media::decode(&bytes, &Limits::default())?).insert_axis(Axis(0))) };
    let fixed = input()?;
    let prepare = {
        let (began, mut count) = (Instant::now(), 0);
        while began.elapsed().as_secs_f64() < args.seconds / 2.0 {
            input()?;
            count += 1;
        }
        began.elapsed().as_secs_f64() * 1e3 / f64::from(count)
    };
    let raw = rate(&mut sessions, args.seconds, |session| {
        session.run(fixed.view())?;
        Ok(())
    })?;
    let whole = rate(&mut sessions, args.seconds, |session| {
        session.run(input()?.view())?;
        Ok(())
    })?;
    let memory = peak_memory().unwrap_or_default();
    let cosine = agreement.map(|agreement| agreement.cosine());
    println!(
        "{}",
        serde_json::json!({ "runtime": raw, "with_decoding": whole, "prepare_ms": prepare, "memory": memory, "cosine": cosine })
    );
    Ok(())
}

/// Most bytes that this process has had in memory, where the system says it.
fn peak_memory() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse::<u64>().ok()?;
    Some(kilobytes * 1024)
}

/// Runs a second over all sessions at once.
fn rate(sessions: &mut [Session], seconds: f64, run: impl Fn(&mut Session) -> Result<()> + Sync) -> Result<f64> {
    for session in &mut *sessions {
        run(session)?;
    }
    let began = Instant::now();
    let until = began + Duration::from_secs_f64(seconds);
    let work = |session: &mut Session| -> Result<u32> {
        let mut count = 0;
        while Instant::now() < until {
            run(session)?;
            count += 1;
        }
        Ok(count)
    };
    let count = std::thread::scope(|scope| {
        let running: Vec<_> = sessions.iter_mut().map(|session| scope.spawn(|| work(session))).collect();
        running.into_iter().map(|thread| thread.join().ok().context("a thread panicked")?).sum::<Result<u32>>()
    })?;
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}
