//! `dino-train linear --task segmentation` and `depth` on pictures of coloured shapes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod program;
mod tagged;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dino_vision::head::{LinearHead, Task};
use image::{GrayImage, ImageBuffer, Luma, Rgb, RgbImage};
use program::{report, text};
use tagged::turn;

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

    // Numbers that are taken for metres all lie beyond --max-depth: nothing is learnt or measured of them.
    let output = run("depth", root, &["--epochs", "1", "--depth-scale", "1"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(["masks of train", "--depth-scale", "--max-depth"].iter().all(|word| stderr.contains(word)), "{stderr}");
    let output = run("depth", root, &["--max-depth", "3e38"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));

    GrayImage::new(WIDTH, HEIGHT).save(root.join("masks/2.png")).unwrap();
    let output = run("depth", root, &["--epochs", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("2.png: depths are grey PNG files of 16 bits"), "{}", text(&output.stderr));
}

#[test]
fn masks_that_tell_nothing_or_belong_to_two_pictures_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let refused = |words: &[&str]| {
        let output = run("segmentation", root, &["--epochs", "1"]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)), "{stderr}");
    };
    let mask = |number: u32, value: fn(u8) -> u8| {
        let mask = GrayImage::from_fn(WIDTH, HEIGHT, |x, y| Luma([value(class(number, x, y))]));
        mask.save(root.join(format!("masks/{number}.png"))).unwrap();
    };
    shapes(root, |class| class);
    (8..11).for_each(|number| mask(number, |_| 255));
    refused(&["masks of val", "255"]);
    (8..11).for_each(|number| mask(number, |class| if class == 1 { 255 } else { 0 }));
    refused(&["white on black", "number 1"]);

    // The second of train's pictures has the name of one of val's.
    shapes(root, |class| class);
    picture(9).save(root.join("val/1.png")).unwrap();
    refused(&["masks/1.png", "train/1.png", "val/1.png", "--val-masks"]);
    // The same picture in both makes the figures too good.
    fs_err::copy(root.join("train/1.png"), root.join("val/1.png")).unwrap();
    let output = run("segmentation", root, &["--epochs", "1"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("of val have the same pixels as a picture of train"), "{}", text(&output.stderr));
}

#[test]
fn with_three_names_255_is_left_out_of_masks_without_a_third_number() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    shapes(root, |class| if class == 0 { 255 } else { 0 });
    fs_err::write(root.join("names.txt"), "a\nb\nc\n").unwrap();
    let names = root.join("names.txt");
    let output = run("segmentation", root, &["--epochs", "1", "--classes", names.to_str().unwrap()]);
    let found = report(&output);
    // Class 0 alone is in the masks.
    assert_eq!(found["accuracy"], found["mean_accuracy"], "{found}");
    assert_eq!(found["iou"].as_object().unwrap().len(), 3);
    assert!(text(&output.stderr).contains("255, which is left out"), "{}", text(&output.stderr));
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
    refused(&["--out", root.join("best").to_str().unwrap()], 2, &["--out", "`best`", "attention"]);
    for (lines, words) in [("a\n\nb\nc\n", ["line 2", "empty"]), ("a\nb\na\n", ["lines 1 and 3", "`a`"])] {
        fs_err::write(&names, lines).unwrap();
        refused(&["--classes", names.to_str().unwrap()], 1, &words);
    }
    fs_err::write(&names, "a\nb\nc\n\n").unwrap();
    let of_val = GrayImage::from_fn(WIDTH, HEIGHT, |x, _| Luma([if x == 7 { 9 } else { 0 }]));
    of_val.save(root.join("masks/10.png")).unwrap();
    // A mask of val, with a head that could not be trained: the masks are compared before.
    let never = ["--classes", names.to_str().unwrap(), "--lr", "1e30"];
    refused(&never, 1, &["10.png", "number 9", "3 classes"]);
    GrayImage::new(5, HEIGHT).save(root.join("masks/10.png")).unwrap();
    refused(&never, 1, &["10.png", "(64, 48)"]);
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

#[test]
fn white_with_soft_edges_is_cut_at_half_and_numbers_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let mask = |number: u32| root.join(format!("masks/{number}.png"));
    // White squares; each pixel is the mean of those around it.
    shapes(root, |class| if class == 0 { 0 } else { 255 });
    for number in 0..11 {
        let hard = image::open(mask(number)).unwrap().into_luma8();
        let soft = GrayImage::from_fn(WIDTH, HEIGHT, |x, y| {
            let around = |at: u32, side: u32| at.saturating_sub(1)..=(at + 1).min(side - 1);
            let values: Vec<u32> = around(x, WIDTH)
                .flat_map(|x| around(y, HEIGHT).map(move |y| (x, y)))
                .map(|(x, y)| hard.get_pixel(x, y).0[0].into())
                .collect();
            Luma([(values.iter().sum::<u32>() / values.len() as u32) as u8])
        });
        soft.save(mask(number)).unwrap();
    }
    let output = run("segmentation", root, &["--epochs", "40", "--lr", "0.01"]);
    let found = report(&output);
    assert_eq!(found["iou"].as_object().unwrap().keys().collect::<Vec<_>>(), ["background", "object"]);
    assert!(found["iou"]["object"].as_f64().unwrap() > 60.0, "{found}");

    // One of them has numbers, and either way of reading would be wrong for some.
    let numbers = GrayImage::from_fn(WIDTH, HEIGHT, |x, y| Luma([class(3, x, y)]));
    numbers.save(mask(3)).unwrap();
    let output = run("segmentation", root, &["--epochs", "1"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(["masks/3.png", "soft edges", "--classes"].iter().all(|word| stderr.contains(word)), "{stderr}");

    // Many classes, as ADE20K has them: there is no white.
    shapes(root, |class| [0, 20, 150][usize::from(class)]);
    let found = report(&run("segmentation", root, &["--epochs", "1"]));
    assert_eq!(found["iou"].as_object().unwrap().len(), 151);
}

#[test]
fn masks_and_depths_are_turned_as_their_orientation_says() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let depths = || {
        for number in 0..11 {
            let depth = |x: u32, y: u32| [6000_u16, 1500, 3000][usize::from(class(number, x, y))];
            let map = ImageBuffer::<Luma<u16>, _>::from_fn(WIDTH, HEIGHT, |x, y| Luma([depth(x, y)]));
            map.save(root.join("masks").join(format!("{number}.png"))).unwrap();
        }
    };
    for task in ["segmentation", "depth"] {
        let found = |orientation: Option<u8>| {
            shapes(root, |class| class);
            if task == "depth" {
                depths();
            }
            for folder in ["train", "val", "masks"] {
                if let Some(orientation) = orientation {
                    turn(&root.join(folder), orientation);
                }
            }
            report(&run(task, root, &["--epochs", "3", "--lr", "0.01"]))
        };
        let upright = found(None);
        for orientation in [6, 3] {
            assert_eq!(found(Some(orientation)), upright, "{task} {orientation}");
        }
    }
}
