//! What good requests get.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use dino_server::index::{Collection, CollectionName, EmbeddedStore, IndexOptions, Item, ModelTag, NewItem, Spec};
use dino_vision::{embedding::Pooling, model::Model, segment};
use image::{GrayImage, ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};

use crate::{
    harness::{Server, assert_close, cosine, file, tiny_model},
    pictures::{noise, png, scene},
};

const DIM: usize = 32;

fn length(vector: &[f32]) -> f32 {
    vector.iter().map(|x| x * x).sum::<f32>().sqrt()
}

#[test]
fn the_three_forms_of_a_body_give_the_same_vectors() {
    let server = Server::start(&[]);
    let pictures = [png(&scene(60, 40, 1)), png(&scene(40, 60, 2))];
    let raw: Vec<_> = pictures.iter().map(|picture| server.embed(picture)).collect();
    assert_eq!(raw[0].len(), DIM);
    assert!((length(&raw[0]) - 1.0).abs() < 1e-5);
    assert!(cosine(&raw[0], &raw[1]) < 0.9999, "the model must tell these pictures apart");

    let parts = server.post_parts("/embed", &pictures).ok().vectors();
    let plain = STANDARD.encode(&pictures[0]);
    let uri = format!("data:image/png;base64,{}", STANDARD.encode(&pictures[1]));
    let from_json = server.post_json("/embed", &json!({ "images": [plain, uri] })).ok().vectors();
    let octets = server.post("/embed", "application/octet-stream", &pictures[0]).ok().vectors();
    assert_eq!(parts, raw);
    assert_eq!(from_json, raw);
    assert_eq!(octets[0], raw[0]);
}

#[test]
fn base64_may_be_unpadded_or_broken_into_lines() {
    let server = Server::start(&[]);
    let picture = png(&scene(30, 31, 3));
    let padded = STANDARD.encode(&picture);
    let bare = padded.trim_end_matches('=').to_owned();
    let lines = padded.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect::<Vec<_>>().join("\r\n");
    let vectors = server.post_json("/embed", &json!({ "images": [padded, bare, lines] })).ok().vectors();
    assert!(vectors.iter().all(|vector| vector == &vectors[0]));
}

/// C03: sixteen pictures of mixed sizes in one body keep their order, alone and four bodies at once.
#[test]
fn answers_keep_the_order_of_the_pictures() {
    let server = Server::start(&[]);
    let sizes = [(64, 64), (800, 200), (200, 800), (1, 1), (300, 300), (16, 900), (1200, 900), (5, 5)];
    let pictures: Vec<_> = (0..16u32)
        .map(|i| {
            let (width, height) = sizes[i as usize % sizes.len()];
            png(&if width * height > 1 { scene(width, height, i) } else { noise(1, 1, u64::from(i)) })
        })
        .collect();
    let alone: Vec<_> = pictures.iter().map(|picture| server.embed(picture)).collect();
    let distinct: std::collections::HashSet<_> = alone.iter().map(|vector| format!("{vector:?}")).collect();
    assert_eq!(distinct.len(), alone.len(), "a permutation would not be noticed");

    let images: Vec<_> = pictures.iter().map(|picture| STANDARD.encode(picture)).collect();
    let check = |vectors: Vec<Vec<f32>>| {
        assert_eq!(vectors.len(), alone.len());
        for (vector, alone) in vectors.iter().zip(&alone) {
            assert_close(vector, alone);
        }
    };
    check(server.post_json("/embed", &json!({ "images": images })).ok().vectors());
    std::thread::scope(|scope| {
        for round in 0..4 {
            let (server, pictures, images, check) = (&server, &pictures, &images, &check);
            scope.spawn(move || {
                let answer = if round % 2 == 0 {
                    server.post_parts("/embed", pictures)
                } else {
                    server.post_json("/embed", &json!({ "images": images }))
                };
                check(answer.ok().vectors());
            });
        }
    });
}

/// Full batches wait for nothing, however long the delay.
#[test]
fn pictures_that_run_together_get_what_they_get_alone() {
    let alone = Server::start(&[]);
    let together = Server::start(&["--sessions", "1", "--max-batch", "4", "--max-batch-delay", "20"]);
    let pictures: Vec<_> = (0..8).map(|i| png(&scene(40 + i, 40, i))).collect();
    let vectors = together.post_parts("/embed", &pictures).ok().vectors();
    assert_eq!(vectors.len(), pictures.len());
    for (picture, vector) in pictures.iter().zip(&vectors) {
        assert_close(&alone.embed(picture), vector);
    }
    let text = together.get("/metrics").ok().text();
    let runs = |most: &str| {
        let line = format!("dino_batch_pictures_bucket{{le=\"{most}\",model=\"tiny-model\"}} ");
        text.split(&line).nth(1).unwrap_or_else(|| panic!("{line} is missing in {text}")).lines().next().unwrap().to_owned()
    };
    assert_eq!((runs("2.0"), runs("4.0")), ("0".into(), "8".into()));
}

