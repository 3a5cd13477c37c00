//! What a run shows of itself, and that it changes nothing; then the pictures of a backbone.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{Rgb, RgbImage};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn dino_train(verb: &str, arguments: &[&str], paths: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.arg(verb).args(arguments);
    for (flag, path) in paths {
        command.arg(flag).arg(path);
    }
    command.output().unwrap()
}

fn succeed(output: Output) -> Output {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Classes that differ in colour.
fn pictures(folder: &Path, classes: &[&str], per_class: u32) {
    for (number, class) in (0..).zip(classes) {
        fs_err::create_dir_all(folder.join(class)).unwrap();
        for i in 0..per_class {
            let picture =
                RgbImage::from_fn(40 + i % 3, 44, |x, y| Rgb([number * 80, 255 - number * 80, ((x * (i + 3) + y * 7) % 256) as u8]));
            picture.save(folder.join(class).join(format!("{i}.png"))).unwrap();
        }
    }
}

fn train(data: &Path, out: &Path, more: &[&str]) {
    let settings = "--arch vit_tiny --dim 24 --depth 2 --heads 2 --patch-size 8 --out-dim 32 --head-hidden-dim 16 --head-bottleneck-dim 8 \
                    --global-crops-size 32 --local-crops-size 16 --local-crops-number 2 --batch-size 4 --epochs 4 --warmup-epochs 1 \
                    --drop-path-rate 0.1 --lr 0.02 --seed 5";
    let settings: Vec<&str> = settings.split_whitespace().collect();
    let given = |name: &str| more.contains(&name);
    let settings: Vec<&str> = settings.chunks(2).filter(|pair| !given(pair[0])).flatten().copied().collect();
    succeed(dino_train("train", &[&settings[..], more].concat(), &[("--data", data), ("--out", out)]));
}

fn log(run: &Path) -> Vec<Value> {
    fs_err::read_to_string(run.join("log.jsonl")).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn last_checkpoint(run: &Path) -> Vec<u8> {
    let mut found: Vec<PathBuf> = fs_err::read_dir(run).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with("checkpoint-"));
    found.sort();
    let bytes = fs_err::read(found.last().unwrap()).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names = tensors.names();
    names.sort_unstable();
    names.into_iter().flat_map(|name| tensors.tensor(name).unwrap().data().to_vec()).collect()
}

/// What a checkpoint says of itself.
fn description(checkpoint: &Path) -> Value {
    let bytes = fs_err::read(checkpoint).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()["dino"]).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_run_that_is_watched_learns_the_same_and_shows_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (data, val) = (at("data"), at("val"));
    pictures(&data, &["a", "b", "c"], 5);
    pictures(&val, &["a", "b", "c"], 3);
    train(&data, &at("plain"), &[]);
    let folders = ["--knn-train", data.to_str().unwrap(), "--knn-val", val.to_str().unwrap()];
    let watch = ["--knn-every", "2", "--pictures-every", "2"];
    train(&data, &at("whole"), &[&watch[..], &folders].concat());
    assert_eq!(last_checkpoint(&at("plain")), last_checkpoint(&at("whole")), "watching changes no weight");

    let lines = log(&at("whole"));
    let watched: Vec<bool> = lines.iter().map(|line| line["knn"].is_object()).collect();
    assert_eq!(watched, [false, true, false, true]);
    let figures = &lines[3]["knn"];
    assert_eq!(figures["k"], 15, "k is at most the gallery");
    // The same figures come out of the export.
    let knn = succeed(dino_train("knn", &["--k", "15"], &[("--model", &at("whole")), ("--train", &data), ("--val", &val)]));
    let exported: Value = serde_json::from_str(String::from_utf8_lossy(&knn.stdout).lines().last().unwrap()).unwrap();
    for name in ["top1", "top5", "mean_class"] {
        assert_eq!(exported["k15"][name], figures[name], "{name}: {exported} against {figures}");
    }

    let shown = names(&at("whole").join("pictures"));
    let attention = |epoch| shown.iter().filter(|name| name.starts_with(&format!("attention-{epoch}"))).count();
    assert_eq!((attention("0002"), attention("0004"), attention("0001")), (4, 4, 0), "{shown:?}");
    assert!(shown.contains(&"tsne.svg".to_owned()));
    let report = fs_err::read_to_string(at("whole").join("report.html")).unwrap();
    for part in ["epoch 2</th><th>epoch 4", "k-NN, in percent", "<th>patch-size</th><td>8</td>", "a/0.png"] {
        assert!(report.contains(part), "{part}");
    }
    let kept = names(&at("whole"));
    assert!(kept.iter().any(|name| name.contains("tfevents")));
    assert_eq!(kept.iter().filter(|name| name.ends_with(".safetensors")).count(), 3, "the newest two, and the best: {kept:?}");
    let best = description(&at("whole").join("best.safetensors"));
    let best_epoch = if lines[3]["knn"]["top1"].as_f64() > lines[1]["knn"]["top1"].as_f64() { 3 } else { 1 };
    assert_eq!(best["step"], lines[best_epoch]["step"], "{lines:?}");
    fs_err::remove_file(at("whole").join("report.html")).unwrap();
    succeed(dino_train("report", &[], &[("--run", &at("whole"))]));
    assert_eq!(fs_err::read_to_string(at("whole").join("report.html")).unwrap(), report);

    // Without folders of its own, every fifth picture of the data is held back.
    train(&data, &at("split"), &["--knn-every", "1", "--epochs", "1"]);
    assert_eq!(log(&at("split"))[0]["knn"]["k"], 12);
}

