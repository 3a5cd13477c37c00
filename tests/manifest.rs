//! The manifest's JSON Schema: the committed file is the code's, the folders that ship keep to it, and it refuses what the
//! program refuses.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]

use std::path::{Path, PathBuf};

use boon::{Compiler, SchemaIndex, Schemas};
use dino_vision::model::Manifest;
use serde_json::{Value, json};

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
}

fn committed() -> Value {
    read(&root().join("models/manifest.schema.json"))
}

/// The committed schema, which has to be one itself.
fn compiled() -> (Schemas, SchemaIndex) {
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.add_resource("manifest.schema.json", committed()).unwrap();
    let index = compiler.compile("manifest.schema.json", &mut schemas).unwrap();
    (schemas, index)
}

#[test]
fn the_committed_schema_is_that_of_the_code() {
    assert!(
        committed() == Manifest::schema(),
        "models/manifest.schema.json is out of date: run `dino-server manifest-schema > models/manifest.schema.json`"
    );
}

#[test]
fn the_bundled_folders_keep_to_the_schema() {
    let (schemas, index) = compiled();
    for folder in ["models/demo", "tests/data/tiny", "tests/data/tiny-model"] {
        let manifest = read(&root().join(folder).join(Manifest::FILE_NAME));
        if let Err(error) = schemas.validate(&manifest, index) {
            panic!("{folder}: {error:#}");
        }
    }
}

#[test]
fn what_the_program_refuses_by_form_the_schema_refuses_too() {
    let (schemas, index) = compiled();
    let good = read(&root().join("models/demo").join(Manifest::FILE_NAME));
    for (pointer, value) in [
        ("/format", json!(2)),
        ("/architecture", json!("")),
        ("/patch_size", json!(0)),
        ("/patch_size", json!("8")),
        ("/transform/interpolation", json!("nearest")),
        ("/transform/crop", json!([48])),
        ("/transform/resize", json!({"longer": 55})),
        ("/transform/std", json!([1.0, 0.0, 1.0])),
        ("/transform/mean", json!([0.5, 0.5])),
        ("/source/sha256", json!("abc")),
        ("/files", json!({})),
        ("/files", json!({"f8": good["files"]["f32"]})),
        ("/files/f32/name", json!("../model.onnx")),
        ("/files/int8/cost/cosine_min", json!("much")),
    ] {
        let mut wrong = good.clone();
        *wrong.pointer_mut(pointer).unwrap() = value;
        assert!(schemas.validate(&wrong, index).is_err(), "{pointer}: {wrong}");
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join(Manifest::FILE_NAME), wrong.to_string()).unwrap();
        assert!(Manifest::load(folder.path()).is_err(), "{pointer}: {wrong}");
    }
}
