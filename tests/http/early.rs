//! Bodies that are announced and do not come, and answers that are known before a body has come.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    harness::{BOUNDARY, Server, TIMEOUT, root},
    pictures::{png, scene},
};

const FULL: &str = "full-0123456789abcdef";
const READ: &str = "read-0123456789abcdef";
/// More than the sockets of both sides hold, so that it cannot be sent before it is read.
const LARGE: usize = 16 << 20;

fn connect(server: &Server) -> TcpStream {
    let socket = TcpStream::connect(server.address()).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket.set_write_timeout(Some(TIMEOUT)).unwrap();
    socket
}

/// One answer with a `content-length`; its status, and its body.
fn answer_of(socket: &mut TcpStream) -> (u16, String) {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = socket.read(&mut buffer).unwrap_or_else(|error| panic!("{error} after {:?}", String::from_utf8_lossy(&text)));
        text.extend(&buffer[..read]);
        let so_far = String::from_utf8_lossy(&text);
        if let Some((head, body)) = so_far.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok());
            if read == 0 || length.is_some_and(|length| body.len() >= length) {
                return (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned());
            }
        }
        assert!(read > 0, "closed after {so_far:?}");
    }
}

#[test]
fn what_is_announced_is_not_set_aside() {
    let server = Server::start(&["--max-body", "32M", "--body-memory", "64M"]);
    let picture = png(&scene(20, 20, 1));
    server.embed(&picture);
    let before = server.reserved_memory();
    let mut held: Vec<_> = (0..40).map(|_| connect(&server)).collect();
    for socket in &mut held {
        let head = b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\ncontent-length: 33554432\r\n\r\nx";
        socket.write_all(head).unwrap();
    }
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(500) {
        let grown = server.reserved_memory().saturating_sub(before);
        assert!(grown < 320 << 20, "{} MB for 40 bytes", grown >> 20);
        std::thread::sleep(Duration::from_millis(50));
    }
    // Nor do they keep other clients from connecting.
    server.embed(&picture);
}

#[test]
fn a_process_without_file_descriptors_says_so_and_goes_on() {
    let server = Server::start(&[]);
    let open = fs_err::read_dir(format!("/proc/{}/fd", server.id())).unwrap().count() + 3;
    let limited = Command::new("prlimit").args(["--pid", &server.id().to_string(), &format!("--nofile={open}:{open}")]).status().unwrap();
    assert!(limited.success());
    let held: Vec<_> = (0..12).map(|_| connect(&server)).collect();
    server.log_with("no file descriptors left");
    drop(held);
    server.get("/healthz").ok();
}

/// A request with a large body, of a known length or in chunks, whose answer must arrive.
fn send_all(server: &Server, head: &str, in_chunks: bool) -> (u16, String) {
    let mut socket = connect(server);
    let head = head.replace('\n', "\r\n");
    let block = vec![b'x'; 1 << 16];
    if in_chunks {
        write!(socket, "{head}transfer-encoding: chunked\r\n\r\n").unwrap();
        for _ in 0..LARGE / block.len() {
            write!(socket, "{:x}\r\n", block.len()).unwrap();
            socket.write_all(&block).unwrap_or_else(|error| panic!("{head}: {error}"));
            write!(socket, "\r\n").unwrap();
        }
        write!(socket, "0\r\n\r\n").unwrap();
    } else {
        write!(socket, "{head}content-length: {LARGE}\r\n\r\n").unwrap();
        for _ in 0..LARGE / block.len() {
            socket.write_all(&block).unwrap_or_else(|error| panic!("{head}: {error}"));
        }
    }
    let answer = answer_of(&mut socket);
    // The connection goes on where the body has an end that was reached.
    write!(socket, "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    assert_eq!(answer_of(&mut socket).0, 200, "{head}");
    answer
}

#[test]
fn answers_that_are_known_early_reach_the_client() {
    let folder = tempfile::tempdir().unwrap();
    let keys = format!("a {FULL} full; b {READ} read-only");
    let server = Server::start(&["--max-body", "1M", "--api-keys", &keys, "--data-dir", folder.path().to_str().unwrap()]);
    let png = "content-type: image/png";
    for (line, headers, key, status, code) in [
        ("POST /nothing", png, FULL, 404, "unknown_route"),
        ("PUT /embed", png, FULL, 405, "method_not_allowed"),
        ("POST /healthz", png, FULL, 405, "method_not_allowed"),
        ("POST /embed", png, "", 401, "key_missing"),
        ("POST /embed", png, "wrong-0123456789abcdef", 401, "key_unknown"),
        ("POST /collections/c/items", png, READ, 403, "key_read_only"),
        ("POST /embed", png, FULL, 413, "body_too_large"),
        ("POST /embed", "content-type: text/plain", FULL, 415, "unsupported_media_type"),
        ("POST /embed?pooling=x", png, FULL, 400, "bad_parameter"),
        ("POST /collections/c/snapshot", png, FULL, 404, "unknown_collection"),
        ("POST /collections/c/restore?replace=x", png, FULL, 400, "bad_parameter"),
        ("POST /v1/models/none/reload", png, FULL, 404, "unknown_model"),
        ("DELETE /collections/c", png, FULL, 404, "unknown_collection"),
        ("GET /collections/c", png, FULL, 404, "unknown_collection"),
    ] {
        let key = if key.is_empty() { String::new() } else { format!("x-api-key: {key}\n") };
        let head = format!("{line} HTTP/1.1\nhost: localhost\n{headers}\n{key}");
        for in_chunks in [false, true] {
            let (answered, body) = send_all(&server, &head, in_chunks);
            assert!(answered == status && body.contains(code), "{head}: {answered} {body}");
        }
        // A client that waits for 100 Continue gets the answer alone.
        let mut waiting = connect(&server);
        write!(waiting, "{}expect: 100-continue\r\ncontent-length: {LARGE}\r\n\r\n", head.replace('\n', "\r\n")).unwrap();
        assert_eq!(answer_of(&mut waiting).0, status, "{head}");
    }
}

#[test]
fn a_full_queue_is_told_to_those_who_send_much() {
    let server = Server::start(&["--queue", "1", "--max-pictures", "1", "--sessions", "1"]);
    let kind = format!("content-type: multipart/form-data; boundary={BOUNDARY}");
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let large = png(&scene(2500, 2500, 1));
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                server.post("/segment?method=ncut", "image/png", &large);
            }
        });
        let began = Instant::now();
        let refused = || {
            let (status, _) = send_all(&server, &format!("POST /embed HTTP/1.1\nhost: localhost\n{kind}\n"), false);
            assert!([400, 429].contains(&status), "{status}");
            status == 429
        };
        while !refused() {
            assert!(began.elapsed() < TIMEOUT);
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// The client that lost most answers.
#[test]
fn nodes_fetch_gets_answers_that_are_known_early() {
    let server = Server::start(&["--max-body", "1M"]);
    let program = root().join("tests/clients/early.mjs");
    let output = Command::new("node").arg(program).arg(server.address()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<(u16, String)> = serde_json::from_slice(&output.stdout).unwrap();
    let wanted = [(404, "unknown_route"), (405, "method_not_allowed"), (413, "body_too_large"), (415, "unsupported_media_type")];
    assert_eq!(json!(answers), json!(wanted.repeat(3)));
}
