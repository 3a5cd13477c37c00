//! Runs on machines where things go wrong: they are killed, disks are full, two write to one folder.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod runs;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use runs::{checkpoints, command, let_it_work, losses, pictures, run, signal, text, weights};

/// The smallest run there is: a kill finds it in all its parts.
const SMALL: [&str; 20] = [
    "--dim",
    "8",
    "--depth",
    "1",
    "--heads",
    "1",
    "--out-dim",
    "8",
    "--head-hidden-dim",
    "8",
    "--global-crops-size",
    "16",
    "--local-crops-size",
    "8",
    "--batch-size",
    "2",
    "--epochs",
    "120",
    "--checkpoint-minutes",
    "0",
];

/// Step of the newest checkpoint, which has to be whole.
fn newest_step(out: &Path) -> Option<usize> {
    // On a busy machine the first kill comes before the folder.
    if !out.is_dir() {
        return None;
    }
    let newest = checkpoints(out).pop()?;
    let bytes = std::fs::read(&newest).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let description: serde_json::Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["dino"]).unwrap();
    Some(description["step"].as_u64().unwrap() as usize)
}

#[test]
fn fifty_kills_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    pictures(&data, 8);
    let whole = folder.path().join("whole");
    let output = run(&data, &whole, &SMALL);
    assert!(output.status.success(), "{}", text(&output));

    let killed = folder.path().join("killed");
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(50);
    let steps = newest_step(&whole).unwrap();
    let (mut last, mut kills, mut moved) = (0, 0, 0);
    while kills < 50 {
        let mut child = command(&data, &killed, &SMALL).arg("--resume").spawn().unwrap();
        // However fast the machine is, the run must not end before its last kill: ahead of an even pace it is killed while it starts.
        let is_ahead = last * 51 > steps * kills || last * 2 > steps;
        let longest = if is_ahead { 12 } else { 150 };
        std::thread::sleep(Duration::from_millis(random.random_range(5..longest)));
        signal(&child, "KILL");
        kills += 1;
        assert!(!child.wait().unwrap().success(), "the run ended before it was killed {kills} times, after step {last}");
        if let Some(step) = newest_step(&killed) {
            assert!(step >= last, "kill {kills} went back from step {last} to {step}");
            moved += usize::from(step > last);
            last = step;
        }
    }
    assert!(moved > 10, "only {moved} of the kills came while something was learnt");
    let output = run(&data, &killed, &[&SMALL[..], &["--resume"]].concat());
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(weights(&whole), weights(&killed), "every tensor of the last checkpoint is the same, bit by bit");
    assert_eq!(losses(&whole).len(), losses(&killed).len(), "one line for each epoch");
    assert!(losses(&whole).iter().zip(losses(&killed)).all(|(a, b)| (a - b).abs() < 1e-9));
    let left = std::fs::read_dir(&killed).unwrap().filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with(".unfinished"));
    assert_eq!(left.count(), 0, "what kills left is cleared away");
}

#[test]
fn a_full_disk_ends_the_run_and_keeps_the_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out, whole) = (folder.path().join("data"), folder.path().join("run"), folder.path().join("whole"));
    pictures(&data, 8);
    assert!(run(&data, &whole, &["--epochs", "4"]).status.success());
    assert!(run(&data, &out, &["--epochs", "2"]).status.success());
    let before = checkpoints(&out);
    let bytes = std::fs::read(before.last().unwrap()).unwrap();
    // No file may become longer than half a checkpoint; a write beyond fails as on a full disk, once the signal for it is ignored.
    let blocks = bytes.len() / 2 / 512;
    let inner = command(&data, &out, &["--epochs", "4", "--resume"]);
    let mut limited = Command::new("sh");
    limited
        .arg("-c")
        .arg(format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\""))
        .arg("sh")
        .arg(inner.get_program())
        .args(inner.get_args());
    let output = limited.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("cannot be written"), "{}", text(&output));
    assert_eq!(checkpoints(&out), before);
    assert_eq!(std::fs::read(before.last().unwrap()).unwrap(), bytes);
    assert!(run(&data, &out, &["--epochs", "4", "--resume"]).status.success());
    assert_eq!(losses(&out).len(), 4);
}

