//! Batch normalisation over the rows of a matrix `[rows, channels]`, with what stands behind it in a residual unit: the sum
//! with the shortcut and the rectifier.
//!
//! ```
//! use dino_train::kernels::batch_norm::{Channels, forward, moments};
//!
//! let x = [1.0, 3.0]; // two rows of one channel
//! let (mut mean, mut deviations) = ([0.0], [0.0]);
//! moments(&x, &mut mean, &mut deviations);
//! assert_eq!((mean, deviations), ([2.0], [2.0]));
//!
//! let mut out = [0.0; 2];
//! forward(&x, Channels { mean: &mean, rstd: &[1.0], weight: &[2.0], bias: &[0.0] }, None, true, &mut out);
//! assert_eq!(out, [0.0, 2.0]);
//! ```

use multiversion::multiversion;

/// Mean and sum of squared deviations of each channel over some rows.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn moments(x: &[f32], mean: &mut [f32], deviations: &mut [f32]) {
    let channels = mean.len();
    mean.fill(0.0);
    deviations.fill(0.0);
    for row in x.chunks_exact(channels) {
        for (m, &x) in mean.iter_mut().zip(row) {
            *m += x;
        }
    }
    let rows = (x.len() / channels).max(1) as f32;
    for m in mean.iter_mut() {
        *m /= rows;
    }
    for row in x.chunks_exact(channels) {
        for ((d, &m), &x) in deviations.iter_mut().zip(mean.iter()).zip(row) {
            *d += (x - m) * (x - m);
        }
    }
}

/// Factors of each channel.
#[derive(Clone, Copy, Debug)]
pub struct Channels<'a> {
    /// Mean of the batch.
    pub mean: &'a [f32],
    /// One by the deviation of the batch.
    pub rstd: &'a [f32],
    /// Scale.
    pub weight: &'a [f32],
    /// Shift.
    pub bias: &'a [f32],
}

/// `out = (x - mean) * rstd * weight + bias`, plus the shortcut if there is one, rectified if `rectify`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn forward(x: &[f32], channels: Channels<'_>, shortcut: Option<&[f32]>, rectify: bool, out: &mut [f32]) {
    let Channels { mean, rstd, weight, bias } = channels;
    let n = mean.len();
    let (rstd, weight, bias) = (&rstd[..n], &weight[..n], &bias[..n]);
    let floor = if rectify { 0.0 } else { f32::NEG_INFINITY };
    for (x, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
        for c in 0..n {
            out[c] = (x[c] - mean[c]) * rstd[c] * weight[c] + bias[c];
        }
    }
    if let Some(shortcut) = shortcut {
        super::reduce::add(out, shortcut);
    }
    if rectify {
        for o in out.iter_mut() {
            // Written so that NaN is kept.
            *o = if *o < floor { floor } else { *o };
        }
    }
}

/// Adds `Σ g · (x - mean) · rstd` to `dweight` and `Σ g` to `dbias`, where g is `dout`, or 0 where a rectifier let nothing through.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn backward_sums(x: &[f32], channels: Channels<'_>, dout: &[f32], dweight: &mut [f32], dbias: &mut [f32]) {
    let Channels { mean, rstd, .. } = channels;
    let n = mean.len();
    let (rstd, dweight, dbias) = (&rstd[..n], &mut dweight[..n], &mut dbias[..n]);
    for (x, g) in x.chunks_exact(n).zip(dout.chunks_exact(n)) {
        for c in 0..n {
            dweight[c] += g[c] * (x[c] - mean[c]) * rstd[c];
            dbias[c] += g[c];
        }
    }
}

/// `dx = weight · rstd · (g - mean of g - normalised x · mean of g · normalised x)`; the two means are over the whole batch.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn backward(x: &[f32], channels: Channels<'_>, dout: &[f32], mean_gx: &[f32], mean_g: &[f32], dx: &mut [f32]) {
    let Channels { mean, rstd, weight, .. } = channels;
    let n = mean.len();
    let (rstd, weight, mean_gx, mean_g) = (&rstd[..n], &weight[..n], &mean_gx[..n], &mean_g[..n]);
    for ((x, g), dx) in x.chunks_exact(n).zip(dout.chunks_exact(n)).zip(dx.chunks_exact_mut(n)) {
        for c in 0..n {
            let normalised = (x[c] - mean[c]) * rstd[c];
            dx[c] = weight[c] * rstd[c] * (g[c] - mean_g[c] - normalised * mean_gx[c]);
        }
    }
}

/// `out = dout` where the rectified output is above 0, else 0.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn rectifier_backward(output: &[f32], dout: &[f32], out: &mut [f32]) {
    for ((o, &y), &g) in out.iter_mut().zip(output).zip(dout) {
        *o = if y > 0.0 { g } else { 0.0 };
    }
}
