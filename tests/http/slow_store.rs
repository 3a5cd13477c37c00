//! Slow work on one collection, and everything else that goes on meanwhile.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use dino_server::index::{Collection, EmbeddedStore, IndexOptions, Item, ModelTag, NewItem, Spec};
use dino_vision::{embedding::Pooling, model::Model};
use serde_json::{Value, json};

use crate::{
    harness::{Server, TIMEOUT, tiny_model},
    pictures::{png, scene},
};

/// Of the tiny model.
const DIM: usize = 32;
/// Items of the collection that the slow work is about.
const LARGE: usize = 24_000;
/// What a watch asks for too, for the sake of those beside it.
const WRITING: &str = "an upsert";
/// A short answer may take as long on a busy machine, however short the work beside it is.
const SHORT: Duration = Duration::from_secs(1);

fn vector(number: usize) -> Vec<f32> {
    (0..DIM).map(|at| ((number * 37 + at * at * 11 + 1) as f32).sin()).collect()
}

fn items(count: usize) -> impl Iterator<Item = NewItem> {
    let item = |number: usize| Item { id: format!("{number:06}"), labels: vec![format!("{}", number % 9)], ..Item::default() };
    (0..count).map(move |number| NewItem { item: item(number), vector: vector(number), thumbnail: None, patches: None })
}

/// A data folder with a collection of so many items, and a small one beside it.
fn folder(large: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let options = IndexOptions { exact_below: usize::MAX, build_in_background: false, ..IndexOptions::default() };
    let store = EmbeddedStore::open(folder.path(), options).unwrap();
    let fingerprint = Model::open(&tiny_model()).unwrap().fingerprint(Pooling::Cls);
    let spec = Spec::pictures(DIM, ModelTag { fingerprint, precision: None });
    for (name, count) in [("large", large), ("other", 20)] {
        let (collection, _) = store.create(&name.parse().unwrap(), spec.clone()).unwrap();
        collection.upsert(items(count).collect()).unwrap();
    }
    folder
}

fn serve(folder: &Path, flags: &[&str]) -> Server {
    let flags = [&["--data-dir", folder.to_str().unwrap()], flags].concat();
    Server::without_waiting(&[tiny_model().to_str().unwrap()], &flags)
}

fn upsert(count: usize) -> Value {
    let items: Vec<_> = (0..count).map(|number| json!({"id": format!("n{number}"), "vector": vector(number + 7)})).collect();
    json!({ "items": items })
}

/// Sends various requests until it is stopped; keeps the longest time that an answer took.
struct Watch<'a> {
    server: &'a Server,
    picture: Vec<u8>,
    stop: AtomicBool,
    worst: Mutex<(Duration, &'static str)>,
}

