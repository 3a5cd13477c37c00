//! Schedules over training steps, as the public code computes them.
//!
//! ```
//! use dino_train::dino::schedule::{Cosine, TeacherTemperature};
//!
//! let rate = Cosine { start: 0.0, base: 1.0, last: 0.0, warmup: 10, steps: 110 };
//! assert_eq!((rate.at(0), rate.at(10)), (0.0, 1.0));
//! assert!((rate.at(60) - 0.5).abs() < 1e-12);
//!
//! let temperature = TeacherTemperature { start: 0.04, base: 0.07, warmup: 30 };
//! assert_eq!((temperature.at(0), temperature.at(30)), (0.04, 0.07));
//! ```

/// A cosine from `base` to `last`, after a linear warm-up from `start`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cosine {
    /// First value of the warm-up.
    pub start: f64,
    /// Value at the end of the warm-up.
    pub base: f64,
    /// Value that the cosine would reach one step after its end.
    pub last: f64,
    /// Steps of warm-up.
    pub warmup: usize,
    /// Steps in all.
    pub steps: usize,
}

impl Cosine {
    /// Value at a step; past the end, that of the last step.
    pub fn at(&self, step: usize) -> f64 {
        let step = step.min(self.steps.saturating_sub(1));
        if step < self.warmup {
            // Includes both ends, as numpy's linspace.
            return self.start + (self.base - self.start) * step as f64 / (self.warmup.max(2) - 1) as f64;
        }
        let share = (step - self.warmup) as f64 / (self.steps - self.warmup) as f64;
        self.last + 0.5 * (self.base - self.last) * (1.0 + (std::f64::consts::PI * share).cos())
    }
}

/// The teacher's temperature: linear over the warm-up epochs, then constant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TeacherTemperature {
    /// Value of the first epoch.
    pub start: f64,
    /// Value after the warm-up.
    pub base: f64,
    /// Epochs of warm-up.
    pub warmup: usize,
}

impl TeacherTemperature {
    /// Value in an epoch.
    pub fn at(&self, epoch: usize) -> f64 {
        if epoch < self.warmup { self.start + (self.base - self.start) * epoch as f64 / (self.warmup.max(2) - 1) as f64 } else { self.base }
    }
}
