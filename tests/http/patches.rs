//! Collections of patches, and how far a picture is from the good ones: the same on both stores.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use dino_server::index::{EmbeddedStore, IndexOptions, Kind, ModelTag, PatchOptions, Spec, Store, snapshot};
use image::{Rgb, RgbImage};
use serde_json::{Value, json};

use crate::{
    harness::Server,
    pictures::{noise, png},
    place::{Place, on_every_store},
};

on_every_store!(
    good_pictures_say_what_is_odd,
    labels_refine_the_threshold,
    patches_are_kept_through_restarts_and_snapshots,
    a_bound_is_kept_and_deleting_forgets,
    rotations_are_good_too,
    pictures_that_come_together_are_all_known,
    what_cannot_be_is_refused_with_what_to_do,
    forged_snapshots_are_refused,
    colours_agree_in_a_basis_of_the_collection,
    masks_are_knowledge_and_deleting_forgets,
    masks_that_cannot_be_are_refused,
    masks_that_are_left_have_all_their_patches,
    patches_in_memory_are_measured,
);

/// A server with the collection of patches `p`.
fn server(place: &Place) -> Server {
    let server = Server::start(&place.flags());
    made(&server, &json!({ "kind": "patches", "size": 64 }));
    server
}

fn made(server: &Server, body: &Value) -> Value {
    let made = server.put("/collections/p", body);
    assert!([200, 201].contains(&made.status), "{}", made.text());
    made.json()
}

/// A texture that differs a little from picture to picture.
fn texture(number: u32) -> RgbImage {
    let noise = noise(64, 64, u64::from(number) + 1);
    RgbImage::from_fn(64, 64, |x, y| {
        let stripe = if (x / 4 + y / 4) % 2 == 0 { 180 } else { 60 };
        Rgb(noise.get_pixel(x, y).0.map(|value| stripe + value / 16))
    })
}

/// The texture with something that is not of it.
fn scratched(number: u32) -> RgbImage {
    let mut picture = texture(number);
    for (x, y) in (40..56).flat_map(|x| (8..20).map(move |y| (x, y))) {
        picture.put_pixel(x, y, Rgb([250, 10, 10]));
    }
    picture
}

#[track_caller]
fn add(server: &Server, id: &str, query: &str, picture: &RgbImage) {
    server.post(&format!("/collections/p/items?id={id}{query}"), "image/png", &png(picture)).ok();
}

#[track_caller]
fn ask(server: &Server, query: &str, picture: &RgbImage) -> Value {
    server.post(&format!("/collections/p/anomaly{query}"), "image/png", &png(picture)).ok().json()["results"][0].clone()
}

#[track_caller]
fn score(server: &Server, picture: &RgbImage) -> f64 {
    ask(server, "", picture)["score"].as_f64().unwrap()
}

