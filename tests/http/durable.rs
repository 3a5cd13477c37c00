//! What was accepted comes back; a disk without room, a folder that is gone and an item that cannot be read cost no more than
//! themselves.

use std::{
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Map, Value, json};

use crate::{
    harness::{Answer, Server, TIMEOUT, program_with_file_limit, tiny_model},
    pictures::{png, scene},
    place::{Place, on_every_store},
    postgres::{database, shared},
};

const DIM: usize = 32;

on_every_store!(what_is_accepted_comes_back);

#[track_caller]
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < TIMEOUT, "not so: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// JSON text of any form, some of it none.
fn any_json(rng: &mut StdRng, depth: usize) -> String {
    const NUMBERS: [&str; 16] = [
        "0",
        "-0",
        "-0.0",
        "1",
        "1.0",
        "0.1",
        "0.30000000000000004",
        "5e-324",
        "1.7976931348623157e308",
        "1e16",
        "18446744073709551615",
        "-9223372036854775808",
        "123456789012345678901234567890",
        "1e999",
        "NaN",
        "01",
    ];
    match rng.random_range(0..if depth == 0 { 5 } else { 7 }) {
        0 => "null".into(),
        1 => rng.random::<bool>().to_string(),
        2 if rng.random_bool(0.3) => NUMBERS[rng.random_range(0..NUMBERS.len())].into(),
        2 => json!(f64::from_bits(rng.random::<u64>())).to_string(),
        3 | 4 => json!(any_text(rng, 12)).to_string(),
        5 => format!("[{}]", (0..rng.random_range(0..3)).map(|_| any_json(rng, depth - 1)).collect::<Vec<_>>().join(",")),
        _ => any_object(rng, depth - 1),
    }
}

fn any_object(rng: &mut StdRng, depth: usize) -> String {
    // A few names, so that one comes twice now and then.
    let mut member = || format!("{}:{}", json!(["a", "b", "ä", "", "\0", "x.y", "\u{1}"][rng.random_range(0..7)]), any_json(rng, depth));
    format!("{{{}}}", (0..2).map(|_| member()).collect::<Vec<_>>().join(","))
}

fn any_text(rng: &mut StdRng, most: usize) -> String {
    (0..rng.random_range(0..=most))
        .map(|_| ['a', '"', '\\', '\0', '\u{1}', '\u{7f}', 'é', '😀', '\u{2028}', '\u{ffff}'][rng.random_range(0..10)])
        .collect()
}

/// Lists of so many levels inside of an object.
fn nested(levels: usize) -> String {
    format!("{{\"x\":{}1{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1))
}

/// Equal as JSON: PostgreSQL writes 1e16 as a whole number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => {
            let (x, y) = (x.as_f64().unwrap(), y.as_f64().unwrap());
            x == y
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y)),
        (Value::Object(x), Value::Object(y)) => x.len() == y.len() && x.iter().all(|(name, x)| y.get(name).is_some_and(|y| same(x, y))),
        _ => a == b,
    }
}

/// All items of a server, by id, with their vectors.
fn items(server: &Server, ids: impl Iterator<Item = String>) -> Map<String, Value> {
    let one = |id: String| {
        let path = id.bytes().fold(String::new(), |path, byte| path + &format!("%{byte:02X}"));
        let item = server.get(&format!("/collections/c/items/{path}"));
        (id, item.ok().json())
    };
    ids.map(one).collect()
}

