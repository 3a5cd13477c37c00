//! One step of gradient descent with momentum.
//!
//! ```
//! use dino_train::kernels::momentum::{Rates, step};
//!
//! let rates = Rates { lr: 0.5, momentum: 0.5, weight_decay: 0.0, clip: 1.0, trust: 1.0 };
//! let (mut weight, mut direction) = ([1.0], [0.0]);
//! step(&mut weight, &[1.0], &mut direction, &rates);
//! step(&mut weight, &[0.0], &mut direction, &rates);
//! assert_eq!((weight, direction), ([0.25], [0.5]));
//! ```

use multiversion::multiversion;

/// The factors of one parameter's step.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Learning rate.
    pub lr: f32,
    /// Share of the last direction that is kept.
    pub momentum: f32,
    /// Weight decay, added to the gradient.
    pub weight_decay: f32,
    /// Factor of the gradient, for clipping.
    pub clip: f32,
    /// Factor of gradient and decay together: LARS's trust ratio, else 1.
    pub trust: f32,
}

/// `m = momentum · m + trust · (clip · g + weight_decay · p)`, then `p -= lr · m`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn step(p: &mut [f32], g: &[f32], m: &mut [f32], rates: &Rates) {
    for ((p, &g), m) in p.iter_mut().zip(g).zip(m) {
        *m = rates.momentum * *m + rates.trust * (rates.clip * g + rates.weight_decay * *p);
        *p -= rates.lr * *m;
    }
}

/// Σ p² and Σ u², where u is `clip · g + weight_decay · p`.
pub fn squares(p: &[f32], g: &[f32], clip: f32, weight_decay: f32) -> (f64, f64) {
    p.iter().zip(g).fold((0.0, 0.0), |(parameter, update), (&p, &g)| {
        let step = f64::from(clip * g + weight_decay * p);
        (parameter + f64::from(p) * f64::from(p), update + step * step)
    })
}