fn good_pictures_say_what_is_odd(place: &Place) {
    let server = server(place);
    let info = server.get("/collections/p").ok().json();
    assert_eq!((&info["kind"], &info["max_patches"], &info["size"]), (&json!("patches"), &json!(100_000), &json!(64)));
    assert!(info["layer"].is_null());
    let nothing = ask(&server, "", &texture(0));
    assert_eq!([&nothing["score"], &nothing["threshold"], &nothing["is_anomalous"]], [&Value::Null; 3]);
    assert_eq!((&nothing["nearest"], &nothing["width"]), (&json!([]), &json!(64)));

    add(&server, "0", "", &texture(0));
    let one = ask(&server, "", &texture(0));
    assert_eq!((&one["score"], &one["threshold"], &one["is_anomalous"]), (&json!(0.0), &Value::Null, &Value::Null));
    assert_eq!(one["nearest"][0]["id"], "0");
    assert!(one["nearest"][0]["similarity"].as_f64().unwrap() > 0.9999);

    // Each picture counts for the next answer.
    (1..5).for_each(|number| add(&server, &number.to_string(), "", &texture(number)));
    let odd = ask(&server, "", &scratched(20));
    let (threshold, score_of_odd) = (odd["threshold"].as_f64().unwrap(), odd["score"].as_f64().unwrap());
    assert!(odd["is_anomalous"] == true && score_of_odd > 1.5 * threshold && threshold > 0.0, "{odd}");
    assert_eq!(score(&server, &texture(3)), 0.0);

    // The score is the mean of the largest hundredth of the distances: of fewer than 200 patches the largest.
    let distances: Vec<Vec<f64>> = serde_json::from_value(odd["distances"].clone()).unwrap();
    let largest = distances.iter().flatten().copied().fold(0.0, f64::max);
    assert!((largest - score_of_odd).abs() < 1e-6, "{largest} {score_of_odd}");
    // It lies where the scratch is.
    let (rows, columns) = (distances.len(), distances[0].len());
    let peak =
        (0..rows * columns).max_by(|&a, &b| distances[a / columns][a % columns].total_cmp(&distances[b / columns][b % columns])).unwrap();
    let (x, y) = ((peak % columns) * 64 / columns, (peak / columns) * 64 / rows);
    assert!((32..56).contains(&x) && y < 24, "{x} {y}");
    let mean = ask(&server, "?top=1", &scratched(20))["score"].as_f64().unwrap();
    let expected = distances.iter().flatten().sum::<f64>() / (rows * columns) as f64;
    assert!((mean - expected).abs() < 1e-5, "{mean} {expected}");

    let heatmap = ask(&server, "?format=heatmap", &scratched(20));
    assert_eq!((&heatmap["heatmap"]["size"], &heatmap["distances"]), (&json!([rows, columns]), &Value::Null));
    let drawn = ask(&server, &format!("?format=png&threshold={}", largest / 4.0), &scratched(20));
    let map = image::load_from_memory(&STANDARD.decode(drawn["map"]["png"].as_str().unwrap()).unwrap()).unwrap().to_luma8();
    assert_eq!(map.dimensions(), (64, 64));
    let region = &drawn["masks"][0];
    let mask = image::load_from_memory(&STANDARD.decode(region["png"].as_str().unwrap()).unwrap()).unwrap().to_luma8();
    assert_eq!(mask.pixels().filter(|pixel| pixel.0[0] == 255).count() as u64, region["area"].as_u64().unwrap());
    assert!(mask.get_pixel(48, 12).0[0] == 255 && map.get_pixel(48, 12).0[0] > map.get_pixel(10, 56).0[0], "{}", region["bbox"]);
    assert!((region["score"].as_f64().unwrap() - largest).abs() < 1e-6 && drawn["map"]["scale"].as_f64().unwrap() < largest);

    // A threshold of the request's own; several pictures at once, in their order.
    assert_eq!(ask(&server, "?threshold=2", &scratched(20))["is_anomalous"], false);
    let both = server.post_parts("/collections/p/anomaly?masking=true", &[png(&texture(9)), png(&scratched(9))]).ok().json();
    let scores: Vec<f64> = (0..2).map(|at| both["results"][at]["score"].as_f64().unwrap()).collect();
    assert!(scores[0] < scores[1], "{scores:?}");

    // The picture that is added is known; deleted, it is forgotten.
    add(&server, "odd", "&labels=normal", &scratched(20));
    assert_eq!(score(&server, &scratched(20)), 0.0);
    assert_eq!(server.delete("/collections/p/items/odd").status, 204);
    assert_eq!(ask(&server, "", &scratched(20)), odd);
}

fn labels_refine_the_threshold(place: &Place) {
    let server = server(place);
    (0..4).for_each(|number| add(&server, &number.to_string(), "", &texture(number)));
    let before = ask(&server, "", &scratched(9));
    let (score, threshold) = (before["score"].as_f64().unwrap(), before["threshold"].as_f64().unwrap());
    add(&server, "bad", "&labels=anomalous", &scratched(9));
    let after = ask(&server, "", &scratched(9));
    // It is no good picture: the score stays, and the line lies between.
    assert_eq!(after["score"].as_f64().unwrap(), score);
    let line = after["threshold"].as_f64().unwrap();
    assert!((line - f64::midpoint(score, threshold)).abs() < 1e-5 && after["is_anomalous"] == true, "{line}");
    // Told that it is good after all.
    add(&server, "bad", "&labels=normal", &scratched(9));
    assert_eq!(self::score(&server, &scratched(9)), 0.0);
    let filter = json!({ "filter": { "field": "label", "eq": "normal" } });
    assert_eq!(server.post_json("/collections/p/items/delete", &filter).ok().json()["deleted"], 1);
    assert_eq!(ask(&server, "", &scratched(9)), before);
}

