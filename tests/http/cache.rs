//! Embeddings that are kept by the content of their pictures.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::harness::{Server, TIMEOUT, file, program, tiny_model};

const CACHE: [&str; 2] = ["--embedding-cache", "16M"];

/// A PNG of RGB pixels.
fn png(pixels: &[u8], width: u32, height: u32) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_raw(width, height, pixels.to_vec()).unwrap().write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn pixels() -> Vec<u8> {
    let mut state = 1_u32;
    (0..28_800)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

fn lookups(server: &Server, source: &str) -> u64 {
    let metrics = server.get("/metrics").ok().text();
    let name = format!("dino_embedding_cache_lookups_total{{source=\"{source}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(name.as_str()));
    line.unwrap_or_else(|| panic!("{name} is not in {metrics}")).parse().unwrap()
}

fn folder_bytes(server: &Server) -> u64 {
    let metrics = server.get("/metrics").ok().text();
    let line = metrics.lines().find_map(|line| line.strip_prefix("dino_embedding_cache_bytes{place=\"folder\"} "));
    line.unwrap_or_else(|| panic!("no bytes of the folder in {metrics}")).parse().unwrap()
}

fn stop(server: Server) {
    server.signal("-TERM");
    let (status, log) = server.end();
    assert!(status.success(), "{log}");
}

#[test]
fn every_answer_is_that_of_a_server_without_a_cache() {
    let (cached, plain) = (Server::start(&CACHE), Server::start(&[]));
    // The same pixels in two shapes, and the first one again.
    let pictures = [png(&pixels(), 120, 80), png(&pixels(), 80, 120), png(&pixels(), 120, 80)];
    let queries = ["", "?pooling=mean", "?normalize=false", "?dimensions=5", "?pooling=patches", "?pooling=cls_mean&dimensions=7", ""];
    for query in queries {
        let embeddings = |server: &Server, picture: &Vec<u8>| {
            server.post(&format!("/embed{query}"), "image/png", picture).ok().json()["embeddings"].clone()
        };
        let found: Vec<_> = pictures.iter().map(|picture| embeddings(&cached, picture)).collect();
        let expected: Vec<_> = pictures.iter().map(|picture| embeddings(&plain, picture)).collect();
        assert_eq!(found, expected, "{query}");
        assert_ne!(found[0], found[1], "{query}");
    }
    // Two pictures, four poolings; how a vector is written is no part of what is kept.
    assert_eq!(lookups(&cached, "computed"), 8);
    assert_eq!(lookups(&cached, "memory"), 3 * queries.len() as u64 - 8);
    let metrics = plain.get("/metrics").ok().text();
    assert!(!metrics.contains("dino_embedding_cache_lookups_total{"), "{metrics}");
}

#[test]
fn two_models_are_kept_apart_and_two_names_of_one_are_not() {
    let demo = crate::harness::root().join("models/demo");
    let (tiny, demo) = (tiny_model().display().to_string(), demo.display().to_string());
    let server = Server::with_models(&[&format!("a={tiny}"), &format!("b={demo}"), &format!("c={tiny}")], &CACHE);
    let embed = |model: &str| server.post(&format!("/embed?model={model}"), "image/jpeg", &file("photos/china.jpg")).ok().vectors();
    let (a, b, c) = (embed("a"), embed("b"), embed("c"));
    assert!(a[0].len() != b[0].len() && a == c);
    assert_eq!((lookups(&server, "computed"), lookups(&server, "memory")), (2, 1));
}

#[test]
fn answers_say_what_was_known() {
    let server = Server::start(&CACHE);
    let photo = file("photos/china.jpg");
    let timing = |pictures: &[Vec<u8>]| server.post_parts("/embed", pictures).ok().header("server-timing").to_owned();
    assert!(timing(std::slice::from_ref(&photo)).ends_with(r#"cache;desc="0 of 1""#));
    let flower = file("photos/flower.jpg");
    let again = timing(&[flower, photo.clone()]);
    assert!(again.ends_with(r#"cache;desc="1 of 2""#), "{again}");
    // The model has not run for this one.
    let known = timing(&[photo]);
    assert!(known.contains("decode;dur=0.00") && known.contains("infer;dur=0.00") && known.ends_with(r#"cache;desc="1 of 1""#), "{known}");
    let uncached = Server::start(&[]);
    let timing = uncached.post("/embed", "image/jpeg", &file("photos/china.jpg")).ok().header("server-timing").to_owned();
    assert!(!timing.contains("cache"), "{timing}");
}

#[test]
fn requests_for_one_picture_at_once_run_it_once_and_failures_are_not_kept() {
    let server = Server::start(&CACHE);
    let photo = file("photos/china.jpg");
    let answers: Vec<_> = thread::scope(|scope| {
        let asking: Vec<_> = (0..16).map(|_| scope.spawn(|| server.embed(&photo))).collect();
        asking.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(lookups(&server, "computed"), 1);
    assert_eq!(lookups(&server, "memory") + lookups(&server, "shared"), 15);
    // One body with the same picture several times.
    let flower = file("photos/flower.jpg");
    let many = server.post_parts("/embed", &[flower.clone(), flower.clone(), flower]).ok().vectors();
    assert!(many[0] == many[1] && many[1] == many[2]);
    assert_eq!(lookups(&server, "computed"), 2);
    for _ in 0..2 {
        server.post("/embed", "image/jpeg", &photo[..photo.len() / 2]).problem(422, "corrupt_picture");
    }
    assert_eq!(lookups(&server, "computed"), 4);
    server.embed(&photo);
}

#[test]
fn a_folder_serves_the_next_start_and_damaged_files_are_computed_again() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("cache");
    let flags = [&CACHE[..], &["--embedding-cache-dir", folder.to_str().unwrap()]].concat();
    let photo = file("photos/china.jpg");
    let first = Server::start(&flags);
    let expected = first.embed(&photo);
    // The answer does not wait for the file.
    let bytes = || folder_bytes(&first);
    let began = Instant::now();
    while bytes() == 0 {
        assert!(began.elapsed() < TIMEOUT, "no file was written: {}", first.log());
        thread::sleep(Duration::from_millis(10));
    }
    stop(first);
    let entries = || walkdir::WalkDir::new(&folder).into_iter().map(Result::unwrap).filter(|entry| entry.file_type().is_file());
    let files: Vec<_> = entries().map(walkdir::DirEntry::into_path).collect();
    assert_eq!(files.len(), 1, "{files:?}");

    let second = Server::start(&flags);
    assert_eq!(second.embed(&photo), expected);
    assert_eq!((lookups(&second, "folder"), lookups(&second, "computed")), (1, 0));
    stop(second);
    let mut damaged = fs_err::read(&files[0]).unwrap();
    damaged[80] ^= 1;
    fs_err::write(&files[0], damaged).unwrap();
    let third = Server::start(&flags);
    assert_eq!(third.embed(&photo), expected);
    assert_eq!((lookups(&third, "folder"), lookups(&third, "computed")), (0, 1));
    let log = third.log();
    assert!(log.contains("a damaged entry of the cache of embeddings is removed"), "{log}");
}

#[test]
fn a_folder_that_cannot_be_used_ends_the_start() {
    let place = tempfile::tempdir().unwrap();
    let in_the_way = place.path().join("file");
    fs_err::write(&in_the_way, "x").unwrap();
    let said = |flags: &[&str]| {
        let mut command = program();
        command.args(["serve", "--listen", "127.0.0.1:0", "--model", tiny_model().to_str().unwrap()]).args(flags);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let below = in_the_way.join("cache");
    let (code, text) = said(&[&CACHE[..], &["--embedding-cache-dir", below.to_str().unwrap()]].concat());
    assert!(code == Some(1) && text.contains("--embedding-cache-dir") && text.contains("file"), "{text}");
    let (code, text) = said(&["--embedding-cache-dir", Path::new("/nowhere").to_str().unwrap()]);
    assert!(code == Some(2) && text.contains("--embedding-cache <BYTES>"), "{text}");
}
