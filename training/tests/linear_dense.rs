//! `dino-train linear --task segmentation` and `depth` on pictures of coloured shapes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod program;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dino_vision::head::{LinearHead, Task};
use image::{GrayImage, ImageBuffer, Luma, Rgb, RgbImage};
use program::{report, text};

const WIDTH: u32 = 64;
const HEIGHT: u32 = 48;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/tiny-model")
}

fn linear(task: &str, arguments: &[&str], paths: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.args(["linear", "--task", task, "--image-size", "64", "--batch-size", "4"]).args(arguments);
    for (flag, path) in paths {
        command.arg(flag).arg(path);
    }
    command.output().unwrap()
}

/// The class of a pixel of picture `number`: a red square, a blue one, and what is around them.
fn class(number: u32, x: u32, y: u32) -> u8 {
    let inside = |left: u32, top: u32| (left..left + 24).contains(&x) && (top..top + 24).contains(&y);
    match number {
        _ if inside(number % 3 * 4, number % 4 * 4) => 1,
        _ if inside(36 - number % 2 * 4, 24 - number % 5 * 4) => 2,
        _ => 0,
    }
}

fn picture(number: u32) -> RgbImage {
    RgbImage::from_fn(WIDTH, HEIGHT, |x, y| match class(number, x, y) {
        0 => Rgb([(x * 7 + y * 3 + number) as u8 % 64 + 90; 3]),
        1 => Rgb([230, 30, 20]),
        _ => Rgb([20, 40, 220]),
    })
}

/// Folders `train`, `val`, `masks`: eight pictures to learn from, and three others.
fn shapes(root: &Path, value: impl Fn(u8) -> u8) {
    for folder in ["train", "val", "masks"] {
        fs_err::create_dir_all(root.join(folder)).unwrap();
    }
    for number in 0..11 {
        let name = format!("{number}.png");
        picture(number).save(root.join(if number < 8 { "train" } else { "val" }).join(&name)).unwrap();
        let mask = GrayImage::from_fn(WIDTH, HEIGHT, |x, y| Luma([value(class(number, x, y))]));
        mask.save(root.join("masks").join(&name)).unwrap();
    }
}

/// The usual paths below a folder.
fn below(root: &Path) -> [(&'static str, PathBuf); 4] {
    [("--model", model()), ("--train", root.join("train")), ("--val", root.join("val")), ("--masks", root.join("masks"))]
}

fn run(task: &str, root: &Path, arguments: &[&str]) -> Output {
    let paths = below(root);
    linear(task, arguments, &paths.each_ref().map(|(flag, path)| (*flag, path.as_path())))
}

#[test]
fn shapes_are_told_apart_and_the_head_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    shapes(root, |class| class);
    fs_err::write(root.join("train/notes.txt"), "no picture").unwrap();
    fs_err::write(root.join("names.txt"), "around\nred <square>\nblue square\n").unwrap();
    let (names, out) = (root.join("names.txt"), root.join("head"));
    let arguments = ["--epochs", "60", "--lr", "0.00001,0.01", "--classes", names.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let output = run("segmentation", root, &arguments);
    let found = report(&output);
    assert_eq!(
        (&found["task"], &found["lr"], &found["pictures"], &found["image_size"]),
        (&"segmentation".into(), &0.01.into(), &3.into(), &64.into())
    );
    assert!(found["miou"].as_f64().unwrap() > 60.0, "{found}");
    assert!(found["by_lr"]["0.00001"]["miou"].as_f64().unwrap() < found["miou"].as_f64().unwrap(), "{found}");
    assert!(found["iou"]["red <square>"].as_f64().unwrap() > 50.0, "{found}");
    assert!(text(&output.stderr).contains("notes.txt"));
    let head = LinearHead::load(&out).unwrap();
    let description = head.description();
    assert_eq!((description.task, description.size, description.classes.len()), (Task::Segmentation, Some(64), 3));
    let html = fs_err::read_to_string(out.join("report.html")).unwrap();
    assert!(html.contains("red &lt;square&gt;") && html.matches("data:image/png").count() == 9);

    // The seed decides everything, and features in a file are those in memory.
    assert_eq!(report(&run("segmentation", root, &[&arguments[..], &["--cache", "0"]].concat())), found);
}

#[test]
fn white_on_black_is_an_object_and_zero_can_be_left_out() {
    let folder = tempfile::tempdir().unwrap();
    shapes(folder.path(), |class| if class == 0 { 0 } else { 255 });
    let found = report(&run("segmentation", folder.path(), &["--epochs", "40", "--lr", "0.01"]));
    assert!(found["iou"]["object"].as_f64().unwrap() > 60.0, "{found}");
    shapes(folder.path(), |class| class);
    let found = report(&run("segmentation", folder.path(), &["--epochs", "20", "--lr", "0.01", "--reduce-zero-label"]));
    assert_eq!(found["iou"].as_object().unwrap().keys().collect::<Vec<_>>(), ["1", "2"]);
    assert!(found["miou"].as_f64().unwrap() > 80.0, "{found}");
}

#[test]
fn depths_are_learnt() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    shapes(root, |class| class);
    let depth = |class: u8| [6000_u16, 1500, 3000][usize::from(class)];
    for number in 0..11 {
        let map: ImageBuffer<Luma<u16>, Vec<u16>> =
            ImageBuffer::from_fn(WIDTH, HEIGHT, |x, y| Luma([if x == 0 { 0 } else { depth(class(number, x, y)) }]));
        map.save(root.join("masks").join(format!("{number}.png"))).unwrap();
    }
    let out = root.join("head");
    let output = run("depth", root, &["--epochs", "60", "--lr", "0.01", "--out", out.to_str().unwrap()]);
    let found = report(&output);
    // The mean depth everywhere is wrong by more than a half.
    assert!(found["abs_rel"].as_f64().unwrap() < 0.35 && found["delta1"].as_f64().unwrap() > 0.5, "{found}");
    let head = LinearHead::load(&out).unwrap();
    assert!((head.description().depth.unwrap().max - 10.0).abs() < 1e-6);
    assert!(out.join("report.html").is_file());

    GrayImage::new(WIDTH, HEIGHT).save(root.join("masks/2.png")).unwrap();
    let output = run("depth", root, &["--epochs", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("2.png: depths are grey PNG files of 16 bits"), "{}", text(&output.stderr));
}

#[test]
fn masks_that_do_not_fit_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    shapes(root, |class| class);
    let names = root.join("names.txt");
    fs_err::write(&names, "a\nb\n").unwrap();
    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        let output = run("segmentation", root, arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)), "{stderr}");
    };
    refused(&["--classes", names.to_str().unwrap()], 1, &["0.png", "number 2", "2 classes"]);
    refused(&["--n-last-blocks", "1"], 2, &["--n-last-blocks"]);
    refused(&["--max-depth", "2"], 2, &["--task depth"]);
    GrayImage::new(WIDTH, 3).save(root.join("masks/5.png")).unwrap();
    refused(&["--epochs", "1"], 1, &["5.png", "(64, 48)"]);
    fs_err::remove_file(root.join("masks/3.png")).unwrap();
    refused(&[], 1, &["1 of 8 pictures", "3.png", "NAME_mask.png"]);

    let paths = below(root);
    let paths = paths.each_ref().map(|(flag, path)| (*flag, path.as_path()));
    let output = linear("classes", &[], &paths);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--task segmentation"), "{}", text(&output.stderr));
    let output = linear("depth", &[], &paths[..3]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--masks DIR"), "{}", text(&output.stderr));
}
