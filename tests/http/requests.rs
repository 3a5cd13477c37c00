//! What requests that are wrong in themselves get.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use crate::{
    harness::{Answer, BOUNDARY, Server, multipart},
    pictures::{png, scene},
};

#[test]
fn options_are_checked_by_name() {
    let server = Server::start(&[]);
    let picture = png(&scene(20, 20, 1));
    for (query, named) in [
        ("pooling=max", "pooling"),
        ("poolin=cls", "poolin"),
        ("normalize=yes", "normalize"),
        ("dtype=f64", "dtype"),
        ("encoding=xyz", "encoding"),
        ("encoding_format=float", "encoding_format"),
        ("dimensions=0", "dimensions"),
        ("dimensions=33", "dimensions"),
        ("dimensions=65&pooling=cls_mean", "dimensions"),
        ("dimensions=-1", "dimensions"),
        ("dimensions=1.5", "dimensions"),
        ("dimensions=5&dimensions=6", "dimensions"),
        ("pooling=patches&dtype=int8&encoding=npy", "encoding"),
    ] {
        let answers: [Answer; 2] = [
            server.post(&format!("/embed?{query}"), "image/png", &picture),
            server.post(
                &format!("/embed?{query}"),
                &format!("multipart/form-data; boundary={BOUNDARY}"),
                &multipart(&[("image", &picture)]),
            ),
        ];
        for answer in answers {
            let problem = answer.problem(400, "bad_parameter");
            assert!(problem["detail"].as_str().unwrap().contains(named), "{query}: {problem}");
        }
    }
    let images = [STANDARD.encode(&picture)];
    for (options, named) in [
        (json!({ "images": images, "pooling": "max" }), "pooling"),
        (json!({ "images": images, "image": "x" }), "image"),
        (json!({ "images": images, "dimensions": "5" }), "dimensions"),
        (json!({ "images": images, "dimensions": 0 }), "dimensions"),
        (json!({ "images": images, "normalize": 1 }), "normalize"),
    ] {
        let problem = server.post_json("/embed", &options).problem(400, "bad_parameter");
        assert!(problem["detail"].as_str().unwrap().contains(named), "{problem}");
    }
    server.post("/embed?model=none", "image/png", &picture).problem(404, "unknown_model");
    server.post_json("/segment", &json!({ "images": images, "model": "none" })).problem(404, "unknown_model");
}

#[test]
fn bodies_of_the_wrong_form_are_refused() {
    let server = Server::start(&[]);
    let picture = png(&scene(20, 20, 1));
    for kind in ["text/plain", "application/x-www-form-urlencoded", "video/mp4", "nonsense", ""] {
        server.post("/embed", kind, &picture).problem(415, "unsupported_media_type");
    }
    let headers = [("content-type", "image/png"), ("content-encoding", "gzip")];
    server.post_with("/embed", &headers, &picture).problem(415, "unsupported_media_type");

    let json = |text: &str| server.post("/embed", "application/json; charset=utf-8", text.as_bytes());
    json("").problem(400, "bad_json");
    json("{\"images\": [").problem(400, "bad_json");
    json("[]").problem(400, "bad_json");
    json("{\"images\": \"aGk=\"}").problem(400, "bad_json");
    json("{\"images\": [7]}").problem(400, "bad_json");
    json("{}").problem(400, "no_pictures");
    json("{\"images\": []}").problem(400, "no_pictures");
    let good = STANDARD.encode(&picture);
    let at_one = |bad: &str| json(&json!({ "images": [good, bad] }).to_string());
    assert_eq!(at_one("not base64!").problem(400, "bad_base64")["index"], 1);
    at_one("data:image/png,plain").problem(400, "bad_base64");
    at_one("data:").problem(400, "bad_base64");
    for url in ["https://example.org/a.png", "HTTP://127.0.0.1:9/", "http://[::1]/"] {
        assert_eq!(at_one(url).problem(400, "url_fetching_off")["index"], 1);
    }

    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    server.post("/embed", "multipart/form-data", &picture).problem(400, "bad_multipart");
    server.post("/embed", &kind, &picture).problem(400, "bad_multipart");
    server.post("/embed", &kind, &multipart(&[])).problem(400, "no_pictures");
    let other = server.post("/embed", &kind, &multipart(&[("image", &picture), ("pooling", b"mean")]));
    assert!(other.problem(400, "bad_multipart")["detail"].as_str().unwrap().contains("pooling"));
    let cut = multipart(&[("image", &picture)]);
    server.post("/embed", &kind, &cut[..cut.len() - 30]).problem(400, "bad_multipart");
}

