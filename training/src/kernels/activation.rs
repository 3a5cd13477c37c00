//! Activations of the MLP: SwiGLU, and GELU in its exact form x·Φ(x) (the public code's `nn.GELU()`), not the tanh approximation.
//!
//! ```
//! let mut out = [0.0; 3];
//! dino_train::kernels::activation::gelu(&[0.0, 1.0, -10.0], &mut out);
//! assert_eq!(out[0], 0.0);
//! assert!((out[1] - 0.841_344_7).abs() < 1e-5 && out[2].abs() < 1e-5);
//! ```

use multiversion::multiversion;

use super::vector::exp;

/// Φ(x), the normal distribution function, and φ(x), its density.
///
/// erf after Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7); the exponential in it is the density's own.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;
    let e = exp(-0.5 * x * x);
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / z.mul_add(0.327_591_1, 1.0);
    let poly = t.mul_add(1.061_405_4, -1.453_152).mul_add(t, 1.421_413_8).mul_add(t, -0.284_496_72).mul_add(t, 0.254_829_6) * t;
    let tail = 0.5 * poly * e;
    let cdf = if x < 0.0 { tail } else { 1.0 - tail };
    (cdf, e * FRAC_1_SQRT_2PI)
}

/// `out = gelu(x)`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn gelu(x: &[f32], out: &mut [f32]) {
    for (o, &x) in out.iter_mut().zip(x) {
        *o = x * normal(x).0;
    }
}

/// Adds `bias` to each row of `x` in place, then `out = gelu(x)`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn bias_gelu(x: &mut [f32], bias: &[f32], out: &mut [f32]) {
    for (x, out) in x.chunks_exact_mut(bias.len()).zip(out.chunks_exact_mut(bias.len())) {
        for ((x, o), &b) in x.iter_mut().zip(out).zip(bias) {
            *x += b;
            *o = *x * normal(*x).0;
        }
    }
}

/// `grad *= gelu'(x)` and `out = gelu(x)` in one pass.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn gelu_backward(x: &[f32], grad: &mut [f32], out: &mut [f32]) {
    for ((g, o), &x) in grad.iter_mut().zip(out).zip(x) {
        let (cdf, density) = normal(x);
        *o = x * cdf;
        *g *= cdf + x * density;
    }
}

/// σ(x).
#[expect(clippy::inline_always, reason = "only what is inlined gets the vector width of its caller")]
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Adds `bias` to each row `[gate, value]` of `x` in place, then `out = silu(gate) · value`, rows of half as many columns.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn bias_swiglu(x: &mut [f32], bias: &[f32], out: &mut [f32]) {
    let width = bias.len() / 2;
    for (x, out) in x.chunks_exact_mut(2 * width).zip(out.chunks_exact_mut(width)) {
        for (x, &b) in x.iter_mut().zip(bias) {
            *x += b;
        }
        let (gate, value) = x.split_at(width);
        for ((o, &g), &v) in out.iter_mut().zip(gate).zip(value) {
            *o = g * sigmoid(g) * v;
        }
    }
}

/// From rows `[gate, value]` and the gradient of `silu(gate) · value` the gradients of both, and that product itself.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn swiglu_backward(x: &[f32], width: usize, dout: &[f32], dx: &mut [f32], out: &mut [f32]) {
    let rows = x.chunks_exact(2 * width).zip(dx.chunks_exact_mut(2 * width));
    for (((x, dx), dout), out) in rows.zip(dout.chunks_exact(width)).zip(out.chunks_exact_mut(width)) {
        let (gate, value) = x.split_at(width);
        let (dgate, dvalue) = dx.split_at_mut(width);
        for (((((o, dg), dv), &g), &v), &d) in out.iter_mut().zip(dgate).zip(dvalue).zip(gate).zip(value).zip(dout) {
            let share = sigmoid(g);
            let silu = g * share;
            *o = silu * v;
            *dv = d * silu;
            *dg = d * v * (share + silu * (1.0 - share));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_and_its_slope_match_double_precision() {
        // erf by its Taylor series in f64, exact enough for |x| <= 3.
        let erf = |z: f64| {
            let (mut term, mut sum) = (z, z);
            for n in 1..80 {
                term *= -z * z / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * std::f64::consts::FRAC_2_SQRT_PI
        };
        let x: Vec<f32> = (-400..=400).map(|i| i as f32 * 0.01).collect();
        let (mut y, mut again, mut slope) = (vec![0.; x.len()], vec![0.; x.len()], vec![1.; x.len()]);
        gelu(&x, &mut y);
        gelu_backward(&x, &mut slope, &mut again);
        assert_eq!(y, again);
        for ((&x, &y), &slope) in x.iter().zip(&y).zip(&slope) {
            let x = f64::from(x);
            let cdf = 0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2));
            let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
            assert!((f64::from(y) - x * cdf).abs() < 2e-6, "gelu({x})");
            assert!((f64::from(slope) - cdf - x * density).abs() < 2e-6, "gelu'({x})");
        }
    }
}