/// C06: what an answer depends on is the picture's shape as well as its bytes, and each option.
#[test]
fn no_option_and_no_shape_is_mixed_up_with_another() {
    let model = tiny_model();
    let model = model.to_str().unwrap();
    let (one, two) = (format!("one={model}"), format!("two={model}"));
    let server = Server::with_models(&[&one, &two], &[]);
    let bytes = noise(120, 80, 7).into_raw();
    let wide = png(&RgbImage::from_raw(120, 80, bytes.clone()).unwrap());
    let high = png(&RgbImage::from_raw(80, 120, bytes).unwrap());
    let first = server.embed(&wide);
    let other = server.embed(&high);
    assert_ne!(first, other);
    assert_eq!(server.embed(&wide), first);

    let queries = ["?pooling=cls", "?pooling=mean", "?normalize=false", "?dimensions=5", "?model=two", "?model=one"];
    let warm: Vec<_> = queries.iter().map(|query| server.embed_with(query, &wide)).collect();
    let fresh = Server::with_models(&[&one, &two], &[]);
    for (query, warm) in queries.iter().zip(&warm).rev() {
        assert_eq!(&fresh.embed_with(query, &wide), warm, "{query}");
    }
    assert_ne!(warm[0], warm[1]);
    let answer = server.post("/embed?model=two", "image/png", &wide);
    assert_eq!(answer.ok().json()["model"], "two");
}

/// The part of C05 that concerns `/embed`: no accepted option is ignored.
#[test]
fn every_option_of_embed_takes_effect() {
    let server = Server::start(&[]);
    let picture = png(&scene(90, 70, 5));
    let normal = server.embed(&picture);
    let raw = server.embed_with("?normalize=false", &picture);
    assert!((length(&raw) - 1.0).abs() > 1e-3);
    assert!((cosine(&raw, &normal) - 1.0).abs() < 1e-5);

    let mean = server.embed_with("?pooling=mean", &picture);
    let both = server.embed_with("?pooling=cls_mean&normalize=false", &picture);
    assert_eq!(both.len(), 2 * DIM);
    assert_close(&both[..DIM], &raw);
    assert!((cosine(&both[DIM..], &mean) - 1.0).abs() < 1e-5);

    let cut = server.embed_with("?dimensions=7", &picture);
    assert_eq!(cut.len(), 7);
    assert!((length(&cut) - 1.0).abs() < 1e-5, "a cut vector is normalised again");
    assert!((cosine(&cut, &normal[..7]) - 1.0).abs() < 1e-5);
    assert_eq!(server.embed_with("?dimensions=1", &picture).len(), 1);
    assert_eq!(server.embed_with(&format!("?dimensions={DIM}"), &picture), normal);

    let answer = server.post("/embed?pooling=patches&normalize=false", "image/png", &picture).ok().json();
    let patches: Vec<Vec<Vec<f32>>> = serde_json::from_value(answer["embeddings"].clone()).unwrap();
    assert_eq!(answer["grid"], json!([[28, 28]]));
    assert_eq!((patches[0].len(), patches[0][0].len()), (28 * 28, DIM));
    let mut sum = vec![0.0f32; DIM];
    for patch in &patches[0] {
        sum.iter_mut().zip(patch).for_each(|(sum, x)| *sum += x / 784.0);
    }
    assert_close(&sum, &both[DIM..]);
}

