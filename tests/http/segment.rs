//! `/segment` in all methods and formats, and `/similarity`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use dino_vision::segment::Method;
use serde_json::{Value, json};

use crate::{
    harness::{Server, file, tiny_model},
    pictures::{png, scene},
};

/// Names of all methods.
fn methods() -> impl Iterator<Item = &'static str> {
    Method::ALL.into_iter().map(Method::name)
}

fn halves(map: &Value) -> (usize, usize, Vec<f32>) {
    let side = |at: usize| usize::try_from(map["size"][at].as_u64().unwrap()).unwrap();
    let bytes = STANDARD.decode(map["data"].as_str().unwrap()).unwrap();
    let scale = map["scale"].as_f64().unwrap() as f32;
    let values: Vec<f32> = bytes.as_chunks::<2>().0.iter().map(|two| half::f16::from_le_bytes(*two).to_f32() * scale).collect();
    assert_eq!(values.len(), side(0) * side(1));
    (side(0), side(1), values)
}

fn decoded(text: &Value) -> image::DynamicImage {
    image::load_from_memory(&STANDARD.decode(text.as_str().unwrap()).unwrap()).unwrap()
}

/// Pixels of a polygon: crossings of a ray to the left, even or odd.
fn filled(polygons: &Value, width: u32, height: u32) -> Vec<bool> {
    let polygons: Vec<Vec<u32>> = serde_json::from_value(polygons.clone()).unwrap();
    let mut inside = vec![false; (width * height) as usize];
    for polygon in polygons {
        let points = polygon.as_chunks::<2>().0;
        for (a, b) in points.iter().zip(points.iter().cycle().skip(1)).filter(|(a, b)| a[0] == b[0]) {
            for y in a[1].min(b[1])..a[1].max(b[1]) {
                (a[0]..width).for_each(|x| inside[(y * width + x) as usize] ^= true);
            }
        }
    }
    inside
}

#[test]
fn all_methods_answer_in_all_formats_at_the_pictures_size() {
    let server = Server::start(&["--segment-size", "120"]);
    for method in methods() {
        for (width, height) in [(97, 43), (7, 7), (300, 9), (1, 1)] {
            let picture = png(&scene(width, height, 6));
            let ask = |format: &str| {
                let path = format!("/segment?method={method}&format={format}&max_objects=3");
                let answer = server.post(&path, "image/png", &picture).ok().json()["results"][0].clone();
                assert_eq!((&answer["width"], &answer["height"], &answer["method"]), (&json!(width), &json!(height), &json!(method)));
                assert_eq!(answer["colours"].is_string(), method == "pca");
                answer["masks"].as_array().unwrap().clone()
            };
            let [drawn, rle, outlined, heat] = ["png", "rle", "polygons", "heatmap"].map(ask);
            assert!([&rle, &outlined, &heat].iter().all(|masks| masks.len() == drawn.len()));
            for (at, mask) in drawn.iter().enumerate() {
                let pixels = decoded(&mask["png"]).into_luma8();
                assert_eq!(pixels.dimensions(), (width, height));
                let set: Vec<bool> = pixels.pixels().map(|pixel| pixel.0[0] == 255).collect();
                let area = set.iter().filter(|set| **set).count();
                assert!(area > 0 && mask["area"] == json!(area), "{method}: none is empty");
                assert!((0.0..=1.0).contains(&mask["score"].as_f64().unwrap()));
                assert_eq!(filled(&outlined[at]["polygons"], width, height), set, "{method}");
                assert_eq!(rle[at]["rle"]["size"], json!([height, width]));
                assert!(halves(&heat[at]["heatmap"]).2.iter().all(|value| value.is_finite()));
                assert!(drawn[at + 1..].iter().all(|other| other["png"] != mask["png"]), "{method}: none comes twice");
            }
        }
    }
}

#[test]
fn each_head_has_a_map_and_pca_has_colours() {
    let server = Server::start(&["--segment-size", "120"]);
    let coffee = file("photos/coffee.png");
    let answer = server.post("/segment?head=all&max_objects=9", "image/png", &coffee).ok().json();
    let heads = answer["results"][0]["heads"].as_array().unwrap().clone();
    assert_eq!(heads.len(), 4);
    assert_ne!(heads[0], heads[1]);
    let (rows, columns, shares) = halves(&heads[2]);
    assert!(columns == 15 && rows == 10 && shares.iter().all(|share| *share >= 0.0));
    assert!(server.post("/segment", "image/png", &coffee).ok().json()["results"][0]["heads"].is_null());

    // Three components in one picture; the picture itself, where that is asked for, is the mask as with every method.
    let pca = server.post("/segment?method=pca", "image/png", &coffee).ok().json()["results"][0].clone();
    let colours = decoded(&pca["colours"]);
    assert_eq!((colours.width(), colours.height(), colours.color()), (600, 400, image::ColorType::Rgb8));
    for method in methods() {
        let path = format!("/segment?method={method}");
        let drawn = server.post_with(&path, &[("content-type", "image/png"), ("accept", "image/png")], &coffee);
        let json = server.post(&path, "image/png", &coffee).ok().json();
        assert_eq!(drawn.ok().body, STANDARD.decode(json["results"][0]["masks"][0]["png"].as_str().unwrap()).unwrap(), "{method}");
    }
}

