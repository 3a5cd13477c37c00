//! One step of AdamW, and of the moving average, in one pass over memory each.
//!
//! ```
//! use dino_train::kernels::adam::{Rates, average, step};
//!
//! // The first step goes by the learning rate, whatever the gradient's length.
//! let (mut weight, mut first, mut second) = ([1.0_f32], [0.0], [0.0]);
//! step(&mut weight, &[50.0], &mut first, &mut second, &Rates::new(0.1, 0.0, 1.0, 1));
//! assert!((weight[0] - 0.9).abs() < 1e-6);
//!
//! let mut teacher = [1.0];
//! average(&mut teacher, &[0.0], 0.75);
//! assert_eq!(teacher, [0.75]);
//! ```

use multiversion::multiversion;

use super::vector::sum;

/// The factors of one parameter's step.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// What is left of the parameter after weight decay.
    pub(crate) keep: f32,
    clip: f32,
    /// Learning rate over the correction of the mean gradient.
    pub(crate) step_size: f32,
    /// Factor of the root of the mean squared gradient.
    pub(crate) second_correction: f32,
}

/// Decay of the mean gradient.
pub const BETA1: f64 = 0.9;
/// Decay of the mean squared gradient.
pub const BETA2: f64 = 0.999;
/// Added to the root of the mean squared gradient.
pub const EPS: f32 = 1e-8;

impl Rates {
    /// For a parameter's step number `steps`, counted from 1; `clip` multiplies its gradient.
    pub fn new(lr: f64, weight_decay: f64, clip: f32, steps: u64) -> Self {
        let steps = steps.min(i32::MAX as u64) as i32;
        Self {
            keep: (1.0 - lr * weight_decay) as f32,
            clip,
            step_size: (lr / (1.0 - BETA1.powi(steps))) as f32,
            second_correction: (1.0 / (1.0 - BETA2.powi(steps)).sqrt()) as f32,
        }
    }
}

/// Updates parameter `p` and its moments `m` and `v` with gradient `g` (Loshchilov and Hutter, in PyTorch's order of operations).
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn step(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], rates: &Rates) {
    let (b1, b2) = (BETA1 as f32, BETA2 as f32);
    let (c1, c2) = ((1.0 - BETA1) as f32, (1.0 - BETA2) as f32);
    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let g = g * rates.clip;
        *m = b1 * *m + c1 * g;
        *v = b2 * *v + c2 * g * g;
        *p = *p * rates.keep - rates.step_size * *m / (v.sqrt() * rates.second_correction + EPS);
    }
}

/// `teacher = momentum * teacher + (1 - momentum) * student`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn average(teacher: &mut [f32], student: &[f32], momentum: f32) {
    for (t, &s) in teacher.iter_mut().zip(student) {
        *t = momentum * *t + (1.0 - momentum) * s;
    }
}

/// Σ x².
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn sum_of_squares(x: &[f32]) -> f64 {
    f64::from(sum(x.len(), |i| x[i] * x[i]))
}