/// S2: pictures count whatever their parts are called.
#[test]
fn parts_are_pictures_whatever_their_name() {
    let server = Server::start(&[]);
    let picture = png(&scene(20, 20, 1));
    let wanted = server.embed(&picture);
    let send = |boundary: &str, head: &[u8], content: &[u8]| {
        let part = [b"--a;b\r\n", head, b"\r\n\r\n", content, b"\r\n"].concat();
        let body = [b"a preamble\r\n".as_slice(), &part, b"--a;b--\r\nan epilogue\r\n"].concat();
        server.post("/embed", &format!("multipart/form-data; boundary={boundary}"), &body)
    };
    for head in [
        b"Content-Disposition: form-data; name=\"image\"".as_slice(),
        b"Content-Disposition: form-data; name=image; filename=plain",
        "Content-Disposition: form-data; name=\"image\"; filename=\"Größe 1.png\"".as_bytes(),
        b"Content-Disposition: form-data; name=\"image\"; filename=\"Gr\xf6\xdfe.png\"\r\nContent-Type: image/png",
        b"Content-Disposition: form-data; name=\"image\"; filename*=UTF-8''Gr%C3%B6%C3%9Fe.png",
        b"content-disposition: form-data; filename=\"a;b.png\"; name=\"image\"",
        b"Content-Disposition: form-data; name=\"image\"\r\nContent-Transfer-Encoding: Binary",
    ] {
        let answer = send("\"a;b\"", head, &picture);
        assert_eq!(answer.ok().vectors(), std::slice::from_ref(&wanted), "{}", String::from_utf8_lossy(head));
    }
    let coded = b"Content-Disposition: form-data; name=\"image\"\r\nContent-Transfer-Encoding: base64";
    let problem = send("\"a;b\"", coded, STANDARD.encode(&picture).as_bytes()).problem(400, "bad_multipart");
    assert!(problem["detail"].as_str().unwrap().contains("base64") && problem["index"] == 0, "{problem}");

    let empty = multipart(&[("image", &picture), ("image", b"")]);
    let problem = server.post("/embed", &format!("multipart/form-data; boundary={BOUNDARY}"), &empty).problem(422, "empty_picture");
    assert_eq!(problem["index"], 1);
}

#[test]
fn unknown_routes_and_methods_are_problems_too() {
    let server = Server::start(&[]);
    server.get("/nothing").problem(404, "unknown_route");
    server.get("/embed/").problem(404, "unknown_route");
    let answer = server.get("/embed");
    answer.problem(405, "method_not_allowed");
    assert_eq!(answer.header("allow"), "POST");
    server.post("/healthz", "image/png", b"x").problem(405, "method_not_allowed");
}

#[test]
fn every_answer_has_a_request_id_and_keeps_the_clients() {
    let server = Server::start(&[]);
    assert!(server.get("/healthz").header("x-request-id").len() > 10);
    assert!(server.get("/nothing").header("x-request-id").len() > 10);
    let headers = [("content-type", "image/png"), ("x-request-id", "mine-7")];
    let answer = server.post_with("/embed", &headers, &png(&scene(9, 9, 1)));
    assert_eq!(answer.ok().header("x-request-id"), "mine-7");
    server.log_with("mine-7");
    assert!(answer.header("server-timing").contains("decode;dur="));
}

