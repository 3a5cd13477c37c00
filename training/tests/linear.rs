//! The linear evaluation: its classifier against PyTorch's, and the program on small folders.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod program;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dino_train::evaluate::linear::{Probe, cosine, step_all};
use image::{Rgb, RgbImage};
use ndarray::{Array1, Array2, Axis};
use program::{report, text};
use safetensors::SafeTensors;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// `reference/linear.py` trained the same classifier on the same features in the same order.
#[test]
fn the_classifier_is_trained_as_the_public_code_trains_it() {
    let bytes = fs_err::read(root().join("training/tests/reference/linear.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        tensors.tensor(name).unwrap().data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    let integers = |name: &str| -> Vec<usize> {
        tensors.tensor(name).unwrap().data().as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as usize).collect()
    };
    let matrix = |name: &str| {
        let shape = tensors.tensor(name).unwrap().shape().to_vec();
        Array2::from_shape_vec((shape[0], shape[1]), floats(name)).unwrap()
    };
    let (features, labels) = (matrix("features"), integers("labels"));
    let batch: usize = metadata["batch"].parse().unwrap();
    let first = (matrix("first.weight"), Array1::from(floats("first.bias")));
    let mut probes = vec![Probe::from_weights(first.0, first.1, metadata["lr"].parse().unwrap())];
    let mut losses = Vec::new();
    let orders = integers("orders");
    let epochs = orders.len() / labels.len();
    for (epoch, order) in orders.chunks(labels.len()).enumerate() {
        for rows in order.chunks(batch) {
            let classes: Vec<u32> = rows.iter().map(|&row| labels[row] as u32).collect();
            losses.extend(step_all(&mut probes, features.select(Axis(0), rows).view(), &classes, cosine(epoch, epochs), batch));
        }
    }
    let close = |found: &mut dyn Iterator<Item = f32>, expected: &[f32], what: &str| {
        let found: Vec<f32> = found.collect();
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5 + 1e-5 * expected.abs(), "{what}: {found}, not {expected}");
        }
    };
    close(&mut losses.iter().map(|&loss| loss as f32), &floats("losses"), "losses");
    close(&mut probes[0].weight.iter().copied(), &floats("last.weight"), "weight");
    close(&mut probes[0].bias.iter().copied(), &floats("last.bias"), "bias");
}

fn linear(arguments: &[&str], paths: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.arg("linear").args(arguments);
    for (flag, path) in paths {
        command.arg(flag).arg(path);
    }
    command.output().unwrap()
}

/// Classes that differ in colour.
fn pictures(folder: &Path, classes: &[&str], per_class: u8) {
    for (number, class) in classes.iter().enumerate() {
        fs_err::create_dir_all(folder.join(class)).unwrap();
        for i in 0..per_class {
            let number = number as u8;
            let picture = RgbImage::from_fn(64, 48, |x, y| {
                Rgb([number * 60, 255 - number * 60, ((x * u32::from(number + 1) + y * u32::from(i)) % 256) as u8])
            });
            picture.save(folder.join(class).join(format!("{i}.png"))).unwrap();
        }
    }
}

#[test]
fn colours_are_learnt_from_new_views_and_from_cached_ones() {
    let folder = tempfile::tempdir().unwrap();
    let (train, val) = (folder.path().join("train"), folder.path().join("val"));
    pictures(&train, &["a", "b c", "d"], 4);
    pictures(&val, &["a", "b c", "d", "new"], 1);
    fs_err::write(train.join("a/text.png"), "text").unwrap();
    fs_err::write(train.join("loose.png"), "text").unwrap();
    let checkpoint = root().join("tests/golden/checkpoints/pth-dino-backbone/dino_vit_pretrain.pth");
    let paths = [("--model", checkpoint.as_path()), ("--train", &train), ("--val", &val)];
    let settings = ["--heads", "4", "--batch-size", "5", "--lr", "0.5,5", "--epochs", "6"];
    for (more, blocks) in
        [(&["--n-last-blocks", "1"][..], 1), (&["--cached", "3", "--avgpool-patchtokens", "true"], 2), (&["--cached", "0"], 2)]
    {
        let output = linear(&[&settings[..], more].concat(), &paths);
        let (found, stderr) = (report(&output), text(&output.stderr));
        assert_eq!(found["n_last_blocks"], blocks, "the checkpoint has two blocks: {found}");
        assert!(found["top1"].as_f64().unwrap() >= 50.0, "three of four can be right: {found}");
        assert_eq!(found["by_lr"].as_object().unwrap().len(), 2);
        assert_eq!(report(&linear(&[&settings[..], more].concat(), &paths)), found, "the seed decides everything");
        for word in ["text.png", "loose.png", "class \"new\" of val", "2 files were skipped"] {
            assert!(stderr.contains(word), "{word}: {stderr}");
        }
    }
}

#[test]
fn blocks_that_a_model_does_not_give_are_refused_with_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let train = folder.path().join("train");
    pictures(&train, &["a", "b"], 1);
    let model = root().join("tests/data/tiny-model");
    let output = linear(&["--n-last-blocks", "2"], &[("--model", &model), ("--train", &train), ("--val", &train)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--last-blocks 2"), "{}", text(&output.stderr));
    let output = linear(&["--lr=-1"], &[("--model", &model), ("--train", &train), ("--val", &train)]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}