#[test]
fn number_formats_and_encodings_agree() {
    let server = Server::start(&[]);
    let pictures = [png(&scene(90, 70, 5)), png(&scene(50, 70, 6))];
    let post = |query: &str| server.post_parts(&format!("/embed{query}"), &pictures);
    let vectors = post("").ok().vectors();
    let flat: Vec<f32> = vectors.concat();
    let floats = |bytes: &[u8]| -> Vec<f32> { bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect() };

    let raw = post("?encoding=raw");
    assert_eq!(raw.ok().header("content-type"), "application/octet-stream");
    assert_eq!(raw.header("x-dino-shape"), "2,32");
    assert_eq!(floats(&raw.body), flat);

    let npy = post("?encoding=npy");
    assert_eq!(&npy.ok().body[..8], b"\x93NUMPY\x01\x00");
    let header = usize::from(u16::from_le_bytes([npy.body[8], npy.body[9]]));
    let described = String::from_utf8_lossy(&npy.body[10..10 + header]).into_owned();
    assert!(described.contains("'descr': '<f4'") && described.contains("(2, 32"), "{described}");
    assert_eq!(floats(&npy.body[10 + header..]), flat);

    let texts = post("?encoding=base64").ok().json();
    let decoded = STANDARD.decode(texts["embeddings"][1].as_str().unwrap()).unwrap();
    assert_eq!(floats(&decoded), vectors[1]);

    let small = post("?dtype=int8").ok().json();
    let bytes: Vec<Vec<f32>> = serde_json::from_value(small["embeddings"].clone()).unwrap();
    let scales: Vec<f32> = serde_json::from_value(small["scales"].clone()).unwrap();
    for ((row, scale), vector) in bytes.iter().zip(scales).zip(&vectors) {
        assert_eq!(row.iter().fold(0.0f32, |most, x| most.max(x.abs())), 127.0);
        for (x, y) in row.iter().zip(vector) {
            assert!((x * scale - y).abs() <= scale * 0.5001);
        }
    }

    let bits = post("?dtype=binary&encoding=raw");
    assert_eq!(bits.ok().body.len(), 2 * DIM / 8);
    for (position, value) in flat.iter().enumerate() {
        assert_eq!(bits.body[position / 8] >> (7 - position % 8) & 1 == 1, *value > 0.0);
    }

    let halves: Vec<Vec<f32>> = post("?dtype=f16").ok().vectors();
    for (half, full) in halves.concat().iter().zip(&flat) {
        assert!((half - full).abs() <= full.abs() / 1024.0);
    }
    let patches = post("?pooling=patches&encoding=npy");
    assert_eq!(patches.ok().header("x-dino-shape"), "2,784,32");
    assert_eq!(server.post_parts("/embed?dtype=int8&encoding=npy", &pictures).ok().header("x-dino-scales").split(',').count(), 2);
}

/// A collection of scenes that the tiny model has embedded, filled without a server.
fn gallery(folder: &std::path::Path, vectors: &[(String, &str, Vec<f32>)]) {
    let fingerprint = Model::open(&tiny_model()).unwrap().fingerprint(Pooling::Cls);
    let store = EmbeddedStore::open(folder, IndexOptions::default()).unwrap();
    let spec = Spec::pictures(DIM, ModelTag { fingerprint, precision: None });
    let name: CollectionName = "default".parse().unwrap();
    let (collection, _) = store.create(&name, spec).unwrap();
    let items = vectors
        .iter()
        .map(|(id, label, vector)| NewItem {
            item: Item { id: id.clone(), labels: vec![(*label).into()], ..Item::default() },
            vector: vector.clone(),
            thumbnail: Some(id.as_bytes().to_vec()),
            patches: None,
        })
        .collect();
    collection.upsert(items).unwrap();
}

#[test]
fn classify_lets_the_nearest_neighbours_vote() {
    let server = Server::start(&[]);
    let queries: Vec<_> = (0..4u32).map(|i| png(&scene(64, 64, i))).collect();
    let vectors: Vec<(String, &str, Vec<f32>)> = (0..12u32)
        .map(|i| {
            let label = ["top left", "second", "third", "fourth"][i as usize % 4];
            (format!("folder/{i}.png"), label, server.embed(&png(&scene(64 + i, 64, i % 4))))
        })
        .collect();
    drop(server);
    let data = tempfile::tempdir().unwrap();
    gallery(data.path(), &vectors);

    let server = Server::with_data(data.path());
    let answer = server.post_parts("/classify?k=3", &queries).ok().json();
    assert_eq!(answer["collection"], "default");
    for (query, result) in answer["results"].as_array().unwrap().iter().enumerate() {
        assert_eq!(result["label"], vectors[query].1, "{result}");
        let classes = result["classes"].as_array().unwrap();
        let sum: f64 = classes.iter().map(|class| class["score"].as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-9);
        assert_eq!(classes[0]["score"], result["score"]);
        let neighbors = result["neighbors"].as_array().unwrap();
        assert_eq!(neighbors.len(), 3);
        assert_eq!(neighbors[0]["labels"], json!([vectors[query].1]));
        assert!(neighbors[0]["similarity"].as_f64() >= neighbors[2]["similarity"].as_f64());
    }
    let with = |query: &str| server.post(&format!("/classify{query}"), "image/png", &queries[0]);
    let all = with("?k=1000").ok().json()["results"][0].clone();
    assert_eq!(all["neighbors"].as_array().unwrap().len(), 12);
    assert_eq!(with("?k=1000&exact=true&ef=50").ok().json()["results"][0], all);
    assert!(with("?k=12&temperature=1000&min_score=0.9").ok().json()["results"][0]["label"].is_null());
    with("?collection=none").problem(404, "unknown_collection");
    with("?collection=..").problem(400, "bad_parameter");
    with("?k=0").problem(400, "bad_parameter");
    with("?temperature=0").problem(400, "bad_parameter");
    with("?temperature=NaN").problem(400, "bad_parameter");
    with("?filter=x").problem(400, "bad_parameter");

    let list = server.get("/collections").ok().json();
    assert_eq!(list["collections"][0]["name"], "default");
    assert_eq!(server.get("/collections/default").ok().json()["count"], 12);
    let picture = server.get("/collections/default/items/folder%2F3.png/image");
    assert_eq!(picture.ok().body, b"folder/3.png");
    server.get("/collections/default/items/nothing/image").problem(404, "unknown_item");
    server.get("/collections/nothing").problem(404, "unknown_collection");
    server.get("/collections/..%2F..%2Fx").problem(400, "bad_parameter");
    server.get("/collections/%ff").problem(400, "bad_parameter");
}

