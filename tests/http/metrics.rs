//! `/metrics` and `/readyz`, as agents and probes ask for them.

use std::{
    collections::BTreeSet,
    io::Write,
    net::TcpListener,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    harness::{Server, python},
    pictures::{png, scene},
    place::{Place, on_every_store},
    postgres::{database, shared},
    sharded::name,
    shared::{end, wait_for},
};

const DIM: usize = 32;
/// Longer than any count is kept.
const KEPT: Duration = Duration::from_mins(6);

on_every_store!(series_go_with_their_collection, scrapers_see_no_gaps);

fn text(server: &Server) -> String {
    server.get("/metrics").ok().text()
}

/// Waits until `/metrics` shows something: counts that took the database long are kept for a while.
fn shows(server: &Server, what: &str, is_so: impl Fn(&str) -> bool) {
    let began = Instant::now();
    loop {
        let shown = text(server);
        if is_so(&shown) {
            return;
        }
        assert!(began.elapsed() < KEPT, "not so: {what}: {shown}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Samples by name and labels, without those that a look at them changes.
fn samples(shown: &str) -> BTreeSet<String> {
    let lines = shown.lines().filter(|line| !line.starts_with('#') && !line.contains("/metrics"));
    lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
}

/// D11.
fn series_go_with_their_collection(place: &Place) {
    let server = place.server(&["--sessions", "1"]);
    let fill = |name: &str| {
        assert_eq!(server.put(&format!("/collections/{name}"), &json!({})).status, 201);
        let items: Vec<_> =
            (0..5).map(|i| json!({ "vector": (0..DIM).map(|j| if i == j { 1.0 } else { 0.1 }).collect::<Vec<_>>() })).collect();
        server.post_json(&format!("/collections/{name}/items"), &json!({ "items": items })).ok();
        server.get(&format!("/collections/{name}/recall?queries=2")).ok();
        server.post_json(&format!("/collections/{name}/search"), &json!({ "vector": vec![1.0; DIM] })).ok();
    };
    fill("first");
    assert_eq!(server.delete("/collections/first").status, 204);
    shows(&server, "first is gone", |shown| shown.contains("dino_collections_age_seconds") && !shown.contains("\"first\""));
    let before = samples(&text(&server));
    for number in 0..20 {
        fill(&format!("x{number}"));
        let recall = format!("dino_index_recall{{collection=\"x{number}\"}}");
        let items = format!("dino_collection_items{{collection=\"x{number}\",state=\"scanned\"}} 5\n");
        shows(&server, &items, |shown| shown.contains(&recall) && shown.contains(&items));
        assert_eq!(server.delete(&format!("/collections/x{number}")).status, 204);
    }
    shows(&server, "they are gone", |shown| samples(shown) == before);
    // Made again, it has not been measured yet.
    fill("x0");
    let snapshot = server.post("/collections/x0/snapshot", "application/json", b"").ok().body.clone();
    assert_eq!(server.post("/collections/x0/restore?replace=true", "application/octet-stream", &snapshot).status, 201);
    let is_unmeasured = |shown: &str| shown.contains("dino_collection_items{collection=\"x0\"") && !shown.contains("dino_index_recall{");
    shows(&server, "x0 is another", is_unmeasured);
}

fn scrapers_see_no_gaps(place: &Place) {
    let server = place.server(&["--sessions", "1"]);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let shown = text(&server);
                    assert!(shown.contains("dino_collection_items{collection=\"c\",state=\"indexed\"} 0\n"), "{shown}");
                }
            });
        }
    });
}

/// A count that waited long for its table is not made again for the next scrape.
#[test]
fn slow_counts_are_rare() {
    let url = database();
    let server = Server::start(&["--index", &url, "--sessions", "1"]);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    let store = || {
        server.post_json("/collections/c/items", &json!({ "items": [{ "vector": vec![1.0; DIM] }] })).ok();
    };
    let items = |count: usize| format!("dino_collection_items{{collection=\"c\",state=\"scanned\"}} {count}\n");
    let is_counted = |count: usize| {
        let shown = text(&server);
        assert!(shown.contains(&items(count)), "not {count}: {shown}");
    };
    for count in 1..3 {
        store();
        shows(&server, &items(count), |shown| shown.contains(&items(count)));
    }
    let session = shared().session(name(&url), "BEGIN; LOCK TABLE dino_items_1 IN ACCESS EXCLUSIVE MODE");
    // The answer waits for some seconds, and has what was known before.
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    wait_for("a count waits", || {
        is_counted(2);
        shared().sql(name(&url), waiting).trim() != "0"
    });
    end(session);
    is_counted(2);
    store();
    is_counted(2);
}