impl Watch<'_> {
    /// Since the last look.
    fn worst(&self) -> (Duration, &'static str) {
        std::mem::take(&mut self.worst.lock().unwrap())
    }

    fn ask(&self, what: &'static str) {
        let query = json!({"vector": vector(3), "k": 3});
        while !self.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let answer = match what {
                "/healthz" => self.server.get("/healthz"),
                "/embed" => self.server.post("/embed", "image/png", &self.picture),
                "a search" => self.server.post_json("/collections/other/search", &query),
                _ => self.server.post_json("/collections/other/items", &upsert(1)),
            };
            let took = begun.elapsed();
            assert_eq!(answer.status, 200, "{what}: {}", answer.text());
            let mut worst = self.worst.lock().unwrap();
            // One transaction writes at a time, so that a write waits for that of another collection.
            if what != WRITING && took > worst.0 {
                *worst = (took, what);
            }
            drop(worst);
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Stops the threads of a watch, also where the test ends early.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// An index is built all the while, and each of the other slow operations comes once.
/// A name, and what is asked of the server.
type Operation<'a> = (&'a str, &'a dyn Fn(&Server));

#[test]
fn nothing_waits_for_slow_work_on_another_collection() {
    let folder = folder(LARGE);
    let server = serve(folder.path(), &["--exact-below", "5000"]);
    let asked = Instant::now();
    while server.get("/readyz").status != 200 {
        assert!(asked.elapsed() < TIMEOUT, "not ready: {}", server.log());
        thread::sleep(Duration::from_millis(20));
    }
    let watch = Watch { server: &server, picture: png(&scene(40, 40, 1)), stop: AtomicBool::new(false), worst: Mutex::default() };
    let snapshot = server.post("/collections/large/snapshot", "application/json", b"");
    assert_eq!(snapshot.status, 200);
    thread::scope(|scope| {
        let _stop = Stop(&watch.stop);
        for what in ["/healthz", "/embed", "a search", "a search", "a search", WRITING] {
            let watch = &watch;
            scope.spawn(move || watch.ask(what));
        }
        let create = |server: &Server| {
            for number in 0..5 {
                assert_eq!(server.put(&format!("/collections/new{number}"), &json!({})).status, 201);
            }
        };
        let restored = |server: &Server| {
            let made = server.post("/collections/copy/restore?replace=true", "application/octet-stream", &snapshot.body);
            assert_eq!((made.status, &made.json()["count"]), (201, &json!(LARGE)));
        };
        let import = |server: &Server| {
            server.post_json("/collections/copy/items", &upsert(3000)).ok();
        };
        let measure = |server: &Server| {
            server.get("/collections/large/recall?queries=20").ok();
        };
        let map = |server: &Server| {
            server.get("/collections/large/map?points=200").ok();
        };
        let write = |server: &Server| {
            server.post("/collections/large/snapshot", "application/json", b"").ok();
        };
        let reload = |server: &Server| {
            server.post("/v1/models/tiny-model/reload", "application/json", b"").ok();
        };
        let clear = |server: &Server| {
            let filter = json!({"filter": {"field": "id", "in": (0..5000).map(|n| format!("{n:06}")).collect::<Vec<_>>()}});
            assert_eq!(server.post_json("/collections/copy/items/delete", &filter).ok().json()["deleted"], 5000);
        };
        let delete = |server: &Server| assert_eq!(server.delete("/collections/copy").status, 204);
        let operations: [Operation<'_>; 10] = [
            ("create", &create),
            ("restore", &restored),
            ("restore in place of another", &restored),
            ("import", &import),
            ("delete by a filter", &clear),
            ("snapshot", &write),
            ("recall", &measure),
            ("map", &map),
            ("reload", &reload),
            ("delete", &delete),
        ];
        // With nothing but the index beside them: how busy this machine is.
        thread::sleep(Duration::from_secs(1));
        let usual = SHORT.max(watch.worst().0 * 5);
        for (name, operation) in operations {
            watch.worst();
            let begun = Instant::now();
            operation(&server);
            let (took, (worst, what)) = (begun.elapsed(), watch.worst());
            println!("{name}: {took:?}, the slowest answer meanwhile: {what} in {worst:?}");
            assert!(worst < usual.max(took / 2), "{name} took {took:?}, and {what} {worst:?} meanwhile");
        }
    });
}

/// A due index is built after the server listens, and until it is there a search is exact.
#[test]
fn a_server_listens_before_it_loads_and_builds() {
    let folder = folder(LARGE);
    let server = serve(folder.path(), &["--exact-below", "5000"]);
    let query = json!({"vector": vector(5), "k": 1});
    let begun = Instant::now();
    let mut waited = 0;
    loop {
        server.get("/healthz").ok();
        let (ready, answer) = (server.get("/readyz"), server.post_json("/collections/large/search", &query));
        if answer.status == 200 {
            assert_eq!(answer.json()["results"][0]["neighbors"][0]["id"], "000005");
            break;
        }
        waited += 1;
        assert_eq!(ready.problem(503, "not_ready")["status"], 503);
        answer.problem(503, "not_ready");
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
        assert!(begun.elapsed() < TIMEOUT, "never loaded: {}", server.log());
    }
    println!("{waited} searches came before the collection was loaded");
    let index = server.get("/collections/large").ok().json()["index"].clone();
    assert_eq!((&index["kind"], &index["indexed"]), (&json!("exact"), &json!(0)), "{index}");
    let log = server.log();
    assert!(log.find("listening on") < log.find("index built").or(Some(usize::MAX)), "{log}");
}

/// No write comes after those that arrived while an index was built.
#[test]
fn rows_that_come_while_an_index_is_built_are_indexed_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&["--data-dir", folder.path().to_str().unwrap(), "--exact-below", "100"]);
    server.put("/collections/c", &json!({}));
    let items = |range: std::ops::Range<usize>| json!({ "items": range.map(|number| json!({"id": format!("{number}"), "vector": vector(number)})).collect::<Vec<_>>() });
    server.post_json("/collections/c/items", &items(0..400)).ok();
    server.post_json("/collections/c/items", &items(400..900)).ok();
    let begun = Instant::now();
    loop {
        let index = server.get("/collections/c").ok().json()["index"].clone();
        if index["indexed"] == 900 {
            break;
        }
        assert!(begun.elapsed() < TIMEOUT, "{index}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A sender that keeps its connection and sends no more holds up no other restore, and one that leaves leaves nothing behind.
#[test]
fn a_slow_restore_does_not_delay_other_restores() {
    let folder = folder(500);
    let server = Server::with_data(folder.path());
    let snapshot = server.post("/collections/large/snapshot", "application/json", b"").ok().body.clone();
    let begin = |name: &str| {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        let head = format!("POST /collections/{name}/restore HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", snapshot.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&snapshot[..snapshot.len() / 2]).unwrap();
        stream
    };
    let mut slow = begin("slow");
    let quick = server.post("/collections/quick/restore", "application/octet-stream", &snapshot);
    assert_eq!(quick.status, 201, "{}", quick.text());
    // More than there are places for.
    let mut more: Vec<_> = (0..3).map(|number| begin(&format!("slow{number}"))).collect();
    let begun = Instant::now();
    loop {
        let refused = server.post("/collections/refused/restore?replace=true", "application/octet-stream", &snapshot);
        if refused.status == 429 {
            assert!(refused.problem(429, "queue_full")["detail"].as_str().unwrap().contains("try again"));
            break;
        }
        assert!(begun.elapsed() < TIMEOUT, "{}", refused.text());
        // It was quicker than one of the others, whose place it had for a moment.
        more.push(begin("slow"));
    }
    drop(more);
    slow.write_all(&snapshot[snapshot.len() / 2..]).unwrap();
    let mut status = [0; 12];
    slow.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 201");
    // Their permits are released and their files deleted.
    loop {
        let scratch = fs_err::read_dir(folder.path()).unwrap().filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_str().unwrap().starts_with(".scratch")
        });
        let again = server.post("/collections/again/restore?replace=true", "application/octet-stream", &snapshot);
        if scratch.count() == 0 && again.status == 201 {
            break;
        }
        assert!(begun.elapsed() < TIMEOUT, "{}", again.text());
        thread::sleep(Duration::from_millis(50));
    }
}

