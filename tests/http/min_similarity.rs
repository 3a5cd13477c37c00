//! The least similarity at which `/classify` gives a label: asked for, or measured of each collection.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    pictures::{png, scene},
    place::{Place, on_every_store},
};

/// Dimensions of the tiny model.
const DIM: usize = 32;

on_every_store!(what_a_collection_does_not_know_gets_no_label, the_least_similarity_is_measured_anew_as_a_collection_changes);

/// The unit vector at a cosine to the unit vector `near`, in the direction of an axis.
fn at_cosine(near: &[f32], cosine: f32, number: usize) -> Vec<f32> {
    let along = near[number];
    let other: Vec<f32> = near.iter().enumerate().map(|(at, x)| f32::from(at == number) - along * x).collect();
    let length = other.iter().map(|x| x * x).sum::<f32>().sqrt();
    near.iter().zip(other).map(|(x, y)| cosine * x + (1.0 - cosine * cosine).sqrt() * y / length).collect()
}

/// Waits until a measured value is right: a database is asked what it holds at intervals, so a change may count a little later.
fn becomes(least: impl Fn() -> f32, is_right: &dyn Fn(f32) -> bool, what: &str) -> f32 {
    let began = Instant::now();
    loop {
        let least = least();
        if is_right(least) {
            return least;
        }
        assert!(began.elapsed() < Duration::from_mins(1), "{what}: still {least}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The vote alone says how far neighbours agree: a cup would be a dahlia in a collection of one dahlia.
fn what_a_collection_does_not_know_gets_no_label(place: &Place) {
    let server = place.server(&[]);
    let picture = png(&scene(80, 80, 1));
    let near = server.embed(&picture);
    let classify = |query: &str| {
        let answer = server.post(&format!("/classify?collection=c{query}"), "image/png", &picture).ok().json();
        (answer["results"][0].clone(), answer["min_similarity"].as_f64().unwrap())
    };
    let add = |items: Value| server.post_json("/collections/c/items", &json!({ "items": items })).ok().status;

    let (empty, least) = classify("");
    assert_eq!((&empty["label"], &empty["similarity"], least), (&Value::Null, &Value::Null, 0.5));
    add(json!([{ "id": "one", "vector": at_cosine(&near, 0.3, 0), "labels": ["dahlia"] }]));
    let (unlike, least) = classify("");
    assert!((unlike["similarity"].as_f64().unwrap() - 0.3).abs() < 1e-3, "{unlike}");
    assert_eq!((&unlike["label"], least), (&Value::Null, 0.5));
    // Classes and neighbours are listed all the same.
    assert_eq!(
        (&unlike["score"], &unlike["classes"][0]["label"], &unlike["neighbors"][0]["id"]),
        (&json!(1.0), &json!("dahlia"), &json!("one"))
    );
    for (least, label) in [("0", json!("dahlia")), ("0.29", json!("dahlia")), ("0.31", Value::Null)] {
        let (result, used) = classify(&format!("&min_similarity={least}"));
        assert_eq!((&result["label"], used as f32), (&label, least.parse().unwrap()));
    }
    for wrong in ["-0.1", "1.1", "NaN", "x"] {
        server.post(&format!("/classify?collection=c&min_similarity={wrong}"), "image/png", &picture).problem(400, "bad_parameter");
    }
    server.post("/classify?head=x&min_similarity=0.5", "image/png", &picture).problem(400, "bad_parameter");

    // A taught picture answers for its own copy at once.
    server.post("/collections/c/items?id=taught&labels=cup", "image/png", &picture).ok();
    let (taught, _) = classify("&k=1");
    assert_eq!(taught["label"], "cup");
    assert!(taught["similarity"].as_f64().unwrap() > 0.999, "{taught}");
    // The two are 0.3 alike.
    becomes(|| classify("").1 as f32, &|least| (least - 0.3).abs() < 1e-3, "two items");

    // 0 asks all, also where everything is on the other side.
    server.delete("/collections/c/items/taught");
    add(json!([{ "id": "one", "vector": at_cosine(&near, -0.8, 0), "labels": ["opposite"] }]));
    assert_eq!((&classify("&min_similarity=0").0["label"], &classify("").0["label"]), (&json!("opposite"), &Value::Null));
}

fn the_least_similarity_is_measured_anew_as_a_collection_changes(place: &Place) {
    let server = place.server(&[]);
    let picture = png(&scene(80, 80, 1));
    let near = server.embed(&picture);
    let least = || server.post("/classify?collection=c", "image/png", &picture).ok().json()["min_similarity"].as_f64().unwrap() as f32;
    let add = |ids: std::ops::Range<usize>, cosine: f32| {
        // Two items of different axes are as similar as the square of their cosine to what both are near.
        let item = |id: usize| json!({ "id": format!("{id:04}"), "vector": at_cosine(&near, cosine, id % DIM), "labels": ["l"] });
        server.post_json("/collections/c/items", &json!({ "items": ids.map(item).collect::<Vec<_>>() })).ok();
    };
    // Of few items, each change counts.
    let mut before = least();
    for ids in [0..2, 2..3, 3..4] {
        add(ids.clone(), 0.5 + 0.1 * ids.start as f32);
        before = becomes(least, &|least| (least - before).abs() > 1e-4, &format!("{ids:?}"));
    }
    // Near-copies refuse what is less than 0.9 alike, and no more.
    add(0..400, 0.999);
    becomes(least, &|least| (least - 0.9).abs() < 1e-6, "near-copies");
    // A tenth of others is more than one in twenty, and what is less than a tenth is not looked at.
    let others = |from: usize, to: usize| {
        let item = |id: usize| json!({ "id": format!("other{id}"), "vector": scattered(id) });
        server.post_json("/collections/c/items", &json!({ "items": (from..to).map(item).collect::<Vec<_>>() })).ok();
    };
    others(0, 30);
    assert!((least() - 0.9).abs() < 1e-6, "{}", least());
    others(30, 130);
    let after = becomes(least, &|least| least < 0.89, "others");
    assert!((least() - after).abs() < 1e-6, "the same content has one value");
}

/// Unit vectors in many directions, the same for the same number.
fn scattered(number: usize) -> Vec<f32> {
    (0..DIM).map(|i| ((number * DIM + i) as f32 * 12.9898).sin() * 43758.547 % 1.0).collect()
}
