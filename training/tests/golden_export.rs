//! Every golden checkpoint, exported and run through ONNX Runtime.

mod common;

use std::collections::BTreeSet;

use boon::{Compiler, Schemas};
use common::{array, assert_close, golden, read, reading, run, session};
use dino_train::export::export;
use dino_train::weights::{Options, Tensor};
use ndarray::{ArrayD, Axis};

/// Exports each folder and compares its outputs in every shape of its expected file, together and one by one.
#[test]
fn golden_checkpoints_agree_in_every_shape() {
    let folder = golden().join("checkpoints");
    let mut names: Vec<_> = fs_err::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert!(!names.is_empty(), "no checkpoints in {}", folder.display());
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    let schema = compiler.compile(common::repository().join("models/manifest.schema.json").to_str().unwrap(), &mut schemas).unwrap();
    for checkpoint in names {
        let expected = read(&checkpoint.join("expected.safetensors"));
        // Only config.json says how many heads there are; a .pth file leaves it to the user.
        let heads = expected.iter().find(|(name, _)| name.ends_with(".attention")).map(|(_, tensor)| tensor.shape[1]);
        let heads = heads.filter(|_| !checkpoint.join("config.json").exists());
        let work = tempfile::tempdir().unwrap();
        let options = reading(Options { heads, ..Options::default() });
        let exported = export(&checkpoint, &work.path().join("model"), &options).unwrap();
        let manifest = fs_err::read(exported.folder.join("manifest.json")).unwrap();
        if let Err(error) = schemas.validate(&serde_json::from_slice(&manifest).unwrap(), schema) {
            panic!("{}: {error:#}", checkpoint.display());
        }
        let mut session = session(&exported.folder);

        let cases: BTreeSet<_> = expected.keys().filter_map(|name| Some(name.split_once('.')?.0)).collect();
        assert!(!cases.is_empty());
        for case in cases {
            let input = &expected[&format!("{case}.input")];
            let together = run(&mut session, input);
            for (output, found) in &together {
                let what = format!("{}: {case}.{output}", checkpoint.display());
                if let Some(expected) = expected.get(&format!("{case}.{output}")) {
                    assert_close(found, &cls_row(output, expected), &what);
                }
                // The feature map has no expected values of its own; the embedding is its mean.
                if *output == "feature_map" {
                    let mean = found.mean_axis(Axis(3)).unwrap().mean_axis(Axis(2)).unwrap();
                    assert_close(&mean, &together["embedding"], &what);
                }
            }
            for name in ["tokens", "attention", "keys", "embedding"] {
                let wanted = expected.contains_key(&format!("{case}.{name}"));
                assert_eq!(together.contains_key(name), wanted, "{}: {case}.{name}", checkpoint.display());
            }
            for (index, picture) in array(input).axis_iter(Axis(0)).enumerate() {
                let mut shape = input.shape.clone();
                shape[0] = 1;
                let picture = Tensor { shape, data: picture.iter().copied().collect() };
                for (output, alone) in run(&mut session, &picture) {
                    let in_batch = together[output].select(Axis(0), &[index]);
                    assert_close(&alone, &in_batch, &format!("{}: {case}.{output} {index}", checkpoint.display()));
                }
            }
        }
    }
}

/// Golden files hold the whole attention `[B, heads, T, T]`, a model gives its CLS row.
fn cls_row(output: &str, expected: &Tensor) -> ArrayD<f32> {
    let expected = array(expected);
    if output == "attention" { expected.index_axis(Axis(2), 0).to_owned() } else { expected }
}

/// The comparison above notices a single value that is off by 1e-2.
#[test]
#[should_panic(expected = "element 3")]
fn golden_comparison_can_fail() {
    let tensor = Tensor { shape: vec![2, 3], data: vec![1.0; 6] };
    let mut moved = tensor.clone();
    moved.data[3] += 1e-2;
    assert_close(&array(&moved), &array(&tensor), "moved");
}
