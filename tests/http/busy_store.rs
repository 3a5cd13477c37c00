//! A database that answers, and in which statements wait for others: it is busy, and not lost.

use std::thread;

use serde_json::json;

use crate::{
    harness::Server,
    postgres::{database, shared},
    sharded::{items, name},
    shared::{axis, count, end, metric},
};

#[test]
fn a_database_where_statements_wait_for_a_lock_is_busy() {
    waits_for_a_lock(&[database()]);
}

#[test]
fn one_of_several_databases_where_statements_wait_for_a_lock_is_named() {
    waits_for_a_lock(&[database(), database(), database()]);
}

/// It happens in the last of them.
fn waits_for_a_lock(urls: &[String]) {
    let last = name(urls.last().unwrap());
    let server = Server::start(&["--index", &urls.join(","), "--request-timeout", "6"]);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    server.post_json("/collections/c/items", &items(0..30, 1)).ok();
    // The second lock lets collections be looked up, and none be made.
    let lock = "BEGIN; LOCK TABLE dino_items_1 IN ACCESS EXCLUSIVE MODE; LOCK TABLE dino_collections IN SHARE MODE";
    let session = shared().session(last, lock);
    let search = json!({ "vector": axis(1), "k": 3 });
    thread::scope(|scope| {
        let asked = [
            scope.spawn(|| server.get("/collections/c/items")),
            scope.spawn(|| server.post_json("/collections/c/search", &search)),
            scope.spawn(|| server.post_json("/collections/c/items", &items(0..30, 2))),
            scope.spawn(|| server.put("/collections/d", &json!({}))),
        ];
        for answer in asked {
            let answer = answer.join().unwrap();
            let detail = answer.problem(503, "store_busy")["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains(&format!("/{last} ")) && detail.contains("a lock"), "{detail}");
            assert!(answer.header("retry-after").parse::<u32>().unwrap() > 0);
        }
    });
    assert_eq!(server.get("/readyz").status, 200);
    assert_eq!(server.get("/healthz").ok().json()["store"]["reachable"], true);
    assert_eq!((metric(&server, "dino_store_reachable"), metric(&server, "dino_store_failures_total")), (1, 0));
    end(session);
    // Nothing was done of what was refused.
    let stored = server.get("/collections/c/items").ok().json();
    assert!(stored["items"].as_array().unwrap().iter().all(|item| item["labels"] == json!(["v1"])), "{stored}");
    assert_eq!((count(&server), server.put("/collections/d", &json!({})).status), (30, 201));
}
