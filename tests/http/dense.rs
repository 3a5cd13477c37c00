//! Linear heads for the classes and the depths of pixels: `/segment?head=NAME` and `/depth`.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use dino_vision::{
    dense::{self, depth::Depths, segmentation::ClassMap},
    embedding::Pooling,
    head::{DepthRange, Description, LinearHead, Task, Tokens},
    model::{Model, SessionOptions},
    transform::PatchGrid,
};
use image::{ExtendedColorType, ImageEncoder as _, Rgb, RgbImage, codecs::png::PngEncoder, imageops};
use ndarray::{Array1, Array2, Axis};
use serde_json::{Value, json};

use crate::{
    harness::{Server, file, program, tiny_model},
    pictures::png,
};

const SIZE: u32 = 96;
const CLASSES: [&str; 3] = ["sky", "road", "tree"];

/// A head of the tiny model with weights that look random.
fn head(task: Task, fingerprint: &str) -> LinearHead {
    let (rows, columns) = if task == Task::Depth { (16, 64) } else { (3, 32) };
    let description = Description {
        format: task.format(),
        task,
        classes: if task == Task::Depth { Vec::new() } else { CLASSES.map(str::to_owned).to_vec() },
        size: (task != Task::Classes).then_some(SIZE),
        depth: (task == Task::Depth).then_some(DepthRange { min: 0.5, max: 8.0 }),
        tokens: Tokens { n_last_blocks: 1, avgpool_patchtokens: false },
        model_fingerprint: fingerprint.into(),
        weights_sha256: String::new(),
        training: Value::Null,
        made_by: "a test".into(),
    };
    let weight = Array2::from_shape_fn((rows, columns), |(row, column)| ((row * 37 + column * 101) % 23) as f32 / 11.0 - 1.0);
    LinearHead::new(description, weight, Array1::zeros(rows))
}

fn fingerprint() -> String {
    Model::open(&tiny_model()).unwrap().fingerprint(Pooling::Cls)
}

/// A folder with a head of each task.
pub(crate) fn heads() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, task) in [("objects", Task::Classes), ("roads", Task::Segmentation), ("rooms", Task::Depth)] {
        head(task, &fingerprint()).save(&folder.path().join(name)).unwrap();
    }
    folder
}

fn server(heads: &Path, flags: &[&str]) -> Server {
    let named: Vec<String> = ["objects", "roads", "rooms"].map(|name| heads.join(name).display().to_string()).to_vec();
    let given = named.iter().flat_map(|path| ["--head", path]);
    Server::start(&given.chain(flags.iter().copied()).collect::<Vec<_>>())
}

fn picture() -> RgbImage {
    RgbImage::from_fn(90, 60, |x, y| if x > 50 && y > 20 { Rgb([250, 200, 30]) } else { Rgb([20, (x * 2) as u8, (y * 4) as u8]) })
}

/// What the library's head says of the picture.
fn logits(task: Task) -> (Array2<f32>, PatchGrid) {
    let model = Model::open(&tiny_model()).unwrap();
    let mut session = model.sessions(&SessionOptions::default(), 1).unwrap().remove(0);
    let (input, grid) = model.manifest().transform.whole_picture(&picture(), SIZE, 8);
    let outputs = session.run(input.view().insert_axis(Axis(0))).unwrap();
    let (features, grid) = dense::features(task, &outputs, 0, grid).unwrap();
    (head(task, "").logits(features.view()), grid)
}

#[test]
fn each_class_that_a_head_finds_has_a_labelled_mask() {
    let folder = heads();
    let server = server(folder.path(), &[]);
    let body = png(&picture());
    let answer = server.post("/segment?head=roads&format=rle", "image/png", &body).ok().json();
    assert_eq!((&answer["head"], &answer["results"][0]["method"]), (&"roads".into(), &"linear".into()));
    let (logits, patches) = logits(Task::Segmentation);
    let map = ClassMap::new(logits.view(), patches, PatchGrid { rows: 60, columns: 90 });
    let present = map.present();
    assert!(present.len() > 1, "the picture has several classes: {present:?}");
    let masks = answer["results"][0]["masks"].as_array().unwrap();
    assert_eq!(masks.len(), present.len());
    for (mask, (class, score)) in masks.iter().zip(&present) {
        assert_eq!((&mask["label"], &mask["area"]), (&CLASSES[*class].into(), &map.shares[*class].0.into()));
        assert!((mask["score"].as_f64().unwrap() - f64::from(*score)).abs() < 1e-5, "{mask}");
    }
    assert_eq!(masks.iter().map(|mask| mask["area"].as_u64().unwrap()).sum::<u64>(), 90 * 60);

    for (format, key) in [("png", "png"), ("polygons", "polygons"), ("heatmap", "heatmap")] {
        let answer = server.post(&format!("/segment?head=roads&max_objects=1&format={format}"), "image/png", &body).ok().json();
        let masks = &answer["results"][0]["masks"];
        assert!(masks.as_array().unwrap().len() == 1 && !masks[0][key].is_null(), "{answer}");
    }
    let request = json!({ "images": [STANDARD.encode(&body), STANDARD.encode(&body)], "head": "roads", "format": "rle" });
    assert_eq!(server.post_json("/segment", &request).ok().json()["results"], json!([answer["results"][0], answer["results"][0]]));
    let file = server.post_with("/segment?head=roads", &[("content-type", "image/png"), ("accept", "image/png")], &body).ok().body.clone();
    let mask = image::load_from_memory(&file).unwrap().into_luma8();
    assert_eq!(mask.pixels().filter(|pixel| pixel.0[0] == 255).count() as u64, masks[0]["area"].as_u64().unwrap());

    // A head of attention keeps its meaning.
    let attention = server.post("/segment?head=1&format=rle", "image/png", &body).ok().json();
    assert!(attention["head"].is_null() && attention["results"][0]["masks"][0]["label"].is_null(), "{attention}");
    let models = server.get("/v1/models").ok().json();
    let lists = ["classifiers", "segmentation_heads", "depth_heads"].map(|list| models["data"][0][list][0].clone());
    assert_eq!(lists, ["objects", "roads", "rooms"]);
}

