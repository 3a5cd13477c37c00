//! Several databases that hold collections together: what is refused, what happens while one is gone, and what is left over.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use serde_json::{Value, json};

use crate::{
    harness::{Server, program, tiny_model},
    pictures::{png, scene},
    place::Place,
    postgres::{Cluster, database, shared},
    shared::{axis, count, ids, metric, neighbours, refusal, run, wait_for},
};

/// The name of a database of the cluster that all tests share.
pub(crate) fn name(url: &str) -> &str {
    url.split(['/', '?']).nth(3).unwrap()
}

pub(crate) fn items(numbers: std::ops::Range<usize>, version: usize) -> Value {
    let item = |i: usize| json!({ "id": format!("i{i}"), "vector": axis(i), "labels": [format!("v{version}")] });
    json!({ "items": numbers.map(item).collect::<Vec<_>>() })
}

/// Number of rows in each database, whatever belongs to a collection.
fn rows(urls: &[String]) -> Vec<usize> {
    let rows = |url: &String| {
        let tables = shared().sql(name(url), "SELECT 'dino_items_' || number FROM dino_collections");
        tables.lines().map(|table| shared().sql(name(url), &format!("SELECT count(*) FROM {table}")).trim().parse::<usize>().unwrap()).sum()
    };
    urls.iter().map(rows).collect()
}

#[test]
fn items_are_spread_and_found_as_one_collection() {
    let urls = [database(), database(), database()];
    let server = Server::start(&["--index", &urls.join(", ")]);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    assert_eq!(server.put("/collections/c", &json!({})).status, 200);
    server.post_json("/collections/c/items", &items(0..300, 1)).ok();
    let spread = rows(&urls);
    assert!(spread.iter().sum::<usize>() == 300 && spread.iter().all(|&rows| rows > 60), "{spread:?}");
    // Pages of every length list all, once and in order.
    for limit in [1, 7, 100, 299, 300, 1000] {
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let page = server.get(&format!("/collections/c/items?limit={limit}{after}")).ok().json();
            all.extend(ids(page["items"].as_array().unwrap()));
            let Some(next) = page["next"].as_str() else { break };
            after = format!("&cursor={next}");
        }
        assert!(all.len() == 300 && all.is_sorted(), "{limit}: {all:?}");
    }
    // Equal similarities come by id, from whichever database.
    let hits = neighbours(&server, &json!({ "vector": axis(5), "k": 300 }));
    assert_eq!(hits.len(), 300);
    let key = |hit: &Value| (hit["similarity"].as_f64().unwrap(), hit["id"].as_str().unwrap().to_owned());
    assert!(hits.iter().map(key).collect::<Vec<_>>().is_sorted_by(|a, b| a.0 > b.0 || a.0 == b.0 && a.1 < b.1));
    // A body over all of them replaces, and deletes, as one.
    server.post_json("/collections/c/items", &items(100..200, 2)).ok();
    let second = json!({ "filter": { "field": "label", "eq": "v2" } });
    assert_eq!(server.post_json("/collections/c/items/delete", &second).ok().json()["deleted"], 100);
    assert_eq!((count(&server), server.delete("/collections/c/items/i5").status), (200, 204));
    server.get("/collections/c/items/i5").problem(404, "unknown_item");
    let info = server.get("/collections").ok().json()["collections"].clone();
    assert_eq!((info.as_array().unwrap().len(), &info[0]["count"], &info[0]["name"]), (1, &json!(199), &json!("c")));
    // An item that cannot be: nothing of its body is stored, in no database.
    let mut body = items(300..340, 1);
    body["items"][39]["vector"] = json!([1.0]);
    server.post_json("/collections/c/items", &body).problem(409, "dimension_mismatch");
    assert_eq!(count(&server), 199);
    // Deleting leaves nothing in any of them.
    assert_eq!(server.delete("/collections/c").status, 204);
    server.get("/collections/c").problem(404, "unknown_collection");
    let tables = |url: &String| shared().sql(name(url), "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname ~ '^dino_items_'");
    wait_for("deleted everywhere", || urls.iter().all(|url| tables(url).trim() == "0"));
}

