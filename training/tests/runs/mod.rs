//! What the tests of whole runs share.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};
use serde_json::Value;

/// Noise of a few colours: pictures that differ.
pub(crate) fn picture(seed: u32, width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let v = (x / 5)
            .wrapping_mul(73)
            .wrapping_add((y / 7).wrapping_mul(151))
            .wrapping_add(seed.wrapping_mul(977))
            .wrapping_mul(2_654_435_761);
        Rgb([(v >> 24) as u8, (v >> 16) as u8, (v >> 8) as u8])
    })
}

/// Writes pictures to a folder.
pub(crate) fn pictures(folder: &Path, count: u32) {
    std::fs::create_dir_all(folder).unwrap();
    for i in 0..count {
        picture(i, 40 + i % 7, 40 + i % 5).save(folder.join(format!("{i:03}.png"))).unwrap();
    }
}

/// A small run, with more flags.
pub(crate) fn command(data: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.arg("train").arg("--data").arg(data).arg("--out").arg(out);
    let settings = "--arch vit_tiny --dim 24 --depth 2 --heads 2 --patch-size 8 --out-dim 32 --head-hidden-dim 16 --head-bottleneck-dim 8 \
                    --global-crops-size 32 --local-crops-size 16 --local-crops-number 2 --batch-size 4 --epochs 4 --warmup-epochs 1 \
                    --drop-path-rate 0.1 --lr 0.02 --seed 5";
    with_defaults(&mut command, settings, more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Adds flags, and of `settings` those that they do not replace: a flag given twice is an error.
pub(crate) fn with_defaults(command: &mut Command, settings: &str, flags: &[&str]) {
    let settings: Vec<&str> = settings.split_whitespace().collect();
    for pair in settings.chunks(2).filter(|pair| !flags.contains(&pair[0])) {
        command.args(pair);
    }
    command.args(flags);
}

/// The lines of a run's log.
pub(crate) fn log(run: &Path) -> Vec<Value> {
    fs_err::read_to_string(run.join("log.jsonl")).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Exports a checkpoint without measuring it.
pub(crate) fn export(checkpoint: &Path, out: &Path, flags: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.args(["export", "--unmeasured", "--checkpoint"]).arg(checkpoint).arg("--out").arg(out).args(flags);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

/// The same, to its end.
pub(crate) fn run(data: &Path, out: &Path, more: &[&str]) -> Output {
    command(data, out, more).output().unwrap()
}

/// What a run said.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Losses by epoch.
pub(crate) fn losses(out: &Path) -> Vec<f64> {
    let log = std::fs::read_to_string(out.join("log.jsonl")).unwrap();
    log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap()).collect()
}

/// Checkpoints of a run, oldest first.
pub(crate) fn checkpoints(out: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(out)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("checkpoint-"))
        .collect();
    found.sort();
    found
}

/// Every tensor of the newest checkpoint.
pub(crate) fn weights(out: &Path) -> Vec<(String, Vec<u8>)> {
    tensors_of(checkpoints(out).last().unwrap())
}

/// Every tensor of a checkpoint, by name.
pub(crate) fn tensors_of(checkpoint: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = std::fs::read(checkpoint).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<(String, Vec<u8>)> = tensors.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect();
    all.sort();
    all
}

/// Sends a signal.
pub(crate) fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status().unwrap().success());
}

/// Waits until the run has written its first checkpoint, then a little longer.
pub(crate) fn let_it_work(child: &mut Child, out: &Path, longer: Duration) {
    let started = Instant::now();
    while !out.is_dir() || checkpoints(out).is_empty() {
        assert!(started.elapsed() < Duration::from_mins(2), "no checkpoint was written");
        if child.try_wait().unwrap().is_some() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(longer);
}

/// A run that is killed soon after its first checkpoint, and then goes on to its end.
pub(crate) fn kill_and_resume(data: &Path, out: &Path, more: &[&str]) {
    let mut child = command(data, out, more).spawn().unwrap();
    let_it_work(&mut child, out, Duration::from_millis(20));
    signal(&child, "KILL");
    child.wait().unwrap();
    let output = run(data, out, &[more, &["--resume"]].concat());
    assert!(output.status.success(), "{}", text(&output));
}

/// Every float32 tensor of the newest checkpoint below a name.
pub(crate) fn tensors(out: &Path, prefix: &str) -> Vec<(String, Vec<f32>)> {
    let values = |bytes: Vec<u8>| bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    weights(out).into_iter().filter(|(name, _)| name.starts_with(prefix)).map(|(name, bytes)| (name, values(bytes))).collect()
}

/// Holds two runs against each other: losses and both networks, within the tolerance of the golden tests. The key third of `qkv.bias` has a
/// gradient that is truly zero, whose rounding noise AdamW turns into steps.
pub(crate) fn assert_same(found: &Path, expected: &Path) {
    let (a, b) = (losses(found), losses(expected));
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4 * b.abs()), "{a:?}, not {b:?}");
    let mut compared = 0;
    for prefix in ["student.", "teacher.", "center"] {
        for ((name, a), (other, b)) in tensors(found, prefix).into_iter().zip(tensors(expected, prefix)) {
            assert_eq!(name, other);
            assert_eq!(a.len(), b.len(), "{name}");
            let keys = if name.ends_with("qkv.bias") { a.len() / 3..2 * a.len() / 3 } else { 0..0 };
            for (i, (a, b)) in a.iter().zip(&b).enumerate() {
                let tolerance = if keys.contains(&i) { 5e-3 } else { 1e-4 };
                assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{name}[{i}]: {a}, not {b}");
            }
            compared += 1;
        }
    }
    assert!(compared > 20, "{compared} tensors were compared");
}
