//! Weights in a file beside the graph, and files that are links.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::os::unix::fs::symlink;
use std::path::Path;

use common::{Tensors, bundled_golden, heads, picture, run, session_of, tensors, write};
use dino_train::export::{Exported, Options, export};
use dino_train::weights;
use dino_vision::model::{Device, Model, ModelError, Precision, SessionOptions};
use fs_err as fs;

fn dino() -> Tensors {
    tensors(&bundled_golden().join("checkpoints/pth-dino-backbone/dino_vit_pretrain.pth"))
}

/// The golden backbone in all precisions.
fn exported(folder: &Path, external_data: bool) -> Exported {
    let file = folder.join("weights.safetensors");
    write(&file, &dino(), &[]);
    let precisions = vec![Precision::F32, Precision::F16, Precision::Int8];
    export(&file, &folder.join("model"), &Options { precisions, external_data, ..heads(4) }).unwrap()
}

/// Why sessions of the model at `path` do not start.
fn refusal(path: &Path) -> ModelError {
    let options = SessionOptions { device: Device::Cpu, ..SessionOptions::default() };
    Model::open(path).and_then(|model| model.sessions(&options, 1)).unwrap_err()
}

#[test]
fn a_folder_with_data_files_gives_what_one_without_gives() {
    let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (inside, outside) = (exported(inside.path(), false), exported(outside.path(), true));
    let pixels = picture(24, 40);
    for (precision, name) in [(Precision::F32, "model.onnx"), (Precision::F16, "model.f16.onnx"), (Precision::Int8, "model.int8.onnx")] {
        let size = |exported: &Exported, name: &str| fs::metadata(exported.folder.join(name)).unwrap().len();
        assert!(size(&outside, name) < size(&inside, name) / 2);
        assert!(size(&outside, &format!("{name}_data")) > size(&inside, name) / 4);
        let file = &outside.manifest.files[precision.as_str()];
        assert_eq!(file.data.as_ref().unwrap().name, format!("{name}_data"));
        let outputs = [&inside, &outside].map(|exported| run(&mut session_of(&exported.folder, precision), &pixels));
        assert_eq!(outputs[0], outputs[1], "{precision}");
    }
    let names = |folder: &Path| {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&outside.folder).len(), 7, "{:?}", names(&outside.folder));
    // An export without them takes them away.
    exported(outside.folder.parent().unwrap(), false);
    assert_eq!(names(&outside.folder), ["manifest.json", "model.f16.onnx", "model.int8.onnx", "model.onnx"]);
}

#[test]
fn a_data_file_that_is_not_the_exported_one_is_named() {
    let work = tempfile::tempdir().unwrap();
    let folder = exported(work.path(), true).folder;
    let data = folder.join("model.onnx_data");
    let bytes = fs::read(&data).unwrap();

    let mut changed = bytes.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&data, &changed).unwrap();
    assert!(matches!(refusal(&folder), ModelError::Hash { path, .. } if path == data));
    fs::write(&data, &bytes[..bytes.len() / 2]).unwrap();
    assert!(matches!(refusal(&folder), ModelError::Hash { path, .. } if path == data));

    let manifest = folder.join("manifest.json");
    let whole = fs::read(&manifest).unwrap();
    let mut without: serde_json::Value = serde_json::from_slice(&whole).unwrap();
    without["files"]["f32"].as_object_mut().unwrap().remove("data").unwrap();
    fs::write(&manifest, without.to_string()).unwrap();
    fs::write(&data, &bytes).unwrap();
    let error = refusal(&folder);
    assert!(
        matches!(&error, ModelError::Data { name, reason, .. } if name == "model.onnx_data" && reason.contains("does not list")),
        "{error}"
    );
    fs::write(&manifest, &whole).unwrap();

    fs::remove_file(&data).unwrap();
    let error = refusal(&folder).to_string();
    assert!(error.contains("model.onnx_data is not there") && error.contains("copy it"), "{error}");
    symlink("elsewhere", &data).unwrap();
    let error = refusal(&folder).to_string();
    assert!(error.contains("is a link to elsewhere, which is gone"), "{error}");

    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("data"), &bytes).unwrap();
    fs::remove_file(&data).unwrap();
    symlink(elsewhere.path().join("data"), &data).unwrap();
    run(&mut session_of(&folder, Precision::F32), &picture(16, 16));
}

/// Every file in a store of its own, as Python's library lays out its cache where repositories share blobs.
#[test]
fn files_of_others_may_be_links_into_several_folders() {
    let work = tempfile::tempdir().unwrap();
    let folder = exported(work.path(), true).folder;
    let pixels = picture(56, 56);
    let options = SessionOptions { device: Device::Cpu, ..SessionOptions::default() };
    let outputs = |path: &Path| {
        let model = Model::open(path).unwrap();
        (run(&mut model.sessions(&options, 1).unwrap().remove(0), &pixels), model.manifest().source.sha256.clone())
    };
    // Without its manifest it is a graph of others.
    let plain = outputs(&folder.join("model.onnx"));

    let cache = work.path().join("hub");
    let snapshot = cache.join("models--o--n/snapshots/0123");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(cache.join("models--o--n/blobs")).unwrap();
    for (number, name) in ["model.onnx", "model.onnx_data"].into_iter().enumerate() {
        let store = cache.join(format!("blobs/{number}{number}"));
        fs::create_dir_all(&store).unwrap();
        fs::copy(folder.join(name), store.join("x")).unwrap();
        symlink(format!("../../blobs/{number}{number}/x"), cache.join(format!("models--o--n/blobs/{number}"))).unwrap();
        symlink(format!("../../blobs/{number}"), snapshot.join(name)).unwrap();
    }
    assert_eq!(outputs(&snapshot.join("model.onnx")), plain);

    fs::remove_file(cache.join("blobs/11/x")).unwrap();
    let error = refusal(&snapshot.join("model.onnx")).to_string();
    assert!(error.contains("snapshots/0123/model.onnx_data is a link") && error.contains("hf://OWNER/NAME"), "{error}");
    fs::remove_file(cache.join("blobs/00/x")).unwrap();
    let error = refusal(&snapshot.join("model.onnx")).to_string();
    assert!(error.contains("snapshots/0123/model.onnx is a link") && !error.contains("manifest"), "{error}");
}

#[test]
fn a_checkpoint_whose_blobs_are_gone_is_not_read_without_them() {
    let golden = bundled_golden().join("checkpoints/hf-dinov2");
    for gone in ["config.json", "model.safetensors", "preprocessor_config.json"] {
        let work = tempfile::tempdir().unwrap();
        let snapshot = work.path().join("snapshots/0123");
        fs::create_dir_all(&snapshot).unwrap();
        for name in ["config.json", "model.safetensors", "preprocessor_config.json"] {
            let target = if name == gone { Path::new("../../blobs/gone").to_owned() } else { golden.canonicalize().unwrap().join(name) };
            if name == gone || target.exists() {
                symlink(target, snapshot.join(name)).unwrap();
            }
        }
        let error = weights::load(&snapshot, &weights::Options::default()).unwrap_err();
        assert!(matches!(&error, weights::Error::Link(reason) if reason.contains(gone) && reason.contains("hf://")), "{error}");
    }
}