#[test]
fn a_collection_of_another_model_is_refused() {
    let data = tempfile::tempdir().unwrap();
    {
        let store = EmbeddedStore::open(data.path(), IndexOptions::default()).unwrap();
        let spec = Spec::pictures(DIM, ModelTag { fingerprint: "of another".into(), precision: None });
        store.create(&"default".parse().unwrap(), spec).unwrap();
    }
    let server = Server::with_data(data.path());
    server.post("/classify", "image/png", &png(&scene(20, 20, 0))).problem(409, "model_mismatch");
}

#[test]
fn without_a_data_folder_classify_says_what_is_missing() {
    let server = Server::start(&[]);
    let problem = server.post("/classify", "image/png", &png(&scene(20, 20, 0))).problem(404, "unknown_collection");
    assert!(problem["detail"].as_str().unwrap().contains("--data-dir"));
    assert_eq!(server.get("/collections").ok().json(), json!({ "collections": [], "kept": false }));
}

fn decode_mask(file: &[u8]) -> GrayImage {
    image::load_from_memory_with_format(file, ImageFormat::Png).unwrap().into_luma8()
}

/// Runs of COCO's compressed text, the first of zeros.
fn runs(counts: &str) -> Vec<i64> {
    let mut runs: Vec<i64> = Vec::new();
    let mut bytes = counts.bytes();
    while let Some(mut byte) = bytes.next() {
        let (mut value, mut shift) = (0i64, 0);
        loop {
            let group = i64::from(byte - b'0');
            value |= (group & 0x1f) << shift;
            shift += 5;
            if group & 0x20 == 0 {
                if group & 0x10 != 0 {
                    value |= -1 << shift;
                }
                break;
            }
            byte = bytes.next().unwrap();
        }
        if runs.len() > 2 {
            value += runs[runs.len() - 2];
        }
        runs.push(value);
    }
    runs
}

/// C32 and C29: both formats hold the same pixels, at the picture's own size.
#[test]
fn masks_have_the_size_of_the_picture_and_agree_in_both_formats() {
    let server = Server::start(&["--segment-size", "120"]);
    for (width, height) in [(64, 32), (97, 43), (7, 7), (300, 9)] {
        let picture = png(&scene(width, height, 6));
        let rle = server.post("/segment?format=rle", "image/png", &picture).ok().json();
        let drawn = server.post("/segment?format=png", "image/png", &picture).ok().json();
        let (rle, drawn) = (&rle["results"][0], &drawn["results"][0]);
        assert_eq!((&rle["width"], &rle["height"]), (&json!(width), &json!(height)));
        assert_eq!(rle["method"], "attention");
        let (rle, drawn) = (&rle["masks"][0], &drawn["masks"][0]);
        assert_eq!(rle["rle"]["size"], json!([height, width]));
        let mask = decode_mask(&STANDARD.decode(drawn["png"].as_str().unwrap()).unwrap());
        assert_eq!(mask.dimensions(), (width, height));

        let mut pixels = Vec::new();
        for (position, run) in runs(rle["rle"]["counts"].as_str().unwrap()).into_iter().enumerate() {
            pixels.extend(std::iter::repeat_n(position % 2 == 1, usize::try_from(run).unwrap()));
        }
        let columns = (0..width).flat_map(|x| (0..height).map(move |y| (x, y)));
        for ((x, y), set) in columns.zip(&pixels) {
            assert_eq!(mask.get_pixel(x, y).0[0] == 255, *set, "{x}, {y}");
        }
        assert_eq!(pixels.len() as u32, width * height);
        let area = pixels.iter().filter(|set| **set).count();
        assert_eq!(rle["area"], json!(area));
        assert!(area > 0);
        assert_eq!((&rle["bbox"], &rle["score"]), (&drawn["bbox"], &drawn["score"]));

        let headers = [("content-type", "image/png"), ("accept", "image/png")];
        let itself = server.post_with("/segment", &headers, &picture);
        assert_eq!(itself.ok().header("content-type"), "image/png");
        assert_eq!(decode_mask(&itself.body), mask);
    }
}