/// Two restores of a key that do not go on are half of all places: its third is refused, and another key restores.
#[test]
fn one_key_holds_half_of_the_restores() {
    const KEYS: [(&str, &str); 2] = [("x-api-key", "0123456789-slow-key"), ("x-api-key", "0123456789-quick-key")];
    let folder = folder(500);
    let keys = format!("slow {} full; quick {} full", KEYS[0].1, KEYS[1].1);
    let server = Server::start(&["--data-dir", folder.path().to_str().unwrap(), "--api-keys", &keys]);
    let snapshot = server.post_with("/collections/large/snapshot", &[KEYS[0]], b"").ok().body.clone();
    let begin = |number: usize| {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        let (name, key) = KEYS[0];
        let length = snapshot.len();
        let head = format!(
            "POST /collections/slow{number}/restore HTTP/1.1\r\nHost: localhost\r\n{name}: {key}\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&snapshot[..snapshot.len() / 2]).unwrap();
        stream
    };
    let mut slow: Vec<_> = (0..2).map(begin).collect();
    let restore = |key| server.post_with("/collections/quick/restore?replace=true", &[key], &snapshot);
    let begun = Instant::now();
    loop {
        let refused = restore(KEYS[0]);
        if refused.status == 429 {
            let problem = refused.problem(429, "rate_limited");
            assert!(problem["detail"].as_str().unwrap().contains("2 other snapshots of this API key"), "{problem}");
            break;
        }
        assert!(begun.elapsed() < TIMEOUT, "{}", refused.text());
        // It was quicker than one of the slow ones, whose place it had for a moment.
        slow.push(begin(slow.len()));
    }
    let restored = restore(KEYS[1]);
    assert_eq!(restored.status, 201, "{}", restored.text());
    drop(slow);
    while restore(KEYS[0]).status != 201 {
        assert!(begun.elapsed() < TIMEOUT, "its places never came back");
        thread::sleep(Duration::from_millis(50));
    }
}
