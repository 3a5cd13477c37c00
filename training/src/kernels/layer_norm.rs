//! Layer normalisation over the last axis, biased variance, as PyTorch.
//!
//! ```
//! let mut out = [0.0; 2];
//! dino_train::kernels::layer_norm::forward(&[1.0, 3.0], &[1.0, 1.0], &[0.0, 0.5], 0.0, &mut out);
//! assert!((out[0] + 1.0).abs() < 1e-6 && (out[1] - 1.5).abs() < 1e-6);
//! ```

use multiversion::multiversion;

use super::vector::sum;

/// Mean and reciprocal standard deviation of a row.
#[expect(clippy::inline_always, reason = "only what is inlined gets the vector width of its caller")]
#[inline(always)]
fn statistics(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum(x.len(), |i| x[i]) / n;
    let variance = sum(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / n;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// `out = (x - mean) * rstd * weight + bias`, row by row.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn forward(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let dim = weight.len();
    for (x, out) in x.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
        let (mean, rstd) = statistics(x, eps);
        for i in 0..dim {
            out[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
        }
    }
}

/// Adds the gradient of the input to `dx`, and those of weight and bias to `dweight` and `dbias`.
///
/// The statistics are computed again from `x`: cheaper than keeping the normalised rows.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn backward(x: &[f32], weight: &[f32], eps: f32, dout: &[f32], dx: &mut [f32], dweight: &mut [f32], dbias: &mut [f32]) {
    let dim = weight.len();
    let n = dim as f32;
    for ((x, dout), dx) in x.chunks_exact(dim).zip(dout.chunks_exact(dim)).zip(dx.chunks_exact_mut(dim)) {
        let (mean, rstd) = statistics(x, eps);
        let mean_g = sum(dim, |i| dout[i] * weight[i]) / n;
        let mean_gx = sum(dim, |i| dout[i] * weight[i] * (x[i] - mean) * rstd) / n;
        for i in 0..dim {
            let normalised = (x[i] - mean) * rstd;
            dweight[i] += dout[i] * normalised;
            dbias[i] += dout[i];
            dx[i] += rstd * (dout[i] * weight[i] - mean_g - normalised * mean_gx);
        }
    }
}