#[test]
fn refined_masks_keep_to_the_picture_and_to_their_form() {
    let server = Server::start(&["--segment-size", "120"]);
    let coffee = file("photos/coffee.png");
    let ask = |query: &str| server.post(&format!("/segment?{query}"), "image/png", &coffee).ok().json()["results"][0]["masks"][0].clone();
    let (coarse, drawn) = (ask(""), ask("refine=guided"));
    assert_ne!(coarse["png"], drawn["png"]);
    let set: Vec<bool> = decoded(&drawn["png"]).into_luma8().pixels().map(|pixel| pixel.0[0] == 255).collect();
    assert_eq!(set.len(), 600 * 400);
    assert_eq!(filled(&ask("refine=guided&format=polygons")["polygons"], 600, 400), set);
    assert_eq!(drawn["area"], json!(set.iter().filter(|set| **set).count()));
    server.post("/segment?refine=crf", "image/png", &coffee).problem(400, "bad_parameter");
}

#[test]
fn a_point_is_most_similar_to_its_own_patch() {
    let server = Server::start(&["--segment-size", "120"]);
    let (coffee, other) = (file("photos/coffee.png"), png(&scene(90, 60, 3)));
    let alone = server.post("/similarity?points=[[599,399],[0,0]]", "image/png", &coffee).ok().json();
    assert_eq!((&alone["target"], &alone["width"], &alone["height"]), (&json!(0), &json!(600), &json!(400)));
    let map: Vec<Vec<f32>> = serde_json::from_value(alone["maps"][0]["similarity"].clone()).unwrap();
    assert_eq!((map.len(), map[0].len()), (10, 15));
    assert!((map[9][14] - 1.0).abs() < 1e-5 && map.iter().flatten().all(|value| *value <= 1.0 + 1e-5));
    assert_eq!(alone["maps"][1]["point"], json!([0, 0]));

    let images = [STANDARD.encode(&coffee), STANDARD.encode(&other)];
    let ask = |extra: Value| {
        let mut body = json!({"images": images, "points": [[10, 10]]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.post_json("/similarity", &body)
    };
    let across = ask(json!({"format": "heatmap"})).ok().json();
    assert_eq!((&across["target"], &across["width"]), (&json!(1), &json!(90)));
    halves(&across["maps"][0]["heatmap"]);
    assert_eq!(ask(json!({"target": 0})).ok().json()["width"], json!(600));
    ask(json!({"target": 2})).problem(400, "bad_parameter");
    ask(json!({"points": [[600, 0]]})).problem(400, "bad_parameter");
    ask(json!({"points": []})).problem(400, "bad_parameter");
    ask(json!({"points": "here"})).problem(400, "bad_parameter");
}

#[test]
fn a_model_of_one_size_masks_pictures_of_all_sizes() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["model.onnx", "manifest.json"] {
        fs_err::copy(tiny_model().join(name), folder.path().join(name)).unwrap();
    }
    let path = folder.path().join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    manifest["static_size"] = json!([224, 224]);
    fs_err::write(&path, manifest.to_string()).unwrap();
    let models = [format!("fixed={}", folder.path().display()), format!("free={}", tiny_model().display())];
    // The free model is given the fixed one's size, on a picture that both stretch to the same square.
    let server = Server::with_models(&[&models[0], &models[1]], &["--segment-size", "224"]);
    let square = png(&scene(90, 90, 6));
    let ask = |path: &str, model: &str, picture: &[u8]| {
        let mut answer = server.post(&format!("{path}model={model}"), "image/png", picture).ok().json();
        answer.as_object_mut().unwrap().remove("model");
        answer
    };
    for path in ["/embed?", "/segment?format=rle&"] {
        assert_eq!(ask(path, "fixed", &square), ask(path, "free", &square), "{path}");
    }
    for (width, height) in [(97, 43), (7, 7), (300, 9)] {
        let answer = ask("/segment?format=rle&", "fixed", &png(&scene(width, height, 6)))["results"][0].clone();
        assert_eq!((&answer["width"], &answer["height"]), (&json!(width), &json!(height)));
        assert_eq!(answer["masks"][0]["rle"]["size"], json!([height, width]));
    }
}
