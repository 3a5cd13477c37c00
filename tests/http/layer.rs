//! `/embed?layer=N`: the tokens of a block that is not the last one.

use dino_vision::model::sha256;
use onnx_rs::ast::{Node, OpType};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Server, cosine, file, tiny_model};

/// The tiny model, two blocks deep, whose graph gives for the first block what the last one gives with the other sign.
fn model_with_layer() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let bytes = fs_err::read(tiny_model().join("model.onnx")).unwrap();
    let mut model = onnx_rs::parse(&bytes).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let mut output = graph.output.iter().find(|output| output.name == "last_hidden_state").unwrap().clone();
    output.name = "hidden_state_1";
    graph.output.push(output);
    graph.node.push(Node { op_type: OpType::Neg, input: vec!["last_hidden_state"], output: vec!["hidden_state_1"], ..Node::default() });
    let encoded = onnx_rs::encode(&model);
    fs_err::write(folder.path().join("model.onnx"), &encoded).unwrap();
    let mut manifest: Value = serde_json::from_slice(&fs_err::read(tiny_model().join("manifest.json")).unwrap()).unwrap();
    manifest["layers"] = [1].into();
    manifest["files"]["f32"]["sha256"] = sha256(&encoded).into();
    fs_err::write(folder.path().join("manifest.json"), manifest.to_string()).unwrap();
    folder
}

#[test]
fn a_layer_of_the_folder_is_pooled_like_the_last_one() {
    let folder = model_with_layer();
    let server = Server::with_models(&[&format!("m={}", folder.path().display())], &["--embedding-cache", "4M"]);
    assert_eq!(server.get("/v1/models").ok().json()["data"][0]["layers"], serde_json::json!([1, 2]));
    let photo = file("photos/china.jpg");
    for pooling in ["cls", "mean", "cls_mean"] {
        let last = server.embed_with(&format!("?pooling={pooling}"), &photo);
        let first = server.embed_with(&format!("?pooling={pooling}&layer=1"), &photo);
        assert!(cosine(&last, &first) < -0.9999, "{pooling}");
        assert_eq!(server.embed_with(&format!("?pooling={pooling}&layer=2"), &photo), last);
        // Once more, from the cache.
        assert_eq!(server.embed_with(&format!("?pooling={pooling}&layer=1"), &photo), first);
    }
    let patches = |query: &str| server.post(&format!("/embed?pooling=patches{query}"), "image/jpeg", &photo).ok().json();
    let (last, first) = (patches(""), patches("&layer=1"));
    assert_eq!((&last["grid"], last["embeddings"][0][0][0].as_f64().map(|x| -x)), (&first["grid"], first["embeddings"][0][0][0].as_f64()));
    for layer in ["0", "3", "4000000000"] {
        let problem = server.post(&format!("/embed?layer={layer}"), "image/jpeg", &photo).problem(400, "bad_parameter");
        assert!(problem["detail"].as_str().unwrap().contains("from 1 to 2"), "{problem}");
    }
    for layer in ["-1", "x", "1.5", ""] {
        server.post(&format!("/embed?layer={layer}"), "image/jpeg", &photo).problem(400, "bad_parameter");
    }
}

#[test]
fn a_layer_that_was_not_exported_says_how_to_get_it() {
    let server = Server::start(&[]);
    let photo = file("photos/china.jpg");
    let problem = server.post("/embed?layer=1", "image/jpeg", &photo).problem(422, "model_lacks_output");
    assert!(problem["detail"].as_str().unwrap().contains("dino-train export --layers 1"), "{problem}");
    assert_eq!(server.embed_with("?layer=2", &photo), server.embed(&photo));
    assert_eq!(server.get("/v1/models").ok().json()["data"][0]["layers"], serde_json::json!([2]));
}
