//! Signs of collapse (paper, section 5.3): centring and sharpening keep the teacher between two trivial solutions.
//!
//! Without sharpening its output becomes uniform: its entropy is ln K, and nothing divides teacher and student. Without centring one
//! output takes all: the entropy of each distribution, and that of their mean over all pictures, is 0. Of a run without a teacher the
//! features alone say whether all pictures have become one.
//!
//! ```
//! use dino_train::dino::{accumulate::Means, learner::Report};
//! use dino_train::run::diagnostics::{Collapse, Watch};
//!
//! // Every picture gets the uniform distribution over four outputs, and student and teacher agree on it.
//! let means = Means { loss: 4_f64.ln(), teacher_entropy: 4_f64.ln(), ..Means::default() };
//! let report = Report { means, distribution: vec![0.25; 4], feature_std: 0.2, stop: false };
//! let mut watch = Watch::new(3, 16);
//! assert!(watch.look(&report).is_ok() && watch.look(&report).is_ok());
//! assert_eq!(watch.look(&report).unwrap_err().kind, Collapse::Uniform);
//! ```

use std::fmt;

use crate::dino::learner::Report;

/// Weight of the newest step in the mean distribution.
const NEWEST: f32 = 0.05;
/// Teacher entropy in shares of ln K from which on its output counts as uniform.
const UNIFORM: f64 = 0.99;
/// Divergence between teacher and student, in shares of ln K, below which there is nothing left to learn.
const NO_DIVERGENCE: f64 = 0.005;
/// Standard deviation of the features, in shares of what it is where they spread evenly, below which all pictures look the same.
const ONE_FEATURE: f64 = 0.05;
/// The same share where it is the only sign. Features of a fresh network are close together; those of equal pictures are closer by far.
const ALL_ALIKE: f64 = 0.002;
/// Entropy of the mean distribution in shares of ln K below which one output takes all. One picture in a hundred with another output is more.
const ONE_OUTPUT: f64 = 0.01;

/// What a step shows of the teacher's state; zeros without a teacher.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Signs {
    /// Divergence between teacher and student, in nats: loss less entropy.
    pub kl: f64,
    /// Entropy of the mean distribution over the last pictures, in nats: 0 where one output takes all.
    pub mean_entropy: f64,
}

/// The trivial solutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collapse {
    /// Every picture gets the uniform distribution.
    Uniform,
    /// Every picture gets the same single output.
    OneDimensional,
    /// Every picture gets the same features, in a run without a teacher.
    AllAlike,
}

impl Collapse {
    const ALL: [Self; 3] = [Self::Uniform, Self::OneDimensional, Self::AllAlike];
}

/// A run that has collapsed. It says what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub struct Collapsed {
    /// Which way.
    pub kind: Collapse,
    /// For how many steps.
    pub steps: usize,
    /// Mean entropy of the teacher's distributions, in nats; 0 without a teacher.
    pub entropy: f64,
    /// ln K; 0 without a teacher.
    pub ln_k: f64,
    /// Standard deviation of the features, in shares of what it is where they spread evenly.
    pub spread: f64,
    /// The other signs.
    pub signs: Signs,
}

impl fmt::Display for Collapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { steps, entropy, ln_k, spread, signs, .. } = self;
        match self.kind {
            Collapse::Uniform => write!(
                f,
                "the run has collapsed: for {steps} steps the teacher's output was uniform (entropy {entropy:.3} of ln K = {ln_k:.3}, \
                 divergence from the student {:.4}), and there was nothing to learn from it. Sharpen the teacher: lower --teacher-temp and \
                 --warmup-teacher-temp (0.04 to 0.07). Else raise --momentum-teacher",
                signs.kl
            )?,
            Collapse::OneDimensional => write!(
                f,
                "the run has collapsed: for {steps} steps one output took all pictures (entropy of the mean distribution {:.4} of \
                 ln K = {ln_k:.3}). Centre the teacher: bring --center-momentum back to 0.9, and raise --teacher-temp (0.04 to 0.07). \
                 Else raise --momentum-teacher",
                signs.mean_entropy
            )?,
            Collapse::AllAlike => write!(
                f,
                "the run has collapsed: for {steps} steps all pictures had the same features (their deviation is {spread:.4} of what it is \
                 where they spread). Raise --lejepa-weight (0.02 to 0.1)"
            )?,
        }
        write!(f, ", make the batch larger (--batch-size-per-gpu, --accumulate), or lower --lr. --collapse-steps 0 lets such a run go on")
    }
}

/// Watches the steps of a run for collapse.
#[derive(Clone, Debug)]
pub struct Watch {
    patience: usize,
    feature_std_even: f64,
    mean: Vec<f32>,
    /// Steps in a row that look collapsed, by kind.
    suspect: [usize; Collapse::ALL.len()],
}

