//! Databases under several servers: what they share, and what happens when one is gone.

use std::{
    collections::BTreeSet,
    io::Write,
    net::TcpStream,
    process::Output,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    harness::{Server, TIMEOUT, program, tiny_model},
    pictures::{png, scene},
    place::Place,
    postgres::{Cluster, shared},
};

const DIM: usize = 32;

pub(crate) fn vector(rng: &mut StdRng) -> Vec<f32> {
    (0..DIM).map(|_| rng.random::<f32>() - 0.5).collect()
}

pub(crate) fn neighbours(server: &Server, body: &Value) -> Vec<Value> {
    let answer = server.post_json("/collections/c/search", body);
    answer.ok().json()["results"][0]["neighbors"].as_array().unwrap().clone()
}

pub(crate) fn ids(hits: &[Value]) -> Vec<String> {
    hits.iter().map(|hit| hit["id"].as_str().unwrap().to_owned()).collect()
}

pub(crate) fn count(server: &Server) -> u64 {
    server.get("/collections/c").ok().json()["count"].as_u64().unwrap()
}

/// Asks until it is so.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < TIMEOUT, "not so: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn two_servers_are_one_to_their_clients() {
    two_servers_are_one(&Place::database_of_its_own());
}

#[test]
fn two_servers_over_several_databases_are_one_to_their_clients() {
    two_servers_are_one(&Place::databases_of_their_own());
}

fn two_servers_are_one(place: &Place) {
    let [_, url] = place.store();
    let start = || Server::start(&["--index", url, "--sessions", "1"]);
    // Both bring the empty database to its tables, at the same time.
    let (one, two) = thread::scope(|scope| {
        let (one, two) = (scope.spawn(start), scope.spawn(start));
        (one.join().unwrap(), two.join().unwrap())
    });
    let servers = [&one, &two];
    let made: Vec<_> = thread::scope(|scope| {
        let made: Vec<_> = servers.iter().map(|server| scope.spawn(|| server.put("/collections/c", &json!({})).status)).collect();
        made.into_iter().map(|made| made.join().unwrap()).collect()
    });
    assert_eq!(made.iter().collect::<BTreeSet<_>>(), BTreeSet::from([&200, &201]));

    // What one acknowledges, the other has; a body of one is never seen by half in the other, where one database has all of it.
    thread::scope(|scope| {
        for (number, server) in servers.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..40 {
                    let item = |i: usize| json!({ "id": format!("shared{i}"), "vector": axis(i), "labels": [format!("{number}-{round}")] });
                    let own = json!({ "id": format!("own{number}-{round}"), "vector": axis(round) });
                    let items: Vec<_> = (0..6).map(item).chain([own]).collect();
                    server.post_json("/collections/c/items", &json!({ "items": items })).ok();
                    let other = servers[1 - number];
                    assert_eq!(other.get(&format!("/collections/c/items/own{number}-{round}")).status, 200);
                    let shared = json!({ "vector": axis(0), "k": 50, "filter": { "field": "id", "gte": "shared" } });
                    let labels: BTreeSet<_> = neighbours(other, &shared).iter().map(|hit| hit["labels"].to_string()).collect();
                    assert!(labels.len() == 1 || !place.is_one_store(), "{labels:?}");
                }
            });
        }
    });
    assert_eq!((count(&one), count(&two)), (86, 86));
    assert_eq!(one.delete("/collections/c/items/shared0").status, 204);
    two.get("/collections/c/items/shared0").problem(404, "unknown_item");
    let own = json!({ "filter": { "field": "id", "lt": "own1" } });
    assert_eq!(two.post_json("/collections/c/items/delete", &own).ok().json()["deleted"], 40);
    let picture = png(&scene(40, 40, 1));
    one.post("/collections/c/items?id=picture&labels=l", "image/png", &picture).ok();
    let verdict = two.post("/classify?collection=c&k=1", "image/png", &picture).ok().json();
    assert_eq!(verdict["results"][0]["label"], "l");
    assert_eq!(two.get("/collections/c/items/picture/image").ok().header("content-type"), "image/jpeg");

    // While one replaces the collection, the other goes on reading it.
    let snapshot = one.post("/collections/c/snapshot", "application/json", b"").ok().body.clone();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut searches = 0;
            while !is_over.load(Ordering::Relaxed) {
                assert_eq!(neighbours(&two, &json!({ "vector": axis(1), "k": 100 })).len(), 46);
                let listed = two.get("/collections").ok().json()["collections"].clone();
                assert_eq!((&listed[0]["name"], &listed[0]["count"]), (&json!("c"), &json!(46)), "{listed}");
                searches += 1;
            }
            searches
        });
        for _ in 0..10 {
            let restored = one.post("/collections/c/restore?replace=true", "application/octet-stream", &snapshot);
            assert_eq!(restored.status, 201, "{}", restored.text());
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
    // Both replace it at the same time: each is the last one for a while, and none is refused.
    let restored = thread::scope(|scope| {
        let restores = [&one, &two].map(|server| {
            let restore = || server.post("/collections/c/restore?replace=true", "application/octet-stream", &snapshot).status;
            scope.spawn(move || (0..10).map(|_| restore()).collect::<Vec<_>>())
        });
        restores.map(|restores| restores.join().unwrap())
    });
    assert_eq!(restored, [vec![201; 10], vec![201; 10]]);
    assert_eq!(neighbours(&two, &json!({ "vector": axis(1), "k": 100 })).len(), 46);
    assert_eq!(one.delete("/collections/c").status, 204);
    two.get("/collections/c").problem(404, "unknown_collection");
    assert_eq!(two.get("/collections").ok().json()["collections"], json!([]));
}