#[test]
fn every_option_of_segment_takes_effect() {
    let server = Server::start(&["--segment-size", "160"]);
    let picture = file("photos/coffee.png");
    let masks = |query: &str| -> Vec<Value> {
        let answer = server.post(&format!("/segment?format=rle{query}"), "image/png", &picture);
        serde_json::from_value(answer.ok().json()["results"][0]["masks"].clone()).unwrap()
    };
    let area = |masks: &[Value]| masks.iter().map(|mask| mask["area"].as_u64().unwrap()).sum::<u64>();
    let all = "&max_objects=1000";
    assert!(area(&masks(&format!("{all}&threshold=0.3"))) < area(&masks(&format!("{all}&threshold=0.9"))));
    assert_eq!(masks("&threshold=0.6&head=mean"), masks(""));
    assert_ne!(masks("&head=0"), masks("&head=1"));
    assert_eq!(masks("").len(), 1);
    let many = masks("&max_objects=3");
    assert_eq!(many.len(), 3);
    let in_json = |head: Value| {
        let body = json!({ "images": [STANDARD.encode(&picture)], "format": "rle", "head": head });
        server.post_json("/segment", &body).ok().json()["results"][0]["masks"].clone()
    };
    assert_eq!(in_json(json!(1)), json!(masks("&head=1")));
    assert_eq!(in_json(json!("best")), json!(masks("&head=best")));

    let refused = |query: &str, code: &str| server.post(&format!("/segment?{query}"), "image/png", &picture).problem(400, code);
    for (query, code) in [
        ("threshold=0", "bad_parameter"),
        ("threshold=1.1", "bad_parameter"),
        ("threshold=NaN", "bad_parameter"),
        ("head=4", "bad_parameter"),
        ("max_objects=0", "bad_parameter"),
        ("method=guess", "bad_parameter"),
        ("method=ncut&head=1", "bad_parameter"),
        ("method=ncut&threshold=1.5", "bad_parameter"),
        ("format=svg", "bad_parameter"),
        ("pooling=cls", "bad_parameter"),
    ] {
        refused(query, code);
    }
    let headers = [("content-type", "application/json"), ("accept", "image/png")];
    let two = json!({ "images": [STANDARD.encode(&picture), STANDARD.encode(&picture)] }).to_string();
    server.post_with("/segment", &headers, two.as_bytes()).problem(406, "not_acceptable");
}

#[test]
fn the_mask_of_the_server_is_that_of_the_library() {
    let server = Server::start(&["--segment-size", "96"]);
    let picture = RgbImage::from_fn(90, 60, |x, y| if x > 60 && y > 30 { Rgb([255; 3]) } else { Rgb([20, 40, 60]) });
    let answer = server.post("/segment?format=rle&head=2", "image/png", &png(&picture)).ok().json();

    let model = Model::open(&tiny_model()).unwrap();
    let mut session = model.sessions(&dino_vision::model::SessionOptions::default(), 1).unwrap().remove(0);
    let (input, grid) = model.manifest().transform.whole_picture(&picture, 96, 8);
    let outputs = session.run(input.view().insert_axis(ndarray::Axis(0))).unwrap();
    let options = segment::Options { head: segment::Head::Number(2), ..Default::default() };
    let structure = segment::structure(input.view(), grid);
    let objects = segment::segment(&segment::Patches::of(&outputs, grid), (90, 60), structure, &options).unwrap().objects;
    assert!((answer["results"][0]["masks"][0]["score"].as_f64().unwrap() - f64::from(objects[0].score)).abs() < 1e-6);
    assert_eq!(answer["results"][0]["masks"][0]["rle"], json!(objects[0].mask.rle()));
}
