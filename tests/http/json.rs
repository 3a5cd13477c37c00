//! JSON bodies: members that are null, members that no route knows, and bodies that would take much more memory than their text.

use std::time::Instant;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    dense,
    harness::Server,
    pictures::{png, scene},
};

const DIM: usize = 32;

/// A server with an item in the collection `c` and the depth head `rooms`, and a picture in base64.
fn server(flags: &[&str]) -> (Server, tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let heads = dense::heads();
    let head = heads.path().join("rooms");
    let server = Server::start(&[&["--data-dir", folder.path().to_str().unwrap(), "--head", head.to_str().unwrap()], flags].concat());
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    let picture = png(&scene(20, 20, 1));
    server.post("/collections/c/items?id=a&labels=x", "image/png", &picture).ok();
    (server, folder, STANDARD.encode(picture))
}

/// Each route that takes JSON: the least that it takes, and its optional members.
fn routes(picture: &str) -> Vec<(&'static str, Value, &'static [&'static str])> {
    let images = json!([picture]);
    vec![
        ("/embed", json!({ "images": images }), &["model", "pooling", "normalize", "dtype", "encoding", "dimensions"]),
        (
            "/classify",
            json!({ "images": images, "collection": "c" }),
            &["model", "head", "k", "temperature", "min_score", "min_similarity", "exact", "ef", "filter", "balanced"],
        ),
        (
            "/segment",
            json!({ "images": images }),
            &[
                "model",
                "method",
                "threshold",
                "head",
                "max_objects",
                "format",
                "refine",
                "basis",
                "holes",
                "collection",
                "k",
                "temperature",
            ],
        ),
        ("/depth", json!({ "images": images, "head": "rooms" }), &["model", "format"]),
        ("/similarity", json!({ "images": images, "points": [[1, 1]] }), &["model", "target", "format", "mask"]),
        (
            "/match",
            json!({ "images": [picture, picture] }),
            &["model", "layer", "size", "max_matches", "min_similarity", "mutual", "geometry", "tolerance"],
        ),
        ("/v1/embeddings", json!({ "input": picture }), &["model", "encoding_format", "dimensions", "user"]),
        ("/collections/c/items", json!({ "items": [{ "id": "a", "image": picture }] }), &["model"]),
        ("/collections/c/search", json!({ "image": picture }), &["model", "vector", "k", "ef", "exact", "filter"]),
        ("/collections/c/items/delete", json!({ "filter": { "field": "id", "eq": "none" } }), &[]),
    ]
}

/// D01: clients send null for what they leave out.
#[test]
fn null_means_absent_on_every_route() {
    let (server, _folder, picture) = server(&[]);
    for (route, body, optional) in routes(&picture) {
        let mut all = body.clone();
        for name in optional {
            let mut one = body.clone();
            one[name] = Value::Null;
            all[name] = Value::Null;
            server.post_json(route, &one).ok();
        }
        assert_eq!(server.post_json(route, &all).ok().body.len(), server.post_json(route, &body).ok().body.len(), "{route}");
        // An unknown member is named, with one code on all routes.
        for unknown in ["input_type", "extra_body"] {
            let mut more = body.clone();
            more[unknown] = json!({});
            let problem = server.post_json(route, &more).problem(400, "bad_parameter");
            assert!(problem["detail"].as_str().unwrap().contains(&format!("unknown field `{unknown}`")), "{problem}");
        }
    }
    let item = json!({ "items": [{ "id": null, "image": picture, "vector": null, "labels": null, "metadata": null }], "model": null });
    server.post_json("/collections/c/items", &item).ok();
    assert_eq!(server.put("/collections/d", &json!({ "model": null })).status, 201);
    // What has to be there is missing where it is null.
    server.post_json("/embed", &json!({ "images": null })).problem(400, "no_pictures");
    for (route, name) in [("/v1/embeddings", "input"), ("/collections/c/items", "items"), ("/collections/c/items/delete", "filter")] {
        let problem = server.post_json(route, &json!({ name: null })).problem(400, "bad_parameter");
        assert!(problem["detail"].as_str().unwrap().contains(name), "{problem}");
    }
}

/// Swagger UI sends options of the query beside a JSON body.
#[test]
fn the_query_gives_what_the_body_leaves_out_and_the_body_counts() {
    let (server, _folder, picture) = server(&[]);
    let images = json!([picture]);
    let alone = server.post_json("/embed", &json!({ "images": images, "pooling": "mean", "dimensions": 5 })).ok().json();
    let beside = server.post_json("/embed?pooling=mean&dimensions=5&normalize=true", &json!({ "images": images })).ok().json();
    assert_eq!(beside, alone);
    let both = server.post_json("/embed?pooling=patches&dimensions=7", &json!({ "images": images, "pooling": "mean", "dimensions": 5 }));
    assert_eq!(both.ok().json(), alone);
    // Null counts as absent.
    let null = server.post_json("/embed?pooling=mean&dimensions=5", &json!({ "images": images, "pooling": null })).ok().json();
    assert_eq!(null, alone);

    let filter = "%7B%22field%22%3A%22id%22%2C%22eq%22%3A%22none%22%7D";
    let found = server.post_json(&format!("/collections/c/search?k=1&filter={filter}"), &json!({ "image": picture })).ok().json();
    assert_eq!(found["results"][0]["neighbors"], json!([]));
    let points = server.post_json("/similarity?points=%5B%5B1,2%5D,%5B3,4%5D%5D&target=0", &json!({ "images": images })).ok().json();
    assert_eq!(points["maps"].as_array().map(Vec::len), Some(2));
    let classified = server.post_json("/classify?collection=c&k=1&exact=true&temperature=0.5", &json!({ "images": images })).ok().json();
    assert_eq!(classified["results"][0]["label"], "x");
    server.post_json("/collections/c/items?model=none", &json!({ "items": [{ "image": picture }] })).problem(404, "unknown_model");

    // What is wrong in the query is so beside JSON, too, even where the body counts.
    for (route, body) in [
        ("/embed?dimensions=x", json!({ "images": images, "dimensions": 3 })),
        ("/embed?poling=mean", json!({ "images": images })),
        ("/embed?images=x", json!({ "images": images })),
        ("/embed?pooling=mean&pooling=cls", json!({ "images": images })),
        ("/segment?method=none", json!({ "images": images })),
        ("/collections/c/items?id=b", json!({ "items": [{ "image": picture }] })),
        ("/collections/c/items?items=b", json!({ "items": [{ "image": picture }] })),
        ("/collections/c/search?image=b", json!({ "image": picture })),
        ("/v1/embeddings?model=tiny-model", json!({ "input": picture })),
    ] {
        server.post_json(route, &body).problem(400, "bad_parameter");
    }
}

/// `start`, as many of `part` as fit, and `end`.
fn filled(start: &str, part: &str, end: &str, bytes: usize) -> Vec<u8> {
    let parts = (bytes - start.len() - end.len()) / part.len();
    let mut body = Vec::with_capacity(bytes);
    body.extend_from_slice(start.as_bytes());
    for _ in 0..parts {
        body.extend_from_slice(part.as_bytes());
    }
    body.extend_from_slice(end.as_bytes());
    body
}

/// No body, whatever it holds, grows the server by more than three of its size.
#[test]
fn json_takes_little_more_memory_than_its_text() {
    const BODY: usize = 6 << 20;
    let (server, _folder, picture) = server(&["--max-body", "6M", "--max-pictures", "4"]);
    for (route, body, _) in routes(&picture) {
        server.post_json(route, &body).ok();
    }
    let fillers = [
        ("[", "{\"\":0},", "0]"),
        ("\"", "\u{7f}", "\""),
        ("[", "0,", "0]"),
        ("[", "{},", "{}]"),
        ("[", "[],", "[]]"),
        ("[", "\"\",", "\"\"]"),
        ("", "[", ""),
        ("{\"", "\u{7f}", "\":0}"),
        ("{", "\"a\":{\"\":0},", "\"b\":0}"),
    ];
    // Where a filler may stand.
    let places: [(&str, &[&str]); 11] = [
        ("/embed", &["{\"x\":@}", "{\"images\":@}", "{\"pooling\":@}", "@"]),
        ("/classify", &["{\"filter\":{\"and\":@}}", "{\"filter\":{\"field\":\"label\",\"in\":@}}"]),
        ("/segment", &["{\"threshold\":@}", "{\"head\":@}"]),
        ("/depth", &["{\"head\":@}", "{\"format\":@}"]),
        ("/similarity", &["{\"points\":@}", "{\"target\":@}", "{\"mask\":@}", "{\"mask\":{\"size\":@}}"]),
        ("/match", &["{\"geometry\":@}", "{\"min_similarity\":@}"]),
        ("/v1/embeddings", &["{\"input\":@}", "{\"dimensions\":@}", "{\"x\":@}"]),
        (
            "/collections/c/items",
            &[
                "{\"items\":@}",
                "{\"items\":[{\"vector\":@}]}",
                "{\"items\":[{\"labels\":@,\"vector\":[1]}]}",
                "{\"items\":[{\"vector\":[1],\"metadata\":{\"x\":@}}]}",
            ],
        ),
        ("/collections/c/search", &["{\"vector\":@}", "{\"image\":@}"]),
        ("/collections/c/items/delete", &["{\"filter\":{\"field\":\"metadata.x\",\"eq\":@}}", "{\"x\":@}"]),
        ("/collections/c/items/other", &["{\"x\":@}"]),
    ];
    let base = server.memory();
    let mut worst = (0, String::new());
    let mut ask = |route: &str, what: &str, body: &[u8]| {
        assert!(body.len() <= BODY);
        let before = server.memory();
        server.reset_peak();
        let began = Instant::now();
        let answer = server.post(route, "application/json", body);
        // A text that is as long as a body is no wrong filter.
        assert!((400..500).contains(&answer.status) || what.contains("filter"), "{route} {what}: {} {}", answer.status, answer.text());
        assert!(answer.body.len() < 4096, "{route} {what}: an answer of {} bytes", answer.body.len());
        let grown = server.peak_memory().saturating_sub(before);
        println!("{:5.1} MB {:4} ms {} {route} {what}", grown as f64 / 1e6, began.elapsed().as_millis(), answer.status);
        if grown > worst.0 {
            worst = (grown, format!("{route} {what}"));
        }
    };
    for (route, places) in places {
        for place in places {
            let (before, after) = place.split_once('@').unwrap();
            // All of them where something is built of what is there.
            let is_list = ["images", "items", "filter", "points", "metadata"].iter().any(|name| place.contains(name));
            let few = if is_list { fillers.len() } else { 3 };
            for (start, part, end) in &fillers[..few] {
                let body = filled(&format!("{before}{start}"), part, &format!("{end}{after}"), BODY);
                ask(route, &format!("{place} {part:?}"), &body);
            }
        }
    }
    let vector = vec!["1"; DIM].join(",");
    let many = [
        (format!("{{\"vector\":[{vector}],\"labels\":[7]}},"), "items whose last is wrong"),
        (format!("{{\"vector\":[{vector}],\"metadata\":{{\"a\":1}}}},"), "small items"),
        (format!("{{\"vector\":[{vector}],\"metadata\":{{\"x\":[{}0]}}}},", "{\"\":0},".repeat(5000)), "items of large metadata"),
        ("{\"vector\":[1]},".to_owned(), "vectors of one number"),
    ];
    for (item, what) in many {
        ask("/collections/c/items", what, &filled("{\"items\":[", &item, "{}]}", BODY));
    }
    let (grown, what) = worst;
    // It comes back, too.
    let kept = server.memory().saturating_sub(base);
    assert!(kept <= 2 * BODY as u64, "{:.1} MB are kept", kept as f64 / 1e6);
    assert!(grown <= 3 * BODY as u64, "{:.1} MB for a body of {:.1}: {what}", grown as f64 / 1e6, BODY as f64 / 1e6);
}
