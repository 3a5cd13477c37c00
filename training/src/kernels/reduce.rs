//! Row-wise additions and column sums.
//!
//! ```
//! use dino_train::kernels::reduce::{add_bias, add_column_sums};
//!
//! let mut rows = [1.0, 2.0, 3.0, 4.0];
//! add_bias(&mut rows, &[10.0, 20.0]);
//! assert_eq!(rows, [11.0, 22.0, 13.0, 24.0]);
//!
//! let mut sums = [0.0, 1.0];
//! add_column_sums(&rows, &mut sums);
//! assert_eq!(sums, [24.0, 47.0]);
//! ```

use multiversion::multiversion;

/// Adds `bias` to each row of `x`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn add_bias(x: &mut [f32], bias: &[f32]) {
    for row in x.chunks_exact_mut(bias.len()) {
        for (x, &b) in row.iter_mut().zip(bias) {
            *x += b;
        }
    }
}

/// `out = residual + scale * (out + bias)` for the rows of one sequence.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn add_residual(out: &mut [f32], bias: &[f32], residual: &[f32], scale: f32) {
    let dim = bias.len();
    for (out, residual) in out.chunks_exact_mut(dim).zip(residual.chunks_exact(dim)) {
        for ((o, &r), &b) in out.iter_mut().zip(residual).zip(bias) {
            *o = r + scale * (*o + b);
        }
    }
}

/// `sums += x` summed over rows.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn add_column_sums(x: &[f32], sums: &mut [f32]) {
    for row in x.chunks_exact(sums.len()) {
        for (s, &x) in sums.iter_mut().zip(row) {
            *s += x;
        }
    }
}

/// `out = scale * x`.
pub fn scaled(x: &[f32], scale: f32, out: &mut [f32]) {
    for (o, &x) in out.iter_mut().zip(x) {
        *o = scale * x;
    }
}

/// `a += b`.
pub fn add(a: &mut [f32], b: &[f32]) {
    for (a, &b) in a.iter_mut().zip(b) {
        *a += b;
    }
}