fn what_is_accepted_comes_back(place: &Place) {
    let mut rng = StdRng::seed_from_u64(11);
    let server = place.server(&["--sessions", "1"]);
    let mut accepted = Map::new();
    let mut refused = 0;
    let depths = [5, 100, 120, 121, 122, 123, 124, 125, 126, 127, 128, 129, 500];
    for round in 0..150 {
        let metadata = if round < depths.len() { nested(depths[round]) } else { any_object(&mut rng, 3) };
        let id = if rng.random_bool(0.1) { any_text(&mut rng, 400) } else { format!("{round}{}", any_text(&mut rng, 4)) };
        let labels: Vec<_> = (0..rng.random_range(0..4)).map(|_| format!("l{}", any_text(&mut rng, 6))).collect();
        let mut vector: Vec<String> = (0..DIM).map(|_| json!(rng.random::<f32>() - 0.5).to_string()).collect();
        if rng.random_bool(0.2) {
            vector[rng.random_range(0..DIM)] = ["1e-45", "3e38", "1e39", "-1e-50", "null", "NaN"][rng.random_range(0..6)].into();
        }
        let head = format!("{{\"items\":[{{\"id\":{},\"labels\":{},\"vector\":[{}]", json!(id), json!(labels), vector.join(","));
        let body = format!("{head},\"metadata\":{metadata}}}]}}");
        let answer = server.post("/collections/c/items", "application/json", body.as_bytes());
        match answer.status {
            200 => drop(accepted.insert(id, serde_json::from_str(&metadata).unwrap())),
            400 | 422 => refused += 1,
            _ => panic!("{}: {body}", answer.text()),
        }
    }
    // The query takes metadata one level deeper than a body does.
    let picture = png(&scene(20, 20, 1));
    for depth in depths {
        let metadata = nested(depth).replace('[', "%5B").replace(']', "%5D").replace('{', "%7B").replace('}', "%7D").replace('"', "%22");
        let answer = server.post(&format!("/collections/c/items?id=q{depth}&metadata={metadata}"), "image/png", &picture);
        assert!([200, 400].contains(&answer.status), "{}", answer.text());
        if answer.status == 200 {
            accepted.insert(format!("q{depth}"), serde_json::from_str(&nested(depth)).unwrap());
        }
    }
    assert!(accepted.len() > 70 && refused > 10, "{} accepted, {refused} refused", accepted.len());
    let before = items(&server, accepted.keys().cloned());
    for (id, metadata) in &accepted {
        assert!(same(&before[id]["metadata"], metadata), "{id:?}: {} in place of {metadata}", before[id]["metadata"]);
    }
    assert_eq!(server.get("/collections/c").ok().json()["count"], accepted.len());
    let snapshot = server.post("/collections/c/snapshot", "application/json", b"");
    assert_eq!(snapshot.ok().header("dino-left-out"), "0");
    drop(server);

    let again = place.server(&["--sessions", "1"]);
    assert_eq!(items(&again, accepted.keys().cloned()), before);
    drop(again);
    let other = place.another();
    let other = other.server(&["--sessions", "1"]);
    let restored = other.post("/collections/c/restore?replace=true", "application/octet-stream", &snapshot.body);
    assert_eq!(restored.status, 201, "{}", restored.text());
    let restored = items(&other, accepted.keys().cloned());
    for (id, item) in &before {
        assert!(same(item, &restored[id]), "{id:?}");
    }
}

#[test]
fn a_name_that_comes_twice_in_metadata_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = Place::folder_of_its_own().server(&["--sessions", "1"]);
    drop(folder);
    let vector = vec![1.0; DIM];
    for metadata in [r#"{"a":1,"a":2}"#, r#"{"x":[{"a":1,"b":2,"a":null}]}"#] {
        let body = format!("{{\"items\":[{{\"vector\":{},\"metadata\":{metadata}}}]}}", json!(vector));
        let problem = server.post("/collections/c/items", "application/json", body.as_bytes()).problem(400, "bad_parameter");
        assert!(problem["detail"].as_str().unwrap().contains("`a` comes twice"), "{problem}");
        let query = format!(
            "/collections/c/items?metadata={}",
            metadata.replace('"', "%22").replace('{', "%7B").replace('}', "%7D").replace('[', "%5B").replace(']', "%5D")
        );
        server.post(&query, "image/png", &png(&scene(20, 20, 1))).problem(400, "bad_parameter");
    }
}

