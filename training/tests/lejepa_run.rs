//! Whole runs of `--method lejepa`: what they log, keep and refuse.

mod runs;

use std::path::Path;
use std::process::Command;

use runs::{checkpoints, export, kill_and_resume, log, pictures, run, tensors, text, weights};

const METHOD: [&str; 6] = ["--method", "lejepa", "--head-bottleneck-dim", "12", "--checkpoint-minutes", "0"];

/// Pictures of two classes.
fn classes(folder: &Path) {
    for class in ["a", "b"] {
        pictures(&folder.join(class), 8);
    }
}

#[test]
fn a_run_without_a_teacher_logs_its_terms_goes_on_exactly_and_is_exported() {
    let folder = tempfile::tempdir().unwrap();
    let (data, whole, broken) = (folder.path().join("data"), folder.path().join("whole"), folder.path().join("broken"));
    classes(&data);
    let more = [&METHOD[..], &["--epochs", "6", "--knn-every", "3"]].concat();
    let output = run(&data, &whole, &more);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("prediction") && !text(&output).contains("teacher entropy"), "{}", text(&output));

    let lines = log(&whole);
    assert_eq!(lines.len(), 6);
    for line in &lines {
        let of = |name: &str| line[name].as_f64().unwrap();
        assert!((of("loss") - 0.02 * of("sigreg") - 0.98 * of("prediction")).abs() < 1e-4 * of("loss"), "{line}");
        assert!(of("feature_std") > 0.0 && of("weight_decay") > 0.0, "{line}");
        for name in ["ln_k", "teacher_entropy", "kl", "mean_entropy", "momentum", "teacher_temp", "koleo"] {
            assert!(line.get(name).is_none(), "{name}: {line}");
        }
    }
    assert!(lines[5]["knn"]["top1"].is_number());
    assert!(lines[5]["loss"].as_f64() < lines[0]["loss"].as_f64(), "it learns");
    let report = std::fs::read_to_string(whole.join("report.html")).unwrap();
    assert!(report.contains("SIGReg") && !report.contains("ln K") && !report.contains("Momentum of the teacher"));
    assert!(std::fs::read_to_string(whole.join("curves.svg")).unwrap().contains("prediction"));
    let events = std::fs::read_dir(&whole).unwrap().map(|entry| entry.unwrap().path());
    let events = events.filter(|path| path.to_string_lossy().contains("tfevents")).map(|path| std::fs::read(path).unwrap()).next().unwrap();
    let shows = |name: &[u8]| events.windows(name.len()).any(|part| part == name);
    assert!(shows(b"train/sigreg") && shows(b"train/prediction") && !shows(b"train/ln_k"));

    // The network that is exported is the one that is trained, and there is nothing of a teacher.
    let strip =
        |name: &str| tensors(&whole, name).into_iter().map(|(full, values)| (full[name.len()..].to_owned(), values)).collect::<Vec<_>>();
    assert_eq!(strip("student."), strip("teacher."));
    assert!(strip("student.").iter().any(|(name, _)| name == "head.mlp.1.running_var"));
    assert!(tensors(&whole, "center").is_empty() && !strip("student.").iter().any(|(name, _)| name.contains("last_layer")));

    kill_and_resume(&data, &broken, &more);
    assert_eq!(weights(&whole), weights(&broken), "every tensor of the last checkpoint is the same, bit by bit");

    export(&whole, &folder.path().join("model"), &[]);
    let mut knn = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    let output = knn.args(["knn", "--model"]).arg(&whole).arg("--train").arg(&data).arg("--val").arg(&data).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn a_convnext_learns_goes_on_exactly_and_is_exported() {
    let folder = tempfile::tempdir().unwrap();
    let (data, whole, broken) = (folder.path().join("data"), folder.path().join("whole"), folder.path().join("broken"));
    pictures(&data, 8);
    let arch = "--arch convnext_tiny --dim 32 --global-crops-size 32 --local-crops-size 32 --local-crops-number 1 --epochs 3";
    let start = |out: &Path, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
        command.arg("train").arg("--data").arg(&data).arg("--out").arg(out).args(["--batch-size", "4", "--warmup-epochs", "1"]);
        let output = command.args(METHOD).args(arch.split_whitespace()).args(["--head-hidden-dim", "16"]).args(more).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    };
    start(&whole, &["--keep-checkpoints", "9"]);
    assert!(log(&whole).iter().all(|line| line["sigreg"].as_f64().unwrap() > 0.0));
    // From the middle of the second epoch.
    std::fs::create_dir(&broken).unwrap();
    let third = checkpoints(&whole).into_iter().find(|path| path.ends_with("checkpoint-00000003.safetensors")).unwrap();
    std::fs::copy(&third, broken.join(third.file_name().unwrap())).unwrap();
    start(&broken, &["--resume"]);
    assert_eq!(weights(&whole), weights(&broken), "every tensor of the last checkpoint is the same, bit by bit");
    export(&whole, &folder.path().join("model"), &[]);
}

#[test]
fn a_residual_network_keeps_its_running_statistics_for_evaluation() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data, 8);
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.arg("train").arg("--data").arg(&data).arg("--out").arg(&out);
    let flags = "--method lejepa --arch resnet18 --dim 32 --head-hidden-dim 16 --head-bottleneck-dim 8 --global-crops-size 32 \
                 --local-crops-size 32 --local-crops-number 1 --batch-size 4 --epochs 2 --warmup-epochs 1 --koleo-loss-weight 0.1";
    let output = command.args(flags.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(log(&out).iter().all(|line| line["koleo"].is_number() && line["weight_decay"].as_f64() == Some(5e-4)));
    let mean = |network: &str| tensors(&out, &format!("{network}.backbone.bn1.running_mean"));
    assert_eq!(mean("teacher")[0].1, mean("student")[0].1);
    assert!(mean("teacher")[0].1.iter().any(|mean| *mean != 0.0), "they have moved");
    export(&out, &folder.path().join("model"), &[]);
}

#[test]
fn settings_of_a_teacher_and_of_other_methods_are_wrong_usage() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data, 4);
    for (flags, wanted) in [
        (&["--method", "lejepa", "--momentum-teacher", "0.99"][..], "--momentum-teacher"),
        (&["--method", "lejepa", "--teacher-temp", "0.07"], "--teacher-temp"),
        (&["--method", "lejepa", "--centering", "sinkhorn_knopp", "--sinkhorn-queue", "64"], "--sinkhorn-queue"),
        (&["--method", "lejepa", "--ibot-loss-weight", "2"], "--method dinov2"),
        (&["--method", "lejepa", "--gram-loss-weight", "1", "--gram-anchor", "x"], "--gram-loss-weight"),
        (&["--method", "lejepa", "--lejepa-weight", "2"], "--lejepa-weight"),
        (&["--lejepa-weight", "0.1"], "--method lejepa"),
        (&["--sigreg-slices", "64"], "--method lejepa"),
    ] {
        let output = run(&data, &out, flags);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {}", text(&output));
        assert!(text(&output).contains(wanted), "{flags:?}: {}", text(&output));
    }
    assert!(!out.is_dir() || checkpoints(&out).is_empty());
}
