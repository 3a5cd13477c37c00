//! Distillation as a program: the student comes to give the teacher's features, goes on exactly, and is exported like any other.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod runs;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use runs::{checkpoints, export, log, pictures, text, weights, with_defaults};
use serde_json::Value;

fn teacher() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/tiny-model")
}

fn distill(data: &Path, out: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.arg("distill").arg("--teacher").arg(teacher()).arg("--data").arg(data).arg("--out").arg(out);
    // Other patches than the teacher's 8: it sees larger crops.
    let settings =
        "--arch vit_tiny --dim 24 --depth 2 --heads 2 --patch-size 4 --crop-size 16 --batch-size 4 --epochs 6 --warmup-epochs 1 --lr 0.3";
    with_defaults(&mut command, settings, more);
    command.output().unwrap()
}

#[test]
fn a_student_comes_near_its_teacher_goes_on_exactly_and_is_exported() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    pictures(&at("data"), 12);
    let output = distill(&at("data"), &at("whole"), &[]);
    assert!(output.status.success(), "{}", text(&output));
    let lines = log(&at("whole"));
    let figure = |line: &Value, name: &str| line[name].as_f64().unwrap();
    assert_eq!(lines.len(), 6);
    assert!(figure(&lines[5], "loss") < 0.7 * figure(&lines[0], "loss"), "{lines:?}");
    for name in ["cls_cosine", "patch_cosine"] {
        assert!(figure(&lines[5], name) > figure(&lines[0], name), "{lines:?}");
    }
    let last: Value = serde_json::from_slice(output.stdout.trim_ascii_end()).unwrap();
    assert_eq!(last["loss"], lines[5]["loss"]);

    assert!(distill(&at("data"), &at("broken"), &["--resume", "auto"]).status.success());
    // A file that was torn is left aside for the one before it.
    fs_err::write(checkpoints(&at("broken")).pop().unwrap(), b"torn").unwrap();
    assert_eq!(distill(&at("data"), &at("broken"), &[]).status.code(), Some(1), "a run is not begun over another");
    let refused = distill(&at("data"), &at("broken"), &["--resume", "--seed", "3"]);
    assert!(text(&refused).contains("other settings"), "{}", text(&refused));
    let refused = distill(&at("data"), &at("broken"), &["--resume", "--heads", "3"]);
    assert!(text(&refused).contains("another student, --heads (2 -> 3)"), "{}", text(&refused));
    let output = distill(&at("data"), &at("broken"), &["--resume", "auto"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(weights(&at("whole")), weights(&at("broken")), "bit by bit");
    assert_eq!(log(&at("broken")).len(), 6);

    export(&at("whole"), &at("model"), &[]);
    let manifest: Value = serde_json::from_slice(&fs_err::read(at("model/manifest.json")).unwrap()).unwrap();
    assert_eq!((&manifest["dim"], &manifest["patch_size"], &manifest["heads"]), (&24.into(), &4.into(), &2.into()));
}

#[test]
fn small_crops_of_a_crop_come_near_what_the_teacher_says_of_it_whole() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    pictures(&at("data"), 12);
    let local = "--local-crops-number 3 --local-crops-size 8".split(' ').collect::<Vec<_>>();
    let output = distill(&at("data"), &at("run"), &local);
    assert!(output.status.success(), "{}", text(&output));
    let lines = log(&at("run"));
    let cosine = |line: &Value| line["local_cosine"].as_f64().unwrap();
    assert!(cosine(&lines[5]) > cosine(&lines[0]), "{lines:?}");
    // Without the loss of patches the mean over all four crops is left.
    let loss = |line: &Value| {
        let of = |name: &str| line[name].as_f64().unwrap();
        (of("loss"), (1.0 - of("cls_cosine") + 3.0 * (1.0 - of("local_cosine"))) / 4.0)
    };
    let output = distill(&at("data"), &at("cls"), &[&local[..], &["--patch-loss-weight", "0"]].concat());
    assert!(output.status.success(), "{}", text(&output));
    for line in log(&at("cls")) {
        let (given, expected) = loss(&line);
        assert!((given - expected).abs() < 1e-5, "{line}");
    }
    let refused = distill(&at("data"), &at("run"), &["--resume", "--local-crops-number", "2", "--local-crops-size", "8"]);
    assert!(text(&refused).contains("other settings"), "{}", text(&refused));
}

#[test]
fn students_and_teachers_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    pictures(&at("data"), 4);
    for (flags, named) in [
        (&["--arch", "resnet18", "--dim", "512"][..], "students are vision transformers"),
        (&["--crop-size", "18"], "no multiple"),
        (&["--epochs", "2", "--warmup-epochs", "3"], "--warmup-epochs 3"),
        (&["--smooth-l1-share", "2"], "--smooth-l1-share"),
        (&["--local-crops-number", "1", "--local-crops-size", "10"], "--local-crops-size 10"),
        (&["--local-crops-number", "1", "--local-crops-size", "8", "--local-crops-scale", "0.5", "0.2"], "--local-crops-scale"),
    ] {
        let flags: Vec<&str> = flags.to_vec();
        let output = distill(&at("data"), &at("run"), &flags);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {}", text(&output));
        assert!(text(&output).contains(named), "{flags:?}: {}", text(&output));
    }
}