#[test]
fn bodies_over_the_limit_get_their_answer_however_they_are_sent() {
    let server = Server::start(&["--max-body", "100k", "--max-pictures", "3"]);
    let large = vec![7u8; 3 << 20];
    server.post("/embed", "image/png", &large).problem(413, "body_too_large");
    server.post("/embed", "application/json", &large).problem(413, "body_too_large");
    // Without a length, in chunks.
    let mut socket = connect(&server);
    socket.write_all(b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    for _ in 0..40 {
        socket.write_all(b"2000\r\n").unwrap();
        socket.write_all(&[7u8; 0x2000]).unwrap();
        socket.write_all(b"\r\n").unwrap();
    }
    socket.write_all(b"0\r\n\r\n").unwrap();
    assert!(answer_of(&mut socket).starts_with("HTTP/1.1 413"));

    let picture = png(&scene(9, 9, 1));
    let four = vec![picture.clone(); 4];
    server.post_parts("/embed", &four).problem(413, "too_many_pictures");
    let images: Vec<_> = four.iter().map(|picture| STANDARD.encode(picture)).collect();
    server.post_json("/embed", &json!({ "images": images })).problem(413, "too_many_pictures");
    assert_eq!(server.post_parts("/embed", &four[..3]).ok().vectors().len(), 3);
}

#[test]
fn slow_clients_are_let_go() {
    let server = Server::start(&["--read-timeout", "0.3"]);
    let began = Instant::now();
    let mut silent = connect(&server);
    let mut half_a_head = connect(&server);
    half_a_head.write_all(b"POST /embed HTTP/1.1\r\nhost: localhost\r\n").unwrap();
    let mut half_a_body = connect(&server);
    half_a_body
        .write_all(b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\ncontent-length: 1000\r\n\r\nabc")
        .unwrap();
    let text = answer_of(&mut half_a_body);
    assert!(text.starts_with("HTTP/1.1 408") && text.contains("body_timeout"), "{text}");
    answer_of(&mut half_a_head);
    answer_of(&mut silent);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    server.embed(&png(&scene(9, 9, 1)));
}

fn connect(server: &Server) -> TcpStream {
    let socket = TcpStream::connect(server.address()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket
}

/// What arrives until the server closes, or the whole head and body of an answer.
fn answer_of(socket: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = socket.read(&mut buffer).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&text)));
        text.extend(&buffer[..read]);
        if read == 0 || text.ends_with(b"}") {
            return String::from_utf8_lossy(&text).into_owned();
        }
    }
}

/// Whatever is sent, an error repeats no more of it than a person reads.
#[test]
fn an_error_does_not_send_back_what_was_sent() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::with_data(folder.path());
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    let long = "\u{7}<x>é".repeat(200_000);
    let (picture, nested) = (STANDARD.encode(png(&scene(9, 9, 1))), json!({ "field": long, "eq": 1 }));
    let short = |answer: &Answer, what: &str| {
        assert!((400..500).contains(&answer.status), "{what}: {}", answer.status);
        assert!(answer.body.len() < 2500, "{what}: {} bytes", answer.body.len());
    };
    for path in [
        "/embed",
        "/classify",
        "/segment",
        "/depth",
        "/similarity",
        "/match",
        "/v1/embeddings",
        "/collections/c/items",
        "/collections/c/search",
    ] {
        for body in [
            json!({ (long.as_str()): 1 }),
            json!({ "images": [picture], "image": long, "input": long, "model": long, "filter": nested, (long.as_str()): [] }),
            json!({ "images": [picture], "pooling": long, "method": long, "points": long, "vector": long, "items": [{ (long.as_str()): 1 }] }),
            json!({ "images": [picture], "input": picture, "image": picture, "model": long }),
        ] {
            short(&server.post_json(path, &body), path);
        }
    }
    short(&server.put("/collections/d", &json!({ "model": long })), "PUT");
    short(&server.post_json("/collections/c/items/delete", &json!({ "filter": nested })), "delete");
    short(&server.post_json("/collections/c/items", &json!({ "items": [{ "vector": [1], "model": long }] })), "model of an item");
    short(&server.post_json("/collections/c/items", &json!({ "items": [{ "vector": [1], "id": long }] })), "id");
    let part = multipart(&[(&long, b"x")]);
    short(&server.post("/embed", &format!("multipart/form-data; boundary={BOUNDARY}"), &part), "a part's name");
}
