//! The page, its documentation and the API behind a proxy that cuts a path off, as several programs on one host have it.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
};

use serde_json::json;

use crate::{browser::visit_at, harness::Server, page::with_collection};

const PREFIX: &str = "/tools/dino";

/// Passes what lies below [`PREFIX`] on to a server, and answers 404 to everything else. Lives as long as the tests.
fn proxy(server: &Server) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}{PREFIX}", listener.local_addr().unwrap());
    let behind = server.address().to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let behind = behind.clone();
            thread::spawn(move || pass_on(stream, &behind));
        }
    });
    origin
}

/// One request of a connection, which ends with its answer.
fn pass_on(mut outside: TcpStream, behind: &str) -> io::Result<()> {
    let mut request = BufReader::new(outside.try_clone()?);
    let mut head = String::new();
    let mut first = String::new();
    request.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        request.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if !line.to_ascii_lowercase().starts_with("connection:") {
            head.push_str(&line);
        }
    }
    let Some((method, rest)) = first.split_once(' ') else { return Ok(()) };
    let Some(rest) = rest.strip_prefix(PREFIX).filter(|rest| rest.starts_with('/')) else {
        return outside.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let mut inside = TcpStream::connect(behind)?;
    inside.write_all(format!("{method} {rest}{head}Connection: close\r\n\r\n").as_bytes())?;
    let mut sending = inside.try_clone()?;
    let body = thread::spawn(move || io::copy(&mut request, &mut sending));
    io::copy(&mut inside, &mut outside)?;
    outside.shutdown(Shutdown::Both)?;
    drop(body.join());
    Ok(())
}

#[test]
fn the_page_works_below_a_path_that_a_proxy_cuts_off() {
    let (server, _folder) = with_collection(&[]);
    let origin = proxy(&server);
    visit_at(&origin, &[], |page| {
        page.is_settled();
        // Vote, thumbnails, samples, outline and map are there.
        page.until("document.querySelectorAll('#neighbours li').length == 9");
        page.until("[...document.querySelectorAll('#neighbours img')].filter(image => image.naturalWidth > 0).length == 9");
        page.until("[...document.querySelectorAll('#samples img')].every(image => image.naturalWidth > 0)");
        page.value("map.scrollIntoView({ block: 'center' })");
        page.until("document.getElementById('map-frame').classList.contains('ready')");
        page.redraws("canvas", || page.click("label:has([value=attention])"));
        page.set("code-what", "classify");
        assert!(page.text("code").contains(&format!("{origin}/classify")), "{}", page.text("code"));
        // The label that is taught arrives.
        page.type_into("#label", "below a path");
        page.click("#add");
        page.until("document.getElementById('taught').textContent.includes('Added')");
    });
}

#[test]
fn the_documentation_asks_below_the_path_too() {
    let server = Server::start(&[]);
    let document = server.get("/openapi.json").ok().json();
    assert_eq!(document["servers"][0]["url"], json!("."));
    let origin = proxy(&server);
    visit_at(&origin, &[], |page| {
        page.is_settled();
        page.click("a[href=docs]");
        let route = "[...document.querySelectorAll('.opblock')].find(block => block.querySelector('[data-path=\"/healthz\"]'))";
        page.until(route);
        assert_eq!(page.value("location.pathname"), format!("{PREFIX}/docs"));
        let press = |button: &str| {
            page.until(&format!("{route}.querySelector('{button}')"));
            page.value(&format!("{route}.querySelector('{button}').click()"));
        };
        press(".opblock-summary-control");
        press(".try-out__btn");
        press(".execute");
        page.until(&format!("{route}.querySelector('.live-responses-table')?.textContent.includes('uptime_seconds')"));
        assert_eq!(
            page.value(&format!("{route}.querySelector('.request-url').innerText.trim().split('\\n').pop()")),
            format!("{origin}/healthz")
        );
    });
    // What lies outside of it is not the server's.
    let mut outside = TcpStream::connect(origin.trim_start_matches("http://").split('/').next().unwrap()).unwrap();
    outside.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    outside.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}
