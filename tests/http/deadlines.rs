//! One deadline for a request, and work that stops when its caller has left.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use crate::{
    harness::{BOUNDARY, PATIENCE, Server, multipart},
    pictures::{noise, png},
};

/// Sends a head that announces `length` bytes.
fn announce(server: &Server, path: &str, kind: &str, length: usize) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
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
    let server = Server::start(&["--request-timeout", "2.5", "--sessions", "1"]);
    // Work for much longer than the deadline.
    let picture = png(&noise(300, 300, 1));
    let body = multipart(&vec![("image", picture.as_slice()); 60]);
    let began = Instant::now();
    let mut stream = announce(&server, "/segment", &format!("multipart/form-data; boundary={BOUNDARY}"), body.len());
    thread::sleep(Duration::from_secs(2));
    stream.write_all(&body).unwrap();
    assert_eq!(status(&mut stream), 504);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(4), "two deadlines in a row: {took:?}");
}

#[test]
fn a_body_that_never_ends_is_given_up_at_the_deadline() {
    let server = Server::start(&["--request-timeout", "1"]);
    for kind in ["image/png", "application/json"] {
        let began = Instant::now();
        let mut stream = announce(&server, "/embed", kind, 1000);
        stream.write_all(b"{").unwrap();
        assert_eq!(status(&mut stream), 408, "{kind}");
        assert!(began.elapsed() < Duration::from_secs(5), "{kind}: {:?}", began.elapsed());
    }
}
