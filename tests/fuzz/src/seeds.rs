//! Good files and requests to begin with.

use std::path::{Path, PathBuf};

use crate::{BOUNDARY, answer, first_byte, root};

/// Pictures of all formats, of every kind of TIFF, and with colour profiles.
pub fn pictures() -> Vec<Vec<u8>> {
    [files("tests/photos/odd", 210_000), files("tests/data/tiff", 10_000), files("tests/data/colour", 12_000)].concat()
}

/// Public checkpoints, as PyTorch saves them.
pub fn checkpoints() -> Vec<Vec<u8>> {
    files("tests/golden/checkpoints/pth-dino-backbone", 2 << 20)
}

/// Requests to each route that takes a body, all of them good where they are sent one after another.
pub fn requests() -> Vec<Vec<u8>> {
    let with = |path: &str, kind: &str, body: &[u8]| [&[first_byte(path, kind)], body].concat();
    let json = |path: &str, body: String| with(path, "application/json", body.as_bytes());
    let picture = fs_err::read(root().join("tests/photos/odd/one_pixel.png")).expect("a file of the tests");
    let pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
    let vector = vec!["0.5"; 32].join(",");
    let filter = r#"{"and":[{"field":"metadata.n","gte":0},{"not":{"field":"label","eq":"y"}}]}"#;
    let part = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a\"\r\n\r\n");
    let end = format!("\r\n--{BOUNDARY}--\r\n");
    let parts = [part.as_bytes(), &picture, b"\r\n", part.as_bytes(), &picture, end.as_bytes()].concat();
    let mut seeds = vec![
        json("/collections/c", r#"{"model":"tiny-model"}"#.to_owned()),
        json("/collections/c/items", format!(r#"{{"items":[{{"id":"a","vector":[{vector}],"labels":["x"],"metadata":{{"n":1}}}}]}}"#)),
        json("/embed", format!(r#"{{"images":["{pixel}","{pixel}"],"pooling":"mean","dtype":"int8","encoding":"npy"}}"#)),
        json("/segment", format!(r#"{{"images":["{pixel}"],"method":"attention","head":"all","threshold":0.3,"format":"heatmap"}}"#)),
        json("/similarity", format!(r#"{{"images":["{pixel}","{pixel}"],"points":[[0,0]],"target":1}}"#)),
        json("/v1/embeddings", format!(r#"{{"input":["{pixel}"],"model":"tiny-model","dimensions":7}}"#)),
        json("/collections/c/search", format!(r#"{{"vector":[{vector}],"k":3,"filter":{filter}}}"#)),
        json(
            "/classify",
            format!(r#"{{"images":["{pixel}"],"collection":"c","k":5,"temperature":0.1,"min_similarity":0.5,"balanced":true}}"#),
        ),
        with("/embed", "multipart/form-data; boundary=b", &parts),
    ];
    for path in ["/embed", "/segment?format=png", "/classify?collection=c", "/collections/c/items?id=x&labels=a"] {
        seeds.push(with(path, "image/png", &picture));
    }
    // A snapshot comes from the collection that the first of them made.
    for seed in &seeds {
        answer(seed);
    }
    let (_, snapshot) = answer(&with("/collections/c/snapshot", "", b""));
    seeds.push(with("/collections/r/restore?replace=true", "application/octet-stream", &snapshot));
    seeds.push(json(
        "/collections/c/items/delete",
        r#"{"filter":{"or":[{"field":"id","in":["z"]},{"field":"metadata.m","exists":true}]}}"#.to_owned(),
    ));
    seeds
}

/// Files below `folder` of the repository, no larger than `most`.
fn files(folder: &str, most: u64) -> Vec<Vec<u8>> {
    fn collect(folder: &Path, most: u64, found: &mut Vec<PathBuf>) {
        for entry in fs_err::read_dir(folder).expect("a folder of the tests") {
            let path = entry.expect("an entry of it").path();
            if path.is_dir() {
                collect(&path, most, found);
            } else if fs_err::metadata(&path).map_or(u64::MAX, |known| known.len()) <= most {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(&root().join(folder), most, &mut found);
    found.sort();
    assert!(!found.is_empty(), "{folder} holds no file of {most} bytes");
    found.iter().map(|path| fs_err::read(path).expect("a file of the tests")).collect()
}
