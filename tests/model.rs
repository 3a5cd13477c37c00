//! Opening and running a model folder with the real ONNX Runtime.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]

use std::path::{Path, PathBuf};

use dino_vision::embedding::Pooling;
use dino_vision::model::{Device, Model, ModelError, Precision, Session, SessionOptions};
use ndarray::{Array4, Axis, s};

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny")
}

fn cpu() -> SessionOptions {
    SessionOptions { device: Device::Cpu, ..SessionOptions::default() }
}

fn session() -> Session {
    let sessions = Model::open(&tiny()).and_then(|model| model.sessions(&cpu(), 1));
    sessions.unwrap_or_else(|error| panic!("{error}")).remove(0)
}

/// A copy of the folder that a test may damage.
fn copy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["model.onnx", "manifest.json"] {
        fs_err::copy(tiny().join(name), folder.path().join(name)).unwrap();
    }
    folder
}

/// Two pictures of 16 x 24 pixels, each pixel another value.
fn batch() -> Array4<f32> {
    Array4::from_shape_fn((2, 3, 16, 24), |(b, c, y, x)| ((b * 7 + c * 5 + y * 3 + x) % 11) as f32 / 11.0)
}

#[test]
fn outputs_have_their_names_shapes_and_patch_order() {
    let pixels = batch();
    let outputs = session().run(pixels.view()).unwrap();
    let tokens = outputs.last_hidden_state.unwrap();
    assert_eq!(tokens.dim(), (2, 1 + 6, 3));
    assert_eq!(outputs.keys.unwrap().dim(), (2, 6, 3));
    let attention = outputs.attention.unwrap();
    assert_eq!(attention.dim(), (2, 1, 7));
    assert!((attention.sum_axis(Axis(2))[[0, 0]] - 1.0).abs() < 1e-5);
    assert!(outputs.embedding.is_none() && outputs.feature_map.is_none());

    // The last patch is the lower right one.
    let corner = pixels.slice(s![1, 2, 8.., 16..]).mean().unwrap();
    assert!((tokens[[1, 6, 2]] - corner).abs() < 1e-5);
}

#[test]
fn a_batch_agrees_with_its_pictures_one_by_one_in_any_memory_order() {
    let mut session = session();
    let pixels = batch();
    let together = session.run(pixels.view()).unwrap().last_hidden_state.unwrap();
    for (index, tokens) in together.outer_iter().enumerate() {
        let alone = session.run(pixels.slice(s![index..=index, .., .., ..])).unwrap().last_hidden_state.unwrap();
        assert_eq!(alone.index_axis(Axis(0), 0), tokens);
    }
    // Channels last in memory, the same numbers.
    let shuffled = pixels.view().permuted_axes([0, 2, 3, 1]).as_standard_layout().into_owned();
    let view = shuffled.view().permuted_axes([0, 3, 1, 2]);
    assert_eq!(session.run(view).unwrap().last_hidden_state.unwrap(), together);
}

#[test]
fn pixels_of_another_shape_are_refused_and_the_session_goes_on() {
    let mut session = session();
    for shape in [(0, 3, 16, 16), (1, 1, 16, 16), (1, 3, 12, 16), (1, 3, 16, 0)] {
        let error = session.run(Array4::zeros(shape).view()).unwrap_err();
        assert!(matches!(error, ModelError::Input { patch_size: 8, .. }), "{error}");
    }
    assert!(session.run(batch().view()).is_ok());
}

#[test]
fn several_sessions_start_from_one_file_and_say_where_they_run() {
    let model = Model::open(&tiny()).unwrap();
    let mut sessions = model.sessions(&SessionOptions::default(), 2).unwrap();
    let answers: Vec<_> = sessions.iter_mut().map(|session| session.run(batch().view()).unwrap()).collect();
    assert_eq!(answers[0], answers[1]);
    assert_ne!(sessions[0].device(), Device::Auto);
    assert!(sessions[0].has_output("keys") && !sessions[0].has_output("embedding"));
}

#[test]
fn a_file_that_is_not_the_manifests_is_refused() {
    let refused = |change: &dyn Fn(&Path)| {
        let folder = copy();
        let path = folder.path().join("model.onnx");
        change(&path);
        Model::open(folder.path()).unwrap().sessions(&cpu(), 1).unwrap_err()
    };
    let good = fs_err::read(tiny().join("model.onnx")).unwrap();
    let other = fs_err::read(tiny().join("../tiny-model/model.onnx")).unwrap();
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    for (what, bytes) in [("damaged", damaged.as_slice()), ("truncated", &good[..good.len() / 2]), ("empty", &[]), ("swapped", &other)] {
        let error = refused(&|path| fs_err::write(path, bytes).unwrap());
        assert!(matches!(error, ModelError::Hash { .. }), "{what}: {error}");
        let said = error.to_string();
        assert!(said.contains("model.onnx is damaged or was replaced") && said.contains("manifest.json says"), "{said}");
    }
    let error = refused(&|path| fs_err::remove_file(path).unwrap());
    assert!(error.to_string().contains("model.onnx"), "{error}");
}

#[test]
fn a_precision_or_device_that_is_not_there_is_named() {
    let model = Model::open(&tiny()).unwrap();
    let error = model.sessions(&SessionOptions { precision: Precision::Int8, ..cpu() }, 1).unwrap_err();
    assert!(error.to_string().contains("int8") && error.to_string().contains("f32"), "{error}");

    // A device of this number exists nowhere: it must not silently become the CPU.
    let error = model.sessions(&SessionOptions { device: Device::Cuda(77), ..cpu() }, 1).unwrap_err();
    assert!(matches!(error, ModelError::Device { device: Device::Cuda(77), .. }), "{error}");
}

#[test]
fn fingerprints_follow_weights_pooling_and_transform_but_not_precision() {
    let fingerprint = |change: &dyn Fn(&mut serde_json::Value)| {
        let folder = copy();
        let path = folder.path().join("manifest.json");
        let mut manifest: serde_json::Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
        change(&mut manifest);
        fs_err::write(&path, manifest.to_string()).unwrap();
        Model::open(folder.path()).unwrap().fingerprint(Pooling::Cls)
    };
    let original = fingerprint(&|_| {});
    assert_eq!(original.len(), 32);
    assert_eq!(original, fingerprint(&|manifest| manifest["files"]["f32"]["sha256"] = "c".repeat(64).into()));
    assert_ne!(original, fingerprint(&|manifest| manifest["source"]["sha256"] = "c".repeat(64).into()));
    assert_ne!(original, fingerprint(&|manifest| manifest["transform"]["crop"] = vec![24, 24].into()));
    assert_ne!(original, Model::open(&tiny()).unwrap().fingerprint(Pooling::Mean));
}

/// Runs another test of this program with `library` as ONNX Runtime, which has to fail; returns what it says.
fn failure_with(library: &str) -> String {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "outputs_have_their_names_shapes_and_patch_order"])
        .env("ORT_DYLIB_PATH", library)
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn a_runtime_that_is_missing_or_another_library_is_said_with_a_way_out() {
    let missing = failure_with("/nowhere/libonnxruntime.so");
    assert!(missing.contains("names no file (/nowhere/libonnxruntime.so)"), "{missing}");
    assert!(missing.contains("make onnxruntime"), "{missing}");

    let text = failure_with(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
    assert!(text.contains("does not load") && text.contains("make onnxruntime"), "{text}");
}
