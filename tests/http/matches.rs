//! `/match`: the same places in two pictures. And a mask as the question of `/similarity`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use image::{GrayImage, ImageFormat, Luma, Rgb, RgbImage, imageops};
use serde_json::{Value, json};

use crate::{
    harness::{Server, file},
    pictures::{encode, noise, png, scene},
};

fn demo() -> (tempfile::TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::demo(&folder.path().join("data"), &[]);
    (folder, server)
}

#[track_caller]
fn ask(server: &Server, query: &str, pictures: &[&RgbImage]) -> Value {
    let pictures: Vec<_> = pictures.iter().map(|picture| png(picture)).collect();
    server.post_parts(&format!("/match{query}"), &pictures).ok().json()
}

/// `from`, `to` and the similarity of each match.
fn pairs(answer: &Value) -> Vec<([f64; 2], [f64; 2], f64)> {
    let pair = |pair: &Value| {
        let point = |name: &str| serde_json::from_value(pair[name].clone()).unwrap();
        (point("from"), point("to"), pair["similarity"].as_f64().unwrap())
    };
    answer["matches"].as_array().unwrap().iter().map(pair).collect()
}

/// Share of the matches that are less than a patch from where `map` puts them, and the mean distance of those, in patches.
fn right(answer: &Value, map: impl Fn([f64; 2]) -> [f64; 2]) -> (f64, f64) {
    let pairs = pairs(answer);
    let patch = answer["sizes"][1][0].as_f64().unwrap() / answer["grid"][1][1].as_f64().unwrap();
    let errors = pairs.iter().map(|(from, to, _)| {
        let [x, y] = map(*from);
        (x - to[0]).hypot(y - to[1]) / patch
    });
    let near: Vec<f64> = errors.filter(|error| *error < 1.0).collect();
    (near.len() as f64 / pairs.len() as f64, near.iter().sum::<f64>() / near.len() as f64)
}

#[test]
fn a_shifted_cropped_or_mirrored_copy_is_matched_where_it_is() {
    let (_folder, server) = demo();
    let photo = image::load_from_memory(&file("photos/astronaut.png")).unwrap().to_rgb8();
    let cut = |x: u32, y: u32, side: u32| imageops::crop_imm(&photo, x, y, side, side).to_image();
    let picture = cut(100, 40, 320);
    let itself = ask(&server, "?size=224", &[&picture, &picture]);
    assert_eq!((&itself["model"], &itself["grid"]), (&json!("demo"), &json!([[28, 28], [28, 28]])));
    assert_eq!(itself["sizes"], json!([[320, 320], [320, 320]]));
    let found = pairs(&itself);
    assert_eq!(found.len(), 200);
    for (from, to, similarity) in &found {
        assert!((from[0] - to[0]).hypot(from[1] - to[1]) < 0.1 && *similarity > 0.9999, "{from:?} {to:?} {similarity}");
    }

    // Moved by 21 and 11 pixels, which are no whole patches; a part of the picture, which the model sees larger; its mirror image.
    let moved = (cut(121, 51, 320), [1.0, -21.0, -11.0]);
    let part = (cut(120, 55, 288), [1.0, -20.0, -15.0]);
    let mirrored = (imageops::flip_horizontal(&picture), [-1.0, 320.0, 0.0]);
    for (copy, [across, x0, y0]) in [moved, part, mirrored] {
        let map = |[x, y]: [f64; 2]| [across * x + x0, y + y0];
        let (share, mean) = right(&ask(&server, "?size=224", &[&picture, &copy]), map);
        assert!(share > 0.65 && mean < 0.4, "{x0}: {share} {mean}");
        for geometry in ["affine", "homography"] {
            let agreed = ask(&server, &format!("?size=224&geometry={geometry}"), &[&picture, &copy]);
            let (share, mean) = right(&agreed, map);
            assert!(share > 0.95 && mean < 0.4, "{x0} {geometry}: {share} {mean}");
            let matrix: [[f64; 3]; 3] = serde_json::from_value(agreed["geometry"]["matrix"].clone()).unwrap();
            let wanted = [[across, 0.0, x0], [0.0, 1.0, y0], [0.0, 0.0, 1.0]];
            for at in 0..9 {
                let (found, wanted) = (matrix[at / 3][at % 3], wanted[at / 3][at % 3]);
                assert!((found - wanted).abs() < if at % 3 == 2 { 12.0 } else { 0.05 }, "{x0} {geometry}: {matrix:?}");
            }
            let of = |name: &str| agreed["geometry"][name].as_u64().unwrap();
            assert!(of("inliers") >= 200 && of("candidates") >= of("inliers"), "{}", agreed["geometry"]);
        }
    }
}

