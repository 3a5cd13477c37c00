//! `dino-train export` as a user meets it: exit codes, and what it says on stderr.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::{bundled_golden, tensors, write};

fn export(checkpoint: &Path, out: &Path, more: &[&str]) -> (Output, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.arg("export").arg("--checkpoint").arg(checkpoint).arg("--out").arg(out).args(more);
    let output = command.env("NO_COLOR", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

#[test]
fn success_says_how_many_tensors_were_used_and_names_the_rest() {
    let work = tempfile::tempdir().unwrap();
    let weights = work.path().join("weights.safetensors");
    let mut all = tensors(&bundled_golden().join("checkpoints/pth-dino-backbone/dino_vit_pretrain.pth"));
    let count = all.len();
    all.insert("blocks.1.surprise".to_owned(), all["norm.bias"].clone());
    write(&weights, &all, &[]);
    let (output, said) = export(&weights, &work.path().join("model"), &["--heads", "4"]);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("not used: blocks.1.surprise") && said.contains("--ignore"), "{said}");
    let (output, said) = export(&weights, &work.path().join("model"), &["--heads", "4", "--ignore", "blocks.1.surprise"]);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains(&format!("{count} tensors used")), "{said}");
    assert!(said.contains("blocks.1.surprise"), "{said}");
    assert_eq!(output.stdout, b"");
}

#[test]
fn a_checkpoint_that_does_not_fit_ends_with_one_and_names_what_is_missing() {
    let work = tempfile::tempdir().unwrap();
    let weights = work.path().join("weights.safetensors");
    let mut all = tensors(&bundled_golden().join("checkpoints/pth-dino-backbone/dino_vit_pretrain.pth"));
    all.remove("blocks.0.attn.qkv.bias");
    write(&weights, &all, &[]);
    let (output, said) = export(&weights, &work.path().join("model"), &["--heads", "4"]);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("missing: blocks.0.attn.qkv.bias"), "{said}");
    assert!(!work.path().join("model").exists());
}

#[test]
fn what_is_no_checkpoint_is_said_with_what_to_do() {
    let work = tempfile::tempdir().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/tiny-model");
    for (checkpoint, wanted) in [
        (model, "it is a model folder, which was exported already: serve it"),
        ("facebook/dinov2-small", "did you mean hf://facebook/dinov2-small?"),
    ] {
        let (output, said) = export(Path::new(checkpoint), &work.path().join("model"), &[]);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(wanted), "{said}");
    }
    assert!(!work.path().join("model").exists());
}

#[test]
fn wrong_usage_ends_with_two() {
    let (output, said) = export(Path::new("x"), Path::new("y"), &["--precision", "f8"]);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("f32, f16, int8"), "{said}");
}

#[test]
fn exporting_over_a_model_folder_keeps_what_is_not_the_exports() {
    let work = tempfile::tempdir().unwrap();
    let weights = bundled_golden().join("checkpoints/pth-dino-backbone/dino_vit_pretrain.pth");
    let out = work.path().join("model");
    let (output, said) = export(&weights, &out, &["--heads", "4"]);
    assert_eq!(output.status.code(), Some(0), "{said}");
    fs_err::create_dir_all(out.join("heads/objects")).unwrap();
    fs_err::write(out.join("heads/objects/head.safetensors"), b"200 seconds of work").unwrap();
    fs_err::write(out.join("NOTES.md"), b"mine").unwrap();
    // Of another precision, and not of this export.
    fs_err::write(out.join("model.int8.onnx"), b"old").unwrap();
    let (output, said) = export(&weights, &out, &["--heads", "4"]);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("kept, as they were in the folder: NOTES.md, heads;"), "{said}");
    assert!(said.contains("removed from the folder, as this export does not write them: model.int8.onnx"), "{said}");
    assert_eq!(fs_err::read(out.join("heads/objects/head.safetensors")).unwrap(), b"200 seconds of work");
    assert!(out.join("NOTES.md").exists() && out.join("model.onnx").exists() && !out.join("model.int8.onnx").exists());
}

#[test]
fn flags_of_checkpoints_are_refused_where_they_would_say_nothing() {
    let work = tempfile::tempdir().unwrap();
    let pictures = work.path().to_str().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/tiny-model");
    let refused = |code: i32, args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_dino-train")).args(args).env("NO_COLOR", "1").output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refused(1, &["knn", "--model", model, "--train", pictures, "--val", pictures, "--size", "64"]);
    assert!(said.contains("--size") && said.contains("for checkpoints"), "{said}");
    let said = refused(2, &["train", "--data", pictures, "--out", work.path().join("run").to_str().unwrap(), "--ignore", "x"]);
    assert!(said.contains("--init"), "{said}");
}
