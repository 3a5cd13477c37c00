//! One deadline for a request, and work that stops when its caller has left.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    harness::{BOUNDARY, Server, TIMEOUT, multipart},
    pictures::{noise, png, scene},
};

/// Sends a head that announces `length` bytes.
fn announce(server: &Server, path: &str, kind: &str, length: usize) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

/// The status of the answer.
fn status(stream: &mut TcpStream) -> u16 {
    let mut line = [0; 12];
    stream.read_exact(&mut line).unwrap();
    std::str::from_utf8(&line[9..]).unwrap().parse().unwrap()
}

#[test]
fn reading_the_body_counts_against_the_deadline() {
    let server = Server::start(&["--request-timeout", "10", "--sessions", "1"]);
    // Work for much longer than the two seconds that the body leaves of it.
    let picture = png(&noise(300, 300, 1));
    let body = multipart(&vec![("image", picture.as_slice()); 60]);
    let began = Instant::now();
    let mut stream = announce(&server, "/segment", &format!("multipart/form-data; boundary={BOUNDARY}"), body.len());
    thread::sleep(Duration::from_secs(8));
    stream.write_all(&body).unwrap();
    assert_eq!(status(&mut stream), 504);
    let took = began.elapsed();
    assert!(took < Duration::from_millis(17_500), "two deadlines in a row: {took:?}");
}

#[test]
fn a_body_that_never_ends_is_given_up_at_the_deadline() {
    let server = Server::start(&["--request-timeout", "1"]);
    for kind in ["image/png", "application/json"] {
        let began = Instant::now();
        let mut stream = announce(&server, "/embed", kind, 1000);
        stream.write_all(b"{").unwrap();
        assert_eq!(status(&mut stream), 408, "{kind}");
        assert!(began.elapsed() < Duration::from_secs(15), "{kind}: {:?}", began.elapsed());
    }
}

/// A server with a collection of `count` items, each with this metadata.
pub(crate) fn with_items(flags: &[&str], count: usize, metadata: &Value) -> (tempfile::TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&[&["--data-dir", folder.path().to_str().unwrap()], flags].concat());
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    let items: Vec<Value> = (0..count)
        .map(|at| {
            let vector: Vec<f32> = (0..32).map(|axis| ((at * 31 + axis * 17) as f32).sin()).collect();
            json!({ "id": at.to_string(), "vector": vector, "labels": ["l"], "metadata": metadata })
        })
        .collect();
    // What the metadata takes in memory is bounded for a request.
    for some in items.chunks(25) {
        server.post_json("/collections/c/items", &json!({ "items": some })).ok();
    }
    (folder, server)
}

/// Another server, with other flags, of the data of one that ends.
pub(crate) fn restarted(folder: &tempfile::TempDir, server: Server, flags: &[&str]) -> Server {
    server.signal("-TERM");
    assert!(server.end().0.success());
    Server::start(&[&["--data-dir", folder.path().to_str().unwrap()], flags].concat())
}

/// A search that takes a core for many seconds: 250 conditions look at each of 12 000 numbers of 500 items.
fn long_search() -> (Value, Value) {
    let condition = json!({ "field": "metadata.list", "eq": 1 });
    (json!({ "list": vec![0; 12_000] }), json!({ "vector": vec![1.0; 32], "filter": { "or": vec![condition; 250] } }))
}

/// Insists that the server soon has nothing to compute any more, of what took much longer.
#[track_caller]
fn assert_stops(server: &Server, what: &str) {
    let begin = server.computed();
    loop {
        let before = server.computed();
        thread::sleep(Duration::from_millis(400));
        let after = server.computed();
        if after.saturating_sub(before) < Duration::from_millis(60) {
            break;
        }
        assert!(
            after.saturating_sub(begin) < Duration::from_secs(3),
            "{what} goes on: {:?} were computed since",
            after.saturating_sub(begin)
        );
    }
}

