//! The anomaly evaluation as a program, on folders like those of `MVTec` AD.

mod program;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{GrayImage, Luma};
use program::{report, text};
use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Wood: four good pictures to compare with, one good and one scratched to measure with, and the mask of the scratch.
fn wood() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = |name: &str, to: &str| {
        let to = folder.path().join(to);
        fs_err::create_dir_all(to.parent().expect("a folder")).expect("made");
        fs_err::copy(root().join("tests/data/anomaly").join(name), to).expect("copied");
    };
    for number in 1..5 {
        copy(&format!("wood-{number}.jpg"), &format!("train/good/{number}.jpg"));
    }
    copy("wood-new.jpg", "test/good/000.jpg");
    copy("wood-scratched.jpg", "test/scratch/000.jpg");
    let masks = folder.path().join("ground_truth/scratch");
    fs_err::create_dir_all(&masks).expect("made");
    let mask = GrayImage::from_fn(112, 112, |x, y| Luma([if (28..84).contains(&x) && (44..74).contains(&y) { 255 } else { 0 }]));
    mask.save(masks.join("000_mask.png")).expect("saved");
    folder
}

fn evaluate(folder: &Path, flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.arg("anomaly-eval").arg("--model").arg(root().join("models/demo")).args(["--segment-size", "112"]);
    command.arg("--normal").arg(folder.join("train/good")).arg("--test").arg(folder.join("test")).args(flags);
    command.output().expect("the program starts")
}

#[test]
fn a_scratch_on_wood_is_told_from_wood() {
    let folder = wood();
    let masks = folder.path().join("ground_truth");
    let found = report(&evaluate(folder.path(), &["--baselines", "--masks", masks.to_str().expect("a string")]));
    assert!(found["untrained"]["pro"].is_number(), "{found}");
    assert_eq!((&found["image_auroc"], &found["normal"], &found["pictures"]), (&1.0.into(), &4.into(), &2.into()));
    let figure = |name: &str| found[name].as_f64().expect("a number");
    assert!(figure("pixel_auroc") > 0.8 && figure("pro") > 0.6, "{found}");
    let without = report(&evaluate(folder.path(), &["--rotations", "--masking"]));
    assert!(without["pixel_auroc"].is_null() && without["pro"].is_null() && without["image_auroc"].is_number(), "{without}");
}

#[test]
fn what_is_missing_is_named() {
    let folder = wood();
    let fails = |code: i32, flags: &[&str], words: &str| {
        let output = evaluate(folder.path(), flags);
        assert!(output.status.code() == Some(code) && text(&output.stderr).contains(words), "{}", text(&output.stderr));
    };
    fails(2, &["--top", "0"], "--top");
    fs_err::remove_file(folder.path().join("ground_truth/scratch/000_mask.png")).expect("removed");
    let masks = folder.path().join("ground_truth");
    fails(1, &["--masks", masks.to_str().expect("a string")], "000.jpg has no mask");
    fs_err::remove_dir_all(folder.path().join("test/scratch")).expect("removed");
    fails(1, &[], "both kinds");
}

#[test]
fn what_is_no_picture_is_skipped_and_named() {
    let folder = wood();
    fs_err::write(folder.path().join("test/scratch/readme.txt"), "no picture").expect("written");
    let masks = folder.path().join("ground_truth");
    let output = evaluate(folder.path(), &["--masks", masks.to_str().expect("a string")]);
    assert_eq!(report(&output)["pictures"], 2);
    assert!(text(&output.stderr).contains("readme.txt: it is no picture"), "{}", text(&output.stderr));
}

#[test]
fn what_a_mask_leaves_open_is_in_no_figure_of_pixels() {
    let folder = wood();
    let masks = folder.path().join("ground_truth");
    // The scratch, and what lies around it.
    let figures = |around: u8| {
        let inside = |x: u32, y: u32, by: u32| (28 - by..84 + by).contains(&x) && (44 - by..74 + by).contains(&y);
        let number = |x: u32, y: u32| match (inside(x, y, 0), inside(x, y, 8)) {
            (true, _) => 1,
            (_, true) => around,
            _ => 0,
        };
        GrayImage::from_fn(112, 112, |x, y| Luma([number(x, y)])).save(masks.join("scratch/000_mask.png")).expect("saved");
        let found = report(&evaluate(folder.path(), &["--masks", masks.to_str().expect("a string")]));
        ["pixel_auroc", "pro"].map(|name| found[name].as_f64().expect("a number"))
    };
    let (good, void) = (figures(0), figures(255));
    assert!(good.iter().zip(void).all(|(good, void)| (good - void).abs() > 1e-4), "{good:?} {void:?}");
}