fn patches_are_kept_through_restarts_and_snapshots(place: &Place) {
    let server = server(place);
    (0..3).for_each(|number| add(&server, &number.to_string(), "", &texture(number)));
    let before = ask(&server, "", &scratched(7));
    server.signal("-KILL");
    drop(server);
    let server = self::server(place);
    assert_eq!(ask(&server, "", &scratched(7)), before);
    add(&server, "3", "", &texture(3));
    let more = ask(&server, "", &scratched(7));
    let snapshot = server.post("/collections/p/snapshot", "application/json", b"").ok().body.clone();
    server.delete("/collections/p/items/2");
    assert_ne!(ask(&server, "", &scratched(7)), more);
    let restored = server.post("/collections/p/restore?replace=true", "application/octet-stream", &snapshot);
    assert_eq!(
        (restored.status, &restored.json()["kind"], &restored.json()["count"]),
        (201, &json!("patches"), &json!(4)),
        "{}",
        restored.text()
    );
    assert_eq!(ask(&server, "", &scratched(7)), more);

    // In another store, by the command line too.
    let (file, other) = (place.file("p.dino"), place.another());
    fs_err::write(&file, &snapshot).unwrap();
    let told = crate::harness::program().arg("restore").arg("--from").arg(&file).args(other.store()).output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let elsewhere = Server::start(&other.flags());
    assert_eq!(ask(&elsewhere, "", &scratched(7)), more);
    // A server with smaller pictures refuses to restore it, and to use what was stored with larger ones.
    let third = place.another();
    let smaller = Server::start(&[&third.flags()[..], &["--segment-size", "32"]].concat());
    let refused = smaller.post("/collections/p/restore", "application/octet-stream", &snapshot).problem(422, "bad_snapshot");
    assert!(refused["detail"].as_str().unwrap().contains("the snapshot: size: "), "{refused}");
    drop(smaller);
    drop(elsewhere);
    let elsewhere = Server::start(&[&other.flags()[..], &["--segment-size", "32"]].concat());
    for route in ["anomaly", "items"] {
        let refused = elsewhere.post(&format!("/collections/p/{route}"), "image/png", &png(&texture(0))).problem(400, "bad_parameter");
        assert!(refused["detail"].as_str().unwrap().contains("--segment-size"), "{refused}");
    }
    let mut cut = snapshot;
    let at = cut.len() / 2;
    cut[at] ^= 1;
    server.post("/collections/p/restore?replace=true", "application/octet-stream", &cut).problem(422, "bad_snapshot");
    // Gone with the collection, and not there when it is made again.
    assert_eq!(server.delete("/collections/p").status, 204);
    made(&server, &json!({ "kind": "patches", "size": 64 }));
    assert_eq!(ask(&server, "", &texture(0))["score"], Value::Null);
}

fn a_bound_is_kept_and_deleting_forgets(place: &Place) {
    let server = Server::start(&place.flags());
    // Two pictures' patches: the tiny model has patches of 8 pixels.
    let info = made(&server, &json!({ "kind": "patches", "size": 64, "max_patches": 128 }));
    assert_eq!(info["max_patches"], 128);
    (0..8).for_each(|number| add(&server, &number.to_string(), "", &texture(number)));
    let (good, odd) = (ask(&server, "", &texture(30)), ask(&server, "", &scratched(30)));
    assert!(odd["score"].as_f64().unwrap() > 1.5 * good["score"].as_f64().unwrap(), "{good} {odd}");
    assert!(odd["is_anomalous"] == true, "{odd}");
    add(&server, "odd", "", &scratched(30));
    let known = score(&server, &scratched(30));
    assert!(known < odd["score"].as_f64().unwrap() / 2.0, "{known}");
    server.delete("/collections/p/items/odd");
    assert!(score(&server, &scratched(30)) > 2.0 * known);
    server.put("/collections/p", &json!({ "kind": "patches", "size": 64, "max_patches": 200 })).problem(409, "model_mismatch");
    server.put("/collections/p", &json!({})).problem(409, "model_mismatch");
}

