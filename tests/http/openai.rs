//! `/v1/embeddings` as OpenAI's clients use it.

use std::process::Command;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    harness::{Server, assert_close, python, root},
    pictures::{noise, png, scene},
};

const DIM: usize = 32;

fn floats(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn from_base64(value: &Value) -> Vec<f32> {
    let bytes = STANDARD.decode(value.as_str().unwrap()).unwrap();
    bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
}

/// C03, C05: the form of the answer, and the vectors of `/embed` in the order of the pictures.
#[test]
fn the_answer_is_openais() {
    let server = Server::start(&[]);
    let sizes = [(64, 64), (800, 200), (200, 800), (1, 1), (64, 64), (30, 500)];
    let pictures: Vec<_> = sizes.iter().zip(1..).map(|(&(width, height), seed)| png(&noise(width, height, seed))).collect();
    let texts: Vec<_> = pictures.iter().map(|picture| format!("data:image/png;base64,{}", STANDARD.encode(picture))).collect();
    let ask = |body: Value| server.post_json("/v1/embeddings", &body).ok().json();
    let answer = ask(json!({ "input": texts, "model": "tiny-model" }));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("tiny-model")));
    assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() > 6);
    assert_eq!(answer["usage"]["prompt_tokens"], answer["usage"]["total_tokens"]);
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data.len(), pictures.len());
    for (i, (entry, picture)) in data.iter().zip(&pictures).enumerate() {
        assert_eq!((&entry["object"], &entry["index"]), (&json!("embedding"), &json!(i)));
        assert_close(&floats(&entry["embedding"]), &server.embed(picture));
    }

    let one = STANDARD.encode(&pictures[0]);
    let whole = floats(&ask(json!({ "input": one, "encoding_format": "float", "user": "u" }))["data"][0]["embedding"]);
    assert_eq!(whole.len(), DIM);
    assert_eq!(from_base64(&ask(json!({ "input": [one], "encoding_format": "base64" }))["data"][0]["embedding"]), whole);
    for dimensions in [1, 7, DIM] {
        let cut = floats(&ask(json!({ "input": one, "dimensions": dimensions }))["data"][0]["embedding"]);
        assert_eq!(cut.len(), dimensions);
        let length = whole[..dimensions].iter().map(|x| x * x).sum::<f32>().sqrt();
        assert_close(&cut, &whole[..dimensions].iter().map(|x| x / length).collect::<Vec<_>>());
    }
}

#[test]
fn errors_are_ours_and_openais() {
    let server = Server::start(&["--max-pictures", "2"]);
    let picture = STANDARD.encode(png(&scene(20, 20, 1)));
    for (body, status, code) in [
        (json!({ "input": picture, "encoding_format": "xyz" }), 400, "bad_parameter"),
        (json!({ "input": picture, "dimensions": 0 }), 400, "bad_parameter"),
        (json!({ "input": picture, "dimensions": DIM + 1 }), 400, "bad_parameter"),
        (json!({ "input": picture, "pooling": "cls" }), 400, "bad_parameter"),
        (json!({ "input": [1, 2, 3] }), 400, "bad_parameter"),
        (json!({ "model": "tiny-model" }), 400, "bad_parameter"),
        (json!({ "input": [] }), 400, "no_pictures"),
        (json!({ "input": "a photo of a cat!" }), 400, "bad_base64"),
        (json!({ "input": "https://example.org/a.png" }), 400, "url_fetching_off"),
        (json!({ "input": ["aGk="] }), 422, "unknown_format"),
        (json!({ "input": picture, "model": "gpt" }), 404, "unknown_model"),
        (json!({ "input": [picture, picture, picture] }), 413, "too_many_pictures"),
    ] {
        let problem = server.post_json("/v1/embeddings", &body).problem(status, code);
        assert_eq!((&problem["error"]["code"], &problem["error"]["message"]), (&json!(code), &problem["detail"]));
        assert_eq!(problem["error"]["type"], "invalid_request_error");
    }
    server.post("/v1/embeddings", "image/png", &png(&scene(9, 9, 1))).problem(415, "unsupported_media_type");
    server.post("/v1/embeddings", "application/json", b"{").problem(400, "bad_json");
}

/// Before it is read: one that is too large besides is told to send JSON, and never pictures as they are.
#[test]
fn a_body_that_is_no_json_is_refused_by_its_type() {
    let server = Server::start(&["--max-body", "1k"]);
    for kind in ["image/png", "multipart/form-data; boundary=x", "text/plain"] {
        let problem = server.post("/v1/embeddings", kind, &[0; 4096]).problem(415, "unsupported_media_type");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("application/json") && !detail.contains("image/*"), "{detail}");
    }
}

/// The unchanged clients, which ask for base64 by themselves.
#[test]
fn openais_own_clients_work() {
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let (picture, path) = (png(&scene(80, 60, 3)), folder.path().join("picture.png"));
    fs_err::write(&path, &picture).unwrap();
    let whole = server.embed(&picture);
    let cut = server.embed_with("?dimensions=8", &picture);
    let programs = root().join("tests/clients");
    for (interpreter, program) in [(python(), "openai_client.py"), ("node".into(), "openai_client.mjs")] {
        let mut command = Command::new(&interpreter);
        command.arg(programs.join(program)).arg(server.address()).arg(&path).arg(root().join(".cache/clients"));
        let output = command.output().unwrap_or_else(|error| panic!("{}: {error}", interpreter.display()));
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        let answers: Vec<Vec<Vec<f32>>> = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((answers[0].len(), answers[1].len()), (2, 1));
        for (found, wanted) in answers.iter().flatten().zip([&whole, &whole, &cut]) {
            assert_close(found, wanted);
        }
    }
}
