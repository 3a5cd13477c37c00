//! Whole runs of the program: resuming, broken files, changed settings.

mod runs;

use std::path::Path;
use std::time::Duration;

use runs::{
    checkpoints, command, export, kill_and_resume, let_it_work, log, losses, picture, pictures, run, signal, tensors_of, text, weights,
};

#[test]
fn a_run_that_was_stopped_or_killed_goes_on_as_if_nothing_had_been() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    pictures(&data, 16);
    let more = ["--epochs", "12", "--checkpoint-minutes", "0"];
    let whole = folder.path().join("whole");
    let output = run(&data, &whole, &more);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(losses(&whole).len(), 12);

    let broken = folder.path().join("broken");
    for (round, how) in ["TERM", "KILL", "TERM", "KILL", "KILL"].into_iter().enumerate() {
        let before = if broken.is_dir() { checkpoints(&broken).pop() } else { None };
        let mut child = command(&data, &broken, &more).arg("--resume").spawn().unwrap();
        // Until it has gone on from the last one.
        while child.try_wait().unwrap().is_none() && (!broken.is_dir() || checkpoints(&broken).pop() == before) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let_it_work(&mut child, &broken, Duration::from_millis(7 * round as u64));
        signal(&child, how);
        let status = child.wait().unwrap();
        if how == "TERM" {
            assert!(status.success(), "SIGTERM saves a checkpoint and exits with 0");
        }
    }
    let output = run(&data, &broken, &[&more[..], &["--resume"]].concat());
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(weights(&whole), weights(&broken), "every tensor of the last checkpoint is the same, bit by bit");
    let (whole, broken) = (losses(&whole), losses(&broken));
    assert_eq!(whole.len(), broken.len(), "one line for each epoch");
    assert!(whole.iter().zip(&broken).all(|(a, b)| (a - b).abs() < 1e-9), "{whole:?}, {broken:?}");
}

#[test]
fn resume_auto_starts_goes_on_and_leaves_no_lines_of_another_run() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data, 8);
    let epochs = || -> Vec<u64> {
        let log = std::fs::read_to_string(out.join("log.jsonl")).unwrap();
        log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["epoch"].as_u64().unwrap()).collect()
    };
    let auto = |epochs: &str| {
        let output = run(&data, &out, &["--epochs", epochs, "--resume", "auto"]);
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    assert!(auto("1").contains("starts at its beginning"));
    assert!(auto("2").contains("going on from"));
    assert_eq!(epochs(), [1, 2]);
    // A run that is done stays as it is.
    let before = weights(&out);
    auto("2");
    assert_eq!((epochs(), weights(&out)), (vec![1, 2], before));
    for how in [&["--resume"][..], &["--resume", "auto"], &[]] {
        for checkpoint in checkpoints(&out) {
            std::fs::remove_file(checkpoint).unwrap();
        }
        let output = run(&data, &out, &[&["--epochs", "2"], how].concat());
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(epochs(), [1, 2], "{how:?}");
    }
}

#[test]
fn a_run_with_a_queue_of_outputs_goes_on_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    pictures(&data, 16);
    let more = ["--epochs", "6", "--checkpoint-minutes", "0", "--centering", "sinkhorn_knopp", "--sinkhorn-queue", "20", "--stem", "conv"];
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    assert!(run(&data, &whole, &more).status.success());
    kill_and_resume(&data, &broken, &more);
    assert_eq!(weights(&whole), weights(&broken), "every tensor of the last checkpoint is the same, bit by bit");
}