fn rotations_are_good_too(place: &Place) {
    let server = server(place);
    // A gradient with a mark: turned by a quarter, it is another picture.
    let picture =
        RgbImage::from_fn(64, 64, |x, y| if x < 20 && y < 12 { Rgb([250, 0, 0]) } else { Rgb([(x * 3) as u8, 80, (y * 2) as u8]) });
    let turned = RgbImage::from_fn(64, 64, |x, y| *picture.get_pixel(63 - y, x));
    add(&server, "0", "", &picture);
    let before = score(&server, &turned);
    add(&server, "0", "&rotations=true", &picture);
    let after = score(&server, &turned);
    assert!(after < before / 2.0 && score(&server, &picture) == 0.0, "{before} {after}");
    let item = json!({ "items": [{ "id": "1", "image": STANDARD.encode(png(&turned)) }], "rotations": true });
    server.post_json("/collections/p/items", &item).ok();
    // The picture alone is left out and scored, not its rotations.
    assert!(ask(&server, "", &turned)["threshold"].as_f64().unwrap() <= before);
}

fn pictures_that_come_together_are_all_known(place: &Place) {
    let server = &server(place);
    std::thread::scope(|scope| {
        for worker in 0..4 {
            scope.spawn(move || {
                for number in (worker * 4)..(worker * 4 + 4) {
                    add(server, &number.to_string(), "", &texture(number));
                    // Acknowledged, so known.
                    assert_eq!(score(server, &texture(number)), 0.0);
                    if number % 4 == 3 {
                        assert_eq!(server.delete(&format!("/collections/p/items/{number}")).status, 204);
                    }
                }
            });
        }
    });
    for number in 0..16 {
        assert_eq!(score(server, &texture(number)) == 0.0, number % 4 != 3, "{number}");
    }
    // As if they had come one by one.
    let threshold = || ask(server, "", &texture(40))["threshold"].as_f64().unwrap();
    let together = threshold();
    for id in 0..16 {
        server.delete(&format!("/collections/p/items/{id}"));
    }
    (0..16).filter(|number| number % 4 != 3).for_each(|number| add(server, &number.to_string(), "", &texture(number)));
    // Several databases list them in another order, in which a cosine may be rounded otherwise.
    assert!((threshold() - together).abs() < 1e-6);
}

fn what_cannot_be_is_refused_with_what_to_do(place: &Place) {
    let server = server(place);
    made(&server, &json!({ "kind": "patches", "size": 64 }));
    server.put("/collections/c", &json!({}));
    let picture = png(&texture(0));
    let says = |problem: Value, words: &str| assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
    says(server.post("/classify?collection=p", "image/png", &picture).problem(400, "bad_parameter"), "ask POST /collections/p/anomaly");
    says(server.post("/collections/p/search", "image/png", &picture).problem(400, "bad_parameter"), "ask POST /collections/p/anomaly");
    says(server.post("/collections/c/anomaly", "image/png", &picture).problem(400, "bad_parameter"), "\"kind\": \"patches\"");
    server.post("/collections/none/anomaly", "image/png", &picture).problem(404, "unknown_collection");
    let vector = json!({ "items": [{ "id": "x", "vector": vec![1.0; 32] }] });
    let refused = server.post_json("/collections/p/items", &vector).problem(400, "bad_parameter");
    assert_eq!(refused["index"], 0);
    says(refused, "send the picture as `image`");
    says(
        server.post("/collections/p/items?labels=normal,anomalous", "image/png", &picture).problem(400, "bad_parameter"),
        "exclude each other",
    );
    server.post("/collections/c/items?rotations=true", "image/png", &picture).problem(400, "bad_parameter");
    server.post("/collections/p/items?rotations=maybe", "image/png", &picture).problem(400, "bad_parameter");
    // Six megapixels each: one map may be drawn, not six of them.
    let large = vec![png(&RgbImage::new(3000, 2000)); 6];
    says(server.post_parts("/collections/p/anomaly?format=png", &large).problem(400, "bad_parameter"), "36000000 pixels together");
    // Nine pictures with their rotations are more than 64.
    let many = vec![picture.clone(); 9];
    says(server.post_parts("/collections/p/items?rotations=true", &many).problem(413, "too_many_pictures"), "may hold 64");
    for query in ["top=0", "top=1.1", "top=NaN", "threshold=-1", "threshold=inf", "format=gif", "masking=perhaps", "k=1"] {
        server.post(&format!("/collections/p/anomaly?{query}"), "image/png", &picture).problem(400, "bad_parameter");
    }
    for body in [
        json!({ "kind": "others" }),
        json!({ "max_patches": 100 }),
        json!({ "layer": 1 }),
        json!({ "size": 64 }),
        json!({ "kind": "patches", "max_patches": 1 }),
        json!({ "kind": "patches", "max_patches": 1_000_001 }),
        json!({ "kind": "patches", "size": 1 }),
        json!({ "kind": "patches", "size": 481 }),
        json!({ "kind": "patches", "layer": 0 }),
    ] {
        server.put("/collections/q", &body).problem(400, "bad_parameter");
    }
    server.put("/collections/q", &json!({ "kind": "patches", "layer": 1 })).problem(422, "model_lacks_output");
    server.post("/collections/p/anomaly", "image/png", b"no picture").problem(422, "unknown_format");
    assert_eq!(server.get("/collections/p").ok().json()["count"], 0);
    // Items are listed and got as others are.
    add(&server, "x", "", &texture(0));
    let item = server.get("/collections/p/items/x").ok().json();
    assert_eq!(item["vector"].as_array().unwrap().len(), 32);
    assert_eq!(server.get("/collections/p/items/x/image").ok().header("content-type"), "image/jpeg");
}

