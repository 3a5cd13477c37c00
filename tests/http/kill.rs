//! A server that is killed again and again while clients write: nothing that it acknowledged is lost, nothing that it
//! deleted comes back.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    harness::{Server, assert_close},
    place::Place,
    postgres::shared,
    sharded::{items, name},
    shared::{axis, ids, neighbours, wait_for},
};

const CLIENTS: usize = 4;
/// Ids of each client. No two clients write the same one, so that each knows what must be there.
const IDS: usize = 30;

/// The version of an item that must be there; `None` for an item that must not.
type Version = Option<u64>;

/// What one client knows of its items.
#[derive(Default)]
struct Known {
    acknowledged: BTreeMap<String, Version>,
    /// A write that was under way when the server died: it may or may not have happened.
    pending: BTreeMap<String, Version>,
    writes: u64,
}

fn vector(version: u64) -> Vec<f32> {
    (0..32).map(|i| if i == version % 32 { 1.0 } else { 0.001 * (version % 97) as f32 }).collect()
}

/// Writes until the server is gone.
fn write(server: &Server, client: usize, known: &mut Known, mut rng: StdRng) {
    loop {
        let number = rng.random_range(0..IDS);
        let id = format!("{client}-{number}");
        known.writes += 1;
        let version = known.writes;
        let (method, path, body, changes) = if rng.random_bool(0.3) {
            ("DELETE", format!("/collections/c/items/{id}"), json!(""), vec![(id, None)])
        } else if rng.random_bool(0.1) {
            let few: Vec<_> = (0..5).map(|i| format!("{client}-{}", (number + i) % IDS)).collect();
            let changes = few.iter().map(|id| (id.clone(), None)).collect();
            ("POST", "/collections/c/items/delete".to_owned(), json!({ "filter": { "field": "id", "in": few } }), changes)
        } else {
            let few: Vec<_> = (0..rng.random_range(1..4)).map(|i| format!("{client}-{}", (number + i) % IDS)).collect();
            let item = |id: &String| json!({ "id": id, "vector": vector(version), "metadata": { "version": version } });
            let changes = few.iter().map(|id| (id.clone(), Some(version))).collect();
            ("POST", "/collections/c/items".to_owned(), json!({ "items": few.iter().map(item).collect::<Vec<_>>() }), changes)
        };
        match server.attempt(method, &path, &body) {
            Some(200 | 204 | 404) => known.acknowledged.extend(changes),
            Some(status) => panic!("{method} {path}: {status}: {}", server.log()),
            None => {
                known.pending = changes.into_iter().collect();
                return;
            }
        }
    }
}

fn stored(server: &Server) -> BTreeMap<String, u64> {
    let page = server.get("/collections/c/items?limit=1000").ok().json();
    let version = |item: &Value| (item["id"].as_str().unwrap().to_owned(), item["metadata"]["version"].as_u64().unwrap());
    page["items"].as_array().unwrap().iter().map(version).collect()
}

/// Compares what is stored with what a client was told; what was under way is settled by what is there. Of several databases some may
/// have committed it.
fn check(stored: &BTreeMap<String, u64>, known: &mut Known, round: u64, is_one_store: bool) {
    let pending = std::mem::take(&mut known.pending);
    let happened = pending.iter().filter(|(id, version)| stored.get(*id).copied() == **version).count();
    let upsert = is_one_store && pending.values().any(Option::is_some);
    // The version of an upsert is its own, so that half of one would show.
    assert!(!upsert || happened == 0 || happened == pending.len(), "round {round}: {happened} of {} items", pending.len());
    for (id, version) in pending {
        let found = stored.get(&id).copied();
        let before = known.acknowledged.get(&id).copied().flatten();
        assert!(found == version || found == before, "round {round}, {id}: {found:?}, written {version:?} over {before:?}");
        known.acknowledged.insert(id, found);
    }
    for (id, version) in &known.acknowledged {
        assert_eq!(stored.get(id).copied(), *version, "round {round}, {id}");
    }
}

#[test]
fn a_killed_server_keeps_what_it_acknowledged() {
    let writes = kill_again_and_again(&Place::folder_of_its_own(), 100);
    println!("100 kills under {writes} writes: nothing acknowledged was lost");
}

/// Here the server holds nothing: what is at stake is that a body is stored whole or not at all.
#[test]
fn a_killed_server_leaves_whole_bodies_in_a_database() {
    let writes = kill_again_and_again(&Place::database_of_its_own(), 15);
    println!("15 kills under {writes} writes: nothing acknowledged was lost");
}

/// A body may be stored in part here, and what was acknowledged is whole.
#[test]
fn a_killed_server_keeps_what_it_acknowledged_in_several_databases() {
    let writes = kill_again_and_again(&Place::databases_of_their_own(), 15);
    println!("15 kills under {writes} writes: nothing acknowledged was lost");
}

