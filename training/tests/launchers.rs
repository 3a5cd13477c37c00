//! Runs that the launchers people have start, with the real ones: `make test-cluster`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod runs;

use std::path::Path;
use std::process::{Command, Stdio};

use runs::{assert_same, command, pictures, run, text};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A run of two processes with four pictures each, started by `launcher`, against one of a process with eight.
fn is_one_run(launcher: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let [data, whole, out] = ["data", "whole", "launched"].map(|name| folder.path().join(name));
    pictures(&data, 18);
    let output = run(&data, &whole, &["--batch-size", "8"]);
    assert!(output.status.success(), "{}", text(&output));

    let own = command(&data, &out, &["--batch-size", "4"]);
    let mut launched = Command::new(launcher[0]);
    launched.args(&launcher[1..]).arg(own.get_program()).args(own.get_args());
    let output = launched.current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("on 2 processes"), "{said}");
    assert_eq!(said.matches("finished:").count(), 1, "one process tells how it ended: {said}");
    assert_same(&out, &whole);
}

#[test]
#[ignore = "needs Open MPI: make test-cluster"]
fn mpirun_starts_one_run() {
    is_one_run(&["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2"]);
}

#[test]
#[ignore = "needs Slurm: make test-cluster"]
fn srun_starts_one_run() {
    let slurm = Path::new(ROOT).join("tests/cluster/slurm.sh");
    is_one_run(&[slurm.to_str().unwrap(), "srun", "--ntasks", "2"]);
}

#[test]
#[ignore = "needs PyTorch: make test-cluster"]
fn torchrun_starts_one_run() {
    let torchrun = Path::new(ROOT).join(".cache/weights/bin/torchrun");
    is_one_run(&[torchrun.to_str().unwrap(), "--nproc-per-node", "2", "--no-python"]);
}