#[test]
fn a_lost_database_is_named_until_it_is_back() {
    let (one, mut two) = (Cluster::start(), Cluster::start());
    let url = [&one, &two].map(|cluster| cluster.database().replace("user=postgres", "user=postgres&password=sEcret")).join(",");
    let lost_name = url.rsplit("host=").next().unwrap().split('&').next().unwrap().to_owned() + "/test0";
    let server = Server::start(&["--index", &url]);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    server.post_json("/collections/c/items", &items(0..50, 1)).ok();
    let picture = png(&scene(40, 40, 1));

    // It is stopped while clients write: what was answered with 200 has to be there afterwards.
    let acknowledged = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1.. {
                let answer = server.post_json("/collections/c/items", &items(50..round * 10 + 50, round));
                if answer.status != 200 {
                    answer.problem(503, "store_unreachable");
                    break;
                }
                acknowledged.store(round, Ordering::Relaxed);
            }
        });
        wait_for("some are stored", || acknowledged.load(Ordering::Relaxed) > 2);
        two.stop();
    });
    let known = acknowledged.load(Ordering::Relaxed);

    // All of the collection is asked, so all of it is away; the answer says which database is.
    let lost = server.post_json("/collections/c/items", &items(0..50, 9));
    lost.problem(503, "store_unreachable");
    assert!(lost.text().contains(&lost_name) && !lost.text().contains("sEcret"), "{} in {}", lost_name, lost.text());
    assert!(lost.header("retry-after").parse::<u32>().unwrap() > 0);
    for path in ["/collections", "/collections/c", "/collections/c/items", "/collections/c/items/i1", "/collections/c/recall"] {
        server.get(path).problem(503, "store_unreachable");
    }
    server.put("/collections/d", &json!({})).problem(503, "store_unreachable");
    server.delete("/collections/c").problem(503, "store_unreachable");
    server.post_json("/collections/c/search", &json!({ "vector": axis(1) })).problem(503, "store_unreachable");
    server.post("/collections/c/snapshot", "application/json", b"").problem(503, "store_unreachable");
    wait_for("not ready", || server.get("/readyz").status == 503);
    let unready = server.get("/readyz");
    unready.problem(503, "store_unreachable");
    assert!(unready.text().contains(&lost_name), "{}", unready.text());
    let store = server.get("/healthz").ok().json()["store"].clone();
    let reachable: Vec<_> = store["databases"].as_array().unwrap().iter().map(|one| one["reachable"].as_bool().unwrap()).collect();
    assert_eq!((&store["reachable"], reachable), (&json!(false), vec![true, false]));
    assert_eq!(metric(&server, "dino_store_reachable"), 0);
    let metrics = server.get("/metrics").ok().text();
    let gone = metrics.lines().find(|line| line.starts_with("dino_store_database_reachable") && line.contains(&lost_name)).unwrap();
    assert!(gone.ends_with(" 0") && !metrics.contains("sEcret"), "{gone}");
    server.embed(&picture);
    let late = Server::without_waiting(&[tiny_model().to_str().unwrap()], &["--index", &url, "--exact-below", "20"]);
    late.log_with("cannot be reached yet");
    late.get("/collections/c").problem(503, "store_unreachable");

    two.start_again();
    for server in [&server, &late] {
        wait_for("ready again", || server.get("/readyz").status == 200);
        assert_eq!(server.get("/collections/c/items/i1").ok().json()["labels"], json!(["v1"]));
    }
    // What was due when it could not ask is built now.
    wait_for("indexes are built", || late.log().matches("index built").count() == 2);
    let stored = late.get("/collections/c/items?limit=1000").ok().json();
    let version = |item: &Value| item["labels"][0].as_str().unwrap()[1..].parse::<usize>().unwrap();
    let stored: Vec<_> =
        stored["items"].as_array().unwrap().iter().map(|item| (item["id"].as_str().unwrap().to_owned(), version(item))).collect();
    for number in 50..50 + known * 10 {
        let found = stored.iter().find(|(id, _)| *id == format!("i{number}"));
        // The body that was under way may have been stored in the database that was left.
        assert!(found.is_some_and(|(_, version)| [known, known + 1].contains(version)), "i{number}: {found:?}, acknowledged {known}");
    }
    // What was answered with 503 is sent again.
    late.post_json("/collections/c/items", &items(0..50, 9)).ok();
    assert_eq!(server.get("/collections/c/items/i1").ok().json()["labels"], json!(["v9"]));
    assert_eq!((server.put("/collections/d", &json!({})).status, server.delete("/collections/d").status), (201, 204));
    for server in [server, late] {
        server.signal("-TERM");
        let (status, log) = server.end();
        assert!(status.success() && !log.contains("sEcret") && !log.contains("panicked"), "{log}");
    }
}