/// Returns the number of writes.
fn kill_again_and_again(place: &Place, rounds: u64) -> u64 {
    // A small threshold, so that graphs are built and saved, and torn, as well.
    let flags = [&place.flags()[..], &["--exact-below", "40", "--sessions", "1"]].concat();
    let mut server = Server::start(&flags);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    let mut known: Vec<Known> = (0..CLIENTS).map(|_| Known::default()).collect();
    let mut moments = StdRng::seed_from_u64(21);
    for round in 0..rounds {
        thread::scope(|scope| {
            for (client, known) in known.iter_mut().enumerate() {
                let (server, rng) = (&server, StdRng::seed_from_u64(round * 100 + client as u64));
                scope.spawn(move || write(server, client, known, rng));
            }
            thread::sleep(Duration::from_millis(moments.random_range(5..120)));
            server.signal("-KILL");
        });
        drop(server);
        server = Server::start(&flags);
        let stored = stored(&server);
        for known in &mut known {
            check(&stored, known, round, place.is_one_store());
        }
    }
    // The index agrees with the store.
    let stored = stored(&server);
    let all = server.post_json("/collections/c/search", &json!({ "vector": vector(1), "k": 1000 })).ok().json();
    assert_eq!(all["results"][0]["neighbors"].as_array().unwrap().len(), stored.len());
    let (id, version) = stored.iter().next().unwrap();
    let found: Vec<f32> = serde_json::from_value(server.get(&format!("/collections/c/items/{id}")).ok().json()["vector"].clone()).unwrap();
    let length = vector(*version).iter().map(|x| x * x).sum::<f32>().sqrt();
    assert_close(&found, &vector(*version).iter().map(|x| x / length).collect::<Vec<_>>());
    known.iter().map(|known| known.writes).sum()
}

/// Whether the collection is there, or was there before, it is so as a whole; and it can be restored again.
#[test]
fn a_killed_restore_into_several_databases_is_all_or_nothing() {
    const ALL: usize = 1500;
    const OLD: usize = 20;
    let [source, place] = [Place::folder_of_its_own(), Place::databases_of_their_own()];
    let copied = source.server(&[]);
    copied.post_json("/collections/c/items", &items(0..ALL, 1)).ok();
    let snapshot = copied.post("/collections/c/snapshot", "application/json", b"").ok().body.clone();
    drop(copied);
    let start = || Server::start(&[&place.flags()[..], &["--sessions", "1"]].concat());
    let restore =
        |server: &Server| server.attempt_with("POST", "/collections/c/restore?replace=true", "application/octet-stream", &snapshot);
    let mut server = start();
    let began = Instant::now();
    assert_eq!(restore(&server), Some(201));
    let usual = began.elapsed();
    let mut moments = StdRng::seed_from_u64(5);
    let mut found = BTreeMap::new();
    for round in 0..12 {
        // Over nothing, then over another collection, again and again.
        assert_eq!(server.delete("/collections/c").status, 204);
        let before = round % 2 * OLD;
        if before > 0 {
            assert_eq!(server.put("/collections/c", &json!({})).status, 201);
            server.post_json("/collections/c/items", &items(0..before, 0)).ok();
        }
        thread::scope(|scope| {
            let restoring = scope.spawn(|| restore(&server));
            thread::sleep(usual.mul_f64(moments.random_range(0.0..1.1)));
            server.signal("-KILL");
            let answer = restoring.join().unwrap();
            assert!([None, Some(201)].contains(&answer), "{answer:?}");
        });
        drop(server);
        server = start();
        let page = server.get("/collections/c/items?limit=1");
        let count = if page.status == 404 { 0 } else { neighbours(&server, &json!({ "vector": axis(1), "k": ALL })).len() };
        assert!([before, ALL].contains(&count), "round {round}: {count} of {ALL} items, {before} before");
        *found.entry(count).or_insert(0) += 1;
        assert_eq!(restore(&server), Some(201), "round {round}");
        let mut all = ids(&neighbours(&server, &json!({ "vector": axis(1), "k": 2 * ALL })));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), ALL, "round {round}");
    }
    println!("12 kills of restores: items found afterwards, and how often: {found:?}");
    // No part of what was cut off stays.
    let [_, urls] = place.store();
    for url in urls.split(',') {
        let left = "SELECT (SELECT count(*) FROM dino_collections), (SELECT count(*) FROM dino_leftovers), \
                    (SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname ~ '^dino_items_')";
        wait_for("nothing is left over", || shared().sql(name(url), left).trim() == "1|0|1");
    }
}