/// Snapshots that name the served model, and ask for what was never made with it.
fn forged_snapshots_are_refused(place: &Place) {
    let server = server(place);
    let fingerprint = server.get("/collections/p").ok().json()["model"]["fingerprint"].as_str().unwrap().to_owned();
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path(), IndexOptions::default()).unwrap();
    let forged = [
        ("dim", 16, PatchOptions { max_patches: 1000, layer: None, size: 64 }, "16 dimensions"),
        ("size", 32, PatchOptions { max_patches: 1_000_000, layer: None, size: 40_000 }, "not 40000"),
        ("many", 32, PatchOptions { max_patches: 1_000_000_000, layer: None, size: 64 }, "not 1000000000"),
    ];
    for (name, dim, options, words) in forged {
        let model = ModelTag { fingerprint: fingerprint.clone(), precision: None };
        let (collection, _) = Store::create(&store, &name.parse().unwrap(), Spec { dim, model, kind: Kind::Patches(options) }).unwrap();
        let mut file = Vec::new();
        snapshot::write(&*collection, &mut file).unwrap();
        let refused = server.post("/collections/q/restore", "application/octet-stream", &file).problem(422, "bad_snapshot");
        assert!(refused["detail"].as_str().unwrap().contains(words), "{refused}");
        // By the command line it comes into the store without a model; then it cannot be used.
        let (path, other) = (folder.path().join(name), place.another());
        fs_err::write(&path, &file).unwrap();
        let told = crate::harness::program().arg("restore").arg("--from").arg(&path).args(other.store()).output().unwrap();
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        let elsewhere = Server::start(&other.flags());
        let (status, code) = if name == "dim" { (409, "dimension_mismatch") } else { (400, "bad_parameter") };
        for route in ["anomaly", "items"] {
            let refused = elsewhere.post(&format!("/collections/{name}/{route}"), "image/png", &png(&texture(0))).problem(status, code);
            assert!(refused["detail"].as_str().unwrap().contains(words), "{refused}");
        }
    }
}

/// Colours of the patches of a picture in the basis of the collection `p`, at the middle of each.
fn colours(server: &Server, picture: &RgbImage) -> Vec<[u8; 3]> {
    let answer = server.post("/segment?basis=p&max_objects=9&format=rle", "image/png", &png(picture)).ok().json();
    let result = &answer["results"][0];
    assert_eq!(result["method"], "pca");
    let drawn = image::load_from_memory(&STANDARD.decode(result["colours"].as_str().unwrap()).unwrap()).unwrap().to_rgb8();
    assert_eq!(drawn.dimensions(), picture.dimensions());
    let (rows, columns) = (picture.height() / 8, picture.width() / 8);
    (0..rows * columns).map(|at| drawn.get_pixel(at % columns * 8 + 4, at / columns * 8 + 4).0).collect()
}

