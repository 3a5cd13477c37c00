//! The whole line: train, export, import, serve, and ask; then the demo model that ships.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use image::{RgbImage, imageops};
use serde_json::Value;

use crate::harness::{Server, program, root, tiny_model};

/// `dino-train`, which cargo builds beside the server when the whole workspace is tested.
fn trainer() -> Command {
    let path = Path::new(env!("CARGO_BIN_EXE_dino-server")).with_file_name("dino-train");
    assert!(path.is_file(), "{} is missing: run `cargo test --workspace`", path.display());
    Command::new(path)
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Windows of a photo, all different: enough to tell photos apart by colour and texture.
fn windows(photo: &RgbImage, from: u32, count: u32) -> impl Iterator<Item = RgbImage> {
    let (width, height) = (photo.width() - 120, photo.height() - 120);
    (from..from + count).map(move |i| imageops::crop_imm(photo, i * 97 % width, i * 61 % height, 120, 110).to_image())
}

/// Two `ImageFolder` trees, a class for each of the photos.
fn pictures(folder: &Path) -> (PathBuf, PathBuf) {
    let (train, val) = (folder.join("train"), folder.join("val"));
    for name in ["astronaut.png", "china.jpg", "coffee.png", "flower.jpg"] {
        let photo = image::open(root().join("tests/photos").join(name)).unwrap().to_rgb8();
        let class = name.split('.').next().unwrap();
        for (tree, from, count) in [(&train, 0, 8), (&val, 8, 3)] {
            fs_err::create_dir_all(tree.join(class)).unwrap();
            for (i, window) in windows(&photo, from, count).enumerate() {
                window.save(tree.join(class).join(format!("{i}.png"))).unwrap();
            }
        }
    }
    (train, val)
}

/// Files of an `ImageFolder` with their classes.
fn labelled(tree: &Path) -> Vec<(String, PathBuf)> {
    let mut all = Vec::new();
    for class in fs_err::read_dir(tree).unwrap() {
        let class = class.unwrap();
        for file in fs_err::read_dir(class.path()).unwrap() {
            all.push((class.file_name().into_string().unwrap(), file.unwrap().path()));
        }
    }
    all.sort();
    all
}

/// The share of pictures whose label the server names, in percent.
fn accuracy(server: &Server, pictures: &[(String, PathBuf)], options: &str) -> f64 {
    let right = pictures.iter().filter(|(label, path)| {
        let answer = server.post(&format!("/classify?{options}"), "application/octet-stream", &fs_err::read(path).unwrap());
        answer.ok().json()["results"][0]["label"] == label.as_str()
    });
    100.0 * right.count() as f64 / pictures.len() as f64
}

#[test]
fn a_trained_model_is_exported_and_served() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).into_os_string().into_string().unwrap();
    let (train, val) = pictures(folder.path());

    let settings = "--arch vit_tiny --dim 48 --depth 2 --heads 3 --patch-size 8 --out-dim 64 --head-hidden-dim 32 --head-bottleneck-dim 16 \
                    --global-crops-size 32 --local-crops-size 16 --local-crops-number 2 --batch-size 8 --epochs 2 --warmup-epochs 1";
    succeed(trainer().args(["train", "--data", &at("train"), "--out", &at("run")]).args(settings.split_whitespace()));
    let log = fs_err::read_to_string(folder.path().join("run/log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 2, "a line for each epoch");

    succeed(trainer().args(["export", "--checkpoint", &at("run"), "--out", &at("model")]));
    let import = succeed(program().args(["import", "--images", &at("train"), "--data-dir", &at("data"), "--model", &at("model")]));
    assert!(String::from_utf8_lossy(&import.stdout).contains("32"), "{import:?}");

    let knn = succeed(trainer().args(["knn", "--model", &at("model"), "--k", "5", "--train", &at("train"), "--val", &at("val")]));
    let figures: Value = serde_json::from_str(String::from_utf8_lossy(&knn.stdout).lines().last().unwrap()).unwrap();

    let server = Server::with_models(&[&at("model")], &["--data-dir", &at("data")]);
    let val = labelled(&val);
    let served = accuracy(&server, &val, "k=5&exact=true&min_similarity=0");
    assert!((served - figures["k5"]["top1"].as_f64().unwrap()).abs() < 1e-6, "served {served}, evaluated {figures}");
    assert!(served > 40.0, "four photos told apart in {served} % of the windows: chance is 25");

    a_linear_head_answers_what_was_evaluated(folder.path(), &val);

    let (label, picture) = &labelled(&train)[0];
    let picture = fs_err::read(picture).unwrap();
    let vectors = server.post("/embed?pooling=cls", "image/png", &picture).ok().vectors();
    assert_eq!(vectors[0].len(), 48);
    assert!((vectors[0].iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-4);
    let answer = server.post("/classify?k=1", "image/png", &picture).ok().json();
    assert_eq!(answer["results"][0]["label"], label.as_str(), "a picture of the collection is its own neighbour");
    let mask = server.post("/segment?format=rle", "image/png", &picture).ok().json();
    let (result, object) = (&mask["results"][0], &mask["results"][0]["masks"][0]);
    assert_eq!((result["width"].as_u64(), result["height"].as_u64()), (Some(120), Some(110)));
    assert_eq!(object["rle"]["size"], serde_json::json!([110, 120]));

    // A restart keeps the collection.
    drop(server);
    let server = Server::with_models(&[&at("model")], &["--data-dir", &at("data")]);
    assert!((accuracy(&server, &val, "k=5&exact=true&min_similarity=0") - served).abs() < 1e-9);
}

/// Heads on the last block and on two of them, given by flag and found in the model's folder.
fn a_linear_head_answers_what_was_evaluated(folder: &Path, val: &[(String, PathBuf)]) {
    let at = |name: &str| folder.join(name).into_os_string().into_string().unwrap();
    succeed(trainer().args(["export", "--checkpoint", &at("run"), "--out", &at("deep"), "--last-blocks", "2"]));
    let linear = |model: &str, more: &[&str]| -> Value {
        let settings = ["--train", &at("train"), "--val", &at("val"), "--epochs", "20", "--batch-size", "8", "--cached", "2"];
        let output = succeed(trainer().args(["linear", "--model", model]).args(settings).args(more));
        serde_json::from_str(String::from_utf8_lossy(&output.stdout).lines().last().unwrap()).unwrap()
    };
    let plain = linear(&at("model"), &["--out", &at("plain")]);
    let deep = linear(&at("run"), &["--n-last-blocks", "2", "--avgpool-patchtokens", "true", "--out", &at("deep/heads/both")]);
    let server = Server::with_models(&[&at("model"), &at("deep")], &["--head", &at("plain")]);
    for (head, figures) in [("plain", &plain), ("both", &deep)] {
        let served = accuracy(&server, val, &format!("head={head}"));
        assert!((served - figures["top1"].as_f64().unwrap()).abs() < 1e-6, "{head}: served {served}, evaluated {figures}");
        assert!(served > 40.0, "{served} %: chance is 25");
    }
    let picture = fs_err::read(&val[0].1).unwrap();
    let answer = server.post("/classify?head=plain", "image/png", &picture).ok().json();
    let result = &answer["results"][0];
    let scores: f64 = result["classes"].as_array().unwrap().iter().map(|class| class["score"].as_f64().unwrap()).sum();
    assert!((scores - 1.0).abs() < 1e-9 && result["neighbors"] == serde_json::json!([]), "{answer}");
    assert_eq!((&answer["head"], &answer["model"]), (&"plain".into(), &"model".into()));
    assert_eq!(result["classes"].as_array().unwrap().len(), 4);
    assert_eq!(server.post("/classify?head=plain&min_score=1", "image/png", &picture).ok().json()["results"][0]["label"], Value::Null);
    let unknown = server.post("/classify?head=none", "image/png", &picture).problem(404, "unknown_head");
    assert!(unknown["detail"].as_str().unwrap().contains("plain"), "{unknown}");
    server.post("/classify?head=both&model=model", "image/png", &picture).problem(404, "unknown_head");
    server.post("/classify?head=plain&k=3", "image/png", &picture).problem(400, "bad_parameter");

    // A head of other weights, and one of blocks that the folder does not give, end the start.
    let refused = |model: &str, head: &str| {
        let output = program().args(["serve", "--listen", "127.0.0.1:0", "--model", model, "--head", head]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let error = refused(tiny_model().to_str().unwrap(), &at("plain"));
    assert!(error.contains("head `plain`") && error.contains("fingerprint"), "{error}");
    let error = refused(&at("model"), &at("deep/heads/both"));
    assert!(error.contains("--last-blocks 2"), "{error}");
}

/// One picture of each class of Caltech-101's val split, against the gallery of the train split that ships.
#[test]
fn the_demo_model_knows_what_it_sees() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap().to_owned();
    let demo = root().join("models/demo");
    succeed(program().arg("restore").arg("--from").arg(demo.join("gallery.dino")).args(["--data-dir", &data]));
    let server = Server::with_models(&[demo.to_str().unwrap()], &["--data-dir", &data]);
    let sample = labelled(&root().join("tests/data/caltech101-val"));
    assert_eq!(sample.len(), 100, "one picture for each class");
    let right = accuracy(&server, &sample, "k=20");
    println!("demo model: {right} % of one picture from each of 100 classes (chance: 1 %)");
    assert!(right >= 12.0, "{right} %");
}