/// What a snapshot cannot hold is not in it, and said so: here an item that another program wrote.
#[test]
fn a_snapshot_can_always_be_restored() {
    let url = database();
    let name = url.split(['/', '?']).nth(3).unwrap().to_owned();
    let server = Server::start(&["--index", &url, "--sessions", "1"]);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    let item = |id: &str| json!({ "id": id, "vector": vec![1.0; DIM] });
    server.post_json("/collections/c/items", &json!({ "items": [item("a"), item("deep"), item("deeper"), item("z")] })).ok();
    for (id, depth) in [("deep", 127), ("deeper", 200)] {
        shared().sql(&name, &format!("UPDATE dino_items_1 SET metadata = '{}' WHERE id = '{id}'", nested(depth)));
    }
    server.get("/collections/c/items/deep").ok();
    server.get("/collections/c/items/deeper").problem(500, "item_damaged");
    // Its neighbours stay.
    let page = server.get("/collections/c/items?limit=3").ok().text();
    assert!(page.contains("\"id\":\"a\"") && page.contains("\"id\":\"deep\"") && page.contains("\"next\":\"z\""), "{page}");
    let found = server.post_json("/collections/c/search", &json!({ "vector": vec![1.0; DIM] })).ok().text();
    assert!(found.contains("\"id\":\"a\"") && found.contains("\"id\":\"z\"") && !found.contains("deeper"), "{found}");
    server.get("/collections/c/map").ok();
    let snapshot = server.post("/collections/c/snapshot", "application/json", b"");
    assert_eq!(snapshot.ok().header("dino-left-out"), "2");
    server.log_with("is left out of a snapshot");
    let restored = server.post("/collections/d/restore", "application/octet-stream", &snapshot.body);
    assert_eq!((restored.status, &restored.json()["count"]), (201, &json!(2)), "{}", restored.text());
    assert_eq!(server.delete("/collections/c/items/deeper").status, 204);
    server.post_json("/collections/c/items", &json!({ "items": [item("deep")] })).ok();
    assert_eq!(server.post("/collections/c/snapshot", "application/json", b"").ok().header("dino-left-out"), "0");
}