#[test]
fn databases_are_named_all_and_in_their_order() {
    let urls = [database(), database(), database()];
    let restore = |index: &str| run(&["restore", "--index", index, "--from", "models/demo/gallery.dino", "--collection", "c"]);
    assert!(restore(&urls.join(",")).status.success());
    let model = tiny_model();
    let serve = |index: &str| refusal(&["serve", "--listen", "127.0.0.1:0", "--model", model.to_str().unwrap(), "--index", index]);
    let [one, two, three] = &urls;
    let alone = database();
    assert!(restore(&alone).status.success());
    let (empty, other) = (database(), database());
    for (index, words) in [
        (format!("{two},{one},{three}"), "number 2 of its databases, and --index names it as number 1"),
        (format!("{one},{two}"), "number 1 of 3 databases"),
        (format!("{one},{two},{three},{empty}"), "--index names 4"),
        (one.clone(), "number 1 of 3 databases that hold collections together"),
        (two.clone(), "number 2 of 3"),
        (format!("{alone},{empty}"), "collections of its own"),
        (format!("{one},{two},{empty}"), "it is empty, and others of its databases belong together without it"),
        (format!("{other},{other}&application_name=x"), "is the same as one"),
    ] {
        let (code, error) = serve(&index);
        assert_eq!(code, Some(1), "{words}: {error}");
        assert!(error.contains(words) && !error.contains("panicked"), "{words}: {error}");
    }
    // Nothing was changed by that.
    let server = Server::start(&["--index", &urls.join(",")]);
    assert!(count(&server) > 10);
    // A part that is lost is no empty one.
    shared().sql(name(three), "DELETE FROM dino_collections");
    server.get("/collections/c").problem(503, "store_failed");
    server.log_with("holds no part of the collection c");
    assert_eq!(server.delete("/collections/c").status, 204);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
}

/// Which databases belong together is settled when a server first starts with them, not when the first collection is made.
#[test]
fn the_databases_of_an_arrangement_stay_those() {
    let (one, two, three) = (database(), database(), database());
    let model = tiny_model();
    let serve = |index: &str| refusal(&["serve", "--listen", "127.0.0.1:0", "--model", model.to_str().unwrap(), "--index", index]);
    // A server that goes on alone would show and change parts.
    let alone = Server::start(&["--index", &one]);
    let (code, error) = serve(&format!("{one},{two}"));
    assert!(code == Some(1) && error.contains("by a server whose --index names it alone"), "{error}");
    drop(alone);
    let servers = [0, 1].map(|_| Server::without_waiting(&[model.to_str().unwrap()], &["--index", &format!("{one},{two}")]));
    for server in &servers {
        wait_for("both start at once", || server.get("/readyz").status == 200);
    }
    drop(servers);
    for (index, words) in [
        (format!("{one},{three}"), "it is empty, and others of its databases belong together without it"),
        (one.clone(), "number 1 of 2 databases that hold collections together"),
    ] {
        let (code, error) = serve(&index);
        assert!(code == Some(1) && error.contains(words), "{words}: {error}");
    }
}

/// As where a host fails over to the wrong replica: what is there is neither shown nor written to.
#[test]
fn a_name_that_comes_to_lead_to_another_database_is_unreachable() {
    let cluster = Cluster::start();
    let [one, two, other, third] = std::array::from_fn(|_| cluster.database());
    let strangers = Server::start(&["--index", &format!("{third},{other}")]);
    assert_eq!(strangers.put("/collections/c", &json!({})).status, 201);
    strangers.post_json("/collections/c/items", &items(0..30, 5)).ok();
    drop(strangers);
    let server = Server::start(&["--index", &format!("{one},{two}")]);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    server.post_json("/collections/c/items", &items(0..30, 1)).ok();
    let (two, other) = (name(&two).to_owned(), name(&other).to_owned());
    let swap = || {
        for (from, to) in [(&two, "aside"), (&other, two.as_str()), (&"aside".to_owned(), other.as_str())] {
            wait_for("renamed", || {
                let end = format!("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{from}'");
                cluster.sql("postgres", &end);
                cluster.try_sql("postgres", &format!("ALTER DATABASE {from} RENAME TO {to}"))
            });
        }
    };
    swap();
    for path in ["/collections", "/collections/c", "/collections/c/items"] {
        server.get(path).problem(503, "store_unreachable");
    }
    server.post_json("/collections/c/items", &items(0..30, 2)).problem(503, "store_unreachable");
    server.log_with("its name leads to another one");
    swap();
    wait_for("ready again", || server.get("/readyz").status == 200);
    assert_eq!(count(&server), 30);
    assert_eq!(server.get("/collections/c/items/i1").ok().json()["labels"], json!(["v1"]));
}

