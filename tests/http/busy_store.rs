//! A database that answers, and in which statements wait for others: it is busy, and not lost.

use std::{thread, time::Duration};

use serde_json::json;

use crate::{
    harness::Server,
    postgres::{Cluster, database, shared},
    sharded::{items, name},
    shared::{axis, count, end, metric, wait_for},
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

/// The first of three waits in its transaction for the last, and is lost meanwhile: nothing of the body is stored in the others.
#[test]
fn a_body_whose_first_database_is_lost_before_the_commits_leaves_nothing() {
    let urls = [database(), database(), database()];
    let (first, last) = (name(&urls[0]), name(&urls[2]));
    let server = Server::start(&["--index", &urls.join(",")]);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    server.post_json("/collections/c/items", &items(0..30, 1)).ok();
    let session = shared().session(last, "BEGIN; DO $$ BEGIN PERFORM FROM dino_items_1 FOR UPDATE; END $$");
    let waiting = format!("FROM pg_stat_activity WHERE datname = '{first}' AND state = 'idle in transaction'");
    thread::scope(|scope| {
        let asked = scope.spawn(|| server.post_json("/collections/c/items", &items(0..30, 2)));
        wait_for("its part is done", || shared().sql(first, &format!("SELECT count(*) {waiting}")).trim() == "1");
        shared().sql(first, &format!("SELECT pg_terminate_backend(pid) {waiting}"));
        end(session);
        asked.join().unwrap().problem(503, "store_unreachable");
    });
    let stored = server.get("/collections/c/items").ok().json();
    assert!(stored["items"].as_array().unwrap().iter().all(|item| item["labels"] == json!(["v1"])), "{stored}");
}

/// Work without a limit of time ends where its database has vanished, and not before.
#[test]
fn a_snapshot_ends_where_its_database_vanishes_without_a_word() {
    let cluster = Cluster::start();
    let url = cluster.database();
    let server = Server::start(&["--index", &url, "--request-timeout", "2"]);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    server.post_json("/collections/c/items", &items(0..30, 1)).ok();
    let lock = || cluster.session(name(&url), "BEGIN; LOCK TABLE dino_items_1 IN ACCESS EXCLUSIVE MODE");
    let snapshot = || server.post("/collections/c/snapshot", "application/json", b"");
    let is_waiting = || cluster.sql("postgres", "SELECT count(*) FROM pg_locks WHERE NOT granted").trim() == "1";
    thread::scope(|scope| {
        // It waits for much longer than a request may take.
        let session = lock();
        let asked = scope.spawn(snapshot);
        wait_for("it waits", is_waiting);
        thread::sleep(Duration::from_secs(6));
        assert!(!asked.is_finished());
        end(session);
        asked.join().unwrap().ok();

        let session = lock();
        let asked = scope.spawn(snapshot);
        wait_for("it waits", is_waiting);
        let frozen = cluster.freeze();
        asked.join().unwrap().problem(503, "store_unreachable");
        drop(frozen);
        end(session);
    });
    wait_for("it is back", || snapshot().status == 200);
}