/// D03: each agent gets a format that it reads, with the same values.
#[test]
fn agents_get_the_format_that_they_read() {
    const READ: &str = "import sys, importlib
kind = sys.argv[1]
parser = importlib.import_module('prometheus_client.' + ('openmetrics.parser' if 'openmetrics' in kind else 'parser'))
families = list(parser.text_string_to_metric_families(sys.stdin.read()))
assert families
lines = []
for family in families:
    assert family.type != 'unknown' and family.documentation, family
    for sample in family.samples:
        assert sample.name.startswith(family.name), sample
        lines.append((sample.name, sorted(sample.labels.items())))
for line in sorted(lines): print(*line)";
    let place = Place::folder_of_its_own();
    let server = place.server(&["--sessions", "1", "--metrics-listen", "127.0.0.1:0"]);
    server.post("/embed", "image/png", &png(&scene(30, 30, 1))).ok();
    let log = server.log_with("metrics on http://");
    let watch = log.split("metrics on http://").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let open = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let plain = "text/plain; version=0.0.4; charset=utf-8";
    let mut seen = BTreeSet::new();
    for (accept, kind) in [
        (None, open),
        (Some("*/*"), open),
        (Some("text/plain;version=0.0.4"), plain),
        (Some("application/openmetrics-text;version=1.0.0"), open),
        (Some("application/openmetrics-text;version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"), open),
        (
            Some(
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,text/plain;version=0.0.4;q=0.3",
            ),
            plain,
        ),
        (Some("image/png"), open),
    ] {
        let agent = ureq::agent();
        let mut request = agent.get(format!("http://{watch}/metrics"));
        if let Some(accept) = accept {
            request = request.header("accept", accept);
        }
        let mut answer = request.call().unwrap();
        assert_eq!(answer.headers()["content-type"], kind, "{accept:?}");
        let body = answer.body_mut().read_to_string().unwrap();
        assert_eq!(body.ends_with("# EOF\n"), kind == open);
        let mut reader = Command::new(python());
        reader.args(["-c", READ, kind]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut reader = reader.spawn().unwrap();
        reader.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
        let read = reader.wait_with_output().unwrap();
        assert!(read.status.success(), "{accept:?}: {}\n{body}", String::from_utf8_lossy(&read.stderr));
        seen.insert(String::from_utf8(read.stdout).unwrap());
    }
    let shown: Vec<&str> = seen.iter().map(String::as_str).collect();
    assert_eq!(seen.len(), 1, "{}", shown.join("\n---\n"));
    assert!(seen.first().unwrap().contains("dino_panics_total"));
}

/// A database that takes connections and never says a word.
#[test]
fn probes_of_a_store_that_hangs_take_no_threads() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://u@127.0.0.1:{}/d?sslmode=disable", silent.local_addr().unwrap().port());
    let server = Server::without_waiting(&[crate::harness::tiny_model().to_str().unwrap()], &["--index", &url, "--sessions", "1"]);
    // The model starts first.
    let begun = Instant::now();
    while server.get("/readyz").json()["code"] == "not_ready" {
        assert!(begun.elapsed() < Duration::from_mins(1), "the model does not start");
        thread::sleep(Duration::from_millis(50));
    }
    server.get("/readyz").problem(503, "store_unreachable");
    let before = server.threads();
    thread::scope(|scope| {
        let probes: Vec<_> = (0..60).map(|_| scope.spawn(|| server.get("/readyz").status)).collect();
        thread::sleep(Duration::from_millis(500));
        let during = server.threads();
        // Some may still be starting; a thread for each probe would be sixty.
        assert!(during <= before + 25, "{before} threads, then {during}");
        let began = Instant::now();
        assert_eq!(server.get("/healthz").status, 200);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        for probe in probes {
            assert_eq!(probe.join().unwrap(), 503);
        }
    });
    drop(silent);
}

/// Tables that cannot go yet are waited for by one thread with one connection, however many collections are deleted.
#[test]
fn clearing_up_takes_one_connection() {
    let url = database();
    let name = url.split(['/', '?']).nth(3).unwrap().to_owned();
    let server = Server::start(&["--index", &url, "--sessions", "1"]);
    for number in 0..20 {
        assert_eq!(server.put(&format!("/collections/c{number}"), &json!({})).status, 201);
    }
    let mut holds = shared().session(&name, "BEGIN; LOCK TABLE dino_items_1 IN ACCESS SHARE MODE");
    let before = server.threads();
    for number in 0..20 {
        assert_eq!(server.delete(&format!("/collections/c{number}")).status, 204);
    }
    let apart = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%DROP TABLE%' AND pid <> pg_backend_pid()";
    let connections: u64 = shared().sql(&name, apart).trim().parse().unwrap();
    let threads = server.threads();
    assert!(connections <= 1 && threads <= before + 4, "{connections} connections, {before} and {threads} threads");
    drop(holds.stdin.take());
    holds.wait().unwrap();
    let began = Instant::now();
    while shared().sql(&name, "SELECT count(*) FROM pg_class WHERE relname ~ '^dino_items_[0-9]+$'").trim() != "0" {
        assert!(began.elapsed() < Duration::from_secs(30), "tables of deleted collections stay");
        thread::sleep(Duration::from_millis(200));
    }
}