/// `GET /collections/{c}` names what cannot be read without a look at the other items, also where an earlier version made the table.
#[test]
fn damaged_items_are_listed_by_a_database_too() {
    let url = database();
    let name = url.split(['/', '?']).nth(3).unwrap().to_owned();
    let start = || Server::start(&["--index", &url, "--sessions", "1"]);
    let server = start();
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    let item = |id: &str| json!({ "id": id, "vector": vec![1.0; DIM] });
    let ids = ["a", "deep", "deeper", "large", "list\0", "n"];
    server.post_json("/collections/c/items", &json!({ "items": ids.map(item) })).ok();
    assert!(server.get("/collections/c").ok().json().get("damaged").is_none());
    let set = |id: &str, metadata: &str| shared().sql(&name, &format!("UPDATE dino_items_1 SET metadata = '{metadata}' WHERE id = {id}"));
    // As deep, and as large, as can just be read.
    set("'deep'", &nested(127));
    set("'n'", &format!("{{\"n\":[{},{}]}}", f64::MAX, -f64::MAX));
    set("'deeper'", &nested(128));
    set("'large'", "{\"n\":{\"m\":-1e400}}");
    set("E'list\\x01\\x01'", "[1]");
    let damaged = json!({ "count": 3, "ids": ["deeper", "large", "list\0"] });
    for (id, status) in [("a", 200), ("deep", 200), ("n", 200), ("deeper", 500), ("large", 500), ("list%00", 500)] {
        assert_eq!(server.get(&format!("/collections/c/items/{id}")).status, status, "{id}");
    }
    let info = |server: &Server| server.get("/collections/c").ok().json();
    assert_eq!((&info(&server)["damaged"], &info(&server)["count"]), (&damaged, &json!(3)));
    assert_eq!(server.get("/collections").ok().json()["collections"][0]["damaged"], damaged);
    server.delete("/collections/c/items/large");
    server.post_json("/collections/c/items", &json!({ "items": [item("list\0")] })).ok();
    assert_eq!(info(&server)["damaged"], json!({ "count": 1, "ids": ["deeper"] }));
    drop(server);

    shared().sql(&name, "DROP INDEX dino_items_1_damaged");
    let server = start();
    let begun = std::time::Instant::now();
    while info(&server).get("damaged").is_none() {
        assert!(begun.elapsed() < std::time::Duration::from_mins(1), "{}", server.log());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(info(&server)["damaged"]["ids"], json!(["deeper"]));
    assert_eq!(server.delete("/collections/c/items/deeper").status, 204);
    assert!(info(&server).get("damaged").is_none());
}

/// One collection whose index cannot be built does not keep the others from theirs.
#[test]
fn each_collection_gets_the_indexes_that_it_lacks() {
    let url = database();
    let name = url.split(['/', '?']).nth(3).unwrap().to_owned();
    let server = Server::start(&["--index", &url, "--sessions", "1"]);
    for collection in ["a", "b"] {
        assert_eq!(server.put(&format!("/collections/{collection}"), &json!({})).status, 201);
    }
    drop(server);
    shared().sql(&name, "DROP TABLE dino_items_1; DROP INDEX dino_items_2_damaged");
    let server = Server::start(&["--index", &url, "--sessions", "1"]);
    let begun = std::time::Instant::now();
    while shared().sql(&name, "SELECT to_regclass('dino_items_2_damaged') IS NOT NULL").trim() != "t" {
        assert!(begun.elapsed() < std::time::Duration::from_mins(1), "{}", server.log());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// An item of about 60 KB.
fn large(id: &str) -> Value {
    json!({ "id": id, "vector": vec![1.0; DIM], "metadata": { "m": "m".repeat(60_000) } })
}

fn upsert(server: &Server, id: &str) -> Answer {
    server.post_json("/collections/c/items", &json!({ "items": [large(id)] }))
}

/// Stores items until that fails; returns the ids of those that were stored, and the answer.
fn fill(server: &Server, prefix: &str) -> (Vec<String>, Answer) {
    let mut stored = Vec::new();
    loop {
        let id = format!("{prefix}{}", stored.len());
        let answer = upsert(server, &id);
        if answer.status != 200 {
            return (stored, answer);
        }
        stored.push(id);
        assert!(stored.len() < 1000, "the disk does not become full");
    }
}

/// D09: a full disk does not outlast its cause.
#[test]
fn once_there_is_room_writes_go_on() {
    const LIMIT: u64 = 6 << 20;
    let place = Place::folder_of_its_own();
    let model = tiny_model();
    let start = || {
        let flags = [&place.flags()[..], &["--sessions", "1"]].concat();
        Server::launch(program_with_file_limit(LIMIT), &[model.to_str().unwrap()], &flags).when_ready()
    };
    let server = start();
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    let (mut stored, failed) = fill(&server, "a");
    let problem = failed.problem(503, "store_failed");
    assert!(problem["detail"].as_str().unwrap().contains("File too large"), "{problem}");
    let first = server.log_with("File too large").lines().find(|line| line.contains("cannot be written")).map(str::to_owned);
    assert!(first.is_some_and(|line| line.contains("store.redb")), "{}", server.log());
    let count = |server: &Server| server.get("/collections/c").ok().json()["count"].as_u64().unwrap();
    assert_eq!(count(&server), stored.len() as u64);
    wait_for("not ready", || server.get("/readyz").status == 503);
    let problem = server.get("/readyz").problem(503, "store_failed");
    assert!(problem["detail"].as_str().unwrap().contains("File too large"), "{problem}");
    assert!(server.get("/metrics").ok().text().contains("dino_store_ready 0\n"));
    assert_eq!(server.get("/healthz").status, 200);
    // What is read is read, with the disk full.
    for path in ["/collections", "/collections/c/items?limit=3", "/collections/c/items/a0"] {
        server.get(path).ok();
    }
    server.post_json("/collections/c/search", &json!({ "vector": vec![1.0; DIM] })).ok();

    // Deletes make room.
    for id in stored.drain(..20) {
        assert_eq!(server.delete(&format!("/collections/c/items/{id}")).status, 204);
    }
    wait_for("ready after deletes", || server.get("/readyz").status == 200);
    upsert(&server, "again").ok();
    stored.push("again".into());
    let (more, _) = fill(&server, "b");
    assert!(!more.is_empty());
    stored.extend(more);

    // A start with the disk as full as before.
    drop(server);
    let server = start();
    assert_eq!(count(&server), stored.len() as u64);
    let (more, _) = fill(&server, "c");
    stored.extend(more);
    wait_for("not ready", || server.get("/readyz").status == 503);
    let lifted = Command::new("prlimit").args(["--pid", &server.pid().to_string(), "--fsize=unlimited:"]).status().unwrap();
    assert!(lifted.success());
    wait_for("ready after room was made", || server.get("/readyz").status == 200);
    let (answer, id) = (upsert(&server, "room"), "room".to_owned());
    answer.ok();
    stored.push(id);
    let log = server.log();
    assert!(log.contains("written again") && !log.contains("panicked"), "{log}");
    drop(server);
    let server = place.server(&["--sessions", "1"]);
    assert_eq!(count(&server), stored.len() as u64);
    assert_eq!(items(&server, stored.iter().cloned()).len(), stored.len());
}

#[test]
fn an_import_that_fills_the_disk_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("t.csv");
    let picture = folder.path().join("p.png");
    fs_err::write(&picture, png(&scene(30, 30, 1))).unwrap();
    let rows: Vec<String> = (0..300).map(|i| format!("p.png,{i},{}", "m".repeat(30_000))).collect();
    fs_err::write(&table, format!("path,id,note\n{}\n", rows.join("\n"))).unwrap();
    let data = folder.path().join("data");
    let model = tiny_model();
    let arguments =
        ["import", "--table", table.to_str().unwrap(), "--model", model.to_str().unwrap(), "--data-dir", data.to_str().unwrap()];
    let ran = program_with_file_limit(5 << 20).args(arguments).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(1), "{said}");
    assert!(said.contains("File too large") && said.contains("store.redb"), "{said}");
    // What came before is there, and the next run goes on.
    let ran = crate::harness::program().args(arguments).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert!(String::from_utf8_lossy(&ran.stdout).contains("300 items in all"));
}

#[test]
fn a_folder_that_is_gone_or_another_is_noticed() {
    let place = Place::folder_of_its_own();
    let server = place.server(&["--sessions", "1"]);
    let item = |id: &str| json!({ "items": [{ "id": id, "vector": vec![1.0; DIM] }] });
    server.post_json("/collections/c/items", &item("a")).ok();
    let (data, away) = (place.folder(), place.file("away"));
    let refused = || {
        let problem = server.post_json("/collections/c/items", &item("b")).problem(503, "store_failed");
        assert!(problem["detail"].as_str().unwrap().contains("removed or replaced"), "{problem}");
        for answer in [server.delete("/collections/c/items/a"), server.put("/collections/d", &json!({})), server.delete("/collections/c")] {
            answer.problem(503, "store_failed");
        }
        wait_for("not ready", || server.get("/readyz").status == 503);
        assert_eq!(server.get("/healthz").status, 200);
        assert!(server.get("/metrics").ok().text().contains("dino_store_ready 0\n"));
    };
    fs_err::rename(&data, &away).unwrap();
    refused();
    // A copy is another file, however equal.
    fs_err::create_dir(&data).unwrap();
    fs_err::copy(away.join("store.redb"), data.join("store.redb")).unwrap();
    refused();
    fs_err::remove_dir_all(&data).unwrap();
    fs_err::rename(&away, &data).unwrap();
    wait_for("ready again", || server.get("/readyz").status == 200);
    server.post_json("/collections/c/items", &item("b")).ok();
}