#[test]
fn depths_are_those_of_the_head_in_every_format() {
    let folder = heads();
    let server = server(folder.path(), &[]);
    let body = png(&picture());
    let (logits, patches) = logits(Task::Depth);
    let expected = Depths::new(logits.view(), patches, DepthRange { min: 0.5, max: 8.0 });
    let result =
        |format: &str| server.post(&format!("/depth?head=rooms&format={format}"), "image/png", &body).ok().json()["results"][0].clone();
    let found = result("json");
    let rows: Vec<Vec<f32>> = serde_json::from_value(found["depth"].clone()).unwrap();
    assert_eq!((rows.len(), rows[0].len()), (expected.grid.rows, expected.grid.columns));
    assert!(rows.iter().flatten().zip(&expected.values).all(|(found, expected)| (found - expected).abs() < 1e-4));
    let (min, max) = (found["min"].as_f64().unwrap(), found["max"].as_f64().unwrap());
    assert!(min >= 0.5 && max <= 8.0 && min < max, "{min} {max}");
    assert_eq!((&found["width"], &found["height"]), (&90.into(), &60.into()));

    let found = result("png");
    let map = image::load_from_memory(&STANDARD.decode(found["png"].as_str().unwrap()).unwrap()).unwrap().into_luma16();
    let scale = found["scale"].as_f64().unwrap();
    let enlarged = expected.enlarged(PatchGrid { rows: 60, columns: 90 });
    assert_eq!(map.dimensions(), (90, 60));
    assert!(map.pixels().zip(&enlarged.values).all(|(pixel, depth)| (f64::from(pixel.0[0]) / scale - f64::from(*depth)).abs() < 1e-3));

    let found = result("heatmap");
    assert_eq!(found["heatmap"]["size"], json!([expected.grid.rows, expected.grid.columns]));
    assert!(found["depth"].is_null() && (found["heatmap"]["scale"].as_f64().unwrap() - max).abs() < 1e-4);
}

