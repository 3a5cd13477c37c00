//! The k-NN evaluation as a program: the golden figures, and small folders with all that is found in the wild.

mod program;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{Rgb, RgbImage};
use program::{report, text};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn golden() -> PathBuf {
    std::env::var_os("DINO_GOLDEN").map_or_else(|| root().join("tests/golden"), PathBuf::from)
}

fn model() -> PathBuf {
    root().join("tests/data/tiny-model")
}

fn knn(arguments: &[&str], paths: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.arg("knn").args(arguments);
    for (flag, path) in paths {
        command.arg(flag).arg(path);
    }
    command.output().expect("the program starts")
}

fn assert_percent(found: &Value, expected: f64) {
    let found = found.as_f64().expect("a number, not NaN");
    assert!((found - expected).abs() < 1e-9, "{found}, not {expected}");
}

#[test]
fn golden_knn_figures() {
    let json = fs_err::read_to_string(golden().join("golden.json")).unwrap();
    let expected: Value = serde_json::from_str(&json).unwrap();
    let expected = expected["knn"].as_object().expect("figures by k");
    let ks: Vec<&str> = expected.keys().map(|k| k.strip_prefix('k').expect("k and a number")).collect();
    assert!(!ks.is_empty());
    let found = report(&knn(&["--k", &ks.join(",")], &[("--features", &golden().join("knn.safetensors"))]));
    for (k, figures) in expected {
        for (name, figure) in figures.as_object().expect("figures by name") {
            println!("{k} {name}: {} (expected {figure})", found[k][name]);
            assert_percent(&found[k][name], figure.as_f64().unwrap());
        }
    }
}

/// Classes that differ in colour.
fn pictures(folder: &Path, classes: &[&str], per_class: u8) {
    for (number, class) in classes.iter().enumerate() {
        fs_err::create_dir_all(folder.join(class)).expect("a folder");
        for i in 0..per_class {
            let number = number as u8;
            let picture = RgbImage::from_fn(64, 48, |x, y| {
                Rgb([number * 30, 255 - number * 30, ((x * u32::from(number + 1) + y * u32::from(i)) % 256) as u8])
            });
            picture.save(folder.join(class).join(format!("{i}.png"))).expect("a picture");
        }
    }
}

const CLASSES: [&str; 8] = ["a", "b", "c d", "d.e", "é", "f", "g", "h"];

#[test]
fn small_sets_give_whole_figures() {
    let folder = tempfile::tempdir().unwrap();
    let (train, val) = (folder.path().join("train"), folder.path().join("val"));
    pictures(&train, &CLASSES, 3);
    for count in [7, 1] {
        let val = val.join(count.to_string());
        pictures(&val, &CLASSES[..count], 1);
        let output = knn(&["--k", "1,3,10,200"], &[("--model", &model()), ("--train", &train), ("--val", &val)]);
        let report = report(&output);
        let stderr = text(&output.stderr);
        assert!(stderr.contains("k = 200") && stderr.contains("all 24"), "{stderr}");
        assert_eq!(report.as_object().unwrap().len(), 4);
        for (k, figures) in report.as_object().unwrap() {
            let figure = |name: &str| figures[name].as_f64().expect("a number, not NaN");
            assert!(["top1", "top5", "mean_class"].iter().all(|name| (0.0..=100.0).contains(&figure(name))), "{k}");
        }
        assert_eq!(report["k1"]["top1"], report["k1"]["top5"]);
        // Each val picture is also in train.
        assert_percent(&report["k1"]["top1"], 100.0);
    }
}

#[test]
fn broken_files_are_named_once_and_unknown_classes_count_as_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let (train, val) = (folder.path().join("train"), folder.path().join("val"));
    pictures(&train, &CLASSES, 3);
    pictures(&val, &["a", "new"], 2);
    let photo = fs_err::read(root().join("tests/photos/china.jpg")).unwrap();
    fs_err::write(train.join("a/cut.jpg"), &photo[..photo.len() / 2]).unwrap();
    fs_err::write(val.join("a/empty.jpg"), "").unwrap();
    fs_err::write(val.join("a/text.png"), "text").unwrap();
    fs_err::write(val.join("loose.png"), "text").unwrap();
    std::os::unix::fs::symlink("nowhere", val.join("a/dangling.jpg")).unwrap();
    let output = knn(&["--k", "1"], &[("--model", &model()), ("--train", &train), ("--val", &val)]);
    let report = report(&output);
    let stderr = text(&output.stderr);
    for name in ["cut.jpg", "empty.jpg", "text.png", "loose.png", "dangling.jpg"] {
        assert_eq!(stderr.matches(&format!("{name}: ")).count(), 1, "{name} in {stderr}");
    }
    assert!(stderr.contains("class \"new\" of val is not in train"), "{stderr}");
    assert!(stderr.contains("val: 4 pictures, 4 skipped"), "{stderr}");
    assert_percent(&report["k1"]["top1"], 50.0);
    assert_percent(&report["k1"]["mean_class"], 50.0);
}