pub(crate) fn axis(number: usize) -> Vec<f32> {
    (0..DIM).map(|i| if i == number % DIM { 1.0 } else { 0.01 }).collect()
}

#[test]
fn a_lost_database_is_503_until_it_is_back() {
    let mut cluster = Cluster::start();
    // The password is not asked for here, and must not be shown either.
    let url = cluster.database().replace("user=postgres", "user=postgres&password=sEcret");
    let server = Server::start(&["--index", &url]);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    let picture = png(&scene(40, 40, 1));
    let put = |id: &str| server.post(&format!("/collections/c/items?id={id}&labels=l"), "image/png", &picture);
    put("before").ok();
    assert_eq!(metric(&server, "dino_store_reachable"), 1);

    cluster.stop();
    let lost = put("lost");
    lost.problem(503, "store_unreachable");
    assert!(lost.header("retry-after").parse::<u32>().unwrap() > 0);
    for path in ["/collections", "/collections/c", "/collections/c/items", "/collections/c/items/before", "/collections/c/recall"] {
        server.get(path).problem(503, "store_unreachable");
    }
    server.put("/collections/d", &json!({})).problem(503, "store_unreachable");
    server.delete("/collections/c").problem(503, "store_unreachable");
    server.post("/collections/c/search", "image/png", &picture).problem(503, "store_unreachable");
    server.post("/collections/c/snapshot", "application/json", b"").problem(503, "store_unreachable");
    server.post("/classify?collection=c", "image/png", &picture).problem(503, "store_unreachable");
    // What was known a moment ago is good for a second.
    wait_for("not ready", || server.get("/readyz").status == 503);
    server.get("/readyz").problem(503, "store_unreachable");
    assert_eq!(server.get("/healthz").ok().json()["store"]["reachable"], false);
    assert_eq!(metric(&server, "dino_store_reachable"), 0);
    assert!(metric(&server, "dino_store_failures_total") >= 10);
    // What needs no collection goes on; and a server can be started meanwhile.
    server.embed(&picture);
    let late = Server::without_waiting(&[tiny_model().to_str().unwrap()], &["--index", &url]);
    late.log_with("cannot be reached yet");
    late.get("/collections/c").problem(503, "store_unreachable");

    cluster.start_again();
    for server in [&server, &late] {
        wait_for("ready again", || server.get("/readyz").status == 200);
        assert_eq!(server.get("/collections/c/items/before").ok().json()["labels"], json!(["l"]));
    }
    put("after").ok();
    assert_eq!(count(&late), 2);
    assert_eq!(metric(&server, "dino_store_reachable"), 1);
    for server in [server, late] {
        server.signal("-TERM");
        let (status, log) = server.end();
        assert!(status.success() && !log.contains("sEcret") && !log.contains("panicked"), "{log}");
    }
}