#[test]
fn the_last_epochs_have_larger_crops_and_resume_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    pictures(&data, 8);
    let (plain, whole, broken) = (folder.path().join("plain"), folder.path().join("whole"), folder.path().join("broken"));
    let last = ["--epochs", "4", "--final-epochs", "2", "--final-global-crops-size", "48"];
    assert!(run(&data, &whole, &last).status.success());
    assert!(run(&data, &plain, &["--epochs", "4", "--keep-checkpoints", "9"]).status.success());
    let (of_whole, of_plain) = (losses(&whole), losses(&plain));
    assert_eq!(of_whole[..2], of_plain[..2], "the first epochs are those of a run without");
    assert!(of_whole[2..].iter().zip(&of_plain[2..]).all(|(a, b)| (a - b).abs() > 1e-9), "{of_whole:?} {of_plain:?}");
    // A run of small crops goes on with larger ones.
    std::fs::create_dir(&broken).unwrap();
    let after_two = checkpoints(&plain).into_iter().find(|path| path.ends_with("checkpoint-00000004.safetensors")).unwrap();
    std::fs::copy(&after_two, broken.join(after_two.file_name().unwrap())).unwrap();
    let output = run(&data, &broken, &[&last[..], &["--resume"]].concat());
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(weights(&broken), weights(&whole), "every tensor of the last checkpoint is the same, bit by bit");
    // The model is exported for the size that it was trained with last.
    export(&whole, &folder.path().join("model"), &[]);
    let manifest = std::fs::read(folder.path().join("model/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["transform"]["crop"], serde_json::json!([48, 48]));
}

#[test]
fn the_teacher_of_the_run_becomes_the_anchor_and_a_killed_run_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    pictures(&data, 16);
    let more = "--epochs 5 --gram-loss-weight 1 --gram-update-epochs 2 --gram-crops-size 48 --keep-checkpoints 99 --checkpoint-minutes 0";
    let more: Vec<&str> = more.split(' ').collect();
    let (whole, broken, plain) = (folder.path().join("whole"), folder.path().join("broken"), folder.path().join("plain"));
    let output = run(&data, &whole, &more);
    assert!(output.status.success(), "{}", text(&output));
    let held: Vec<bool> = log(&whole).iter().map(|line| line["gram"].as_f64().is_some()).collect();
    assert_eq!(held, [false, false, true, true, true], "from the first teacher on");
    assert!(run(&data, &plain, &["--epochs", "5"]).status.success());
    let (of_whole, of_plain) = (losses(&whole), losses(&plain));
    assert!(of_whole[..2] == of_plain[..2] && (of_whole[3] - of_plain[3]).abs() > 1e-9, "{of_whole:?} {of_plain:?}");

    // The anchor of the last epoch is the teacher that the fourth has left.
    let tensors = |path: &Path, network: &str| -> Vec<(String, Vec<u8>)> {
        let all = tensors_of(path).into_iter();
        all.filter_map(|(name, values)| Some((name.strip_prefix(network)?.strip_prefix(".backbone.")?.to_owned(), values))).collect()
    };
    let (fourth, last) = (whole.join("checkpoint-00000016.safetensors"), whole.join("checkpoint-00000020.safetensors"));
    let anchor = tensors(&last, "gram_anchor");
    assert!(anchor == tensors(&fourth, "teacher") && anchor.len() > 10 && anchor != tensors(&last, "teacher"));
    // From the middle of the third epoch.
    std::fs::create_dir(&broken).unwrap();
    std::fs::copy(whole.join("checkpoint-00000010.safetensors"), broken.join("checkpoint-00000010.safetensors")).unwrap();
    let output = run(&data, &broken, &[&more[..], &["--resume"]].concat());
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(weights(&whole), weights(&broken), "every tensor of the last checkpoint is the same, bit by bit");
    export(&whole, &folder.path().join("model"), &[]);
}