#[test]
fn a_search_past_its_deadline_stops_and_starves_no_picture() {
    let (metadata, search) = long_search();
    let (folder, server) = with_items(&[], 500, &metadata);
    let server = restarted(&folder, server, &["--request-timeout", "10", "--sessions", "1"]);
    let picture = png(&scene(40, 40, 1));
    thread::scope(|scope| {
        let searches = [(); 4].map(|()| scope.spawn(|| server.post_json("/collections/c/search", &search)));
        thread::sleep(Duration::from_millis(500));
        // Decoding has threads of its own.
        server.embed(&picture);
        for search in searches {
            search.join().unwrap().problem(504, "deadline_passed");
        }
    });
    assert_stops(&server, "the search");
    server.embed(&picture);
}

#[test]
fn what_a_caller_asked_for_stops_when_it_leaves() {
    let (metadata, search) = long_search();
    let (_folder, server) = with_items(&["--sessions", "1"], 500, &metadata);
    // Nearly each patch of noise is an object, and the borders of each are moved.
    let picture = png(&noise(1000, 1000, 1));
    let requests = [
        ("search", "/collections/c/search", "application/json", search.to_string().into_bytes()),
        ("drawing", "/segment?method=lost&max_objects=1000&refine=guided", "image/png", picture),
    ];
    for (what, path, kind, body) in requests {
        let mut stream = announce(&server, path, kind, body.len());
        stream.write_all(&body).unwrap();
        // Once the work is well under way.
        let begin = server.computed();
        while server.computed().saturating_sub(begin) < Duration::from_secs(3) {
            thread::sleep(Duration::from_millis(50));
        }
        drop(stream);
        assert_stops(&server, what);
    }
}

#[test]
fn a_map_stops_when_its_caller_leaves_and_is_not_kept_by_half() {
    let (_folder, server) = with_items(&[], 3000, &json!({}));
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(b"GET /collections/c/map?points=3000 HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let begin = server.computed();
    while server.computed().saturating_sub(begin) < Duration::from_millis(500) {
        thread::sleep(Duration::from_millis(20));
    }
    drop(stream);
    assert_stops(&server, "the map");
    let map = server.get("/collections/c/map?points=50").ok().json();
    assert_eq!(map["points"].as_array().unwrap().len(), 50);
}

#[test]
fn values_of_a_filter_are_sorted_once() {
    let (_folder, server) = with_items(&[], 5000, &json!({ "number": 0.5, "list": [0.25, 1] }));
    let among = |field: &str, from: usize| json!({ "field": field, "in": (from..from + 10_000).collect::<Vec<_>>() });
    let conditions: Vec<Value> = (0..10).map(|at| among(if at % 2 == 0 { "metadata.number" } else { "metadata.list" }, 10 + at)).collect();
    let begin = server.computed();
    let search = json!({ "vector": vec![1.0; 32], "filter": { "or": conditions } });
    let found = server.post_json("/collections/c/search", &search).ok().json();
    assert_eq!(found["results"][0]["neighbors"], json!([]));
    let took = server.computed().saturating_sub(begin);
    assert!(took < Duration::from_secs(4), "{took:?} were computed");
}

#[test]
fn requests_that_are_too_much_as_a_whole_are_refused() {
    let (_folder, server) = with_items(&[], 5, &json!({}));
    for query in ["queries=1000&k=10000&ef=100000", "queries=1000&ef=2000", "queries=11&k=10000"] {
        let problem = server.get(&format!("/collections/c/recall?{query}")).problem(400, "bad_parameter");
        assert!(problem["detail"].as_str().unwrap().contains("at most"), "{problem}");
    }
    for query in ["queries=1000&k=100&ef=1000", "queries=10&k=10000&ef=100000"] {
        server.get(&format!("/collections/c/recall?{query}")).ok();
    }
    let pictures: Vec<_> = (0..11).map(|seed| png(&scene(20, 20, seed))).collect();
    for path in ["/classify?collection=c&k=10000", "/collections/c/search?ef=100000", "/segment?max_objects=1000"] {
        server.post_parts(path, &pictures).problem(400, "bad_parameter");
        server.post_parts(path, &pictures[..1]).ok();
    }
}