/// Closes a session, and waits until its locks are gone.
pub(crate) fn end(mut session: std::process::Child) {
    drop(session.stdin.take());
    session.wait().unwrap();
}

fn table(database: &str) -> String {
    shared().sql(database, "SELECT 'dino_items_' || number FROM dino_collections").trim().to_owned()
}

#[test]
fn busy_connections_are_no_lost_database() {
    let name = shared().database();
    let database = name.split(['/', '?']).nth(3).unwrap();
    let server = Server::start(&["--index", &name, "--index-connections", "1", "--request-timeout", "9"]);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    let session = shared().session(database, &format!("BEGIN; LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", table(database)));
    thread::scope(|scope| {
        scope.spawn(|| server.get("/collections/c/items"));
        wait_for("at work", || server.get("/healthz").ok().json()["store"]["busy"] == 1);
        let waits = scope.spawn(|| server.get("/collections/c/items/x"));
        assert_eq!(server.get("/readyz").status, 200);
        let refused = waits.join().unwrap();
        refused.problem(429, "queue_full");
        assert!(refused.header("retry-after").parse::<u32>().unwrap() > 0);
        end(session);
    });
    assert_eq!(server.get("/collections/c/items").ok().json()["items"], json!([]));
    assert_eq!((metric(&server, "dino_store_reachable"), metric(&server, "dino_store_failures_total")), (1, 0));
}

#[test]
fn a_statement_ends_when_its_caller_has_left() {
    let name = shared().database();
    let database = name.split(['/', '?']).nth(3).unwrap();
    let server = Server::start(&["--index", &name, "--index-connections", "1", "--request-timeout", "100"]);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    let session = shared().session(database, &format!("BEGIN; LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", table(database)));
    let waiting = || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        shared().sql(database, sql).trim().parse::<usize>().unwrap()
    };
    let ask = || {
        let mut client = TcpStream::connect(server.address()).unwrap();
        client.write_all(b"GET /collections/c/items HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        client
    };
    let busy = || server.get("/healthz").ok().json()["store"]["busy"].as_u64().unwrap();
    // The first waits for the table, the second for the connection of the first.
    let (first, second) = (ask(), ask());
    wait_for("a statement waits for the table", || waiting() == 1);
    drop((first, second));
    wait_for("the statement has ended", || waiting() == 0);
    wait_for("the connection is closed", || busy() == 0);
    end(session);
    assert_eq!(server.get("/collections/c/items").ok().json()["items"], json!([]));
}

/// What the log says at the start of collections needs none of their items.
#[test]
fn collections_of_other_models_are_named_while_their_tables_cannot_be_read() {
    let name = shared().database();
    let database = name.split(['/', '?']).nth(3).unwrap();
    let server = Server::start(&["--index", &name]);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    drop(server);
    shared().sql(database, "UPDATE dino_collections SET fingerprint = 'of another'");
    let session = shared().session(database, &format!("BEGIN; LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", table(database)));
    let server = Server::start(&["--index", &name, "--request-timeout", "2"]);
    server.log_with("belongs to no model that is served");
    end(session);
}

#[test]
fn a_collection_goes_at_once_while_others_use_its_table() {
    let name = shared().database();
    let database = name.split(['/', '?']).nth(3).unwrap();
    let server = Server::start(&["--index", &name]);
    let item = json!({ "items": [{ "id": "a", "vector": axis(0) }] });
    server.put("/collections/c", &json!({}));
    server.post_json("/collections/c/items", &item).ok();
    let old = table(database);
    // As the build of an index does.
    let session = shared().session(database, &format!("BEGIN; LOCK TABLE {old} IN SHARE UPDATE EXCLUSIVE MODE"));
    let exists = || shared().sql(database, &format!("SELECT to_regclass('{old}') IS NOT NULL")).trim() == "t";
    assert_eq!(server.delete("/collections/c").status, 204);
    server.get("/collections/c").problem(404, "unknown_collection");
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    assert_eq!(count(&server), 0);
    server.post_json("/collections/c/items", &item).ok();
    assert!(exists(), "a transaction still uses it");
    end(session);
    wait_for("cleared away", || !exists());
    assert_eq!(count(&server), 1);
}

