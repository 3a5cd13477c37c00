//! Pictures that are sent as URLs, from a real host over TLS.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};
use serde_json::json;

use crate::{
    harness::Server,
    pictures::{png, scene},
};

/// A host with pictures and traps, and the file with its certificate.
struct Host {
    port: u16,
    certificate: PathBuf,
    _folder: tempfile::TempDir,
}

impl Host {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = folder.path().join("ca.pem");
        fs_err::write(&certificate, made.cert.pem()).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let config = config.clone();
                thread::spawn(move || answer(stream, config, port));
            }
        });
        Self { port, certificate, _folder: folder }
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }
}

/// Answers one request, then closes.
fn answer(stream: TcpStream, config: Arc<ServerConfig>, port: u16) {
    let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_exact(&mut byte).is_err() {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).unwrap_or_default();
    let redirect = |target: &str| format!("HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n").into_bytes();
    let file = |kind: &str, body: &[u8]| {
        [format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
    };
    let picture = png(&scene(64, 48, 5));
    let reply = match path {
        "/a.png" => file("image/png", &picture),
        "/binary" => file("binary/octet-stream", &picture),
        "/page" => file("text/html", b"<html>"),
        "/broken" => file("image/png", &picture[..picture.len() / 2]),
        "/large" => b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 99999999\r\n\r\n".to_vec(),
        "/endless" => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n");
            while stream.write_all(&[0; 8192]).is_ok() {}
            return;
        }
        "/slow" => {
            thread::sleep(Duration::from_secs(20));
            return;
        }
        "/moved" => redirect("/a.png"),
        "/out" => redirect("http://localhost/a.png"),
        "/metadata" => redirect("https://169.254.169.254/latest/meta-data"),
        "/elsewhere" => redirect(&format!("https://127.0.0.1:{port}/a.png")),
        "/circle" => redirect("/circle"),
        _ => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
    };
    let _ = stream.write_all(&reply);
    stream.conn.send_close_notify();
    let _ = stream.flush();
}

/// A queue that pictures fill is closed to pictures alone.
#[test]
fn vectors_are_searched_and_stored_while_pictures_fill_the_queue() {
    let host = Host::start();
    let (name, certificate) = (format!("localhost:{}", host.port), host.certificate.to_str().unwrap());
    let data = tempfile::tempdir().unwrap();
    let flags = ["--url-hosts", &name, "--url-private", "--url-ca", certificate, "--url-timeout", "20", "--queue", "1"];
    let server = Server::start(&[&flags[..], &["--max-pictures", "1", "--data-dir", data.path().to_str().unwrap()]].concat());
    let picture = png(&scene(20, 20, 1));
    let vector = server.embed(&picture);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    let mut slow = TcpStream::connect(server.address()).unwrap();
    let body = json!({ "images": [host.url("/slow")] }).to_string();
    let head = "POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length";
    write!(slow, "{head}: {}\r\n\r\n{body}", body.len()).unwrap();
    while server.get("/healthz").ok().json()["pictures_inside"] != 1 {
        thread::sleep(Duration::from_millis(5));
    }
    server.post_json("/collections/c/items", &json!({ "items": [{ "id": "a", "vector": vector }] })).ok();
    let found = server.post_json("/collections/c/search", &json!({ "vector": vector })).ok().json();
    assert_eq!(found["results"][0]["neighbors"][0]["id"], "a");
    let images = json!({ "images": [STANDARD.encode(&picture)] });
    server.post_json("/embed", &images).problem(429, "queue_full");
    server.post("/embed", "image/png", &picture).problem(429, "queue_full");
    // A client that leaves gives its place back.
    drop(slow);
    while server.post_json("/embed", &images).status != 200 {
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn pictures_are_fetched_from_hosts_that_are_named() {
    let host = Host::start();
    let (name, certificate) = (format!("localhost:{}", host.port), host.certificate.to_str().unwrap());
    let data = tempfile::tempdir().unwrap();
    let flags = ["--url-hosts", &name, "--url-private", "--url-ca", certificate, "--url-timeout", "3", "--max-body", "1M"];
    let server = Server::start(&[&flags[..], &["--data-dir", data.path().to_str().unwrap()]].concat());
    let picture = png(&scene(64, 48, 5));
    let sent = server.embed(&picture);
    let embed = |urls: &[&str]| {
        let urls: Vec<_> = urls.iter().map(|path| host.url(path)).collect();
        server.post_json("/embed", &json!({ "images": urls }))
    };
    for vector in embed(&["/a.png", "/binary", "/moved"]).ok().vectors() {
        assert_eq!(vector, sent);
    }
    // The same in the other routes that take JSON.
    let answer = server.post_json("/v1/embeddings", &json!({ "model": "tiny-model", "input": host.url("/a.png") })).ok().json();
    assert_eq!(answer["data"].as_array().unwrap().len(), 1);
    assert_eq!(server.put("/collections/c", &json!({})).status, 201);
    let items = json!({ "items": [{ "id": "v", "vector": sent }, { "id": "a", "image": host.url("/moved"), "labels": ["x"] }] });
    server.post_json("/collections/c/items", &items).ok();
    let found = server.post_json("/collections/c/search", &json!({ "image": host.url("/a.png"), "k": 2 })).ok().json();
    assert_eq!(found["results"][0]["neighbors"].as_array().unwrap().len(), 2);

    for (path, status, code) in [
        ("/page", 422, "url_not_fetched"),
        ("/missing", 422, "url_not_fetched"),
        ("/circle", 422, "url_not_fetched"),
        ("/slow", 422, "url_not_fetched"),
        ("/broken", 422, "corrupt_picture"),
        ("/large", 413, "body_too_large"),
        ("/endless", 413, "body_too_large"),
        ("/out", 400, "url_not_allowed"),
        ("/metadata", 400, "url_not_allowed"),
        ("/elsewhere", 400, "url_not_allowed"),
    ] {
        assert_eq!(embed(&["/a.png", path]).problem(status, code)["index"], 1, "{path}");
    }
    assert_eq!(server.embed(&picture), sent);
}

#[test]
fn addresses_that_are_not_public_are_not_asked() {
    let host = Host::start();
    let (name, certificate) = (format!("localhost:{}", host.port), host.certificate.to_str().unwrap());
    let server = Server::start(&["--url-hosts", &name, "--url-ca", certificate]);
    let answer = server.post_json("/embed", &json!({ "images": [host.url("/a.png")] }));
    let detail = answer.problem(400, "url_not_allowed")["detail"].to_string();
    assert!(!detail.contains("127.0.0.1") && !detail.contains("::1"), "{detail}");
    // A host whose certificate no known authority signed is refused.
    let server = Server::start(&["--url-hosts", &name, "--url-private"]);
    server.post_json("/embed", &json!({ "images": [host.url("/a.png")] })).problem(422, "url_not_fetched");
}