#[test]
fn points_lie_in_each_picture_as_it_is_seen() {
    let server = Server::start(&["--segment-size", "64"]);
    let picture = noise(128, 96, 5);
    let same = ask(&server, "", &[&picture, &imageops::resize(&picture, 64, 48, imageops::FilterType::Triangle)]);
    assert_eq!((&same["sizes"], &same["grid"]), (&json!([[128, 96], [64, 48]]), &json!([[6, 8], [6, 8]])));
    let inside = |[x, y]: [f64; 2], width: f64, height: f64| (0.0..=width).contains(&x) && (0.0..=height).contains(&y);
    let found = pairs(&same);
    assert!(!found.is_empty() && found.iter().all(|(from, to, _)| inside(*from, 128.0, 96.0) && inside(*to, 64.0, 48.0)));
    assert!(found.windows(2).all(|two| two[0].2 >= two[1].2), "best first");

    // Every patch of the first has its nearest, those that are alike enough, no more than asked for.
    assert_eq!(pairs(&ask(&server, "?mutual=false", &[&picture, &scene(40, 30, 1)])).len(), 48);
    let least = found[found.len() / 2].2;
    let few = pairs(&ask(&server, &format!("?min_similarity={least}"), &[&picture, &picture]));
    assert!(few.iter().all(|(.., similarity)| *similarity >= least));
    assert_eq!(pairs(&ask(&server, "?max_matches=3", &[&picture, &picture])).len(), 3);
    // Nothing agrees on anything.
    let flat = RgbImage::from_pixel(64, 64, Rgb([9, 9, 9]));
    let nothing = ask(&server, "?geometry=fundamental&tolerance=1", &[&flat, &noise(64, 64, 8)]);
    assert_eq!((&nothing["geometry"]["matrix"], &nothing["matches"]), (&Value::Null, &json!([])));
    assert_eq!(nothing["geometry"]["kind"], "fundamental");

    // JSON, and a picture that lies on its side.
    let images: Vec<_> = [&picture, &picture].map(|picture| STANDARD.encode(png(picture))).into();
    let body = json!({ "images": images, "max_matches": 5, "geometry": "homography" });
    let answer = server.post_json("/match", &body).ok().json();
    assert_eq!((pairs(&answer).len(), &answer["geometry"]["inliers"]), (5, &answer["geometry"]["candidates"]));
    let refused = |query: &str, count: usize, names: &str| {
        let pictures: Vec<_> = std::iter::repeat_n(png(&picture), count).collect();
        let problem = server.post_parts(&format!("/match{query}"), &pictures).problem(400, "bad_parameter");
        assert!(problem["detail"].as_str().unwrap().contains(names), "{problem}");
    };
    refused("", 1, "exactly two");
    refused("", 3, "exactly two");
    for (query, names) in [
        ("?max_matches=0", "max_matches"),
        ("?max_matches=10001", "max_matches"),
        ("?min_similarity=1.5", "min_similarity"),
        ("?min_similarity=NaN", "min_similarity"),
        ("?tolerance=3", "geometry"),
        ("?geometry=affine&tolerance=0", "tolerance"),
        ("?geometry=sphere", "geometry"),
        ("?size=65", "--segment-size"),
        ("?size=7", "size"),
        ("?layer=9", "layer"),
        ("?points=[[1,1]]", "points"),
    ] {
        refused(query, 2, names);
    }
    server.post_parts("/match", &[png(&picture), b"no picture".to_vec()]).problem(422, "unknown_format");
}

