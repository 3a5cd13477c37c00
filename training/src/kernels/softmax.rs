//! Softmax over rows, and the cross-entropy of one row.
//!
//! ```
//! use dino_train::kernels::softmax::{log_sum_exp, softmax};
//!
//! let mut row = [1.0, 1.0, 1.0, 1.0];
//! assert!((log_sum_exp(&row, 2.0) - (2.0 + 4_f32.ln())).abs() < 1e-5);
//! softmax(&mut row, 4, 2.0);
//! assert!(row.iter().all(|share| (share - 0.25).abs() < 1e-6));
//! ```

use multiversion::multiversion;

use super::vector::{exp, max, sum};

/// Power of e below which [`exp`] is not exact.
const LEAST_POWER: f32 = -87.0;

/// Row softmax of `scale * x` in place.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn softmax(x: &mut [f32], columns: usize, scale: f32) {
    for row in x.chunks_exact_mut(columns) {
        let top = max(row);
        for x in row.iter_mut() {
            *x = exp((*x - top) * scale);
        }
        let factor = 1.0 / sum(columns, |i| row[i]);
        for x in row.iter_mut() {
            *x *= factor;
        }
    }
}

/// `grad = weights * (grad - rowsum(grad * weights))`, the softmax's backward pass.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn softmax_backward(weights: &[f32], grad: &mut [f32], columns: usize) {
    for (w, g) in weights.chunks_exact(columns).zip(grad.chunks_exact_mut(columns)) {
        let dot = sum(columns, |i| w[i] * g[i]);
        for (g, &w) in g.iter_mut().zip(w) {
            *g = w * (*g - dot);
        }
    }
}

/// log Σ e^(scale x) of one row.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn log_sum_exp(x: &[f32], scale: f32) -> f32 {
    let top = max(x);
    top * scale + sum(x.len(), |i| exp((x[i] - top) * scale)).ln()
}

/// Dot product of two rows.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    sum(a.len(), |i| a[i] * b[i])
}

/// `out = count * softmax(scale x) * factor`, the first half of a cross-entropy's gradient against `count` targets.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn scaled_softmax(x: &[f32], scale: f32, log_sum_exp: f32, factor: f32, out: &mut [f32]) {
    for (o, &x) in out.iter_mut().zip(x) {
        *o = factor * exp(x * scale - log_sum_exp);
    }
}

/// `x = e^(scale (x - top))` in place; what would be below the smallest of normal numbers is 0.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn exponentials(x: &mut [f32], top: f32, scale: f32) {
    for x in x {
        let power = (*x - top) * scale;
        *x = if power < LEAST_POWER { 0.0 } else { exp(power) };
    }
}

/// `x *= factors * factor` in place.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn scale_columns(x: &mut [f32], factors: &[f32], factor: f32) {
    for (x, &of_column) in x.iter_mut().zip(factors) {
        *x *= of_column * factor;
    }
}

/// Largest value of a row, negative infinity of none.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn largest(x: &[f32]) -> f32 {
    max(x)
}

/// `out -= factor * x`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn subtract(out: &mut [f32], x: &[f32], factor: f32) {
    for (o, &x) in out.iter_mut().zip(x) {
        *o -= factor * x;
    }
}
