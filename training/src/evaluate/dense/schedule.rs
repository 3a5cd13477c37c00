//! The learning rate of a dense head: polynomial decay of power 1 after a linear warm-up, as the public configurations have it.
//!
//! ```
//! use dino_train::evaluate::dense::schedule::{share, warmup};
//!
//! assert_eq!(warmup(40_000), 1500);
//! assert_eq!(share(20_000, 40_000, 1500), 0.5);
//! assert!(share(0, 40_000, 1500) < 1e-5);
//! ```

/// Share of the steps in the warm-up: 1,500 of 40,000 there.
const WARMUP: f64 = 1500.0 / 40_000.0;
/// Share of the rate that the warm-up starts with.
const START: f64 = 1e-6;

/// Number of steps of the warm-up.
pub fn warmup(steps: usize) -> usize {
    (steps as f64 * WARMUP).round() as usize
}

/// Share of the learning rate in step `step` of `steps`, of which `warmup` are a warm-up.
pub fn share(step: usize, steps: usize, warmup: usize) -> f64 {
    let regular = 1.0 - step as f64 / steps.max(1) as f64;
    if step < warmup { regular * (1.0 - (1.0 - step as f64 / warmup as f64) * (1.0 - START)) } else { regular }
}
