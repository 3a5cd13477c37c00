//! Collections from outside: kept, searched, filtered, moved, and refused what does not belong there.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    harness::{Answer, BOUNDARY, Server, assert_close, multipart, program, root, tiny_model},
    pictures::{png, scene},
    place::{Place, on_every_store},
};

/// Dimensions of the tiny model.
const DIM: usize = 32;

on_every_store!(
    a_collection_is_made_described_and_deleted,
    pictures_become_items_in_three_ways_and_stay,
    items_are_paged_through_and_deleted,
    filters_hold_in_search_and_classify,
    a_vote_can_be_balanced,
    there_are_k_neighbours_while_k_items_live,
    an_id_is_one_item_for_all_writers,
    a_body_is_taken_whole_or_not_at_all,
    another_model_is_refused_for_reading_and_writing,
    a_collection_moves_as_one_file,
    hostile_names_change_nothing_on_the_disk,
    a_collection_goes_over_to_another_model,
);

/// A unit vector near the axis of that number.
fn axis(number: usize) -> Vec<f32> {
    (0..DIM).map(|i| if i == number % DIM { 1.0 } else { 0.01 * (number / DIM) as f32 }).collect()
}

fn search(server: &Server, body: &Value) -> Vec<Value> {
    let answer = server.post_json("/collections/c/search", body);
    answer.ok().json()["results"][0]["neighbors"].as_array().unwrap().clone()
}

fn ids(hits: &[Value]) -> Vec<&str> {
    hits.iter().map(|hit| hit["id"].as_str().unwrap()).collect()
}

fn count(server: &Server) -> u64 {
    server.get("/collections/c").ok().json()["count"].as_u64().unwrap()
}

fn a_collection_is_made_described_and_deleted(place: &Place) {
    let server = Server::start(&place.flags());
    let made = server.put("/collections/c", &json!({ "model": "tiny-model" }));
    assert_eq!(made.status, 201, "{}", made.text());
    let same = server.put("/collections/c", &json!({}));
    assert_eq!(same.ok().json(), made.json());
    assert_eq!((&made.json()["count"], &made.json()["dim"]), (&json!(0), &json!(DIM)));
    assert_eq!(made.json()["index"]["kind"], "exact");
    assert!(made.json()["model"]["fingerprint"].as_str().unwrap().len() >= 32);
    assert_eq!(server.get("/collections").ok().json()["collections"], json!([made.json()]));
    assert_eq!(server.get("/collections/c").ok().json(), made.json());

    server.put("/collections/d", &json!({ "model": "none" })).problem(404, "unknown_model");
    server.put("/collections/d", &json!({ "dim": 7 })).problem(400, "bad_parameter");
    server.get("/collections/d").problem(404, "unknown_collection");
    assert_eq!(server.delete("/collections/c").status, 204);
    server.delete("/collections/c").problem(404, "unknown_collection");
    server.post_json("/collections/c/items", &json!({ "items": [{ "vector": axis(0) }] })).problem(404, "unknown_collection");
    server.post_json("/collections/c/search", &json!({ "vector": axis(0) })).problem(404, "unknown_collection");
    assert_eq!(server.get("/collections").ok().json()["collections"], json!([]));
    assert!(
        Server::start(&[]).put("/collections/c", &json!({})).problem(404, "unknown_collection")["detail"]
            .as_str()
            .unwrap()
            .contains("--data-dir")
    );
}

