//! What a search and a page read of several databases: about what they answer with, whatever each database would give.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    harness::Server,
    place::Place,
    postgres::{database, shared},
    sharded::name,
    shared::{axis, ids, neighbours},
};

/// What the log says of an item that was read and could not be.
const LEFT_OUT: &str = "is damaged and left out";

/// A vector that is the further from the first axis, the larger the number.
fn near(number: usize, step: f64) -> Vec<f64> {
    let angle = number as f64 * step;
    let mut vector = vec![0.0; 32];
    (vector[0], vector[1]) = (angle.cos(), angle.sin());
    vector
}

fn upsert(server: &Server, count: usize, step: f64) {
    let items: Vec<_> = (0..count).map(|i| json!({ "id": format!("i{i:03}"), "vector": near(i, step) })).collect();
    server.post_json("/collections/c/items", &json!({ "items": items })).ok();
}

/// Sets the metadata of all items from an id on, in every database.
fn set_metadata(urls: &[String], metadata: &str, from: &str) {
    for url in urls {
        shared().sql(name(url), &format!("UPDATE dino_items_1 SET metadata = {metadata} WHERE id >= '{from}'"));
    }
}

/// Items that were read are known by the log: those that nobody should read cannot be.
#[test]
fn a_search_and_a_page_read_their_own_items_alone() {
    let urls = [database(), database(), database()];
    let server = Server::start(&["--index", &urls.join(",")]);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    upsert(&server, 90, 0.01);
    set_metadata(&urls, "'[1]'", "i011");
    let search = |k: usize| ids(&neighbours(&server, &json!({ "vector": near(0, 0.0), "k": k, "exact": true })));
    let page = |limit: usize| server.get(&format!("/collections/c/items?limit={limit}")).ok().json();
    let first: Vec<_> = (0..11).map(|i| format!("i{i:03}")).collect();
    assert_eq!(search(11), first);
    let listed = page(10);
    assert_eq!((ids(listed["items"].as_array().unwrap()), &listed["next"]), (first[..10].to_vec(), &json!("i009")));
    // As with one database, an item that cannot be read takes a place and is left out.
    assert_eq!(search(12), first);
    let log = server.log_with(LEFT_OUT);
    let read: Vec<&str> = log.lines().filter(|line| line.contains(LEFT_OUT)).collect();
    assert!(read.iter().all(|line| line.contains("\"i011\"")), "{read:?}");
    let listed = page(12);
    assert_eq!((ids(listed["items"].as_array().unwrap()), &listed["next"]), (first, &json!("i012")));
}

#[test]
fn a_page_of_large_items_ends_early_and_reads_little_more() {
    let urls = [database(), database(), database()];
    let server = Server::start(&["--index", &urls.join(",")]);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    upsert(&server, 600, 0.001);
    set_metadata(&urls, "jsonb_build_object('x', repeat('x', 60000))", "");
    set_metadata(&urls, "'[1]'", "i450");
    let page = |after: &str| server.get(&format!("/collections/c/items?limit=1000{after}")).ok().json();
    let mut listed = page("");
    // The request that names it comes later in the log.
    server.get("/collections/c/items/i599").problem(500, "item_damaged");
    let log = server.log_with("i599");
    assert!(!log.contains(LEFT_OUT), "read far beyond the page");
    let mut all = Vec::new();
    loop {
        let items = ids(listed["items"].as_array().unwrap());
        assert!(items.len() < 300, "{}", items.len());
        all.extend(items);
        let Some(next) = listed["next"].as_str() else { break };
        listed = page(&format!("&cursor={next}"));
    }
    assert_eq!(all, (0..450).map(|i| format!("i{i:03}")).collect::<Vec<_>>());
}

/// Vectors so near that a similarity is rounded to 1, and beyond: where `k` cuts them is up to what the database knows of them.
#[test]
fn near_copies_come_in_the_order_of_one_database() {
    let [one, three] = [Place::database_of_its_own(), Place::databases_of_their_own()];
    let servers = [one.server(&["--sessions", "1"]), three.server(&["--sessions", "1"])];
    for server in &servers {
        upsert(server, 60, 2e-5);
    }
    for k in 1..60 {
        let [one, three] = [0, 1].map(|i| neighbours(&servers[i], &json!({ "vector": near(3, 2e-5), "k": k, "exact": true })));
        assert_eq!(one, three, "{k}");
    }
}

/// The nearest item comes and goes, and changes its label: answers are as long as they have to be, and never against their filter.
#[test]
fn a_search_beside_writers_is_whole() {
    let place = Place::databases_of_their_own();
    let server = place.server(&[]);
    upsert(&server, 60, 0.01);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // So many at most, also where the searches below have failed.
            for round in 0..500 {
                let label = ["a", "b"][round % 2];
                let item = json!({ "id": "nearest", "vector": axis(0), "labels": [label] });
                server.post_json("/collections/c/items", &json!({ "items": [item] })).ok();
                thread::sleep(Duration::from_millis(10));
                if round % 3 == 0 {
                    assert_eq!(server.delete("/collections/c/items/nearest").status, 204);
                    thread::sleep(Duration::from_millis(10));
                }
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        for _ in 0..150 {
            assert_eq!(neighbours(&server, &json!({ "vector": axis(0), "k": 5 })).len(), 5);
            let labelled = json!({ "vector": axis(0), "k": 5, "filter": { "field": "label", "eq": "a" } });
            let is_a = |hit: &Value| hit["labels"] == json!(["a"]);
            assert!(neighbours(&server, &labelled).iter().all(is_a));
        }
        is_over.store(true, Ordering::Relaxed);
    });
}