fn colours_agree_in_a_basis_of_the_collection(place: &Place) {
    let server = server(place);
    let refused = |server: &Server, query: &str, status: u16, code: &str, names: &str| {
        let problem = server.post(&format!("/segment?{query}"), "image/png", &png(&texture(1))).problem(status, code);
        assert!(problem["detail"].as_str().unwrap().contains(names), "{problem}");
    };
    refused(&server, "basis=p", 400, "bad_parameter", "add pictures");
    (0..4).for_each(|number| add(&server, &number.to_string(), "", &scratched(number)));
    let first = colours(&server, &scratched(1));
    assert!(first.iter().any(|colour| *colour != [0; 3]), "there is a foreground");
    // What is asked beside it does not change the colours, as it does without a basis.
    let both = server.post_parts("/segment?method=pca&basis=p", &[png(&scratched(1)), png(&texture(7))]).ok().json();
    let alone = server.post("/segment?method=pca&basis=p", "image/png", &png(&scratched(1))).ok().json();
    assert_eq!(both["results"][0], alone["results"][0]);
    // The same patches have the same colours wherever they lie: one row of patches less above.
    let lower = image::imageops::crop_imm(&scratched(1), 0, 0, 64, 64).to_image();
    assert_eq!(colours(&server, &lower), first);
    drop(server);
    let server = self::server(place);
    assert_eq!(colours(&server, &scratched(1)), first, "after a restart");

    // What is added counts; what is deleted is forgotten.
    add(&server, "new", "", &noise(64, 64, 9));
    assert_ne!(colours(&server, &scratched(1)), first);
    assert_eq!(server.delete("/collections/p/items/new").status, 204);
    assert_eq!(colours(&server, &scratched(1)), first);

    refused(&server, "basis=p&method=ncut", 400, "bad_parameter", "pca");
    refused(&server, "basis=p&head=1", 400, "bad_parameter", "pca");
    refused(&server, "basis=none", 404, "unknown_collection", "none");
    refused(&server, "basis=../x", 400, "bad_parameter", "name");
    assert_eq!(server.put("/collections/pictures", &json!({})).status, 201);
    refused(&server, "basis=pictures", 400, "bad_parameter", "kind patches");
    refused(&server, "basis=p&threshold=1000", 400, "bad_parameter", "threshold");
}

/// A scene of two halves with a square of another texture at a place, and the mask of the square.
fn with_square(left: u32, top: u32, seed: u64) -> (RgbImage, RgbImage) {
    let noise = noise(64, 64, seed);
    let inside = |x: u32, y: u32| (left..left + 24).contains(&x) && (top..top + 24).contains(&y);
    let picture = RgbImage::from_fn(64, 64, |x, y| {
        let level = noise.get_pixel(x, y).0[0] / 16;
        if inside(x, y) { Rgb([200 + level, 30, 20 + level]) } else { Rgb([20 + level, 60 + level, 90]) }
    });
    (picture, RgbImage::from_fn(64, 64, |x, y| Rgb(if inside(x, y) { [255; 3] } else { [0; 3] })))
}

fn teach(server: &Server, id: &str, labels: &Value, picture: &RgbImage, mask: &Value) -> Value {
    let item = json!({ "id": id, "image": STANDARD.encode(png(picture)), "labels": labels, "mask": mask });
    server.post_json("/collections/p/items", &json!({ "items": [item] })).ok().json()
}

fn paint(server: &Server, query: &str, picture: &RgbImage) -> Value {
    let answer = server.post(&format!("/segment?collection=p{query}"), "image/png", &png(picture)).ok().json();
    assert_eq!(answer["results"][0]["method"], "neighbours");
    answer["results"][0]["masks"].clone()
}

/// Intersection over union of a mask that was found and one that was drawn.
fn overlap(found: &Value, drawn: &RgbImage) -> f64 {
    let found = image::load_from_memory(&STANDARD.decode(found["png"].as_str().unwrap()).unwrap()).unwrap().to_luma8();
    let pairs = found.pixels().zip(drawn.pixels()).map(|(a, b)| (a.0[0] > 127, b.0[0] > 127));
    let (both, any) = pairs.fold((0, 0), |(both, any), (a, b)| (both + u32::from(a && b), any + u32::from(a || b)));
    f64::from(both) / f64::from(any)
}