#[test]
fn two_runs_never_write_to_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data, 8);
    let mut first = command(&data, &out, &["--epochs", "100000"]).stderr(Stdio::null()).spawn().unwrap();
    let_it_work(&mut first, &out, Duration::ZERO);
    let second = run(&data, &out, &["--epochs", "100000", "--resume"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second).contains(&format!("in use by another run (process {})", first.id())), "{}", text(&second));
    signal(&first, "TERM");
    assert!(first.wait().unwrap().success());
}

#[test]
fn a_device_that_this_program_was_not_built_for_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    pictures(&data, 8);
    if cfg!(not(feature = "cuda")) {
        let output = run(&data, &folder.path().join("run"), &["--device", "cuda:0"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output).contains("built without CUDA"), "{}", text(&output));
    }
    let output = run(&data, &folder.path().join("run"), &["--device", "tpu"]);
    assert!(text(&output).contains("cpu, cuda or cuda:N"), "{}", text(&output));
}

/// The files of a folder in tar files of `size` members each, with a label beside each.
fn shards(data: &Path, folder: &Path, size: usize) {
    std::fs::create_dir_all(folder).unwrap();
    let mut files: Vec<_> = std::fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for (number, files) in files.chunks(size).enumerate() {
        let mut builder = tar::Builder::new(std::fs::File::create(folder.join(format!("shard-{number:06}.tar"))).unwrap());
        for file in files {
            let name = file.file_name().unwrap();
            builder.append_path_with_name(file, name).unwrap();
            let mut header = tar::Header::new_gnu();
            header.set_size(1);
            builder.append_data(&mut header, Path::new(name).with_extension("cls"), &b"3"[..]).unwrap();
        }
        builder.finish().unwrap();
    }
}

#[test]
fn tar_shards_train_to_what_their_files_do_and_resume_in_mid_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let (data, tars) = (folder.path().join("data"), folder.path().join("tars"));
    pictures(&data, 20);
    shards(&data, &tars, 7);
    let more = ["--epochs", "20", "--checkpoint-minutes", "0"];
    let whole = folder.path().join("whole");
    assert!(run(&data, &whole, &more).status.success());
    // A folder of them; stopped and resumed.
    let out = folder.path().join("stopped");
    let mut mid_epoch = false;
    for round in 0..4 {
        let mut child = command(&tars, &out, &[&more[..], &["--resume"]].concat()).spawn().unwrap();
        let_it_work(&mut child, &out, Duration::from_millis(20 + 11 * round));
        signal(&child, "TERM");
        assert!(child.wait().unwrap().success());
        mid_epoch |= !newest_step(&out).unwrap().is_multiple_of(5);
    }
    assert!(mid_epoch, "no run was stopped inside an epoch");
    assert!(run(&tars, &out, &[&more[..], &["--resume"]].concat()).status.success());
    assert_eq!(weights(&whole), weights(&out));
    // A pattern of them; over two processes.
    let pattern = tars.join("shard-{000000..000002}.tar");
    let output = run(&pattern, &folder.path().join("two"), &["--processes", "2", "--batch-size", "2", "--epochs", "20"]);
    assert!(output.status.success(), "{}", text(&output));
    runs::assert_same(&folder.path().join("two"), &whole);
    // A damaged one is named, and does not end the run; one that is not there does.
    let first = std::fs::read(tars.join("shard-000000.tar")).unwrap();
    std::fs::write(tars.join("shard-000000.tar"), &first[..first.len() / 2]).unwrap();
    let output = run(&tars, &folder.path().join("damaged"), &["--epochs", "1"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("shard-000000.tar"), "{}", text(&output));
    let output = run(&tars.join("shard-{000000..000003}.tar"), &folder.path().join("missing"), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("shard-000003.tar"), "{}", text(&output));
}