#[test]
fn figures_of_a_resumed_run_are_those_of_an_unbroken_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let data = at("data");
    pictures(&data, &["a", "b"], 6);
    let watch = ["--knn-every", "1"];
    train(&data, &at("whole"), &watch);
    train(&data, &at("broken"), &watch);
    // As if the run had been killed after its second epoch.
    for checkpoint in names(&at("broken")).iter().filter(|name| name.starts_with("checkpoint-")).skip(1) {
        fs_err::remove_file(at("broken").join(checkpoint)).unwrap();
    }
    train(&data, &at("broken"), &[&watch[..], &["--resume"]].concat());
    let figures = |run: &str| log(&at(run)).iter().map(|line| line["knn"].clone()).collect::<Vec<_>>();
    assert_eq!(figures("whole"), figures("broken"));
    assert_eq!(names(&at("broken")).iter().filter(|name| name.contains("tfevents")).count(), 2, "a file for each start");
}

#[test]
fn attention_is_drawn_for_every_picture_that_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("in"), folder.path().join("out"));
    pictures(&images, &["a"], 2);
    fs_err::write(images.join("a/text.png"), "text").unwrap();
    let model = root().join("tests/data/tiny-model");
    let output = succeed(dino_train("attention", &["--image-size", "64"], &[("--model", &model), ("--images", &images), ("--out", &out)]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("text.png"));
    let files = names(&out.join("a/0.png"));
    assert_eq!(files.iter().filter(|name| name.starts_with("head-")).count(), 4, "{files:?}");
    for name in ["mean.png", "mask-0.png", "overlay-mean.png"] {
        let picture = image::open(out.join("a/1.png").join(name)).unwrap();
        assert_eq!((picture.width(), picture.height()), (41, 44), "{name}");
    }
    let sheet = folder.path().join("sheets");
    let photo = root().join("tests/photos/chelsea.png");
    succeed(dino_train("attention", &["--sheets-only"], &[("--model", &model), ("--images", &photo), ("--out", &sheet)]));
    assert_eq!(names(&sheet), ["chelsea.png.sheet.png"]);
    // A model of one size takes the whole picture in that size.
    let (checkpoint, fixed, sheet) =
        (root().join("tests/golden/checkpoints/hf-dinov2"), folder.path().join("fixed"), folder.path().join("fixed-sheets"));
    succeed(dino_train("export", &["--static", "28,56"], &[("--checkpoint", &checkpoint), ("--out", &fixed)]));
    succeed(dino_train("attention", &["--sheets-only"], &[("--model", &fixed), ("--images", &photo), ("--out", &sheet)]));
    assert_eq!(names(&sheet), ["chelsea.png.sheet.png"]);
    let refused = dino_train("attention", &["--threshold", "0"], &[("--model", &model), ("--images", &photo), ("--out", &sheet)]);
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn maps_are_the_same_each_time_and_name_every_picture() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    pictures(&at("in"), &["a", "b", "c"], 4);
    let model = root().join("tests/data/tiny-model");
    let draw = |out: &Path, more: &[&str]| {
        let arguments = [&["--steps", "60"], more].concat();
        dino_train("tsne", &arguments, &[("--model", &model), ("--images", &at("in")), ("--out", out)])
    };
    for name in ["one.svg", "two.svg", "map.png"] {
        succeed(draw(&at(name), &[]));
    }
    assert_eq!(fs_err::read(at("one.svg")).unwrap(), fs_err::read(at("two.svg")).unwrap());
    succeed(draw(&at("random.svg"), &["--seed", "1"]));
    assert_ne!(fs_err::read(at("one.json")).unwrap(), fs_err::read(at("random.json")).unwrap());
    let points: Vec<Value> = serde_json::from_slice(&fs_err::read(at("one.json")).unwrap()).unwrap();
    assert_eq!((points.len(), &points[5]["class"], &points[5]["file"]), (12, &"b".into(), &"b/1.png".into()));
    assert!(image::open(at("map.png")).unwrap().width() > 900);
    assert_eq!(draw(&at("map.gif"), &[]).status.code(), Some(2));
}

#[test]
fn a_sheet_shows_every_picture_beside_its_colours() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    pictures(&at("in"), &["a", "b"], 3);
    fs_err::write(at("in").join("broken.png"), "no picture").unwrap();
    let model = root().join("tests/data/tiny-model");
    let draw = |out: &Path, more: &[&str]| {
        let arguments = [&["--image-size", "64", "--part", "40"], more].concat();
        dino_train("pca", &arguments, &[("--model", &model), ("--images", &at("in")), ("--out", out)])
    };
    succeed(draw(&at("one.png"), &[]));
    succeed(draw(&at("two.png"), &[]));
    assert_eq!(fs_err::read(at("one.png")).unwrap(), fs_err::read(at("two.png")).unwrap(), "the same each time");
    // Two columns of three, each of two pictures.
    let sheet = image::open(at("one.png")).unwrap().to_rgb8();
    assert_eq!(sheet.dimensions(), (2 * 96 + 8, 3 * 48 + 8));
    let colours: std::collections::BTreeSet<_> = sheet.pixels().map(|pixel| pixel.0).collect();
    assert!(colours.len() > 10, "{colours:?}");
    succeed(draw(&at("few.png"), &["--most", "2"]));
    assert_eq!(image::open(at("few.png")).unwrap().width(), 96 + 8);
    assert_eq!(draw(&at("sheet.gif"), &[]).status.code(), Some(2));
}