fn masks_are_knowledge_and_deleting_forgets(place: &Place) {
    let server = server(place);
    let (picture, mask) = with_square(8, 16, 1);
    teach(&server, "one", &json!(["square"]), &picture, &json!(STANDARD.encode(png(&mask))));
    // Pictures without a mask have no vote.
    add(&server, "other", "&labels=other", &texture(3));
    let (asked, drawn) = with_square(32, 24, 9);
    let found = paint(&server, "", &asked);
    assert_eq!((found.as_array().unwrap().len(), &found[0]["label"]), (1, &json!("square")));
    assert!(overlap(&found[0], &drawn) > 0.6, "{}", overlap(&found[0], &drawn));
    assert!(found[0]["score"].as_f64().unwrap() > 0.5);
    let alone = server.post_with("/segment?collection=p", &[("Content-Type", "image/png"), ("Accept", "image/png")], &png(&asked));
    assert_eq!(STANDARD.encode(&alone.ok().body), found[0]["png"].as_str().unwrap());

    // A second mask of the same picture: what it covers is no background any more.
    let rest = image::imageops::colorops::grayscale(&mask);
    let rest = RgbImage::from_fn(64, 64, |x, y| Rgb([255 - rest.get_pixel(x, y).0[0]; 3]));
    teach(&server, "two", &json!(["ground"]), &picture, &json!(STANDARD.encode(png(&rest))));
    let both = paint(&server, "&format=rle", &asked);
    let labels =
        |masks: &Value| masks.as_array().unwrap().iter().map(|mask| mask["label"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(labels(&both), ["ground", "square"]);
    assert_eq!(both[0]["area"].as_u64().unwrap() + both[1]["area"].as_u64().unwrap(), 64 * 64);
    assert_eq!(labels(&paint(&server, "&max_objects=1&k=3&temperature=0.02", &asked)), ["ground"]);
    assert!(paint(&server, "&format=heatmap", &asked)[1]["heatmap"]["size"] == json!([8, 8]));
    assert!(paint(&server, "&format=polygons&holes=separate", &asked)[1]["polygons"][0]["outer"].is_array());

    // After a kill, and from a snapshot, in another collection.
    server.signal("-KILL");
    drop(server);
    let server = self::server(place);
    assert_eq!(paint(&server, "&format=rle", &asked), both);
    let snapshot = server.post("/collections/p/snapshot", "application/json", b"").ok().body.clone();
    assert_eq!(server.delete("/collections/p").status, 204);
    assert_eq!(server.post("/collections/p/restore", "application/octet-stream", &snapshot).status, 201);
    assert_eq!(paint(&server, "&format=rle", &asked), both);

    // Deleted and replaced items are forgotten.
    assert_eq!(server.delete("/collections/p/items/two").status, 204);
    assert_eq!(paint(&server, "", &asked), found);
    add(&server, "one", "&labels=square", &picture);
    let nothing = server.post("/segment?collection=p", "image/png", &png(&asked)).problem(400, "bad_parameter");
    assert!(nothing["detail"].as_str().unwrap().contains("mask"), "{nothing}");
}

fn masks_that_cannot_be_are_refused(place: &Place) {
    let server = server(place);
    let (picture, mask) = with_square(8, 16, 1);
    let (image, mask) = (STANDARD.encode(png(&picture)), STANDARD.encode(png(&mask)));
    let refused = |path: &str, body: &Value, names: &str| {
        let problem = server.post_json(path, body).problem(400, "bad_parameter");
        assert!(problem["detail"].as_str().unwrap().contains(names), "{problem}");
    };
    let item = |more: &Value| {
        let mut item = json!({ "image": image, "labels": ["x"], "mask": mask });
        item.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "items": [item] })
    };
    let items = "/collections/p/items";
    refused(items, &item(&json!({ "labels": [] })), "labels");
    refused(items, &item(&json!({ "mask": "!" })), "mask");
    refused(items, &item(&json!({ "mask": STANDARD.encode(png(&noise(32, 64, 1))) })), "32 x 64");
    refused(items, &item(&json!({ "mask": { "size": [64, 64], "counts": "0" } })), "add up");
    refused(items, &item(&json!({ "mask": STANDARD.encode(png(&RgbImage::new(64, 64))) })), "no pixel");
    // The second of two, and no picture was run for it.
    let mut second = item(&json!({}));
    let good = second["items"][0].clone();
    second["items"] = json!([good, { "image": image, "labels": ["x"], "mask": { "size": [32, 64], "counts": "0PP2" } }]);
    let problem = server.post_json(items, &second).problem(400, "bad_parameter");
    assert_eq!(problem["index"], 1, "{problem}");
    let metrics = server.get("/metrics").ok().text();
    assert!(!metrics.lines().any(|line| line.starts_with("dino_pictures_total{")), "{metrics}");
    let mut rotated = item(&json!({}));
    rotated["rotations"] = json!(true);
    refused(items, &rotated, "rotations");
    assert_eq!(server.put("/collections/pictures", &json!({})).status, 201);
    refused("/collections/pictures/items", &item(&json!({})), "collections of patches");
    assert_eq!(server.get("/collections/p").ok().json()["count"], 0);

    for (query, names) in [
        ("collection=pictures", "kind patches"),
        ("collection=p", "has a mask"),
        ("collection=p&method=pca", "method"),
        ("collection=p&head=x", "head"),
        ("collection=p&basis=p", "basis"),
        ("collection=p&refine=guided", "refine"),
        ("collection=p&k=0", "k"),
        ("collection=p&k=1001", "k"),
        ("collection=p&temperature=0", "temperature"),
        ("collection=p&threshold=1.1", "threshold"),
        ("collection=p&holes=separate", "holes"),
        ("collection=p&max_objects=0", "max_objects"),
        ("k=3", "collection"),
    ] {
        let problem = server.post(&format!("/segment?{query}"), "image/png", &png(&picture)).problem(400, "bad_parameter");
        assert!(problem["detail"].as_str().unwrap().contains(names), "{problem}");
    }
    server.post("/segment?collection=none", "image/png", &png(&picture)).problem(404, "unknown_collection");
}

