//! `GET /collections/{c}/map`.

use serde_json::{Value, json};

use crate::{
    harness::Server,
    pictures::{png, scene},
    place::{Place, on_every_store},
};

on_every_store!(
    like_lies_beside_like_and_the_map_follows_the_collection,
    a_large_collection_gives_a_sample_with_its_newest,
    small_and_even_collections_have_an_answer_and_bad_requests_a_reason,
);

/// A server with `groups` of items around as many directions.
fn with_groups(place: &Place, groups: usize, each: usize) -> Server {
    let server = place.server(&[]);
    let dim = server.get("/collections/c").json()["dim"].as_u64().unwrap() as usize;
    let items: Vec<Value> = (0..groups * each)
        .map(|at| {
            let noise = |axis: usize| ((at * 31 + axis * 17) as f32).sin() * 0.1;
            let vector: Vec<f32> = (0..dim).map(|axis| noise(axis) + f32::from(u8::from(axis == at % groups))).collect();
            json!({"id": format!("item {at}"), "labels": [format!("group {}", at % groups)], "vector": vector})
        })
        .collect();
    server.post_json("/collections/c/items", &json!({ "items": items })).ok();
    server
}

fn points(map: &Value) -> Vec<(f64, f64, &str)> {
    let point = |point: &'_ Value| (point["x"].as_f64().unwrap(), point["y"].as_f64().unwrap());
    let points = map["points"].as_array().unwrap().iter();
    points.map(|one| (point(one).0, point(one).1, one["labels"][0].as_str().unwrap())).collect()
}

fn like_lies_beside_like_and_the_map_follows_the_collection(place: &Place) {
    let server = with_groups(place, 3, 20);
    let map = server.get("/collections/c/map").ok().json();
    assert_eq!((&map["collection"], &map["count"]), (&json!("c"), &json!(60)));
    let all = points(&map);
    assert_eq!(all.len(), 60);
    assert!(all.iter().all(|(x, y, _)| (0.0..=1.0).contains(x) && (0.0..=1.0).contains(y)));
    let distance = |a: &(f64, f64, &str), b: &(f64, f64, &str)| (a.0 - b.0).hypot(a.1 - b.1);
    let alike = all.iter().enumerate().filter(|(at, point)| {
        let others = all.iter().enumerate().filter(|(other, _)| other != at).map(|(_, other)| other);
        others.min_by(|a, b| distance(point, a).total_cmp(&distance(point, b))).unwrap().2 == point.2
    });
    assert!(alike.count() >= 58);

    // The same until the collection changes.
    assert_eq!(server.get("/collections/c/map").json(), map);
    let picture = png(&scene(40, 40, 1));
    server.post("/collections/c/items?id=new&labels=new", "image/png", &picture).ok();
    let longer = server.get("/collections/c/map").json();
    let newest = longer["points"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&longer["count"], &newest["id"], &newest["has_image"]), (&json!(61), &json!("new"), &json!(true)));
    assert_eq!(longer["points"][0]["has_image"], false);
    assert_eq!(server.delete("/collections/c/items/new").status, 204);
    assert_eq!(server.get("/collections/c/map").json(), map);
    // Neighbours say it too.
    server.post("/collections/c/items?id=new&labels=new", "image/png", &picture).ok();
    for path in ["/classify?collection=c&k=2", "/collections/c/search?k=2"] {
        let found = server.post(path, "image/png", &picture).ok().json()["results"][0]["neighbors"].clone();
        assert_eq!((&found[0]["id"], &found[0]["has_image"], &found[1]["has_image"]), (&json!("new"), &json!(true), &json!(false)));
    }
}

fn a_large_collection_gives_a_sample_with_its_newest(place: &Place) {
    let server = with_groups(place, 3, 20);
    let ids = |path: &str| -> Vec<String> {
        let map = server.get(path).ok().json();
        map["points"].as_array().unwrap().iter().map(|point| point["id"].as_str().unwrap().to_owned()).collect()
    };
    let some = ids("/collections/c/map?points=20");
    assert_eq!(some.len(), 20);
    server.post("/collections/c/items?id=new&labels=new", "image/png", &png(&scene(40, 40, 1))).ok();
    let later = ids("/collections/c/map?points=20");
    assert_eq!((later.len(), later[19].as_str()), (20, "new"));
    assert!(some.iter().filter(|id| later.contains(id)).count() >= 16, "{some:?} {later:?}");
    // Replaced ones are new again.
    server.post(&format!("/collections/c/items?id={}&labels=new", some[0].replace(' ', "%20")), "image/png", &png(&scene(40, 40, 2))).ok();
    assert_eq!(ids("/collections/c/map?points=20").last(), some.first());
}

fn small_and_even_collections_have_an_answer_and_bad_requests_a_reason(place: &Place) {
    let server = with_groups(place, 2, 2);
    let few = server.get("/collections/c/map").ok().json();
    assert_eq!((&few["count"], &few["points"]), (&json!(4), &json!([])));
    let vector = vec![1.0; server.get("/collections/c").json()["dim"].as_u64().unwrap() as usize];
    server.put("/collections/even", &json!({}));
    let items: Vec<Value> = (0..6).map(|at| json!({"id": at.to_string(), "labels": ["one"], "vector": vector})).collect();
    server.post_json("/collections/even/items", &json!({ "items": items })).ok();
    let even = server.get("/collections/even/map").ok().json();
    assert!(points(&even).iter().all(|point| (point.0, point.1) == (0.5, 0.5)) && points(&even).len() == 6);

    for query in ["points=4", "points=3001", "points=x", "perplexity=3"] {
        server.get(&format!("/collections/c/map?{query}")).problem(400, "bad_parameter");
    }
    server.get("/collections/none/map").problem(404, "unknown_collection");
    server.get("/collections/a%2fb/map").problem(400, "bad_parameter");
}
