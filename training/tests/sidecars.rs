//! Pictures as tools write them: classes beside pictures in tar files, masks and hidden copies among them, and none of all that.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{Rgb, RgbImage};
use serde_json::Value;

fn dino_train(verb: &str, arguments: &[&str], paths: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.arg(verb).arg("--model").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/tiny-model")).args(arguments);
    for (flag, path) in paths {
        command.arg(flag).arg(path);
    }
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The last line of stdout.
fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(output));
    serde_json::from_slice(output.stdout.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap()).unwrap()
}

const CLASSES: [&str; 3] = ["ant", "bee", "cat"];

/// A picture of a class, as PNG: classes differ in colour.
fn picture(class: u32, number: u32) -> Vec<u8> {
    let picture =
        RgbImage::from_fn(64, 48, |x, y| Rgb([class as u8 * 90, 255 - class as u8 * 90, ((x * (class + 1) + y * number) % 256) as u8]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A tar file of members.
fn shard(file: &Path, members: &[(String, Vec<u8>)]) {
    let mut builder = tar::Builder::new(fs_err::File::create(file).unwrap());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    builder.finish().unwrap();
}

/// Samples of a shard: pictures in a row, each with what `sidecar` puts beside it.
fn samples(per_class: u32, sidecar: impl Fn(usize) -> (&'static str, String)) -> Vec<(String, Vec<u8>)> {
    let mut members = Vec::new();
    for number in 0..per_class {
        for class in 0..CLASSES.len() {
            let key = format!("{:06}", number as usize * CLASSES.len() + class);
            let (ending, content) = sidecar(class);
            members.push((format!("{key}.{ending}"), content.into_bytes()));
            members.push((format!("{key}.png"), picture(class as u32, number)));
        }
    }
    members
}

#[test]
fn sidecars_in_shards_name_the_classes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (set, per_class) in [("train", 3), ("val", 2)] {
        for (number, class) in (0..).zip(CLASSES) {
            fs_err::create_dir_all(at(set).join(class)).unwrap();
            for i in 0..per_class {
                fs_err::write(at(set).join(class).join(format!("{i}.png")), picture(number, i)).unwrap();
            }
        }
    }
    // Classes by number beside the pictures, and by name.
    let cls = |class: usize| ("cls", format!("{class}\n"));
    let json = |class: usize| ("json", format!("{{\"caption\": \"a\", \"class_name\": \"{}\"}}", CLASSES[class]));
    shard(&at("train-cls.tar"), &samples(3, cls));
    shard(&at("val-cls.tar"), &samples(2, cls));
    shard(&at("train-json.tar"), &samples(3, json));
    let masks = [("000000.mask.png", 4), ("000001_mask.png", 5), ("._000000.png", 6)].map(|(name, i)| (name.to_owned(), picture(0, i)));
    shard(&at("val-json.tar"), &[&samples(2, json)[..], &masks].concat());
    let knn = |train: &str, val: &str| dino_train("knn", &["--k", "1,3"], &[("--train", &at(train)), ("--val", &at(val))]);
    let expected = report(&knn("train", "val"));
    assert!(expected["k1"]["top1"].as_f64().unwrap() > 60.0, "{expected}");
    assert_eq!(report(&knn("train-cls.tar", "val-cls.tar")), expected);
    let output = knn("train-json.tar", "val-json.tar");
    assert_eq!(report(&output), expected);
    assert!(text(&output).contains("val: 6 pictures, 0 skipped"), "masks and hidden copies are no pictures: {}", text(&output));
    // The folders beside them have the same names.
    assert_eq!(report(&knn("train", "val-json.tar")), expected);
    let linear = dino_train(
        "linear",
        &["--epochs", "2", "--n-last-blocks", "1", "--cached", "0"],
        &[("--train", &at("train-cls.tar")), ("--val", &at("val-cls.tar"))],
    );
    assert!(report(&linear)["top1"].is_number());
}

#[test]
fn pictures_without_classes_are_told_in_one_sentence_and_drawn_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let flat = folder.path().join("flat");
    fs_err::create_dir(&flat).unwrap();
    for i in 0..9 {
        fs_err::write(flat.join(format!("{i}.png")), picture(i % 3, i)).unwrap();
    }
    fs_err::write(flat.join("4_mask.png"), picture(0, 0)).unwrap();
    let tar = folder.path().join("flat.tar");
    shard(&tar, &(0..9).map(|i| (format!("{i}.png"), picture(i % 3, i))).collect::<Vec<_>>());
    for pictures in [&flat, &tar] {
        let output = dino_train("knn", &[], &[("--train", pictures), ("--val", pictures)]);
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output);
        assert_eq!(said.matches("holds 9 pictures and no classes").count(), 1, "{said}");
        assert!(!said.contains("skipped") && !said.contains("holds no pictures"), "{said}");
        let map = folder.path().join("map.svg");
        let output = dino_train("tsne", &["--steps", "50"], &[("--images", pictures), ("--out", &map)]);
        assert!(output.status.success(), "{}", text(&output));
        let places: Vec<Value> = serde_json::from_slice(&fs_err::read(folder.path().join("map.json")).unwrap()).unwrap();
        assert_eq!(places.len(), 9);
        assert!(places.iter().all(|place| place["class"].is_null()));
    }
}

#[test]
fn compressed_tar_files_are_named_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let gzip = |name: &str| -> PathBuf {
        let file = folder.path().join(name);
        fs_err::write(&file, [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3]).unwrap();
        file
    };
    for (file, given) in [(gzip("a.tar.gz"), "a.tar.gz"), (gzip("b.tar"), "b.tar"), (gzip("d.tgz"), "")] {
        let root = if given.is_empty() { folder.path() } else { &file };
        if given.is_empty() {
            fs_err::remove_file(folder.path().join("b.tar")).unwrap();
        }
        let output = dino_train("knn", &[], &[("--train", root), ("--val", root)]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output).contains("compressed by gzip: unpack it with gunzip"), "{}", text(&output));
    }
}
