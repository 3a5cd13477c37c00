//! Databases find, show and delete what a folder does: the same items, filters and queries in both.

use std::collections::BTreeSet;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    harness::Server,
    place::Place,
    shared::{ids, neighbours, vector},
};

/// Texts that a database or its language could misread.
const ODD: [&str; 17] = [
    "",
    "a",
    "A",
    "ä",
    "a\u{308}",
    "\u{308}",
    "z",
    "\0",
    "\u{1}",
    "\u{1}\u{1}",
    "'; DROP TABLE dino_collections; --",
    "%",
    "_",
    "\\",
    "\"",
    "$1",
    "😀",
];

/// Items with metadata of every form.
fn odd_items(rng: &mut StdRng) -> Vec<Value> {
    let mut metadata = vec![
        json!({}),
        json!({ "x": null }),
        json!({ "x": { "y": 1 } }),
        json!({ "x.y": 2 }),
        json!({ "x.y": 1, "x": { "y": 2 } }),
        json!({ "x": { "y.z": 3, "y": { "z": 4 } } }),
        json!({ "x": [1, "a", null, { "y": 1 }, [1]] }),
        json!({ "x": [] }),
        json!({ "'": 1, "\"": 2, "\\": 3, "\0": 4, "": 5 }),
        json!({ "x": true }),
        json!({ "x": [1.0, 2] }),
        json!({ "x": { "a": 1.0 } }),
        json!({ "x": ["b", "a\u{308}"] }),
        json!({ "x": ["ä"] }),
    ];
    metadata.extend(ODD.map(|text| json!({ "x": text })));
    for number in [0.0, -0.5, 1.0, 1.5, 1e300, -1e300, 1e-300, 0.1] {
        metadata.push(json!({ "x": number }));
    }
    metadata.extend([json!({ "x": 1 }), json!({ "x": -7 }), json!({ "x": u64::MAX }), json!({ "x": i64::MIN })]);
    let mut items = Vec::new();
    for (i, metadata) in metadata.iter().enumerate() {
        let labels: Vec<_> = (0..i % 3).map(|j| ODD[1 + (i + j) % (ODD.len() - 1)]).collect();
        let id = if i < ODD.len() && i > 0 { ODD[i].to_owned() } else { format!("item {i:02}") };
        items.push(json!({ "id": id, "vector": vector(rng), "labels": labels, "metadata": metadata }));
    }
    items
}

/// Every test of every field with every kind of value, and some of them joined.
fn all_filters(rng: &mut StdRng) -> Vec<Value> {
    let values = [
        json!("a"),
        json!("\0"),
        json!("'"),
        json!(1),
        json!(1.0),
        json!(1.5),
        json!(null),
        json!(true),
        json!([1]),
        json!({ "y": 1 }),
        json!({ "a": 1 }),
        json!([]),
        json!([1, 2.0]),
        json!(u64::MAX),
        json!(0.1),
        json!("'; DROP TABLE dino_collections; --"),
        json!("ä"),
        json!("a\u{308}"),
        json!(["a\u{308}"]),
    ];
    let fields = [
        "id",
        "label",
        "metadata.x",
        "metadata.x.y",
        "metadata.x.y.z",
        "metadata.'",
        "metadata.\0",
        "metadata.\"",
        "metadata.none",
        "metadata.\\",
    ];
    let mut filters = Vec::new();
    for field in fields {
        for value in &values {
            filters.push(json!({ "field": field, "eq": value }));
            filters.push(json!({ "not": { "field": field, "in": [value, "z", 2] } }));
            if value.is_string() || value.is_number() {
                for order in ["gt", "gte", "lt", "lte"] {
                    filters.push(json!({ "field": field, order: value }));
                    filters.push(json!({ "not": { "field": field, order: value } }));
                }
            }
        }
        filters.push(json!({ "field": field, "in": [] }));
        filters.push(json!({ "field": field, "in": ODD }));
        for wanted in [true, false] {
            filters.push(json!({ "field": field, "exists": wanted }));
        }
    }
    for _ in 0..60 {
        let mut any = || filters[rng.random_range(0..filters.len())].clone();
        let joined = json!({ "or": [any(), { "and": [any(), any()] }, { "not": { "or": [any(), any()] } }] });
        filters.push(joined);
    }
    filters
}

/// The same items, filters and queries in a folder and in a database.
#[test]
fn a_folder_and_a_database_find_the_same() {
    stores_find_the_same(&Place::database_of_its_own());
}

#[test]
fn a_folder_and_several_databases_find_the_same() {
    stores_find_the_same(&Place::databases_of_their_own());
}

fn stores_find_the_same(database: &Place) {
    let folder = Place::folder_of_its_own();
    let (folder, database) = (folder.server(&["--sessions", "1"]), database.server(&["--sessions", "1"]));
    let mut rng = StdRng::seed_from_u64(7);
    let items = odd_items(&mut rng);
    for server in [&folder, &database] {
        server.post_json("/collections/c/items", &json!({ "items": items })).ok();
    }
    let filters = all_filters(&mut rng);
    let query = vector(&mut rng);
    let mut found = BTreeSet::new();
    for filter in &filters {
        let body = json!({ "vector": query, "k": 100, "filter": filter });
        let (ours, theirs) = (neighbours(&folder, &body), neighbours(&database, &body));
        assert_eq!(ids(&ours), ids(&theirs), "{filter}");
        for (our, their) in ours.iter().zip(&theirs) {
            assert!((our["similarity"].as_f64().unwrap() - their["similarity"].as_f64().unwrap()).abs() < 1e-6);
            assert_eq!((&our["labels"], &our["metadata"]), (&their["labels"], &their["metadata"]));
        }
        found.insert(ids(&ours));
    }
    assert!(found.len() > 60, "{} kinds of answers in {} filters say little", found.len(), filters.len());
    // What has no such field, or null there, is not equal; texts are compared composed, ids byte by byte.
    for (filter, passes) in [
        (json!({ "not": { "field": "metadata.x", "eq": 1 } }), json!([null, "", "a", null])),
        (json!({ "field": "metadata.x", "eq": "ä" }), json!(["ä", "a\u{308}", ["ä"], ["b", "a\u{308}"]])),
        (json!({ "field": "metadata.x", "eq": "a\u{308}" }), json!(["ä", "a\u{308}", ["ä"], ["b", "a\u{308}"]])),
    ] {
        let found = neighbours(&database, &json!({ "vector": query, "k": 100, "filter": filter }));
        for x in passes.as_array().unwrap() {
            assert!(found.iter().any(|hit| hit["metadata"]["x"] == *x), "{x} of {filter}");
        }
        assert!(filter["eq"].is_null() || found.len() == 4, "{filter}");
    }
    for label in ["ä", "a\u{308}"] {
        let found = neighbours(&database, &json!({ "vector": query, "k": 100, "filter": { "field": "label", "eq": label } }));
        assert!(!found.is_empty() && found.iter().all(|hit| hit["labels"].as_array().unwrap().contains(&json!("ä"))), "{found:?}");
    }
    // Pages and items too, byte by byte.
    let page = |server: &Server| server.get("/collections/c/items?limit=1000").ok().json();
    assert_eq!(page(&folder), page(&database));
    // Deletion by filter takes the same ones.
    for filter in filters.iter().rev().take(20) {
        let delete = |server: &Server| server.post_json("/collections/c/items/delete", &json!({ "filter": filter })).ok().json();
        assert_eq!(delete(&folder), delete(&database), "{filter}");
        assert_eq!(page(&folder), page(&database));
    }
}
