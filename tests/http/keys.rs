//! Who may ask, for what, how much, from which pages, and how many at once.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::json;

use crate::{
    harness::{Answer, Server, program, tiny_model},
    pictures::{png, scene},
};

const FULL: &str = "full-0123456789abcdef";
const READ: &str = "read-0123456789abcdef";
const SLOW: &str = "slow-0123456789abcdef";

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

/// An embedding with a key.
fn embed(server: &Server, key: &str) -> Answer {
    server.post_with("/embed", &[("content-type", "image/png"), ("authorization", &bearer(key))], &png(&scene(20, 10, 1)))
}

#[test]
fn keys_open_what_they_are_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    fs_err::write(&file, format!("# two\nwriter {FULL} full\nreader {READ} read-only\n")).unwrap();
    let data = folder.path().join("data");
    let server = Server::start(&["--api-keys-file", file.to_str().unwrap(), "--data-dir", data.to_str().unwrap()]);
    let picture = png(&scene(20, 10, 1));

    for open in ["/", "/healthz", "/readyz"] {
        assert_eq!(server.get(open).status, 200, "{open}");
    }
    for closed in ["/v1/models", "/collections", "/nothing"] {
        server.get(closed).problem(401, "key_missing");
    }
    let refused = server.post("/embed", "image/png", &picture);
    refused.problem(401, "key_missing");
    assert_eq!(refused.header("www-authenticate"), "Bearer");
    for wrong in ["full-0123456789abcdeF", "full-0123456789abcde", "x"] {
        embed(&server, wrong).problem(401, "key_unknown");
    }
    let basic = [("content-type", "image/png"), ("authorization", "Basic abc")];
    server.post_with("/embed", &basic, &picture).problem(401, "key_missing");

    let ask = |key: &str, path: &str, body: &str| {
        server.post_with(path, &[("content-type", "application/json"), ("x-api-key", key)], body.as_bytes())
    };
    embed(&server, READ).ok();
    ask(READ, "/collections/c/items", "{}").problem(403, "key_read_only");
    ask(READ, "/collections/c/items/delete", "{}").problem(403, "key_read_only");
    ask(READ, "/collections/c/restore", "{}").problem(403, "key_read_only");
    ask(READ, "/collections/c/search", "{}").problem(404, "unknown_collection");
    ask(FULL, "/collections/c/items", "{}").problem(404, "unknown_collection");
    assert_eq!(server.attempt("PUT", "/collections/c", &json!({})), Some(401));
    embed(&server, FULL).ok();

    let log = server.log_with("reader");
    for secret in [FULL, READ, "abcdef"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[test]
fn a_key_has_its_share() {
    let keys = format!("a {SLOW} read-only requests=3 ; b {READ} read-only pixels=500");
    let server = Server::start(&["--api-keys", &keys]);
    for _ in 0..3 {
        embed(&server, SLOW).ok();
    }
    let answer = embed(&server, SLOW);
    answer.problem(429, "rate_limited");
    assert!((1..=60).contains(&answer.header("retry-after").parse::<u32>().unwrap()));
    // 200 pixels each: the third overdraws, the fourth has to wait. What is refused costs nothing.
    for _ in 0..3 {
        let no_picture = [("content-type", "image/png"), ("x-api-key", READ)];
        server.post_with("/embed", &no_picture, b"no picture").problem(422, "unknown_format");
        embed(&server, READ).ok();
    }
    embed(&server, READ).problem(429, "rate_limited");
}

#[test]
fn keys_that_cannot_be_used_are_not_repeated() {
    let model = tiny_model();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    let serve = |more: &[&str]| {
        let output = program().args(["serve", "--listen", "127.0.0.1:0", "--model", model.to_str().unwrap()]).args(more).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for content in [
        "",
        "# nobody yet",
        "x secretsecretsecret boss",
        "x secretsecretsecret full requests=0.5",
        "x secretsecretsecret full pixels=1e-20",
        "x secretsecretsecret full requests=0",
    ] {
        fs_err::write(&file, content).unwrap();
        let (code, text) = serve(&["--api-keys-file", file.to_str().unwrap()]);
        assert!(code == 1 && text.contains("--api-keys-file") && !text.contains("secret"), "{code} {text}");
    }
    assert_eq!(serve(&["--api-keys-file", "/nowhere"]).0, 1);
}

/// SIGHUP reads the file again, and a file that cannot be used changes nothing.
#[test]
fn keys_come_and_go_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    let write = |lines: &str| fs_err::write(&file, lines).unwrap();
    write(&format!("old {FULL} full\nslow {SLOW} read-only requests=1\n"));
    let given = format!("given {READ} read-only");
    let server = Server::start(&["--api-keys-file", file.to_str().unwrap(), "--api-keys", &given]);
    embed(&server, FULL).ok();
    embed(&server, SLOW).ok();

    let new = "new--0123456789abcdef";
    write(&format!("new {new} full\nslow {SLOW} read-only requests=1\n"));
    server.signal("-HUP");
    server.log_with("read again: 3 keys");
    embed(&server, new).ok();
    embed(&server, READ).ok();
    embed(&server, FULL).problem(401, "key_unknown");
    // What it has used up stays used up.
    embed(&server, SLOW).problem(429, "rate_limited");

    write("");
    server.signal("-HUP");
    server.log_with("the keys stay as they are");
    embed(&server, new).ok();
    server.post("/embed", "image/png", &png(&scene(9, 9, 1))).problem(401, "key_missing");
    assert!(!server.log().contains("abcdef"));
}

/// What browsers send for a page of another origin without asking first, and by another name of this machine.
#[test]
fn pages_of_other_origins_change_and_read_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::with_data(folder.path());
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    let picture = png(&scene(20, 10, 1));
    server.post("/collections/c/items?id=a", "image/png", &picture).ok();
    let snapshot = server.post("/collections/c/snapshot", "application/json", b"").ok().body.clone();

    let evil = ("origin", "https://evil.example");
    let plain = ("content-type", "text/plain");
    for (path, body) in [
        ("/collections/c/restore?replace=true", &snapshot),
        ("/collections/c/items?id=b", &picture),
        ("/collections/c/snapshot", &vec![]),
        ("/collections/c/items/delete", &b"{\"filter\":{\"field\":\"id\",\"exists\":true}}".to_vec()),
        ("/v1/models/tiny-model/reload", &vec![]),
        ("/embed", &picture),
    ] {
        for origin in [evil, ("origin", "null")] {
            server.post_with(path, &[plain, origin], body).problem(403, "origin_not_allowed");
        }
        server.post_with(path, &[plain, ("host", "evil.example")], body).problem(403, "host_not_allowed");
    }
    for path in ["/collections", "/collections/c/items/a", "/collections/c/items/a/image", "/collections/c/map", "/v1/models"] {
        server.get_with(path, &[evil]).problem(403, "origin_not_allowed");
        server.get_with(path, &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")]).problem(403, "origin_not_allowed");
        server.get_with(path, &[("host", "evil.example")]).problem(403, "host_not_allowed");
        server.get(path).ok();
    }
    for path in ["/", "/metrics", "/healthz"] {
        server.get_with(path, &[("host", "evil.example:80")]).problem(403, "host_not_allowed");
    }
    // The page itself, by each name of this machine, and what is no browser.
    let port = server.address().rsplit(':').next().unwrap().to_owned();
    for host in [server.address().to_owned(), format!("localhost:{port}"), "localhost:9000".to_owned()] {
        let own = format!("http://{host}");
        server.get_with("/collections", &[("host", &host), ("origin", &own)]).ok();
        let headers = [("content-type", "image/png"), ("host", host.as_str()), ("origin", own.as_str()), ("sec-fetch-site", "same-origin")];
        server.post_with("/embed", &headers, &picture).ok();
    }
    assert_eq!(server.get("/collections/c").ok().json()["count"], 1);

    let named = Server::start(&["--cors-origin", "https://app.example.org"]);
    let headers = [("content-type", "image/png"), ("origin", "https://app.example.org"), ("host", "app.example.org")];
    named.post_with("/embed", &headers, &picture).ok();
    named.post_with("/embed", &[plain, evil], &picture).problem(403, "origin_not_allowed");
    // A key says who asks, wherever the page is.
    let keys = format!("a {READ} read-only");
    let keyed = Server::start(&["--api-keys", &keys]);
    let headers = [("content-type", "image/png"), evil, ("host", "dino.example.org"), ("x-api-key", READ)];
    keyed.post_with("/embed", &headers, &picture).ok();
}

#[test]
fn pages_of_other_origins_ask_only_where_they_may() {
    let preflight = |server: &Server| {
        let mut socket = TcpStream::connect(server.address()).unwrap();
        socket
            .write_all(
                b"OPTIONS /embed HTTP/1.1\r\nhost: localhost\r\norigin: https://example.org\r\naccess-control-request-method: POST\r\n\
                  access-control-request-headers: content-type,authorization\r\nconnection: close\r\n\r\n",
            )
            .unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer.to_lowercase()
    };
    let keys = format!("a {READ} read-only");
    let open = Server::start(&["--cors-origin", "https://example.org", "--api-keys", &keys]);
    let answer = preflight(&open);
    assert!(answer.starts_with("http/1.1 200") && answer.contains("access-control-allow-origin: https://example.org"), "{answer}");
    assert!(answer.contains("authorization"));
    let closed = preflight(&Server::start(&[]));
    assert!(!closed.contains("access-control-allow-origin"), "{closed}");
}

#[test]
fn so_many_connections_and_no_more() {
    let server = Server::start(&["--max-connections", "4"]);
    // The harness keeps one open.
    let mut held: Vec<_> = (0..3).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
    let alive = |socket: &mut TcpStream| {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let _ = socket.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n");
        let mut buffer = [0; 4096];
        matches!(socket.read(&mut buffer), Ok(read) if read > 0)
    };
    assert!(held.iter_mut().all(alive));
    assert!(!alive(&mut TcpStream::connect(server.address()).unwrap()));
    server.log_with("--max-connections");
    held.clear();
    std::thread::sleep(Duration::from_millis(200));
    assert!(alive(&mut TcpStream::connect(server.address()).unwrap()));
}

#[test]
fn what_happens_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let keys = format!("a {FULL} full");
    let watched = ["--data-dir", folder.path().to_str().unwrap(), "--api-keys", &keys, "--metrics-listen", "127.0.0.1:0"];
    let server = Server::start(&watched);
    embed(&server, FULL).ok();
    let timing = embed(&server, FULL).header("server-timing").to_owned();
    for stage in ["decode", "transform", "queue", "infer"] {
        assert!(timing.contains(&format!("{stage};dur=")), "{timing}");
    }
    server.post("/embed", "image/png", b"x").problem(401, "key_missing");
    assert_eq!(server.attempt("PUT", "/collections/c", &json!({})), Some(401));
    // Metrics are on their port alone, and need no key there.
    server.post_with("/metrics", &[("x-api-key", FULL)], b"").problem(404, "unknown_route");
    let log = server.log_with("metrics on http://");
    let address = log.split("metrics on http://").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let fetch = |path: &str| ureq::get(format!("http://{address}{path}")).call().unwrap().body_mut().read_to_string().unwrap();
    assert!(fetch("/healthz").contains("tiny-model") && fetch("/readyz").contains("ready"));
    let with_id = ureq::get(format!("http://{address}/readyz")).header("x-request-id", "mine-7").call().unwrap();
    assert_eq!(with_id.headers()["x-request-id"], "mine-7");
    let text = fetch("/metrics");
    for line in [
        "dino_requests_total{route=\"/embed\",model=\"tiny-model\",status=\"200\"} 2",
        "dino_requests_total{route=\"/embed\",model=\"\",status=\"401\"} 1",
        "dino_pictures_total{model=\"tiny-model\"} 2",
        "dino_stage_seconds_count{model=\"tiny-model\",stage=\"inference\"} 2",
        "dino_stage_seconds_count{model=\"tiny-model\",stage=\"encode\"} 2",
        "dino_batch_pictures_sum{model=\"tiny-model\"} 2.0",
        "dino_queue_length{model=\"tiny-model\"} 0",
        "dino_pictures_inside 0",
        "dino_workers{model=\"tiny-model\",state=\"lost\"} 0",
        "device=\"cpu\"",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
    assert!(!text.contains(FULL));

    let data = tempfile::tempdir().unwrap();
    let plain = Server::with_data(data.path());
    assert_eq!(plain.put("/collections/c", &json!({})).status, 201);
    plain.post("/collections/c/items?id=x", "image/png", &png(&scene(9, 9, 1))).ok();
    plain.get("/collections/c/recall?queries=1").ok();
    let text = plain.get("/metrics").ok().text();
    assert!(text.contains("dino_collection_items{collection=\"c\",state=\"scanned\"} 1"), "{text}");
    assert!(text.contains("dino_index_recall{collection=\"c\"} 1.0"), "{text}");
}
