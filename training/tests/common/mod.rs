//! What the tests of checkpoints and exported models share.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

pub(crate) mod convnext;
pub(crate) mod torch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dino_train::export::Options;
use dino_train::weights::{self, Tensor};
use dino_vision::model::{Device, Model, Outputs, Precision, Session, SessionOptions};
use ndarray::{Array4, ArrayD, IxDyn};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// Tensors by name.
pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// Root of the repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The golden files: `DINO_GOLDEN`, or the copy in the repository.
pub(crate) fn golden() -> PathBuf {
    std::env::var_os("DINO_GOLDEN").map_or_else(bundled_golden, PathBuf::from)
}

/// The copy in the repository, for tests that know its contents.
pub(crate) fn bundled_golden() -> PathBuf {
    repository().join("tests/golden")
}

/// Reads a safetensors file of float32 tensors.
pub(crate) fn read(path: &Path) -> Tensors {
    let bytes = fs_err::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |view: TensorView| {
        assert_eq!(view.dtype(), Dtype::F32);
        let data = view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Tensor { shape: view.shape().to_vec(), data }
    };
    file.tensors().into_iter().map(|(name, view)| (name, tensor(view))).collect()
}

/// Writes a safetensors file of float32 tensors.
pub(crate) fn write(path: &Path, tensors: &Tensors, metadata: &[(&str, &str)]) {
    let bytes: Vec<_> = tensors.values().map(|tensor| little_endian(&tensor.data)).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, tensor), bytes)| (name.clone(), TensorView::new(Dtype::F32, tensor.shape.clone(), bytes).unwrap()));
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    fs_err::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

/// The bytes of float32 numbers.
pub(crate) fn little_endian(data: &[f32]) -> Vec<u8> {
    data.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// All tensors of a checkpoint of any kind.
pub(crate) fn tensors(path: &Path) -> Tensors {
    let store = dino_train::weights::open(path).unwrap();
    store.names().map(|name| (name.to_owned(), store.read(name).unwrap())).collect()
}

/// Options with a number of heads.
pub(crate) fn heads(heads: usize) -> Options {
    reading(weights::Options { heads: Some(heads), ..weights::Options::default() })
}

/// Options to read a checkpoint with.
pub(crate) fn reading(checkpoint: weights::Options) -> Options {
    Options { checkpoint, ..Options::default() }
}

/// A session of one thread on the CPU.
pub(crate) fn session(folder: &Path) -> Session {
    session_of(folder, Precision::F32)
}

/// A session of one thread on the CPU, of a file of the folder.
pub(crate) fn session_of(folder: &Path, precision: Precision) -> Session {
    let options = SessionOptions { device: Device::Cpu, precision, ..SessionOptions::default() };
    Model::open(folder).unwrap().sessions(&options, 1).unwrap().remove(0)
}

/// Outputs by the names of the golden files.
pub(crate) fn run(session: &mut Session, pixels: &Tensor) -> BTreeMap<&'static str, ArrayD<f32>> {
    let pixels = array(pixels).into_dimensionality().unwrap();
    named(session.run(pixels.view()).unwrap())
}

fn named(outputs: Outputs) -> BTreeMap<&'static str, ArrayD<f32>> {
    let all = [
        ("tokens", outputs.last_hidden_state.map(ndarray::ArrayBase::into_dyn)),
        ("attention", outputs.attention.map(ndarray::ArrayBase::into_dyn)),
        ("keys", outputs.keys.map(ndarray::ArrayBase::into_dyn)),
        ("embedding", outputs.embedding.map(ndarray::ArrayBase::into_dyn)),
        ("feature_map", outputs.feature_map.map(ndarray::ArrayBase::into_dyn)),
    ];
    all.into_iter().filter_map(|(name, array)| Some((name, array?))).collect()
}

/// A tensor as an array.
pub(crate) fn array(tensor: &Tensor) -> ArrayD<f32> {
    ArrayD::from_shape_vec(IxDyn(&tensor.shape), tensor.data.clone()).unwrap()
}

/// A picture made by the formula of `reference/make.py`, `[1, 3, height, width]`.
pub(crate) fn picture(height: usize, width: usize) -> Tensor {
    let pixels = Array4::from_shape_fn((1, 3, height, width), |(_, channel, row, column)| {
        ((channel * 7919 + row * 104_729 + column * 1_299_709) % 1009) as f32 / 252.0 - 2.0
    });
    Tensor { shape: vec![1, 3, height, width], data: pixels.into_raw_vec_and_offset().0 }
}

/// The largest difference beyond the golden tolerance, atol = rtol = 1e-4; shapes have to agree.
pub(crate) fn assert_close(found: &ArrayD<f32>, expected: &ArrayD<f32>, what: &str) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let tolerance = 1e-4 + 1e-4 * expected.abs();
        assert!((found - expected).abs() <= tolerance, "{what}, element {index}: {found}, not {expected}");
    }
}
