//! `dino-train segment-eval` and `export --masks` as a user meets them, on pictures whose masks are known.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;
mod tagged;

use std::path::Path;
use std::process::Command;

use common::bundled_golden;
use image::{GrayImage, ImageBuffer, Luma, Rgb, RgbImage};
use serde_json::Value;
use tagged::turn;

/// Pictures of a bright square in noise, two frames of each of three scenes, in `images`, and their masks in `masks`.
fn paint(folder: &Path) {
    for (scene, (left, top)) in [(8_u32, 16_u32), (40, 24), (64, 40)].into_iter().enumerate() {
        for frame in 0..2 {
            let inside = |x: u32, y: u32| (left..left + 40).contains(&x) && (top..top + 32).contains(&y);
            let noise = |x: u32, y: u32| ((x * 31 + y * 17 + frame * 7) % 23) as u8;
            let picture =
                RgbImage::from_fn(
                    128,
                    96,
                    |x, y| if inside(x, y) { Rgb([230, 200, noise(x, y)]) } else { Rgb([20, 40, 60 + noise(x, y)]) },
                );
            let mask = GrayImage::from_fn(128, 96, |x, y| Luma([if inside(x, y) { 255 } else { 0 }]));
            fs_err::create_dir_all(folder.join("images")).unwrap();
            fs_err::create_dir_all(folder.join("masks")).unwrap();
            picture.save(folder.join(format!("images/scene{scene}_{frame:05}.png"))).unwrap();
            mask.save(folder.join(format!("masks/scene{scene}_{frame:05}.png"))).unwrap();
        }
    }
}

/// Exit code, the last line of stdout, and stderr.
fn dino_train(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_dino-train")).args(arguments).current_dir(folder).env("NO_COLOR", "1").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout).lines().last().unwrap_or_default().to_owned(), text(&output.stderr))
}

fn export(folder: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let checkpoint = bundled_golden().join("checkpoints/pth-dino-backbone/dino_vit_pretrain.pth");
    let mut arguments = vec!["export", "--checkpoint", checkpoint.to_str().unwrap(), "--heads", "4", "--out", "model"];
    arguments.extend(more);
    dino_train(folder, &arguments)
}

fn recommended(folder: &Path) -> Value {
    serde_json::from_slice::<Value>(&fs_err::read(folder.join("model/manifest.json")).unwrap()).unwrap()["segment"].clone()
}

#[test]
fn methods_are_measured_beside_baselines() {
    let work = tempfile::tempdir().unwrap();
    paint(work.path());
    assert_eq!(export(work.path(), &[]).0, Some(0));
    let arguments = ["segment-eval", "--model", "model", "--images", "images", "--masks", "masks", "--segment-size", "96", "--baselines"];
    let (code, last, said) = dino_train(work.path(), &arguments);
    assert_eq!(code, Some(0), "{said}");
    let figures: Value = serde_json::from_str(&last).unwrap();
    for row in ["saliency", "ncut", "lost", "background", "centred box", "untrained saliency"] {
        let jaccard = figures[row]["jaccard"].as_f64().unwrap_or(-1.0);
        assert!((0.0..=100.0).contains(&jaccard), "{row}: {figures}");
    }
    // The squares are the only thing whose colour differs: what compares patches finds them without any training.
    assert!(figures["colour contrast"]["jaccard"].as_f64().unwrap() > 60.0, "{figures}");
    assert!(recommended(work.path()).is_null());
}

#[test]
fn an_export_with_masks_says_how_masks_are_best_made_as_recommend_does() {
    let work = tempfile::tempdir().unwrap();
    paint(work.path());
    let (code, _, said) = export(work.path(), &["--pictures", "images", "--masks", "masks"]);
    assert_eq!(code, Some(0), "{said}");
    let exported = recommended(work.path());
    assert_eq!(exported["figures"]["pictures"], 6, "{exported}");
    let (code, last, said) =
        dino_train(work.path(), &["segment-eval", "--model", "model", "--images", "images", "--masks", "masks", "--recommend"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(recommended(work.path()), exported);
    assert_eq!(serde_json::from_str::<Value>(&last).unwrap(), exported);
}

#[test]
fn masks_need_their_pictures() {
    let work = tempfile::tempdir().unwrap();
    paint(work.path());
    let (code, _, said) = export(work.path(), &["--masks", "masks"]);
    assert!(code == Some(2) && said.contains("--pictures"), "{said}");
    let (code, _, said) = export(work.path(), &["--pictures", "images", "--masks", "images/none"]);
    assert!(code == Some(1) && said.contains("masks are named NAME.png"), "{said}");
    assert!(!work.path().join("model").exists());
}

#[test]
fn pictures_and_masks_are_turned_as_their_orientation_says() {
    let work = tempfile::tempdir().unwrap();
    assert_eq!(export(work.path(), &[]).0, Some(0));
    let figures = || {
        let arguments = ["segment-eval", "--model", "model", "--images", "images", "--masks", "masks", "--segment-size", "96"];
        let (code, last, said) = dino_train(work.path(), &[&arguments[..], &["--method", "saliency"]].concat());
        assert_eq!(code, Some(0), "{said}");
        last
    };
    paint(work.path());
    let upright = figures();
    for orientation in [6, 3] {
        paint(work.path());
        turn(&work.path().join("images"), orientation);
        turn(&work.path().join("masks"), orientation);
        assert_eq!(figures(), upright, "{orientation}");
    }
}

#[test]
fn masks_whose_numbers_cannot_be_read_are_skipped_and_named() {
    let work = tempfile::tempdir().unwrap();
    assert_eq!(export(work.path(), &[]).0, Some(0));
    paint(work.path());
    let mask = |name: &str| work.path().join("masks").join(name);
    let first = image::open(mask("scene0_00000.png")).unwrap().into_rgba8();
    first.save_with_format(mask("scene0_00000.png"), image::ImageFormat::Gif).unwrap();
    let unclear = ImageBuffer::<Luma<u16>, _>::from_fn(128, 96, |x, _| Luma([[0, 1, 65_535, 65_535][x as usize % 4]]));
    unclear.save(mask("scene0_00001.png")).unwrap();
    let arguments = ["segment-eval", "--model", "model", "--images", "images", "--masks", "masks", "--segment-size", "96"];
    let (code, _, said) = dino_train(work.path(), &[&arguments[..], &["--method", "saliency"]].concat());
    assert_eq!(code, Some(0), "{said}");
    for words in ["scene0_00000.png: the mask is a GIF file", "scene0_00001.png: it has 65535"] {
        assert!(said.contains(words), "{said}");
    }
}