/// What a server leaves that is killed while it makes a collection is deleted by the next one, and by no other that still runs.
#[test]
fn parts_without_a_collection_go_at_the_next_start() {
    let urls = [database(), database()];
    let index = urls.join(",");
    let server = Server::start(&["--index", &index]);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    server.post_json("/collections/c/items", &items(0..20, 1)).ok();
    let parts = |url: &String| shared().sql(name(url), "SELECT count(*) FROM dino_collections").trim().parse::<usize>().unwrap();
    drop(server);
    // As after the second database has committed, and before the first one has.
    shared().sql(name(&urls[0]), "INSERT INTO dino_leftovers VALUES ('0unfinished', false)");
    let left = "CREATE TABLE dino_items_777 (id text); INSERT INTO dino_collections (name, number, dim, fingerprint, created) \
                VALUES ('0unfinished', 777, 32, 'f', 0)";
    shared().sql(name(&urls[1]), left);
    let maker = shared()
        .session(name(&urls[0]), &format!("BEGIN; DO $$ BEGIN PERFORM pg_advisory_xact_lock_shared({}); END $$", 0x6469_6e6f_0002_u64));
    let server = Server::start(&["--index", &index]);
    assert_eq!(server.get("/collections").ok().json()["collections"].as_array().unwrap().len(), 1);
    assert_eq!(server.delete("/collections/c").status, 204);
    wait_for("the part of the deleted one is gone", || parts(&urls[1]) == 1);
    drop(server);
    crate::shared::end(maker);
    let server = Server::start(&["--index", &index]);
    wait_for("no part is left", || parts(&urls[1]) == 0);
    wait_for("nor its table", || shared().sql(name(&urls[1]), "SELECT to_regclass('dino_items_777') IS NULL").trim() == "t");
    assert_eq!(shared().sql(name(&urls[0]), "SELECT count(*) FROM dino_leftovers").trim(), "0");
    drop(server);
}

/// Bodies with the same items in many orders, and deletions of all of them: the databases lock items for each other's writers.
#[test]
fn writers_of_the_same_items_never_wait_for_each_other_for_good() {
    let index = [database(), database(), database()].join(",");
    let servers = [0, 1].map(|_| Server::start(&["--index", &index, "--index-connections", "2", "--request-timeout", "20"]));
    assert_eq!(servers[0].put("/collections/c", &json!({})).status, 201);
    thread::scope(|scope| {
        for writer in 0..4 {
            let server = &servers[writer % 2];
            scope.spawn(move || {
                for round in 0..15 {
                    let mut body = items(0..40, writer * 100 + round);
                    body["items"].as_array_mut().unwrap().rotate_left(writer * 10);
                    server.post_json("/collections/c/items", &body).ok();
                    if writer == 3 {
                        let all = json!({ "filter": { "field": "id", "exists": true } });
                        server.post_json("/collections/c/items/delete", &all).ok();
                    }
                }
            });
        }
    });
    let found = ids(&neighbours(&servers[0], &json!({ "vector": axis(0), "k": 200 })));
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len(), "each is there once at most: {found:?}");
    servers[0].post_json("/collections/c/items", &items(0..40, 7)).ok();
    assert_eq!(count(&servers[1]), 40);
    let labels: BTreeSet<_> =
        neighbours(&servers[1], &json!({ "vector": axis(0), "k": 50 })).iter().map(|hit| hit["labels"].to_string()).collect();
    assert_eq!(labels.len(), 1, "each item is there once, in its newest version: {labels:?}");
}

/// A snapshot of several databases is one of a folder, byte by byte but for its time, and goes back over another number of them.
#[test]
fn snapshots_spread_a_collection_anew() {
    let (three, two) = (Place::databases_of_their_own(), [database(), database()].join(","));
    let server = three.server(&[]);
    server.post_json("/collections/c/items", &items(0..200, 1)).ok();
    let file = three.file("c.dino");
    let [flag, url] = three.store();
    assert!(run(&["snapshot", "--collection", "c", "--out", file.to_str().unwrap(), flag, url]).status.success());
    assert!(run(&["restore", "--from", file.to_str().unwrap(), "--index", &two]).status.success());
    let other = Server::start(&["--index", &two]);
    let page = |server: &Server| server.get("/collections/c/items?limit=1000").ok().json();
    assert_eq!(page(&other), page(&server));
    let query = json!({ "vector": axis(3), "k": 200 });
    assert_eq!(neighbours(&other, &query), neighbours(&server, &query));
    let help = program().args(["serve", "--help"]).env("DINO_INDEX", &two).output().unwrap();
    assert!(!String::from_utf8(help.stdout).unwrap().contains(&two));
}