/// An epoch is kept before it is measured, which may take long; what was not measured is when the run goes on.
#[test]
fn an_epoch_whose_measurement_failed_is_kept_and_measured_later() {
    let folder = tempfile::tempdir().unwrap();
    let (data, whole, broken, val) =
        (folder.path().join("data"), folder.path().join("whole"), folder.path().join("broken"), folder.path().join("val"));
    pictures(&data, 8);
    let class = |name: &str, readable: bool| {
        std::fs::create_dir_all(val.join(name)).unwrap();
        for seed in 0..3 {
            let file = val.join(name).join(format!("{seed}.png"));
            if readable { picture(seed, 40, 40).save(file).unwrap() } else { std::fs::write(file, "no picture").unwrap() }
        }
    };
    let classes = |readable: bool| ["cats", "dogs"].map(|name| class(name, readable));
    let val_folder = val.to_str().unwrap();
    let more = ["--epochs", "2", "--knn-every", "1", "--knn-train", val_folder, "--knn-val", val_folder];
    classes(false);
    let output = run(&data, &broken, &more);
    assert!(!output.status.success(), "{}", text(&output));
    let kept = checkpoints(&broken).pop().unwrap();
    assert!(kept.ends_with("checkpoint-00000002.safetensors"), "{}", kept.display());
    classes(true);
    let output = run(&data, &broken, &[&more[..], &["--resume"]].concat());
    assert!(output.status.success(), "{}", text(&output));
    assert!(run(&data, &whole, &more).status.success());
    let figures = |out: &Path| log(out).iter().map(|line| line["knn"]["top1"].as_f64()).collect::<Vec<_>>();
    assert_eq!((figures(&broken), losses(&broken)), (figures(&whole), losses(&whole)));
    assert!(figures(&whole).len() == 2 && figures(&whole)[0].is_some());
    assert_eq!(weights(&whole), weights(&broken), "every tensor of the last checkpoint is the same, bit by bit");
}

#[test]
fn a_damaged_checkpoint_is_named_and_an_older_one_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data, 8);
    assert!(run(&data, &out, &["--epochs", "3"]).status.success());
    let newest = checkpoints(&out).pop().unwrap();
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &bytes[..bytes.len() * 6 / 10]).unwrap();
    let output = run(&data, &out, &["--epochs", "3", "--resume"]);
    assert!(output.status.success(), "{}", text(&output));
    let name = newest.file_name().unwrap().to_string_lossy().into_owned();
    assert!(text(&output).contains(&format!("{name} is damaged")), "{}", text(&output));
    assert_eq!(std::fs::read(&newest).unwrap(), bytes, "the epoch that was lost is trained again, to the same result");
}

#[test]
fn a_run_never_starts_anew_over_checkpoints_that_it_cannot_read() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data, 8);
    assert!(run(&data, &out, &["--epochs", "2"]).status.success());
    for checkpoint in checkpoints(&out) {
        std::fs::write(checkpoint, b"no checkpoint").unwrap();
    }
    let before = checkpoints(&out);
    let output = run(&data, &out, &["--epochs", "2", "--resume"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("none of the 2 checkpoints"), "{}", text(&output));
    assert_eq!(checkpoints(&out), before);
}

