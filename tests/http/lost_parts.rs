//! A first database that was restored from a backup that is older than a collection.

use serde_json::json;

use crate::{
    harness::Server,
    place::Place,
    postgres::{database, shared},
    sharded::{items, name},
    shared::{count, wait_for},
};

/// What the log says of a part that is in no backup of the first database.
const UNKNOWN: &str = "does not know it, as after a restore";

/// As the first database is after that.
fn forget(urls: &[String], collection: &str) {
    shared().sql(name(&urls[0]), &format!("DELETE FROM dino_collections WHERE name = '{collection}'"));
}

fn parts(url: &str) -> usize {
    shared().sql(name(url), "SELECT count(*) FROM dino_collections").trim().parse().unwrap()
}

#[test]
fn a_collection_that_the_first_database_does_not_know_is_named_and_not_served() {
    let urls = [database(), database(), database()];
    let index = urls.join(",");
    let server = Server::start(&["--index", &index]);
    for collection in ["c", "other"] {
        assert_eq!(server.put(&format!("/collections/{collection}"), &json!({})).status, 201);
        server.post_json(&format!("/collections/{collection}/items"), &items(0..60, 1)).ok();
    }
    let snapshot = server.post("/collections/c/snapshot", "application/json", b"").ok().body.clone();
    drop(server);
    forget(&urls, "c");

    let server = Server::start(&["--index", &index]);
    let said = || server.log().lines().filter(|line| line.contains(UNKNOWN)).map(str::to_owned).collect::<Vec<_>>();
    wait_for("said of both parts", || said().len() == 2);
    let said = said();
    assert!(said.iter().all(|line| line.contains("the collection c (") && line.contains("restore")), "{said:?}");
    for url in &urls[1..] {
        assert!(said.iter().any(|line| line.contains(&format!("/{} holds a part", name(url)))), "{said:?}");
    }
    // It is neither missing nor a new one.
    server.get("/collections/c").problem(503, "store_failed");
    server.put("/collections/c", &json!({})).problem(503, "store_failed");
    let restore = |query: &str| server.post(&format!("/collections/c/restore{query}"), "application/octet-stream", &snapshot);
    restore("").problem(503, "store_failed");
    assert_eq!((parts(&urls[1]), parts(&urls[2])), (2, 2), "nothing of it was deleted");
    assert_eq!(server.get("/collections/other").ok().json()["count"], 60);
    server.get("/collections/never").problem(404, "unknown_collection");
    assert_eq!(server.get("/collections").ok().json()["collections"].as_array().unwrap().len(), 1);

    // Giving up what is left: by a snapshot in its place, or by deleting it.
    let restored = restore("?replace=true");
    assert_eq!((restored.status, count(&server)), (201, 60), "{}", restored.text());
    wait_for("the old parts are gone", || parts(&urls[1]) == 2 && parts(&urls[2]) == 2);
    forget(&urls, "c");
    server.get("/collections/c").problem(503, "store_failed");
    assert_eq!(server.delete("/collections/c").status, 204);
    wait_for("its parts are gone", || parts(&urls[1]) == 1 && parts(&urls[2]) == 1);
    server.get("/collections/c").problem(404, "unknown_collection");
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
}

/// A backup may be made in the middle of a restore: its first database holds a note that parts are being made, and no collection of them.
#[test]
fn parts_that_were_being_made_when_the_first_database_was_saved_stay() {
    let urls = [database(), database(), database()];
    let index = urls.join(",");
    let server = Server::start(&["--index", &index]);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    server.post_json("/collections/c/items", &items(0..60, 1)).ok();
    let marked = |url: &String| shared().sql(name(url), "SELECT count(*) FROM dino_collections WHERE is_made").trim() == "1";
    wait_for("the parts are marked", || urls[1..].iter().all(marked));
    drop(server);
    let parts_of_c = shared().sql(name(&urls[0]), "SELECT parts FROM dino_collections WHERE name = 'c'").trim().to_owned();
    forget(&urls, "c");
    shared().sql(name(&urls[0]), &format!("INSERT INTO dino_leftovers VALUES ('{parts_of_c}', false), ('never-made', false)"));

    let server = Server::start(&["--index", &index]);
    let notes = || shared().sql(name(&urls[0]), "SELECT count(*) FROM dino_leftovers").trim() == "0";
    wait_for("what was being made is cleared", notes);
    assert_eq!((parts(&urls[1]), parts(&urls[2])), (1, 1), "what was made stays");
    server.get("/collections/c").problem(503, "store_failed");
    // At the start of each of the two, and by the request of one.
    wait_for("it is said", || server.log().lines().filter(|line| line.contains(UNKNOWN)).count() == 3);
    assert_eq!(server.delete("/collections/c").status, 204);
    wait_for("its parts are gone", || parts(&urls[1]) == 0 && parts(&urls[2]) == 0);
}

/// The first database may know an older collection of that name: the others are not the ones to restore then.
#[test]
fn a_first_database_that_is_behind_is_the_one_that_is_named() {
    let urls = [database(), database(), database()];
    let server = Server::start(&["--index", &urls.join(",")]);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    shared().sql(name(&urls[0]), "UPDATE dino_collections SET parts = 'older' WHERE name = 'c'");
    server.get("/collections/c").problem(503, "store_failed");
    assert_eq!(server.get("/collections").ok().json()["collections"], json!([]));
    let log = server.log_with("left out of the list of collections: ");
    assert!(log.contains(UNKNOWN) && !log.contains("holds no part"), "{log}");
}

#[test]
fn the_list_leaves_out_what_a_database_lost_and_says_so() {
    let urls = [database(), database(), database()];
    let server = Server::start(&["--index", &urls.join(",")]);
    for collection in ["a", "b", "c", "d"] {
        assert_eq!(server.put(&format!("/collections/{collection}"), &json!({})).status, 201);
        server.post_json(&format!("/collections/{collection}/items"), &items(0..30, 1)).ok();
    }
    shared().sql(name(&urls[2]), "DELETE FROM dino_collections WHERE parts IN ('a', 'c')");
    let listed = server.get("/collections").ok().json()["collections"].clone();
    let listed: Vec<_> = listed.as_array().unwrap().iter().map(|one| (one["name"].as_str().unwrap(), &one["count"])).collect();
    assert_eq!(listed, [("b", &json!(30)), ("d", &json!(30))]);
    for lost in ["a", "c"] {
        server.log_with(&format!("/{} holds no part of the collection {lost}: restore", name(&urls[2])));
    }
}

#[test]
fn builds_of_indexes_name_the_collection() {
    let place = Place::databases_of_their_own();
    let server = place.server(&[]);
    server.post_json("/collections/c/items", &items(0..300, 1)).ok();
    drop(server);
    let server = place.server(&["--exact-below", "20"]);
    let built = || server.log().lines().filter(|line| line.contains("index built")).map(str::to_owned).collect::<Vec<_>>();
    wait_for("built in each database", || built().len() == 3);
    assert!(built().iter().all(|line| line.contains(" collection=c ")), "{:?}", built());
}