/// A checkpoint gives the figures of the model folder that it is exported to.
#[test]
fn a_checkpoint_is_evaluated_like_its_export() {
    let folder = tempfile::tempdir().unwrap();
    let (train, val) = (folder.path().join("train"), folder.path().join("val"));
    pictures(&train, &CLASSES, 2);
    pictures(&val, &CLASSES[..5], 3);
    let figures = |model: &Path, more: &[&str]| {
        let arguments = [&["--k", "1,5"], more].concat();
        report(&knn(&arguments, &[("--model", model), ("--train", &train), ("--val", &val)]))
    };
    // The tiny model was exported from this checkpoint.
    let checkpoint = root().join("tests/golden/checkpoints/pth-dino-backbone/dino_vit_pretrain.pth");
    assert_eq!(figures(&checkpoint, &["--heads", "4"]), figures(&model(), &[]));
}

#[test]
fn classes_are_found_inside_of_tar_files() {
    let folder = tempfile::tempdir().unwrap();
    let (train, val) = (folder.path().join("train"), folder.path().join("val"));
    pictures(&train, &CLASSES, 2);
    pictures(&val, &CLASSES[..5], 3);
    let packed = |name: &str, from: &Path| {
        let file = folder.path().join(name);
        let mut builder = tar::Builder::new(fs_err::File::create(&file).unwrap());
        builder.append_dir_all(".", from).unwrap();
        builder.finish().unwrap();
        file
    };
    let figures = |train: &Path, val: &Path| report(&knn(&["--k", "1,5"], &[("--model", &model()), ("--train", train), ("--val", val)]));
    let expected = figures(&train, &val);
    assert_eq!(figures(&packed("train.tar", &train), &packed("val.tar", &val)), expected);
    // A tar file without folders is of the class whose folder it is in.
    let class = val.join(CLASSES[0]);
    packed("class.tar", &class);
    fs_err::remove_dir_all(&class).unwrap();
    fs_err::create_dir(&class).unwrap();
    fs_err::rename(folder.path().join("class.tar"), class.join("0.tar")).unwrap();
    assert_eq!(figures(&train, &val), expected);
}

#[test]
fn nothing_to_evaluate_fails_and_wrong_usage_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (train, empty) = (folder.path().join("train"), folder.path().join("empty"));
    pictures(&train, &CLASSES[..2], 1);
    fs_err::create_dir(&empty).unwrap();
    let output = knn(&[], &[("--model", &model()), ("--train", &train), ("--val", &empty)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("holds no pictures"), "{}", text(&output.stderr));
    assert_eq!(knn(&[], &[]).status.code(), Some(2));
    assert_eq!(knn(&[], &[("--model", &model())]).status.code(), Some(2));
    let features = golden().join("knn.safetensors");
    assert_eq!(knn(&["--k", "0"], &[("--features", &features)]).status.code(), Some(2));
    assert_eq!(knn(&["--k", "x"], &[("--features", &features)]).status.code(), Some(2));
}

#[test]
fn val_pictures_that_are_in_train_are_counted_and_named_once() {
    let folder = tempfile::tempdir().unwrap();
    let (train, val) = (folder.path().join("train"), folder.path().join("val"));
    let photo = |name: &str| image::load_from_memory(&fs_err::read(root().join("tests/photos").join(name)).unwrap()).unwrap().into_rgb8();
    let save = |path: PathBuf, picture: &RgbImage| {
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        picture.save(path).unwrap();
    };
    for (class, names) in [("thing", ["coffee.png", "rocket.jpg"]), ("animal", ["chelsea.png", "astronaut.png"])] {
        names.iter().enumerate().for_each(|(at, name)| save(train.join(class).join(format!("{at}.png")), &photo(name)));
    }
    let half = |picture: RgbImage| image::imageops::thumbnail(&picture, picture.width() / 2, picture.height() / 2);
    save(val.join("thing/copy.jpg"), &half(photo("coffee.png")));
    save(val.join("animal/copy.png"), &photo("chelsea.png"));
    save(val.join("thing/other.png"), &photo("china.jpg"));
    let output = knn(&["--k", "1,2"], &[("--model", &model()), ("--train", &train), ("--val", &val)]);
    let stderr = text(&output.stderr);
    let found = report(&output);
    assert_eq!((&found["k1"]["val_copies"], &found["k2"]["val_copies"]), (&2.into(), &2.into()));
    assert_eq!(stderr.matches("2 of 3 pictures of val have the same pixels").count(), 1, "{stderr}");
    for pair in ["val/thing/copy.jpg is train/thing/0.png", "val/animal/copy.png is train/animal/0.png"] {
        assert_eq!(stderr.matches(pair).count(), 1, "{stderr}");
    }
    fs_err::remove_file(val.join("thing/copy.jpg")).unwrap();
    fs_err::remove_file(val.join("animal/copy.png")).unwrap();
    let output = knn(&["--k", "1"], &[("--model", &model()), ("--train", &train), ("--val", &val)]);
    assert_eq!((&report(&output)["k1"]["val_copies"], text(&output.stderr).contains("same pixels")), (&0.into(), false));
}