#[test]
fn other_pictures_are_refused_and_a_torn_log_is_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data, 8);
    assert!(run(&data, &out, &["--epochs", "2"]).status.success());
    let log = std::fs::read_to_string(out.join("log.jsonl")).unwrap();
    std::fs::write(out.join("log.jsonl"), format!("{log}{{\"epoch\":3,\"lo")).unwrap();
    std::fs::write(out.join(".unfinished-x"), b"left by a kill").unwrap();
    std::fs::rename(data.join("000.png"), data.join("zzz.png")).unwrap();
    let output = run(&data, &out, &["--epochs", "3", "--resume"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("not those of the run"), "{}", text(&output));
    std::fs::rename(data.join("zzz.png"), data.join("000.png")).unwrap();
    let output = run(&data, &out, &["--epochs", "3", "--resume"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(losses(&out).len(), 3);
    assert!(!out.join(".unfinished-x").exists());
}

#[test]
fn changed_settings_are_refused_or_named() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data, 8);
    assert!(run(&data, &out, &["--epochs", "2"]).status.success());
    let output = run(&data, &out, &["--epochs", "2"]);
    assert_eq!(output.status.code(), Some(1), "an old run is never overwritten");
    assert!(text(&output).contains("--resume"), "{}", text(&output));
    let output = run(&data, &out, &["--epochs", "2", "--out-dim", "64", "--resume"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("--out-dim"), "{}", text(&output));
    let output = run(&data, &out, &["--epochs", "3", "--resume"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("--epochs has changed"), "{}", text(&output));
    assert_eq!(losses(&out).len(), 3);
    let curves = std::fs::read_to_string(out.join("curves.svg")).unwrap();
    assert!(curves.starts_with("<svg") && curves.contains("teacher entropy"), "{curves}");
}

#[test]
fn broken_files_are_skipped_and_each_is_named_once() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data.join("sub"), 24);
    let mut jpeg = std::io::Cursor::new(Vec::new());
    picture(1, 64, 64).write_to(&mut jpeg, image::ImageFormat::Jpeg).unwrap();
    let jpeg = jpeg.into_inner();
    std::fs::write(data.join("cut.jpg"), &jpeg[..jpeg.len() / 2]).unwrap();
    std::fs::write(data.join("empty.jpg"), b"").unwrap();
    std::fs::write(data.join("text.png"), b"no picture").unwrap();
    std::fs::create_dir(data.join("folder.jpg")).unwrap();
    std::os::unix::fs::symlink("nowhere.jpg", data.join("dangling.jpg")).unwrap();
    std::os::unix::fs::symlink(".", data.join("round")).unwrap();
    std::fs::write(data.join(".hidden.jpg"), &jpeg).unwrap();
    picture(2, 1, 1).save(data.join("one.png")).unwrap();
    image::DynamicImage::ImageRgb8(picture(3, 50, 50)).to_rgb16().save(data.join("deep.png")).unwrap();
    let odd = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/photos/odd");
    std::fs::copy(odd.join("cmyk.jpg"), data.join("cmyk.jpg")).unwrap();
    let output = run(&data, &out, &["--epochs", "2"]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for name in ["cut.jpg", "empty.jpg", "text.png"] {
        assert_eq!(said.matches(&format!("skipped {name}")).count(), 1, "{said}");
    }
    assert!(said.contains("3 of 30 files could not be read"), "{said}");
    assert!(losses(&out).iter().all(|loss| loss.is_finite()));
}

#[test]
fn a_folder_without_readable_pictures_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let output = run(&empty, &out, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("holds no pictures"), "{}", text(&output));
    for i in 0..8 {
        std::fs::write(empty.join(format!("{i}.jpg")), b"no picture").unwrap();
    }
    let output = run(&empty, &out, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("none of the 8 pictures"), "{}", text(&output));
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_and_names_the_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data, 8);
    let output = run(&data, &out, &["--lr", "1e30", "--clip-grad", "0", "--warmup-epochs", "0", "--freeze-last-layer", "0"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    assert!(said.contains("lower the learning rate") && said.contains(".png"), "{said}");
}

#[test]
fn settings_come_from_the_file_and_flags_count_more() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data, 8);
    let config = folder.path().join("recipe.toml");
    std::fs::write(&config, "epochs = 3\nteacher_temp = 0.05\nout-dim = 48\n").unwrap();
    let output = run(&data, &out, &["--config", config.to_str().unwrap(), "--epochs", "1", "--out-dim", "32"]);
    assert!(output.status.success(), "{}", text(&output));
    let log: serde_json::Value =
        serde_json::from_str(std::fs::read_to_string(out.join("log.jsonl")).unwrap().lines().next().unwrap()).unwrap();
    assert_eq!(losses(&out).len(), 1);
    assert!((log["teacher_temp"].as_f64().unwrap() - 0.05).abs() < 1e-9 && (log["ln_k"].as_f64().unwrap() - 32f64.ln()).abs() < 1e-9);
    std::fs::write(&config, "epoch = 3\n").unwrap();
    let output = run(&data, &folder.path().join("other"), &["--config", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2), "an unknown setting is not ignored");
    assert!(text(&output).contains("epoch"), "{}", text(&output));
    let output = run(&data, &out, &["--teacher-temp", "warm"]);
    assert_eq!(output.status.code(), Some(2), "wrong usage");
}
