//! Clients that send requests and do not read the answers: the memory that they hold is bounded, and released.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    deadlines::{restarted, with_items},
    harness::{Answer, Server, TIMEOUT},
};

const PAGE: &str = "/collections/c/items?limit=1000";
const SNAPSHOT: &str = "/collections/c/snapshot";

/// A server with 18 MB of items, which no socket's buffers hold.
fn with_much(flags: &[&str]) -> (tempfile::TempDir, Server) {
    with_items(flags, 300, &json!({ "text": "x".repeat(60_000) }))
}

/// Asks, and reads no more than the status.
fn ask(server: &Server, method: &str, path: &str, headers: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 200", "{path}");
    stream
}

/// Asks until the answer has this status.
#[track_caller]
fn until(status: u16, mut ask: impl FnMut() -> Answer) -> Answer {
    let began = Instant::now();
    loop {
        let answer = ask();
        if answer.status == status {
            return answer;
        }
        assert!(began.elapsed() < TIMEOUT / 2, "still {}, not {status}: {}", answer.status, answer.header("content-length"));
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_client_that_does_not_read_holds_no_more_than_there_is_and_is_cut_off() {
    let (folder, server) = with_much(&["--write-timeout", "600", "--answer-memory", "24M", "--scratch-space", "24M"]);
    let page = |server: &Server| server.get(PAGE);
    let snapshot = |server: &Server| server.post(SNAPSHOT, "application/json", b"");
    let requests = [("GET", PAGE, &page as &dyn Fn(&Server) -> Answer), ("POST", SNAPSHOT, &snapshot)];
    for (method, path, again) in requests {
        let again = || again(&server);
        let reader = ask(&server, method, path, "");
        let refused = until(429, again);
        refused.problem(429, "queue_full");
        assert!(refused.header("retry-after").parse::<u32>().unwrap() > 0);
        // A client that leaves gives it back at once.
        drop(reader);
        until(200, again);
    }

    let server = restarted(&folder, server, &["--write-timeout", "2", "--answer-memory", "24M", "--scratch-space", "24M"]);
    for (closed, (method, path, again)) in requests.into_iter().enumerate() {
        let whole = again(&server).ok().body.len();
        let mut reader = ask(&server, method, path, "");
        let began = Instant::now();
        while server.log().matches("a connection was closed: its client took").count() == closed {
            assert!(began.elapsed() < TIMEOUT, "{path}: never cut off");
            thread::sleep(Duration::from_millis(50));
        }
        // What it held is free.
        until(200, || again(&server));
        let mut rest = Vec::new();
        // Either way it ends.
        let _ = reader.read_to_end(&mut rest);
        assert!(rest.len() < whole, "{path}: all {whole} bytes were waiting");
    }
}

#[test]
fn one_key_holds_half_of_it_and_no_answer_more_than_that() {
    const FULL: (&str, &str) = ("x-api-key", "0123456789-full-key");
    const ONE: (&str, &str) = ("x-api-key", "0123456789-reader-key");
    let (folder, server) = with_much(&[]);
    server.signal("-TERM");
    assert!(server.end().0.success());
    let keys = format!("full {} full; one {} read-only", FULL.1, ONE.1);
    let flags = |memory: &'static str| {
        let data = folder.path().to_str().unwrap();
        Server::start(&["--data-dir", data, "--api-keys", &keys, "--answer-memory", memory, "--scratch-space", memory])
    };
    let server = flags("40M");
    let header = format!("{}: {}\r\n", ONE.0, ONE.1);
    let readers = [ask(&server, "GET", PAGE, &header), ask(&server, "POST", SNAPSHOT, &header)];
    for key in [ONE, FULL] {
        let page = || server.get_with(PAGE, &[key]);
        let snapshot = || server.post_with(SNAPSHOT, &[key], b"");
        if key == ONE {
            until(429, page).problem(429, "rate_limited");
            until(429, snapshot).problem(429, "rate_limited");
        } else {
            page().ok();
            snapshot().ok();
        }
    }
    drop(readers);
    let whole = server.post_with(SNAPSHOT, &[FULL], b"").ok().body.clone();
    drop(server);

    let server = flags("16M");
    server.get_with(PAGE, &[ONE]).problem(400, "answer_too_large");
    server.post_with(SNAPSHOT, &[ONE], b"").problem(400, "answer_too_large");
    server.get_with("/collections/c/items?limit=50", &[ONE]).ok();
    let problem = server.post_with("/collections/copy/restore", &[FULL], &whole).problem(413, "body_too_large");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("--scratch-space") && detail.contains("dino-server restore"), "{detail}");
}

#[test]
fn a_page_ends_early_where_its_items_are_large() {
    let (_folder, server) = with_much(&[]);
    let (mut items, mut pages, mut cursor) = (0, 0, String::new());
    loop {
        let page = server.get(&format!("{PAGE}{cursor}")).ok().json();
        items += page["items"].as_array().unwrap().len();
        pages += 1;
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!((items, pages), (300, 2));
}