pub(crate) fn metric(server: &Server, name: &str) -> i64 {
    let text = server.get("/metrics").ok().text();
    let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Above the threshold the database gets an index, and answers stay full and true to the filter.
#[test]
fn large_collections_get_an_index() {
    get_an_index(&Place::database_of_its_own());
}

#[test]
fn large_collections_get_an_index_in_each_database() {
    get_an_index(&Place::databases_of_their_own());
}

fn get_an_index(place: &Place) {
    let server = place.server(&["--exact-below", "500"]);
    let mut rng = StdRng::seed_from_u64(11);
    let clusters: Vec<_> = (0..20).map(|_| vector(&mut rng)).collect();
    for part in 0..6 {
        let mut item = |i: usize| {
            let near: Vec<f32> = clusters[i % 20].iter().zip(vector(&mut rng)).map(|(centre, noise)| centre + 0.3 * noise).collect();
            json!({ "id": format!("{i:04}"), "vector": near, "labels": [format!("{}", i % 20)], "metadata": { "n": i } })
        };
        let items: Vec<_> = (part * 500..(part + 1) * 500).map(&mut item).collect();
        server.post_json("/collections/c/items", &json!({ "items": items })).ok();
    }
    wait_for("indexed", || server.get("/collections/c").ok().json()["index"]["indexed"] == 3000);
    let index = server.get("/collections/c").ok().json()["index"].clone();
    assert_eq!((&index["kind"], &index["scanned"]), (&json!("hnsw"), &json!(0)));
    let recall = server.get("/collections/c/recall?k=10&ef=200&queries=100").ok().json();
    assert!(recall["recall"].as_f64().unwrap() > 0.98, "{recall}");
    assert_eq!(recall["queries"], 100);

    let query = vector(&mut rng);
    let ask = |body: Value| {
        let mut body = body;
        body["vector"] = json!(query);
        neighbours(&server, &body)
    };
    // As many as asked for, far beyond the width of the search, with filters that let few or scattered items pass.
    assert_eq!(ask(json!({ "k": 3000, "ef": 10 })).len(), 3000);
    assert_eq!(ask(json!({ "k": 5000, "ef": 10 })).len(), 3000);
    assert_eq!(ids(&ask(json!({ "k": 10, "filter": { "field": "metadata.n", "eq": 1234 } }))), ["1234"]);
    assert!(ask(json!({ "k": 10, "filter": { "field": "metadata.n", "gt": 5000 } })).is_empty());
    for label in ["0", "7", "19"] {
        let filter = json!({ "field": "label", "eq": label });
        let fast = ask(json!({ "k": 150, "ef": 5, "filter": filter }));
        assert_eq!(fast.len(), 150);
        assert!(fast.iter().all(|hit| hit["labels"] == json!([label])));
        // The whole class, so that nothing is left to chance.
        assert_eq!(fast, ask(json!({ "k": 150, "exact": true, "filter": filter })));
    }
    let exact = ask(json!({ "k": 20, "exact": true }));
    assert!(exact.is_sorted_by(|a, b| a["similarity"].as_f64() >= b["similarity"].as_f64()));
    // Deleted items use up no places.
    let nearest = ids(&ask(json!({ "k": 2900, "exact": true })));
    let gone = json!({ "filter": { "field": "id", "in": nearest } });
    assert_eq!(server.post_json("/collections/c/items/delete", &gone).ok().json()["deleted"], 2900);
    assert_eq!(ask(json!({ "k": 20, "ef": 10 })).len(), 20);
    assert_eq!(ask(json!({ "k": 200, "ef": 10 })).len(), 100);
}

pub(crate) fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

/// Exit code and standard error.
pub(crate) fn refusal(arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(arguments);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_database_that_will_not_do_is_refused_at_the_start() {
    let cluster = Cluster::start();
    let url = cluster.database();
    let model = tiny_model();
    let serve = |url: &str| refusal(&["serve", "--listen", "127.0.0.1:0", "--model", model.to_str().unwrap(), "--index", url]);
    let missing = url.replace("test0", "test7");
    let latin = {
        cluster.sql("postgres", "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0");
        url.replace("test0", "latin")
    };
    assert!(run(&["restore", "--index", &url, "--from", "models/demo/gallery.dino"]).status.success());
    cluster.sql("test0", "INSERT INTO dino_schema VALUES (99)");
    for (url, words) in [
        (missing.as_str(), "\"test7\" does not exist"),
        (&latin, "ENCODING 'UTF8'"),
        (&url, "version 99"),
        ("mysql://u:sEcret@h/d", "postgres://"),
        ("postgres://u:sEcret@h:x/d", "no URL"),
        ("postgres://h/d?sEcret=1", "parameter"),
    ] {
        let (code, error) = serve(url);
        assert_eq!(code, Some(1), "{error}");
        assert!(error.contains(words) && !error.contains("sEcret") && !error.contains("panicked"), "{words}: {error}");
    }
    // Commands do not wait for a database without a server.
    let nobody = "postgres:///d?host=/nowhere&user=u&password=sEcret";
    let (code, error) = refusal(&["snapshot", "--index", nobody, "--out", "unwritten.dino"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("cannot be reached") && !error.contains("sEcret"), "{error}");
    let help = program().args(["serve", "--help"]).env("DINO_INDEX", "postgres://u:sEcret@h/d").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("DINO_INDEX") && !help.contains("sEcret"));
}

#[test]
fn verbs_work_beside_a_running_server() {
    verbs_work(&Place::database_of_its_own());
}

#[test]
fn verbs_work_on_several_databases() {
    verbs_work(&Place::databases_of_their_own());
}

fn verbs_work(place: &Place) {
    let server = place.server(&[]);
    let [flag, url] = place.store();
    let model = tiny_model();
    let pictures = place.file("pictures");
    for (i, class) in ["cat", "dog", "dog"].iter().enumerate() {
        fs_err::create_dir_all(pictures.join(class)).unwrap();
        fs_err::write(pictures.join(class).join(format!("{i}.png")), png(&scene(60, 40, i as u32))).unwrap();
    }
    let import = || {
        let output =
            run(&["import", "--images", pictures.to_str().unwrap(), "--collection", "c", "--model", model.to_str().unwrap(), flag, url]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(import().contains("3 stored, 0 unchanged"));
    assert!(import().contains("0 stored, 3 unchanged"));
    let picture = png(&scene(60, 40, 1));
    let verdict = server.post("/classify?collection=c&k=1", "image/png", &picture).ok().json();
    assert_eq!((&verdict["results"][0]["label"], count(&server)), (&json!("dog"), 3));

    let file = place.file("c.dino");
    assert!(run(&["snapshot", "--collection", "c", "--out", file.to_str().unwrap(), flag, url]).status.success());
    let restore = |more: &[&str]| run(&[&["restore", "--from", file.to_str().unwrap(), flag, url], more].concat());
    assert_eq!(restore(&[]).status.code(), Some(1));
    assert!(String::from_utf8(restore(&["--if-missing"]).stdout).unwrap().contains("is there already"));
    assert!(restore(&["--collection", "d"]).status.success());
    server.delete("/collections/c/items/dog%2F1.png");
    assert!(restore(&["--replace"]).status.success());
    assert_eq!(count(&server), 3);
    // A snapshot goes from a database to a folder, with every bit.
    let folder = Place::folder_of_its_own();
    let into = folder.folder();
    assert!(run(&["restore", "--from", file.to_str().unwrap(), "--data-dir", into.to_str().unwrap()]).status.success());
    let copy = folder.server(&[]);
    let item = |server: &Server| server.get("/collections/c/items/dog%2F1.png").ok().json();
    assert_eq!(item(&copy), item(&server));
    let image = |server: &Server| server.get("/collections/c/items/dog%2F1.png/image").ok().body.clone();
    assert_eq!(image(&copy), image(&server));
}