/// Masks of `anomalous` items beyond the bound have some of their patches each; where most are deleted, the others have all of them again,
/// as after a restart.
fn masks_that_are_left_have_all_their_patches(place: &Place) {
    let start = || {
        let server = Server::start(&place.flags());
        // The patches of two pictures.
        made(&server, &json!({ "kind": "patches", "size": 64, "max_patches": 128 }));
        server
    };
    let server = start();
    for number in 0..8_u32 {
        let (picture, square) = with_square(number * 4, 16, u64::from(number));
        // All but the square.
        let ground = RgbImage::from_fn(64, 64, |x, y| Rgb(square.get_pixel(x, y).0.map(|value| 255 - value)));
        teach(&server, &number.to_string(), &json!(["anomalous"]), &picture, &json!(STANDARD.encode(png(&ground))));
    }
    let (asked, _) = with_square(20, 24, 9);
    // More neighbours than the square has patches.
    let ask = |server: &Server| paint(server, "&format=heatmap&k=12&temperature=0.3", &asked);
    assert_eq!(ask(&server)[0]["label"], "anomalous");
    for number in 1..8 {
        assert_eq!(server.delete(&format!("/collections/p/items/{number}")).status, 204);
    }
    let left = ask(&server);
    assert_eq!(left[0]["label"], "anomalous");
    drop(server);
    assert_eq!(ask(&start()), left, "after a restart");
}

fn patches_in_memory_are_measured(place: &Place) {
    let server = server(place);
    let is = |expected: [u64; 3]| {
        let metrics = server.get("/metrics").ok().text();
        let value = |name: &str| -> u64 {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
        };
        let found = ["dino_patch_banks", "dino_patch_bank_patches", "dino_patch_bank_reads_total"].map(value);
        assert_eq!(found, expected);
        assert_eq!(value("dino_patch_bank_bytes") > 0, expected[1] > 0);
    };
    is([0, 0, 0]);
    (0..2).for_each(|number| add(&server, &number.to_string(), "", &texture(number)));
    is([0, 0, 0]);
    score(&server, &texture(5));
    is([1, 128, 1]);
    add(&server, "2", "", &texture(2));
    score(&server, &texture(5));
    is([1, 192, 1]);
    assert_eq!(server.delete("/collections/p").status, 204);
    is([0, 0, 1]);
}