#[test]
fn pictures_that_take_too_many_comparisons_are_refused_before_they_are_decoded() {
    let server = Server::start(&["--segment-size", "4096"]);
    let problem = server.post_parts("/match", &[b"no".to_vec(), b"picture".to_vec()]).problem(400, "bad_parameter");
    assert!(problem["detail"].as_str().unwrap().contains("comparisons"), "{problem}");
    server.post_parts("/match?size=64", &[png(&scene(60, 60, 1)), png(&scene(60, 60, 2))]).ok();
}

#[test]
fn a_mask_asks_for_what_it_covers() {
    let server = Server::start(&["--segment-size", "64"]);
    let picture = noise(64, 48, 3);
    let mask = |is_set: &dyn Fn(u32, u32) -> bool| {
        let mask = GrayImage::from_fn(64, 48, |x, y| Luma([if is_set(x, y) { 255 } else { 0 }]));
        STANDARD.encode(encode(&image::DynamicImage::ImageLuma8(mask).to_rgb8(), ImageFormat::Png))
    };
    let ask = |extra: Value| {
        let mut body = json!({ "images": [STANDARD.encode(png(&picture))] });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.post_json("/similarity", &body)
    };
    let map = |answer: &Value, at: usize| -> Vec<f32> {
        let rows: Vec<Vec<f32>> = serde_json::from_value(answer["maps"][at]["similarity"].clone()).unwrap();
        rows.concat()
    };
    // One patch, as a mask of just its pixels: the map of a point in it.
    let one = ask(json!({ "points": [[20, 12], [60, 40]], "mask": mask(&|x, y| x / 8 == 2 && y / 8 == 1) })).ok().json();
    assert_eq!(one["maps"].as_array().unwrap().len(), 3);
    assert_eq!((&one["maps"][0]["point"], &one["maps"][0]["mask"]), (&json!([20, 12]), &Value::Null));
    assert_eq!((&one["maps"][2]["point"], &one["maps"][2]["mask"]), (&Value::Null, &json!(true)));
    for (of_mask, of_point) in map(&one, 2).iter().zip(map(&one, 0)) {
        assert!((of_mask - of_point).abs() < 1e-5);
    }
    // Of a patch that is covered by half, half counts.
    let wide = ask(json!({ "mask": mask(&|x, y| (16..28).contains(&x) && y / 8 == 1) })).ok().json();
    assert_eq!(wide["maps"].as_array().unwrap().len(), 1);
    assert!(map(&wide, 0)[8 + 2] > map(&wide, 0)[8 + 3] && map(&wide, 0)[8 + 3] > map(&wide, 0)[8 + 5]);
    // The whole picture in run lengths, in the body and in the query.
    let runs = json!({ "size": [48, 64], "counts": "0PP3" });
    let whole = ask(json!({ "mask": runs })).ok().json();
    let query = "/similarity?mask=%7B%22size%22:[48,64],%22counts%22:%220PP3%22%7D";
    assert_eq!(server.post(query, "image/png", &png(&picture)).ok().json(), whole);
    let large = json!({ "size": [4_000_000_000_u32, 4_000_000_000_u32], "counts": "1" });
    ask(json!({ "mask": large })).problem(413, "too_many_pixels");
    for (mask, names) in [
        (json!(mask(&|_, _| false)), "no pixel"),
        (json!("!"), "mask"),
        (json!(""), "mask"),
        (json!(STANDARD.encode(b"text")), "mask"),
        (json!({ "size": [48, 64], "counts": "1" }), "add up"),
        (json!({ "size": [48, 64], "counts": "PP3" }), "no pixel"),
        (json!({ "size": [48, 64] }), "counts"),
        (json!(STANDARD.encode(png(&noise(48, 64, 1)))), "48 x 64"),
        (json!(7), "mask"),
    ] {
        let problem = ask(json!({ "mask": mask })).problem(400, "bad_parameter");
        assert!(problem["detail"].as_str().unwrap().contains(names), "{problem}");
    }
}