/// The three forms of a body, what is kept of the pictures, and that all of it is there after a restart.
fn pictures_become_items_in_three_ways_and_stay(place: &Place) {
    let first = place.server(&[]);
    let pictures: Vec<_> = (0..6).map(|seed| png(&scene(200, 100, seed))).collect();

    let raw = first.post("/collections/c/items?id=raw/1&labels=cat,pet&metadata={%22year%22:2020}", "image/png", &pictures[0]);
    assert_eq!(raw.ok().json()["ids"], json!(["raw/1"]));
    let parts = multipart(&[("image", &pictures[1]), ("image", &pictures[2])]);
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    let query = "id=m1&id=m2&labels=%5B%22a,b%22%5D&labels=dog";
    assert_eq!(first.post(&format!("/collections/c/items?{query}"), &kind, &parts).ok().json()["ids"], json!(["m1", "m2"]));
    let items = json!({ "items": [
        { "id": "j1", "image": STANDARD.encode(&pictures[3]), "labels": ["cat"], "metadata": { "year": 2024, "tags": ["x"] } },
        { "image": format!("data:image/png;base64,{}", STANDARD.encode(&pictures[4])) },
        { "id": "v", "vector": axis(3) },
    ] });
    let made = first.post_json("/collections/c/items", &items).ok().json();
    let generated = made["ids"][1].as_str().unwrap().to_owned();
    assert_eq!((&made["ids"][0], &made["ids"][2], generated.len()), (&json!("j1"), &json!("v"), 36));

    let check = |server: &Server| {
        assert_eq!(count(server), 6);
        let item = server.get("/collections/c/items/raw%2F1").ok().json();
        assert_eq!((&item["labels"], &item["metadata"]), (&json!(["cat", "pet"]), &json!({ "year": 2020 })));
        let vector: Vec<f32> = serde_json::from_value(item["vector"].clone()).unwrap();
        assert_close(&vector, &server.embed(&pictures[0]));
        assert_eq!(server.get("/collections/c/items/m2").ok().json()["labels"], json!(["a,b", "dog"]));
        let small = server.get("/collections/c/items/raw%2F1/image");
        assert_eq!(small.ok().header("content-type"), "image/jpeg");
        let small = image::load_from_memory(&small.body).unwrap();
        assert_eq!((small.width(), small.height()), (96, 48));
        server.get("/collections/c/items/v/image").problem(404, "unknown_item");
        server.get("/collections/c/items/none").problem(404, "unknown_item");
        // Each picture is its own nearest neighbour, whichever way it came and is asked for.
        for (picture, id) in pictures.iter().zip(["raw/1", "m1", "m2", "j1", &generated]) {
            let by_image = search(server, &json!({ "image": STANDARD.encode(picture), "k": 1 }));
            assert_eq!(ids(&by_image), [id]);
            assert!(by_image[0]["similarity"].as_f64().unwrap() > 0.9999);
            let raw = server.post("/collections/c/search?k=1", "image/png", picture).ok().json();
            assert_eq!(raw["results"][0]["neighbors"], json!(by_image));
        }
        let one = &search(server, &json!({ "image": STANDARD.encode(&pictures[3]), "k": 1 }))[0];
        assert_eq!((&one["labels"], &one["metadata"]), (&json!(["cat"]), &json!({ "year": 2024, "tags": ["x"] })));
    };
    check(&first);
    drop(first);
    check(&place.server(&[]));

    // What is kept of a picture is a choice, and a new version of an item replaces the old one whole.
    let place = place.another();
    let none = place.server(&["--store-images", "none"]);
    none.post("/collections/c/items?id=x", "image/png", &pictures[0]).ok();
    none.get("/collections/c/items/x/image").problem(404, "unknown_item");
    drop(none);
    let original = place.server(&["--store-images", "original"]);
    original.post("/collections/c/items?id=x&labels=a", "image/png", &pictures[0]).ok();
    let kept = original.get("/collections/c/items/x/image");
    assert_eq!((kept.ok().header("content-type"), &kept.body), ("image/png", &pictures[0]));
    original.post_json("/collections/c/items", &json!({ "items": [{ "id": "x", "vector": axis(1) }] })).ok();
    original.get("/collections/c/items/x/image").problem(404, "unknown_item");
    assert_eq!((&original.get("/collections/c/items/x").ok().json()["labels"], count(&original)), (&json!([]), 1));
}