impl Watch {
    /// `patience`: steps in a row after which a run counts as collapsed; 0 for never. `dim`: dimension of the features.
    pub fn new(patience: usize, dim: usize) -> Self {
        Self { patience, feature_std_even: feature_std_even(dim), mean: Vec::new(), suspect: [0; Collapse::ALL.len()] }
    }

    /// Looks at a step.
    ///
    /// # Errors
    /// When the run has collapsed.
    pub fn look(&mut self, report: &Report) -> Result<Signs, Collapsed> {
        if self.mean.is_empty() {
            self.mean.clone_from(&report.distribution);
        }
        for (mean, new) in self.mean.iter_mut().zip(&report.distribution) {
            *mean += NEWEST * (new - *mean);
        }
        let spread = report.feature_std / self.feature_std_even;
        let has_teacher = !report.distribution.is_empty();
        let (mut entropy, mut ln_k, mut signs) = (0.0, 0.0, Signs::default());
        if has_teacher {
            (entropy, ln_k) = (report.means.teacher_entropy, (report.distribution.len() as f64).ln());
            signs = Signs { kl: report.means.loss - entropy, mean_entropy: self::entropy(&self.mean) };
        }
        // The student may still stray from a teacher that gives every picture the same features.
        let nothing_to_learn = signs.kl < NO_DIVERGENCE * ln_k || spread < ONE_FEATURE;
        let looks =
            [entropy > UNIFORM * ln_k && nothing_to_learn, signs.mean_entropy < ONE_OUTPUT * ln_k, spread < ALL_ALIKE && !has_teacher];
        for ((steps, looks), kind) in self.suspect.iter_mut().zip(looks).zip(Collapse::ALL) {
            *steps = if looks { *steps + 1 } else { 0 };
            if self.patience > 0 && *steps >= self.patience {
                return Err(Collapsed { kind, steps: *steps, entropy, ln_k, spread, signs });
            }
        }
        Ok(signs)
    }
}

/// Standard deviation of L2-normalised features that spread evenly over all directions, averaged over `dim` dimensions.
pub fn feature_std_even(dim: usize) -> f64 {
    1.0 / (dim as f64).sqrt()
}

/// Entropy of a distribution in nats.
fn entropy(distribution: &[f32]) -> f64 {
    distribution.iter().map(|&p| f64::from(p)).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dino::accumulate::Means;

    fn report(loss: f64, teacher_entropy: f64, distribution: Vec<f32>) -> Report {
        let means = Means { loss, teacher_entropy, ..Means::default() };
        Report { means, distribution, feature_std: 0.1, stop: false }
    }

    #[test]
    fn a_state_that_lasts_is_a_collapse_and_one_that_passes_is_not() {
        let uniform = report(64f64.ln(), 64f64.ln(), vec![1.0 / 64.0; 64]);
        let mut single = report(0.01, 0.0, vec![0.0; 64]);
        single.distribution[5] = 1.0;
        let healthy = report(3.5, 2.0, vec![1.0 / 64.0; 64]);
        for (collapsed, kind) in [(&uniform, Collapse::Uniform), (&single, Collapse::OneDimensional)] {
            let mut watch = Watch::new(10, 100);
            for _ in 0..9 {
                watch.look(collapsed).unwrap();
            }
            watch.look(&healthy).unwrap();
            // The mean distribution forgets the healthy step slowly.
            let after = (1..400).find(|_| watch.look(collapsed).is_err());
            assert!(after.is_some_and(|steps| steps >= 10), "{after:?}");
            assert_eq!(watch.look(collapsed).unwrap_err().kind, kind);
            let mut never = Watch::new(0, 100);
            assert!((0..100).all(|_| never.look(collapsed).is_ok()));
        }
    }

    #[test]
    fn without_a_teacher_features_that_are_all_alike_are_a_collapse() {
        let of = |spread: f64| Report { feature_std: spread * feature_std_even(100), ..report(1.0, 0.0, Vec::new()) };
        let mut watch = Watch::new(10, 100);
        // A fresh network, then one that has learnt, whatever its loss comes to.
        for healthy in [of(0.01), of(0.8)] {
            for _ in 0..50 {
                assert_eq!(watch.look(&healthy), Ok(Signs::default()));
            }
        }
        let after = (1..400).find(|_| watch.look(&of(0.0005)).is_err());
        assert_eq!(after, Some(10));
        let collapsed = watch.look(&of(0.0005)).unwrap_err();
        assert_eq!(collapsed.kind, Collapse::AllAlike);
        assert!(collapsed.to_string().contains("--lejepa-weight"), "{collapsed}");
    }
}
