//! Retrieval and copy detection, beside what the public functions give on the same (`tests/data/retrieval/make.py`).
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::path::{Path, PathBuf};

use dino_train::evaluate::copydays;
use dino_train::evaluate::ranking::{average_precision, order};
use dino_train::evaluate::revisited::{Figures, Protocol, Truth};
use dino_train::evaluate::whitening::Whitening;
use dino_vision::transform::{fit_within, fitting_size};
use dino_vision::unit_rows;
use image::RgbImage;
use ndarray::{Array2, Axis, Slice};
use safetensors::SafeTensors;
use serde_json::Value;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/retrieval")
}

struct Reference {
    file: Vec<u8>,
    config: Value,
}

impl Reference {
    fn open() -> Self {
        let file = fs_err::read(data().join("reference.safetensors")).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&file).unwrap();
        let config = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["config"]).unwrap();
        Self { file, config }
    }

    fn floats(&self, name: &str) -> Array2<f32> {
        let tensors = SafeTensors::deserialize(&self.file).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        let numbers = tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Array2::from_shape_vec((tensor.shape()[0], tensor.shape()[1]), numbers).unwrap()
    }

    fn picture(&self, name: &str) -> RgbImage {
        let tensors = SafeTensors::deserialize(&self.file).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        RgbImage::from_raw(tensor.shape()[1] as u32, tensor.shape()[0] as u32, tensor.data().to_vec()).unwrap()
    }

    fn list(&self, name: &str) -> Vec<f64> {
        self.config[name].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    }
}

fn integers(list: &Value) -> Vec<usize> {
    list.as_array().unwrap().iter().map(|value| value.as_u64().unwrap() as usize).collect()
}

#[test]
fn precision_of_retrieval_is_that_of_the_public_code() {
    let reference = Reference::open();
    let truth = Truth::read(&data().join("gnd_tiny.pkl")).unwrap();
    assert_eq!((truth.imlist.len(), truth.qimlist[2].as_str()), (60, "query_2"));
    let similarities = reference.floats("similarity");
    let orders: Vec<Vec<usize>> = similarities.axis_iter(Axis(0)).map(|row| order(row, row.len())).collect();
    let differs = |orders: &[Vec<usize>], name: &str, protocol: Protocol| {
        let Figures { map, mp1, mp5, mp10 } = truth.evaluate(orders, protocol).unwrap();
        [map, mp1, mp5, mp10].iter().zip(reference.list(name)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    for (name, protocol) in [("easy", Protocol::Easy), ("medium", Protocol::Medium), ("hard", Protocol::Hard)] {
        let difference = differs(&orders, name, protocol);
        assert!(difference < 1e-9, "{name}: {difference}");
    }
    assert!(differs(&orders, "medium", Protocol::Hard) > 1.0, "another protocol has other figures");
    for case in reference.config["precision"].as_array().unwrap() {
        let found = average_precision(&integers(&case["ranks"]), case["relevant"].as_u64().unwrap() as usize);
        assert!((found - case["expected"].as_f64().unwrap()).abs() < 1e-12, "{found}: {case}");
    }
    // The same as JSON.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gnd_tiny.json");
    fs_err::write(&file, r#"{"imlist": ["a"], "qimlist": ["b"], "gnd": [{"easy": [0], "hard": [], "junk": []}]}"#).unwrap();
    let one = Truth::read(&file).unwrap();
    assert_eq!(one.evaluate(&[vec![0]], Protocol::Easy), Some(Figures { map: 100.0, mp1: 100.0, mp5: 100.0, mp10: 100.0 }));
    assert_eq!(one.evaluate(&[vec![0]], Protocol::Hard), None);
    fs_err::write(&file, r#"{"imlist": ["a"], "qimlist": ["b"], "gnd": [{"easy": [1], "hard": [], "junk": []}]}"#).unwrap();
    assert!(format!("{:#}", Truth::read(&file).unwrap_err()).contains("beyond"));
}

/// What becomes of descriptors before they are compared.
type Change<'a> = &'a dyn Fn(&Array2<f32>) -> Array2<f32>;

#[test]
fn precision_of_copy_detection_is_that_of_the_public_code() {
    let reference = Reference::open();
    let folder = tempfile::tempdir().unwrap();
    let strong: Vec<&str> = reference.config["strong"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let originals: Vec<String> = (2000..2030).map(|number| format!("{number}00.jpg")).collect();
    let originals: Vec<&str> = originals.iter().map(String::as_str).collect();
    for (name, files) in [("original", &originals), ("strong", &strong), ("jpegqual/3", &originals)] {
        fs_err::create_dir_all(folder.path().join(name)).unwrap();
        for file in files {
            fs_err::write(folder.path().join(name).join(file), b"").unwrap();
        }
    }
    let blocks = copydays::blocks(folder.path()).unwrap();
    let (queries, database) = (reference.floats("queries"), reference.floats("database"));
    let whitening = Whitening::learn(reference.floats("others").view()).unwrap();
    let plain = |rows: &Array2<f32>| unit_rows::scaled(rows.view());
    let whitened = |rows: &Array2<f32>| unit_rows::scaled(whitening.apply(rows.view()).view());
    let changes: [(&str, Change<'_>); 2] = [("plain", &plain), ("whitened", &whitened)];
    for (name, change) in changes {
        let (queries, database) = (change(&queries), change(&database));
        let similar = queries.dot(&database.t());
        let expected = reference.floats(&format!("similar.{name}"));
        let largest = similar.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest < 1e-4, "{name}: {largest}");
        let mut first = 0;
        for (block, expected) in blocks.iter().zip(reference.list(name)) {
            let copies = queries.slice_axis(Axis(0), Slice::from(first..first + block.files.len()));
            first += block.files.len();
            let found = block.mean_average_precision(copies, database.view());
            // The public script prints three digits.
            assert!((found - expected).abs() < 5.1e-4, "{name}, {}: {found} is not {expected}", block.name);
        }
    }
    assert!((reference.list("plain")[1] - reference.list("whitened")[1]).abs() > 0.01, "whitening changes the figures");
    fs_err::write(folder.path().join("strong/9999.jpg"), b"").unwrap();
    assert!(copydays::blocks(folder.path()).unwrap_err().to_string().contains("copy of no original"));
    fs_err::remove_file(folder.path().join("jpegqual/3/200000.jpg")).unwrap();
    fs_err::remove_file(folder.path().join("strong/9999.jpg")).unwrap();
    assert!(copydays::blocks(folder.path()).unwrap_err().to_string().contains("holds 29 pictures"));
}

#[test]
fn pictures_are_made_smaller_as_by_pillow() {
    let reference = Reference::open();
    for case in reference.config["thumbnails"].as_array().unwrap() {
        let [size, expected] =
            [&case["size"], &case["expected"]].map(|size| integers(size).iter().map(|side| *side as u32).collect::<Vec<_>>());
        assert_eq!(fitting_size((size[0], size[1]), 224), (expected[0], expected[1]), "{size:?}");
    }
    for side in [32, 48] {
        let small = fit_within(&reference.picture(&format!("picture.{side}")), side);
        let expected = reference.picture(&format!("small.{side}"));
        assert_eq!(small.dimensions(), expected.dimensions());
        let differences: Vec<u8> = small.iter().zip(expected.iter()).map(|(a, b)| a.abs_diff(*b)).collect();
        let differ = differences.iter().filter(|difference| **difference > 0).count();
        assert!(
            differences.iter().all(|difference| *difference <= 1) && differ * 50 < differences.len(),
            "{differ} of {}",
            differences.len()
        );
    }
}
