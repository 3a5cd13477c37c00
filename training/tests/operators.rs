//! Small fused operators against candle's own, with their gradients; candle's fused layer norm has none.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{Device, Result, Tensor, Var};
use dino_train::kernels::matmul::Precision;
use dino_train::ops::{gelu::gelu, layer_norm, linear::linear};

fn var(shape: &[usize], seed: usize) -> Var {
    let n = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i| (((i * 7919 + seed * 104_729) % 1009) as f32) / 300.0 - 1.7).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

/// The output and the gradient of every argument, flattened.
fn run(arguments: &[&Var], f: impl Fn() -> Result<Tensor>) -> Vec<Vec<f32>> {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let out = f().unwrap();
    let weights = var(out.dims(), 99);
    let gradients = (&out * weights.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
    let mut all = vec![flat(&out)];
    all.extend(arguments.iter().map(|argument| flat(gradients.get(argument).unwrap())));
    all
}

fn assert_close(got: &[Vec<f32>], want: &[Vec<f32>]) {
    assert_eq!(got.len(), want.len());
    for (argument, (got, want)) in got.iter().zip(want).enumerate() {
        let scale = want.iter().fold(1f32, |a, b| a.max(b.abs()));
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() <= 1e-5 * scale, "argument {argument}: {g}, not {w}");
        }
    }
}

#[test]
fn linear_equals_matmul() {
    let (x, w) = (var(&[301, 19], 1), var(&[23, 19], 2));
    assert_close(&run(&[&x, &w], || linear(&x, &w, Precision::F32)), &run(&[&x, &w], || x.matmul(&w.t()?)));
}

#[test]
fn gelu_equals_the_erf_form() {
    let x = var(&[70_001], 3);
    assert_close(&run(&[&x], || gelu(&x)), &run(&[&x], || x.gelu_erf()));
}

#[test]
fn layer_norm_equals_the_composed_form_in_every_gradient() {
    let (x, w, b) = (var(&[600, 33], 4), var(&[33], 5), var(&[33], 6));
    let arguments = [&x, &w, &b];
    assert_close(
        &run(&arguments, || layer_norm::layer_norm(&x, &w, &b, 1e-6)),
        &run(&arguments, || layer_norm::composed(&x, &w, &b, 1e-6)),
    );
}
