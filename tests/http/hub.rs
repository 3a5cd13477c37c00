//! Models by name: the server as a whole program beside a hub on loopback.

use std::path::Path;

use loopback_hub::{LoopbackHub, Repository};
use serde_json::Value;

use crate::harness::{Server, file, program, root, tiny_model};

fn by_name(hub: &LoopbackHub, home: &Path) -> std::process::Command {
    let mut command = program();
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HF_")) {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", hub.endpoint()).env("HF_HOME", home);
    command
}

fn embedding(server: &Server) -> Value {
    let mut answer = server.post("/embed", "image/jpeg", &file("photos/flower.jpg")).json();
    answer["embeddings"].take()
}

#[test]
fn a_folder_is_served_by_name_and_not_asked_for_again() {
    let (hub, home) = (LoopbackHub::start(), tempfile::tempdir().unwrap());
    let commit = hub.put("meta/tiny", Repository::of_folder(&tiny_model()));
    let server = Server::launch(by_name(&hub, home.path()), &["hf://meta/tiny"], &[]).when_ready();
    assert!(server.log().contains(&format!("hf://meta/tiny@{commit}")), "{}", server.log());
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], "tiny");
    let plain = Server::with_models(&[tiny_model().to_str().unwrap()], &[]);
    assert_eq!(embedding(&server), embedding(&plain));
    // A model that has changed on the hub stays as it was at the start, whatever requests ask for.
    hub.put("meta/tiny", Repository::new().file("README.md", "gone"));
    hub.seen();
    assert_eq!(server.post("/v1/models/tiny/reload", "application/json", b"").status, 200);
    assert_eq!(embedding(&server), embedding(&plain));
    assert_eq!(hub.seen(), []);
    drop(server);
    // Without a hub the next start takes what is there.
    let mut offline = by_name(&hub, home.path());
    offline.env("HF_HUB_OFFLINE", "1");
    let server = Server::launch(offline, &["again=hf://meta/tiny"], &[]).when_ready();
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], "again");
    assert_eq!(hub.seen(), []);
}

#[test]
fn a_graph_is_served_by_name() {
    let (hub, home) = (LoopbackHub::start(), tempfile::tempdir().unwrap());
    hub.put("onnx-community/tiny", Repository::new().file("onnx/model.onnx", fs_err::read(tiny_model().join("model.onnx")).unwrap()));
    let server = Server::launch(by_name(&hub, home.path()), &["hf://onnx-community/tiny"], &[]).when_ready();
    let plain = tiny_model().join("model.onnx");
    let plain = Server::with_models(&[plain.to_str().unwrap()], &[]);
    assert_eq!(embedding(&server), embedding(&plain));
}

#[test]
fn what_cannot_be_served_is_said_at_the_start() {
    let (hub, home) = (LoopbackHub::start(), tempfile::tempdir().unwrap());
    hub.put("meta/weights", Repository::new().file("model.safetensors", "weights"));
    let start = |model: &str| {
        let output = by_name(&hub, home.path()).args(["serve", "--listen", "127.0.0.1:0", "--model", model]).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = start("hf://meta/weights");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("dino-train export --checkpoint hf://meta/weights"), "{said}");
    let (code, said) = start("hf://meta/none");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("has no repository meta/none"), "{said}");
    let (code, said) = start("hf://meta");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("hf://OWNER/NAME[@REVISION][/FILE]"), "{said}");
    let (code, said) = start("meta/weights");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("meta/weights does not exist") && said.contains("did you mean hf://meta/weights?"), "{said}");
}

#[test]
fn commands_take_names_too() {
    let (hub, home) = (LoopbackHub::start(), tempfile::tempdir().unwrap());
    hub.put("meta/tiny", Repository::of_folder(&tiny_model()));
    let images = home.path().join("images");
    fs_err::create_dir_all(&images).unwrap();
    fs_err::write(images.join("a.jpg"), file("photos/flower.jpg")).unwrap();
    let out = home.path().join("vectors.npy");
    let mut command = by_name(&hub, home.path());
    command.args(["embed", "--model", "hf://meta/tiny", "--images", images.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("fetching model.onnx"), "{said}");
    assert!(out.is_file());
}

#[test]
fn collections_are_imported_and_embedded_anew_by_name() {
    let (hub, home) = (LoopbackHub::start(), tempfile::tempdir().unwrap());
    hub.put("meta/tiny", Repository::of_folder(&tiny_model()));
    hub.put("meta/demo", Repository::of_folder(&root().join("models/demo")));
    let (images, data) = (home.path().join("images"), home.path().join("data"));
    for label in ["flower", "china"] {
        fs_err::create_dir_all(images.join(label)).unwrap();
        fs_err::write(images.join(label).join("a.jpg"), file(&format!("photos/{label}.jpg"))).unwrap();
    }
    let run = |verb: &str, model: &str| {
        let mut command = by_name(&hub, home.path());
        command.args([verb, "--model", model, "--images", images.to_str().unwrap(), "--data-dir", data.to_str().unwrap()]);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    let dim = |model: &str| {
        let server = Server::launch(by_name(&hub, home.path()), &[model], &["--data-dir", data.to_str().unwrap()]).when_ready();
        let collection = server.get("/collections/default").json();
        assert_eq!(collection["count"], 2, "{collection}");
        collection["dim"].as_u64().unwrap()
    };
    assert!(run("import", "hf://meta/tiny").contains("fetching model.onnx"));
    let before = dim("hf://meta/tiny");
    assert!(run("reembed", "hf://meta/demo").contains("fetching model.onnx"));
    assert_ne!(dim("hf://meta/demo"), before);
}
