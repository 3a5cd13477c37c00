//! `--shard auto` in jobs of a real Slurm of one node.

use std::path::Path;
use std::process::Command;

use super::{PROGRAM, Rows, model, pictures, rows};

/// Runs jobs one after another under one Slurm, each of them options and a script, and says what each wrote to its logs.
fn run(jobs: &[(&str, String)]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let mut commands = String::from("set -e\n");
    for (number, (options, script)) in jobs.iter().enumerate() {
        let (job, logs) = (folder.path().join(format!("{number}.sh")), folder.path().join(format!("{number}-log-%a")));
        fs_err::write(&job, format!("#!/bin/sh\nset -e\n{script}\n")).unwrap();
        commands.push_str(&format!("sbatch --wait -o {} {options} {}\n", logs.display(), job.display()));
    }
    let slurm = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/slurm.sh");
    let output = Command::new(slurm).args(["sh", "-c", &commands]).output().unwrap();
    let logs = |number: usize| {
        let begin = format!("{number}-log-");
        let files = fs_err::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let logs = files.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&begin));
        logs.map(|path| fs_err::read_to_string(path).unwrap()).collect::<String>()
    };
    let logs: Vec<String> = (0..jobs.len()).map(logs).collect();
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stderr), logs.concat());
    logs
}

#[test]
fn jobs_and_tasks_of_slurm_take_their_parts() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    pictures(&images, 30);
    let embed = |into: &str| {
        format!(
            "{PROGRAM} embed --images {} --model {} --sessions 1 --shard auto --out {}/",
            images.display(),
            model().display(),
            folder.path().join(into).display()
        )
    };
    let alone = Command::new("sh").arg("-c").arg(embed("alone").replace("--shard auto", "")).output().unwrap();
    assert!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stderr));
    let wanted: Rows = rows(&folder.path().join("alone"));
    assert_eq!(wanted.len(), 30);
    let is_whole = |into: &str| {
        let folder = folder.path().join(into);
        assert!(folder.join("_SUCCESS").exists(), "{into}");
        assert_eq!(rows(&folder), wanted, "{into}");
    };

    let logs = run(&[
        ("--array=1-3", embed("array")),
        // Two jobs of two tasks each.
        ("--array=0-1 --ntasks=2", format!("srun --ntasks=2 {}", embed("tasks"))),
        // The script itself is no task, and a single job of an array may be one of a larger one.
        ("--ntasks=2", format!("{} || true", embed("none"))),
        ("--array=2", format!("{} || true", embed("none"))),
        // One of three once more.
        ("--array=2", format!("DINO_SHARD_COUNT=3 {}", embed("array"))),
        // One of two, with two tasks each, once more: of four parts.
        ("--array=1 --ntasks=2", format!("DINO_SHARD_COUNT=4 srun --ntasks=2 {}", embed("tasks"))),
    ]);
    is_whole("array");
    is_whole("tasks");
    assert!(logs[2].contains("start it with srun"), "{}", logs[2]);
    assert!(logs[3].contains("set DINO_SHARD_COUNT"), "{}", logs[3]);
    assert!(logs[4].contains("is up to date"), "{}", logs[4]);
    assert_eq!(logs[5].matches("is up to date").count(), 2, "{}", logs[5]);
    assert!(!folder.path().join("none").exists());
}