fn items_are_paged_through_and_deleted(place: &Place) {
    let server = place.server(&[]);
    let items: Vec<_> = (0..25).map(|i| json!({ "id": format!("{i:02}"), "vector": axis(i), "labels": [format!("{}", i % 3)] })).collect();
    server.post_json("/collections/c/items", &json!({ "items": items })).ok();
    let (mut seen, mut query) = (Vec::new(), "limit=10".to_owned());
    loop {
        let page = server.get(&format!("/collections/c/items?{query}")).ok().json();
        seen.extend(page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        assert!(page["items"][0].get("vector").is_none());
        match page["next"].as_str() {
            Some(next) => query = format!("limit=10&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, (0..25).map(|i| format!("{i:02}")).collect::<Vec<_>>());
    for query in ["limit=0", "limit=1001", "limit=x", "page=2"] {
        server.get(&format!("/collections/c/items?{query}")).problem(400, "bad_parameter");
    }

    assert_eq!(server.delete("/collections/c/items/07").status, 204);
    server.delete("/collections/c/items/07").problem(404, "unknown_item");
    let by_label = json!({ "filter": { "field": "label", "eq": "1" } });
    assert_eq!(server.post_json("/collections/c/items/delete", &by_label).ok().json(), json!({ "deleted": 7 }));
    assert_eq!(server.post_json("/collections/c/items/delete", &by_label).ok().json(), json!({ "deleted": 0 }));
    assert_eq!(count(&server), 17);
    for body in [json!({}), json!({ "filter": {} }), json!({ "filter": { "and": [] } }), json!({ "filters": {} })] {
        server.post_json("/collections/c/items/delete", &body).problem(400, "bad_parameter");
    }
    assert_eq!(count(&server), 17);
    // An item may be called like the route.
    server.post_json("/collections/c/items", &json!({ "items": [{ "id": "delete", "vector": axis(0) }] })).ok();
    assert_eq!(server.get("/collections/c/items/delete").ok().json()["id"], "delete");
    assert_eq!(server.delete("/collections/c/items/delete").status, 204);
    let other = server.post_json("/collections/c/items/07", &json!({}));
    other.problem(405, "method_not_allowed");
    assert_eq!(other.header("allow"), "GET,HEAD,DELETE");
}

/// C15: a filter is a rule, in search and in the vote.
fn filters_hold_in_search_and_classify(place: &Place) {
    let server = place.server(&[]);
    let picture = png(&scene(80, 80, 1));
    let near: Vec<f32> = server.embed(&picture);
    let far: Vec<f32> = near.iter().map(|x| -x).collect();
    let mut items: Vec<_> = (0..200)
        .map(|i| {
            let vector: Vec<f32> = near.iter().zip(axis(i)).map(|(x, y)| x + 0.1 * y).collect();
            json!({ "id": format!("a{i}"), "vector": vector, "labels": ["a"], "metadata": { "tenant": "a", "number": i } })
        })
        .collect();
    items.push(json!({ "id": "b", "vector": far, "labels": ["b"], "metadata": { "tenant": "b" } }));
    server.post_json("/collections/c/items", &json!({ "items": items })).ok();

    let of = |tenant: &str| json!({ "field": "metadata.tenant", "eq": tenant });
    assert_eq!(ids(&search(&server, &json!({ "vector": near, "k": 10, "filter": of("b") }))), ["b"]);
    assert!(search(&server, &json!({ "vector": near, "k": 10, "filter": of("zzz") })).is_empty());
    let both = json!({ "and": [of("a"), { "not": { "field": "metadata.number", "gte": 3 } }] });
    let mut three = search(&server, &json!({ "vector": far, "k": 10, "filter": both }));
    three.sort_by_key(|hit| hit["id"].as_str().unwrap().to_owned());
    assert_eq!(ids(&three), ["a0", "a1", "a2"]);

    let classify = |filter: &Value| {
        let body = json!({ "images": [STANDARD.encode(&picture)], "collection": "c", "k": 10, "min_similarity": 0, "filter": filter });
        let in_json = server.post_json("/classify", &body).ok().json()["results"][0].clone();
        let filter = filter.to_string().replace('"', "%22").replace(' ', "%20");
        let in_query =
            server.post(&format!("/classify?collection=c&k=10&min_similarity=0&filter={filter}"), "image/png", &picture).ok().json();
        assert_eq!(in_query["results"][0], in_json);
        in_json
    };
    assert_eq!(classify(&of("b"))["label"], "b");
    assert_eq!(classify(&of("b"))["neighbors"].as_array().unwrap().len(), 1);
    let nobody = classify(&of("zzz"));
    assert_eq!((&nobody["label"], &nobody["neighbors"]), (&Value::Null, &json!([])));

    for filter in [json!({ "field": "metadata.tenant" }), json!("label=a"), json!([]), json!({ "fields": 1, "eq": 2 })] {
        let problem = server.post_json("/collections/c/search", &json!({ "vector": near, "filter": filter })).problem(400, "bad_parameter");
        assert!(problem["detail"].as_str().unwrap().contains("filter"), "{problem}");
    }
}

/// A class of many items outvotes a small one near their border, unless the vote is balanced.
fn a_vote_can_be_balanced(place: &Place) {
    let server = place.server(&[]);
    let picture = png(&scene(80, 80, 1));
    let near = server.embed(&picture);
    let far = |i: usize| near.iter().zip(axis(i)).map(|(x, y)| y - x).collect::<Vec<f32>>();
    let mut items: Vec<_> = (0..3).map(|i| json!({ "id": format!("common{i}"), "vector": near, "labels": ["common"] })).collect();
    items.extend((0..57).map(|i| json!({ "vector": far(i), "labels": ["common", "also"] })));
    items.push(json!({ "id": "rare", "vector": near, "labels": ["rare"] }));
    items.extend((0..9).map(|i| json!({ "vector": far(i), "labels": ["rare"] })));
    server.post_json("/collections/c/items", &json!({ "items": items })).ok();
    let classify =
        |query: &str| server.post(&format!("/classify?collection=c&k=4{query}"), "image/png", &picture).ok().json()["results"][0].clone();
    let plain = classify("");
    assert_eq!(plain["label"], "common");
    assert!((plain["score"].as_f64().unwrap() - 0.75).abs() < 1e-6, "{plain}");
    // 1/10 against 3/60.
    let balanced = classify("&balanced=true");
    assert_eq!((&balanced["label"], balanced["classes"].as_array().unwrap().len()), (&json!("rare"), 2));
    assert!((balanced["score"].as_f64().unwrap() - 2.0 / 3.0).abs() < 1e-6, "{balanced}");
    server.post("/classify?head=x&balanced=true", "image/png", &picture).problem(400, "bad_parameter");
}

/// C18: deleted items use up no places.
fn there_are_k_neighbours_while_k_items_live(place: &Place) {
    let server = place.server(&[]);
    let query = axis(0);
    let item = |i: usize| {
        let mut vector = axis(0);
        vector[1] += 0.05 * i as f32;
        json!({ "id": format!("{i:02}"), "vector": vector, "labels": ["l"] })
    };
    server.post_json("/collections/c/items", &json!({ "items": (0..60).map(item).collect::<Vec<_>>() })).ok();
    for i in 0..10 {
        assert_eq!(server.delete(&format!("/collections/c/items/{i:02}")).status, 204);
    }
    assert_eq!(ids(&search(&server, &json!({ "vector": query, "k": 1 }))), ["10"]);
    let twenty: Vec<_> = (10..30).map(|i| format!("{i:02}")).collect();
    assert_eq!(ids(&search(&server, &json!({ "vector": query, "k": 20 }))), twenty);
    let votes = server.post("/classify?collection=c&k=20", "image/png", &png(&scene(9, 9, 1))).ok().json();
    assert_eq!(votes["results"][0]["neighbors"].as_array().unwrap().len(), 20);
    let but_three = json!({ "filter": { "not": { "field": "id", "in": ["11", "30", "59"] } } });
    assert_eq!(server.post_json("/collections/c/items/delete", &but_three).ok().json()["deleted"], 47);
    assert_eq!(ids(&search(&server, &json!({ "vector": query, "k": 20 }))), ["11", "30", "59"]);
}

/// C19: one id twice in a body (the last one wins), and from many clients at once.
fn an_id_is_one_item_for_all_writers(place: &Place) {
    let server = place.server(&[]);
    let twice = json!({ "items": [
        { "id": "other", "vector": axis(5) }, { "id": "x", "vector": axis(1), "labels": ["first"] }, { "id": "x", "vector": axis(2), "labels": ["last"] },
    ] });
    assert_eq!(server.post_json("/collections/c/items", &twice).ok().json()["ids"], json!(["other", "x", "x"]));
    assert_eq!(server.get("/collections/c/items/x").ok().json()["labels"], json!(["last"]));
    std::thread::scope(|scope| {
        for client in 0..8 {
            let server = &server;
            scope.spawn(move || {
                for i in 0..50 {
                    let item = json!({ "id": "x", "vector": axis(client * 7 + i), "labels": [format!("{client}-{i}")] });
                    server.post_json("/collections/c/items", &json!({ "items": [item] })).ok();
                }
            });
        }
    });
    assert_eq!(count(&server), 2);
    let stored = server.get("/collections/c/items/x").ok().json();
    assert!(stored["labels"][0].as_str().unwrap().ends_with("-49"));
    let found = search(&server, &json!({ "vector": stored["vector"], "k": 10 }));
    assert_eq!(ids(&found), ["x", "other"]);
    assert_eq!(found[0]["labels"], stored["labels"]);
}

fn a_body_is_taken_whole_or_not_at_all(place: &Place) {
    let server = place.server(&["--max-pictures", "3"]);
    let picture = STANDARD.encode(png(&scene(30, 30, 1)));
    let with = |bad: Value| {
        let items = json!({ "items": [{ "id": "good", "vector": axis(0) }, { "id": "pic", "image": picture }, bad] });
        server.post_json("/collections/c/items", &items)
    };
    let named = |answer: Answer, status: u16, code: &str, words: &str| {
        let problem = answer.problem(status, code);
        assert!(problem["detail"].as_str().unwrap().contains(words), "{words}: {problem}");
        problem
    };
    named(with(json!({ "id": "zero", "vector": vec![0.0; DIM] })), 400, "bad_parameter", "\"zero\"");
    let mut huge = json!(axis(0));
    huge[3] = json!(1e39);
    named(with(json!({ "id": "huge", "vector": huge })), 400, "bad_parameter", "number 3");
    named(with(json!({ "id": "short", "vector": [1.0, 2.0] })), 409, "dimension_mismatch", "\"short\"");
    named(with(json!({ "id": "long", "vector": vec![1.0; DIM + 1] })), 409, "dimension_mismatch", "33 numbers");
    named(with(json!({ "id": "", "vector": axis(0) })), 400, "bad_parameter", "id");
    named(with(json!({ "id": "x".repeat(513), "vector": axis(0) })), 400, "bad_parameter", "512");
    named(with(json!({ "id": "both", "vector": axis(0), "image": picture })), 400, "bad_parameter", "items[2]");
    named(with(json!({ "id": "neither" })), 400, "bad_parameter", "items[2]");
    named(with(json!({ "id": "typo", "vector": axis(0), "label": "x" })), 400, "bad_parameter", "label");
    named(with(json!({ "id": 7, "vector": axis(0) })), 400, "bad_parameter", "items[2].id");
    assert_eq!(with(json!({ "id": "bad", "image": STANDARD.encode(b"no picture") })).problem(422, "unknown_format")["index"], 2);
    assert_eq!(with(json!({ "id": "bad", "image": "?" })).problem(400, "bad_base64")["index"], 2);
    assert_eq!(with(json!({ "id": "url", "image": "https://example.org/x.png" })).problem(400, "url_fetching_off")["index"], 2);
    let many = json!({ "items": vec![json!({ "image": picture }); 4] });
    server.post_json("/collections/c/items", &many).problem(413, "too_many_pictures");
    server.post_json("/collections/c/items", &json!({ "items": [] })).problem(400, "bad_parameter");
    server.post("/collections/c/items", "application/json", b"{\"items\": [{\"vector\": [1e999]}]}").problem(400, "bad_json");
    server.post("/collections/c/items", "text/plain", b"x").problem(415, "unsupported_media_type");
    for query in ["id=a&id=b", "metadata=1", "metadata={}&metadata={}", "labels=[1]", "labels=", "label=x"] {
        let answer = server.post(&format!("/collections/c/items?{query}"), "image/png", &png(&scene(9, 9, 1)));
        answer.problem(400, "bad_parameter");
    }
    assert_eq!(count(&server), 0);
    for vector in [json!(vec![0.0; DIM]), huge] {
        server.post_json("/collections/c/search", &json!({ "vector": vector })).problem(400, "bad_parameter");
    }
    server.post_json("/collections/c/search", &json!({ "vector": [1.0] })).problem(409, "dimension_mismatch");
    server.post_json("/collections/c/search", &json!({})).problem(400, "bad_parameter");
    server.post_json("/collections/c/search", &json!({ "vector": axis(0), "k": 0 })).problem(400, "bad_parameter");
    server.post_json("/collections/c/search", &json!({ "image": "aGk=" })).problem(422, "unknown_format");
}

/// Vectors of two models are never mixed or compared.
fn another_model_is_refused_for_reading_and_writing(place: &Place) {
    let demo = root().join("models/demo");
    let (tiny, demo) = (tiny_model(), format!("demo={}", demo.display()));
    let server = Server::with_models(&[tiny.to_str().unwrap(), &demo], &place.flags());
    assert_eq!(server.put("/collections/c", &json!({ "model": "tiny-model" })).status, 201);
    server.put("/collections/c", &json!({ "model": "demo" })).problem(409, "model_mismatch");
    let picture = png(&scene(30, 30, 1));
    server.post("/collections/c/items?id=x", "image/png", &picture).ok();
    server.post("/collections/c/items?model=demo", "image/png", &picture).problem(409, "model_mismatch");
    server.post_json("/collections/c/items", &json!({ "model": "demo", "items": [{ "vector": axis(0) }] })).problem(409, "model_mismatch");
    server.post("/collections/c/search?model=demo", "image/png", &picture).problem(409, "model_mismatch");
    server.post_json("/collections/c/search", &json!({ "model": "demo", "vector": axis(0) })).problem(409, "model_mismatch");
    server.post("/classify?collection=c&model=demo", "image/png", &picture).problem(409, "model_mismatch");
    // A vector may name its model by itself, or by its fingerprint.
    let tag = server.get("/collections/c").json()["model"]["fingerprint"].clone();
    let named = |model: &Value| json!({ "items": [{ "id": "v", "vector": axis(0) }, { "id": "w", "vector": axis(1), "model": model }] });
    let wrong = server.post_json("/collections/c/items", &named(&"demo".into())).problem(409, "model_mismatch");
    assert_eq!(wrong["index"], 1);
    let other = json!("0123456789abcdef".repeat(2));
    server.post_json("/collections/c/items", &named(&other)).problem(409, "model_mismatch");
    server.post_json("/collections/c/search", &json!({ "model": other, "vector": axis(0) })).problem(409, "model_mismatch");
    server.post_json("/collections/c/items", &named(&"nobody".into())).problem(404, "unknown_model");
    assert_eq!(count(&server), 1);
    for right in [json!("tiny-model"), tag] {
        server.post_json("/collections/c/items", &named(&right)).ok();
        server.post_json("/collections/c/search", &json!({ "model": right, "vector": axis(0) })).ok();
    }
    let made_by = server.get("/collections/c").json()["model"]["fingerprint"].as_str().unwrap().to_owned();
    drop(server);
    // A server that does not have the model at all.
    let server = Server::with_models(&[&demo], &place.flags());
    assert_eq!(server.put("/collections/own", &json!({})).status, 201);
    let log = server.log_with("belongs to no model that is served");
    assert!(log.contains(&format!("collection=c fingerprint=\"{made_by}\"")), "{log}");
    server.post("/collections/c/items", "image/png", &picture).problem(409, "model_mismatch");
    server.post("/collections/c/search", "image/png", &picture).problem(409, "model_mismatch");
    server.post("/classify?collection=c", "image/png", &picture).problem(409, "model_mismatch");
    assert_eq!(count(&server), 3);
    drop(server);
    // Nothing is said of collections that are served.
    let server = Server::with_models(&[&demo, tiny.to_str().unwrap()], &place.flags());
    assert!(!server.log().contains("belongs to no model"), "{}", server.log());
}

fn a_collection_moves_as_one_file(place: &Place) {
    let server = place.server(&["--max-snapshot", "100k"]);
    for i in 0..5 {
        server.post(&format!("/collections/c/items?id={i}&labels=l{i}"), "image/png", &png(&scene(50, 50, i))).ok();
    }
    let query = json!({ "image": STANDARD.encode(png(&scene(50, 50, 2))), "k": 5 });
    let before = search(&server, &query);
    let snapshot = server.post("/collections/c/snapshot", "application/json", b"");
    assert_eq!(snapshot.ok().header("content-type"), "application/octet-stream");
    assert_eq!(snapshot.header("content-length"), snapshot.body.len().to_string());

    let restore = |path: &str, body: &[u8]| server.post(&format!("/collections/{path}"), "application/octet-stream", body);
    let made = restore("copy/restore", &snapshot.body);
    assert_eq!((made.status, &made.json()["count"]), (201, &json!(5)), "{}", made.text());
    let copy = server.post_json("/collections/copy/search", &query).ok().json();
    assert_eq!(copy["results"][0]["neighbors"], json!(before));
    let image = |name: &str| server.get(&format!("/collections/{name}/items/3/image")).ok().body.clone();
    assert_eq!(image("copy"), image("c"));

    restore("copy/restore", &snapshot.body).problem(409, "collection_exists");
    server.delete("/collections/copy/items/1");
    assert_eq!(restore("copy/restore?replace=true", &snapshot.body).json()["count"], 5);
    for bad in [&snapshot.body[..snapshot.body.len() / 2], b"no snapshot", b""] {
        let problem = restore("copy/restore?replace=true", bad).problem(422, "bad_snapshot");
        assert!(!problem["detail"].as_str().unwrap().contains(place.folder().to_str().unwrap()));
    }
    restore("new/restore", &vec![0; 200 << 10]).problem(413, "body_too_large");
    restore("new/restore?replace=1", &snapshot.body).problem(400, "bad_parameter");
    restore("../restore", &snapshot.body);
    assert_eq!(server.get("/collections/copy").ok().json()["count"], 5);
    assert_eq!(listing(&place.folder()), place.files());

    let recall = server.get("/collections/c/recall?k=3&queries=5").ok().json();
    assert_eq!((&recall["recall"], &recall["queries"]), (&json!(1.0), &json!(5)));
    for query in ["k=0", "queries=0", "queries=100000", "q=1"] {
        server.get(&format!("/collections/c/recall?{query}")).problem(400, "bad_parameter");
    }
}

/// C22: names and ids never become paths.
fn hostile_names_change_nothing_on_the_disk(place: &Place) {
    let server = place.server(&[]);
    let folder = place.folder();
    let outside = folder.parent().unwrap();
    let before = (listing(outside), listing(&folder));
    for name in ["..", "%2e%2e", "..%2f..%2fx", "a%2fb", "a%5cb", "%00", &"x".repeat(300), "%20", ".a", "-a"] {
        for (method, path) in [("PUT", ""), ("POST", "/snapshot"), ("POST", "/restore"), ("DELETE", ""), ("GET", "/items/x")] {
            let status = raw_status(&server, method, &format!("/collections/{name}{path}"));
            assert!([400, 404].contains(&status), "{method} {name}{path}: {status}");
        }
    }
    for id in ["..", "%2e%2e", "..%2f..%2fx", "a%2fb", "a%5cb", "%00", "%20"] {
        let answer = server.post(&format!("/collections/c/items?id={id}"), "image/png", &png(&scene(9, 9, 1)));
        let stored = answer.ok().json()["ids"][0].as_str().unwrap().to_owned();
        assert_eq!(raw_status(&server, "GET", &format!("/collections/c/items/{id}/image")), 200, "{id}");
        let listed = server.get("/collections/c/items").ok().json();
        assert_eq!(listed["items"][0]["id"], stored);
        assert_eq!(raw_status(&server, "DELETE", &format!("/collections/c/items/{id}")), 204, "{id}");
    }
    assert_eq!(count(&server), 0);
    assert_eq!((listing(outside), listing(&folder)), before);
}

/// The status of a request whose path no client library tidies up.
fn raw_status(server: &Server, method: &str, path: &str) -> u16 {
    use std::io::{Read, Write};
    let mut socket = std::net::TcpStream::connect(server.address()).unwrap();
    write!(socket, "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    answer.split_whitespace().nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{method} {path}: {answer}"))
}

fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The old collection answers until the new one takes its place.
fn a_collection_goes_over_to_another_model(place: &Place) {
    let demo = root().join("models/demo");
    let (tiny, named) = (tiny_model(), format!("demo={}", demo.display()));
    let flags = [&place.flags()[..], &["--store-images", "original"]].concat();
    let server = Server::with_models(&[tiny.to_str().unwrap(), &named], &flags);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    let pictures: Vec<_> = (0..4).map(|seed| png(&scene(150, 100, seed))).collect();
    for (i, picture) in pictures.iter().enumerate() {
        server.post(&format!("/collections/c/items?id=p{i}&labels=l{i}&metadata={{%22n%22:{i}}}"), "image/png", picture).ok();
    }
    let (old, new) = (place.file("old.dino"), place.file("new.dino"));
    fs_err::write(&old, &server.post("/collections/c/snapshot", "application/json", b"").ok().body).unwrap();
    let reembed = |more: &[&str]| program().arg("reembed").arg("--model").arg(&demo).args(more).output().unwrap();
    let (from, out) = (old.to_str().unwrap(), new.to_str().unwrap());
    let output = reembed(&["--from", from, "--out", out]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(search(&server, &json!({ "image": STANDARD.encode(&pictures[2]), "k": 1 }))[0]["id"], "p2");

    let swapped = server.post("/collections/c/restore?replace=true", "application/octet-stream", &fs_err::read(&new).unwrap());
    assert_eq!(swapped.status, 201, "{}", swapped.text());
    assert_eq!(swapped.json()["dim"], server.get("/v1/models").json()["data"][1]["dim"]);
    server.post("/collections/c/search?model=tiny-model", "image/png", &pictures[2]).problem(409, "model_mismatch");
    let hit = &search(&server, &json!({ "image": STANDARD.encode(&pictures[2]), "k": 1 }))[0];
    assert_eq!((&hit["id"], &hit["labels"], &hit["metadata"]), (&json!("p2"), &json!(["l2"]), &json!({ "n": 2 })));
    assert!(hit["similarity"].as_f64().unwrap() > 0.9999);
    assert_eq!(server.get("/collections/c/items/p2/image").ok().body, pictures[2]);

    // What has no picture of its own ends everything, unless it may be left out.
    server.post_json("/collections/c/items", &json!({ "items": [{ "id": "bare", "vector": vec![1.0; 192] }] })).ok();
    drop(server);
    let in_place = [&place.store()[..], &["--collection", "c"]].concat();
    let refused = reembed(&in_place);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("\"bare\""), "{}", String::from_utf8_lossy(&refused.stderr));
    assert_eq!(count(&Server::with_models(&[&named], &flags)), 5);
    assert!(reembed(&[&in_place[..], &["--drop-missing"]].concat()).status.success());
    assert_eq!(count(&Server::with_models(&[&named], &flags)), 4);
    assert_eq!(reembed(&[]).status.code(), Some(2));
}
