//! Softmax attention of one sequence, heads packed side by side as the public code's `qkv` layer leaves them.
//!
//! A row of `qkv` is `[q of head 0, q of head 1, …, k of head 0, …, v of head 0, …]`, `3 * dim` long.
//!
//! ```
//! use dino_train::kernels::attention::{Scratch, forward};
//!
//! // Two tokens of one number. Both have the same key, so that each answer is the mean of the values.
//! let qkv = [1.0, 0.0, 2.0, 1.0, 0.0, 4.0];
//! let mut out = [0.0; 2];
//! forward(&qkv, 1, 1, &mut out, &mut Scratch::default());
//! assert!(out.iter().all(|answer| (answer - 3.0).abs() < 1e-5));
//! ```

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use super::sized;
use super::softmax::{softmax, softmax_backward};

/// Scratch memory of one task, reused from sequence to sequence.
#[derive(Default)]
pub struct Scratch {
    weights: Vec<f32>,
    gradient: Vec<f32>,
}

/// Columns `from..from + width` of a row-major matrix.
fn columns(x: &[f32], stride: usize, from: usize, width: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(x, x.len() / stride, stride).subcols(from, width)
}

fn columns_mut(x: &mut [f32], stride: usize, from: usize, width: usize) -> MatMut<'_, f32> {
    let rows = x.len() / stride;
    MatMut::from_row_major_slice_mut(x, rows, stride).subcols_mut(from, width)
}

/// Weights of each query over all tokens.
fn over_tokens(x: &[f32], tokens: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(x, x.len() / tokens, tokens)
}

/// Softmax(q kᵀ / √d) of one head for the first `out.len() / tokens` queries, `[queries, tokens]`.
pub fn weights(qkv: &[f32], dim: usize, heads: usize, head: usize, out: &mut [f32]) {
    let (width, tokens) = (dim / heads, qkv.len() / (3 * dim));
    let queries = out.len() / tokens;
    let q = columns(qkv, 3 * dim, head * width, width).subrows(0, queries);
    let k = columns(qkv, 3 * dim, dim + head * width, width);
    let scores = MatMut::from_row_major_slice_mut(&mut *out, queries, tokens);
    matmul(scores, Accum::Replace, q, k.transpose(), 1.0, Par::Seq);
    softmax(out, tokens, 1.0 / (width as f32).sqrt());
}

/// `qkv` `[tokens, 3 dim]` to `out` `[queries, dim]`, the answers to the first `out.len() / dim` queries.
pub fn forward(qkv: &[f32], dim: usize, heads: usize, out: &mut [f32], scratch: &mut Scratch) {
    let (width, tokens, queries) = (dim / heads, qkv.len() / (3 * dim), out.len() / dim);
    let shares = sized(&mut scratch.weights, queries * tokens);
    for head in 0..heads {
        weights(qkv, dim, heads, head, shares);
        let v = columns(qkv, 3 * dim, 2 * dim + head * width, width);
        let out = columns_mut(out, dim, head * width, width);
        matmul(out, Accum::Replace, over_tokens(shares, tokens), v, 1.0, Par::Seq);
    }
}

/// Gradient of `qkv` from that of the first queries' output `[queries, dim]`; the weights are computed again rather than kept.
pub fn backward(qkv: &[f32], dim: usize, heads: usize, dout: &[f32], dqkv: &mut [f32], scratch: &mut Scratch) {
    let (width, tokens, queries, row) = (dim / heads, qkv.len() / (3 * dim), dout.len() / dim, 3 * dim);
    let scale = 1.0 / (width as f32).sqrt();
    let shares = sized(&mut scratch.weights, queries * tokens);
    let gradient = sized(&mut scratch.gradient, queries * tokens);
    for rest in dqkv.chunks_exact_mut(row).skip(queries) {
        rest[..dim].fill(0.0);
    }
    for head in 0..heads {
        let (at_q, at_k, at_v) = (head * width, dim + head * width, 2 * dim + head * width);
        weights(qkv, dim, heads, head, shares);
        let dout = columns(dout, dim, at_q, width);
        let dv = columns_mut(dqkv, row, at_v, width);
        matmul(dv, Accum::Replace, over_tokens(shares, tokens).transpose(), dout, 1.0, Par::Seq);
        let v = columns(qkv, row, at_v, width);
        let dweights = MatMut::from_row_major_slice_mut(&mut *gradient, queries, tokens);
        matmul(dweights, Accum::Replace, dout, v.transpose(), 1.0, Par::Seq);
        softmax_backward(shares, gradient, tokens);
        let dscores = over_tokens(gradient, tokens);
        let (q, k) = (columns(qkv, row, at_q, width).subrows(0, queries), columns(qkv, row, at_k, width));
        matmul(columns_mut(dqkv, row, at_q, width).subrows_mut(0, queries), Accum::Replace, dscores, k, scale, Par::Seq);
        matmul(columns_mut(dqkv, row, at_k, width), Accum::Replace, dscores.transpose(), q, scale, Par::Seq);
    }
}
