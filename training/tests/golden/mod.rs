//! Reading golden tensors, and comparing with them.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use dino_train::dino::head::HeadConfig;
use dino_train::kernels::matmul::Precision;
use rand::SeedableRng as _;
use serde_json::Value;

/// Absolute and relative tolerance.
pub(crate) const TOLERANCE: f32 = 1e-4;

/// The folder of golden files: `DINO_GOLDEN`, else the repository's copy.
pub(crate) fn folder() -> PathBuf {
    std::env::var_os("DINO_GOLDEN").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden"), PathBuf::from)
}

/// What the file `name` says of the golden tensors.
pub(crate) fn description(name: &str) -> Value {
    let path = folder().join(name);
    serde_json::from_str(&std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

/// Fresh weights, which the golden ones replace.
pub(crate) fn random() -> rand_chacha::ChaCha8Rng {
    rand_chacha::ChaCha8Rng::seed_from_u64(0)
}

/// The head that a description's `size`s give.
pub(crate) fn head(size: impl Fn(&str) -> usize) -> HeadConfig {
    HeadConfig {
        dim: size("dim"),
        hidden: size("hidden"),
        bottleneck: size("bottleneck"),
        out: Some(size("out")),
        batch_norm: false,
        norm_last_layer: false,
        precision: Precision::F32,
    }
}

/// The tensors of one file.
pub(crate) struct Golden(pub(crate) HashMap<String, Tensor>);

impl Golden {
    /// Reads `name` or fails the test.
    pub(crate) fn load(name: &str) -> Self {
        let path = folder().join(name);
        Self(candle_core::safetensors::load(&path, &Device::Cpu).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    /// A tensor as float32.
    pub(crate) fn get(&self, name: &str) -> Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("no golden tensor {name}")).to_dtype(DType::F32).unwrap()
    }

    /// All tensors below a prefix.
    pub(crate) fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
        self.0.iter().filter_map(move |(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)))
    }
}

/// The elements in order.
pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The first element off by more than the tolerance, as text.
pub(crate) fn compare(got: &Tensor, want: &Tensor, tolerance: f32) -> Result<(), String> {
    if got.dims() != want.dims() {
        return Err(format!("shape {:?}, not {:?}", got.dims(), want.dims()));
    }
    compare_values(&values(got), &values(want), tolerance)
}

/// The same for plain values.
pub(crate) fn compare_values(got: &[f32], want: &[f32], tolerance: f32) -> Result<(), String> {
    assert_eq!(got.len(), want.len());
    let close = |g: f32, w: f32| (g - w).abs() <= tolerance + tolerance * w.abs();
    match got.iter().zip(want).position(|(&g, &w)| !close(g, w)) {
        Some(i) => Err(format!("element {i} is {}, not {}", got[i], want[i])),
        None => Ok(()),
    }
}

/// Every tensor of `want` must be noticed when one of its elements moves by 1e-2.
pub(crate) fn assert_can_fail<'a>(want: impl Iterator<Item = (&'a str, &'a Tensor)>) {
    for (name, tensor) in want {
        let original = values(tensor);
        for i in [0, original.len() / 2, original.len() - 1] {
            let mut moved = original.clone();
            moved[i] += 1e-2 * original[i].abs().max(1.0);
            assert!(compare_values(&original, &moved, TOLERANCE).is_err(), "{name}: element {i} moved unnoticed");
        }
    }
}

/// The first element off by more than the tolerance times the largest value of the tensor, as text.
pub(crate) fn compare_relative(got: &[f32], want: &[f32]) -> Result<(), String> {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    match got.iter().zip(want).position(|(g, w)| (g - w).abs().is_nan() || (g - w).abs() > TOLERANCE * largest) {
        Some(i) => Err(format!("element {i} is {}, not {} (the largest is {largest})", got[i], want[i])),
        None => Ok(()),
    }
}