#[test]
fn a_head_that_does_not_fit_is_refused_with_a_way_out() {
    let folder = heads();
    let server = server(folder.path(), &[]);
    let body = file("photos/coffee.png");
    let refused = |path: &str, status: u16, code: &str, word: &str| {
        let problem = server.post(path, "image/png", &body).problem(status, code);
        assert!(problem["detail"].as_str().unwrap().contains(word), "{path}: {problem}");
    };
    refused("/segment?head=none", 404, "unknown_head", "roads");
    refused("/depth?head=none", 404, "unknown_head", "rooms");
    refused("/segment?head=roads&model=none", 404, "unknown_model", "none");
    refused("/segment?head=rooms", 400, "bad_parameter", "/depth?head=rooms");
    refused("/depth?head=roads", 400, "bad_parameter", "/segment?head=roads");
    refused("/classify?head=roads", 400, "bad_parameter", "/segment?head=roads");
    refused("/segment?head=objects", 400, "bad_parameter", "/classify?head=objects");
    refused("/segment?head=roads&method=ncut", 400, "bad_parameter", "method");
    refused("/segment?head=roads&max_objects=0", 400, "bad_parameter", "max_objects");
    refused("/depth", 400, "bad_parameter", "head");
    refused("/depth?head=rooms&format=svg", 400, "bad_parameter", "format");

    let other = folder.path().join("other");
    head(Task::Segmentation, "of another model").save(&other).unwrap();
    let reserved = folder.path().join("best");
    head(Task::Segmentation, &fingerprint()).save(&reserved).unwrap();
    let serve = ["serve", "--listen", "127.0.0.1:0", "--model"];
    for (head, word) in [(&other, "of another model"), (&reserved, "heads of attention")] {
        let output = program().args(serve).arg(tiny_model()).arg("--head").arg(head).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains(word), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn of_models_with_heads_of_one_name_the_one_with_the_task_answers() {
    let folder = tempfile::tempdir().unwrap();
    let model = |name: &str, task: Task| {
        let path = folder.path().join(name);
        fs_err::create_dir_all(&path).unwrap();
        for entry in fs_err::read_dir(tiny_model()).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
            fs_err::copy(entry.path(), path.join(entry.file_name())).unwrap();
        }
        head(task, &fingerprint()).save(&path.join("heads/scenes")).unwrap();
        path.display().to_string()
    };
    let (first, second) = (model("first", Task::Depth), model("second", Task::Segmentation));
    let server = Server::with_models(&[&first, &second], &[]);
    let body = png(&picture());
    assert_eq!(server.post("/depth?head=scenes&format=png", "image/png", &body).ok().json()["model"], "first");
    assert_eq!(server.post("/segment?head=scenes&format=rle", "image/png", &body).ok().json()["model"], "second");
    let problem = server.post("/classify?head=scenes", "image/png", &body).problem(400, "bad_parameter");
    assert!(problem["detail"].as_str().unwrap().contains("/depth?head=scenes"), "{problem}");
}

/// A model folder that a Mac has unpacked.
#[test]
fn heads_are_known_by_their_names_in_either_unicode_form() {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs_err::read_dir(tiny_model()).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
        fs_err::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    head(Task::Classes, &fingerprint()).save(&folder.path().join("heads/Tu\u{308}r")).unwrap();
    head(Task::Segmentation, &fingerprint()).save(&folder.path().join("heads/Bo\u{308}den")).unwrap();
    let model = folder.path().display().to_string();
    let server = Server::with_models(&[&format!("mac={model}")], &[]);
    let body = png(&picture());
    for name in ["T%C3%BCr", "Tu%CC%88r"] {
        server.post(&format!("/classify?head={name}"), "image/png", &body).ok();
    }
    for name in ["B%C3%B6den", "Bo%CC%88den"] {
        server.post(&format!("/segment?head={name}&format=rle"), "image/png", &body).ok();
    }
    drop(server);
    head(Task::Classes, &fingerprint()).save(&folder.path().join("heads/Tür")).unwrap();
    let output = program().args(["serve", "--listen", "127.0.0.1:0", "--model"]).arg(format!("mac={model}")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("in another Unicode form"), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn logits_that_are_not_finite_are_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let mut flags = Vec::new();
    for (name, task) in [("roads", Task::Segmentation), ("rooms", Task::Depth)] {
        let description = head(task, &fingerprint()).description().clone();
        let (rows, columns) = if task == Task::Depth { (16, 64) } else { (3, 32) };
        let weight = Array2::from_elem((rows, columns), f32::MAX);
        let path = folder.path().join(name);
        LinearHead::new(description, weight, Array1::zeros(rows)).save(&path).unwrap();
        flags.extend(["--head".to_owned(), path.display().to_string()]);
    }
    let server = Server::start(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    for path in ["/segment?head=roads", "/depth?head=rooms"] {
        let problem = server.post(path, "image/png", &png(&picture())).problem(500, "inference_failed");
        assert!(problem["detail"].as_str().unwrap().contains("not finite"), "{problem}");
    }
}

/// A picture of more pixels than maps have, which its EXIF block turns by a quarter.
#[test]
fn large_pictures_are_answered_upright() {
    let folder = heads();
    let server = server(folder.path(), &[]);
    let upright = RgbImage::from_fn(800, 1200, |x, y| if y < 300 && x > 200 { Rgb([250, 200, 30]) } else { Rgb([20, 40, (y / 5) as u8]) });
    let mut turned = Vec::new();
    let mut encoder = PngEncoder::new(&mut turned);
    // Orientation 6: stored a quarter against the clock.
    encoder.set_exif_metadata(b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec()).unwrap();
    let stored = imageops::rotate270(&upright);
    encoder.write_image(&stored, stored.width(), stored.height(), ExtendedColorType::Rgb8).unwrap();
    for path in ["/segment?head=roads&format=rle", "/depth?head=rooms&format=png"] {
        let ask = |body: &[u8]| server.post(path, "image/png", body).ok().json()["results"][0].clone();
        let found = ask(&turned);
        assert_eq!((&found["width"], &found["height"]), (&800.into(), &1200.into()));
        assert_eq!(found, ask(&png(&upright)), "{path}");
        assert_ne!(found, ask(&png(&imageops::rotate180(&upright))), "{path}: the picture has an upper side");
    }
    let found = server.post("/depth?head=rooms&format=png", "image/png", &turned).ok().json();
    let map = image::load_from_memory(&STANDARD.decode(found["results"][0]["png"].as_str().unwrap()).unwrap()).unwrap();
    assert_eq!((map.width(), map.height()), (682, 1024));
    let found = server.post("/segment?head=roads&format=rle", "image/png", &turned).ok().json();
    let masks = found["results"][0]["masks"].as_array().unwrap();
    assert!(masks.iter().all(|mask| mask["rle"]["size"] == json!([1200, 800])), "{found}");
    assert_eq!(masks.iter().map(|mask| mask["area"].as_u64().unwrap()).sum::<u64>(), 800 * 1200);
}
