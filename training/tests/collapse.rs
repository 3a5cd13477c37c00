//! Both kinds of collapse, provoked for real: each run differs from a healthy one in one setting.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod runs;

use std::path::{Path, PathBuf};
use std::process::Output;

use runs::{command, text};

const SETTINGS: &str = "--dim 48 --out-dim 64 --head-hidden-dim 64 --head-bottleneck-dim 32 --batch-size 16 --epochs 50 --warmup-epochs 5 \
                        --lr 0.03 --momentum-teacher 0.95 --drop-path-rate 0 --shrink 48 --collapse-steps 60";

fn train(out: &Path, more: &str) -> Output {
    let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/caltech101-val");
    let flags: Vec<&str> = SETTINGS.split_whitespace().chain(more.split_whitespace()).collect();
    command(&data, out, &flags).output().unwrap()
}

fn last_line(out: &Path) -> serde_json::Value {
    serde_json::from_str(std::fs::read_to_string(out.join("log.jsonl")).unwrap().lines().last().unwrap()).unwrap()
}

#[test]
fn a_healthy_run_goes_on_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let output = train(&out, "");
    assert!(output.status.success(), "{}", text(&output));
    let line = last_line(&out);
    let of = |name: &str| line[name].as_f64().unwrap();
    assert!(of("kl") > 0.1 && of("mean_entropy") > 0.5 * of("ln_k") && of("teacher_entropy") < 0.95 * of("ln_k"), "{line}");
    assert!(of("feature_std") > 0.1 * of("feature_std_even") && of("feature_std") <= of("feature_std_even"), "{line}");
}

#[test]
fn without_centring_one_output_takes_all_and_the_run_stops_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let output = train(&out, "--center-momentum 1");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let said = text(&output);
    for advice in ["one output took all", "--center-momentum", "--teacher-temp", "--momentum-teacher", "--batch-size-per-gpu", "--lr"] {
        assert!(said.contains(advice), "{advice}: {said}");
    }
    let line = last_line(&out);
    assert!(line["mean_entropy"].as_f64().unwrap() < 0.1 * line["ln_k"].as_f64().unwrap(), "{line}");
}

#[test]
fn without_sharpening_the_output_becomes_uniform_and_the_run_stops_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let output = train(&out, "--teacher-temp 1 --warmup-teacher-temp 1");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let said = text(&output);
    for advice in ["output was uniform", "--warmup-teacher-temp", "--momentum-teacher", "--batch-size-per-gpu", "--lr"] {
        assert!(said.contains(advice), "{advice}: {said}");
    }
    let line = last_line(&out);
    assert!(line["teacher_entropy"].as_f64().unwrap() > 0.99 * line["ln_k"].as_f64().unwrap(), "{line}");
}
