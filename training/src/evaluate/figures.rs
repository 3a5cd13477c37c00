//! The figures of a classification, the same for every way to classify.
//!
//! ```
//! use dino_train::evaluate::figures::Figures;
//!
//! // Three pictures of class 0, of which one is wrong, and one of class 1.
//! let outcomes = [(true, true), (true, true), (false, true), (true, true)];
//! let figures = Figures::count(&[0, 0, 0, 1], outcomes.into_iter());
//! assert_eq!((figures.top1, figures.top5), (75.0, 100.0));
//! assert!((figures.mean_class - (200.0 / 3.0 + 100.0) / 2.0).abs() < 1e-9);
//! ```

use std::collections::BTreeMap;

/// How many pictures were classified right, in percent.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Figures {
    /// Pictures whose class is the best.
    pub top1: f64,
    /// Pictures whose class is among the five best. Where fewer than five neighbours vote, only classes with a vote count: for k = 1 it
    /// equals `top1`.
    pub top5: f64,
    /// Top-1 of each class of val, averaged over these classes.
    pub mean_class: f64,
}

impl Figures {
    /// Counts `outcomes`, one for each of `classes`: whether the class is the best, and whether it is among the five best.
    pub fn count(classes: &[u32], outcomes: impl Iterator<Item = (bool, bool)>) -> Self {
        let (mut top1, mut top5) = (0_usize, 0_usize);
        // Right ones and all, by class.
        let mut by_class: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
        for (class, (first, in_five)) in classes.iter().zip(outcomes) {
            top1 += usize::from(first);
            top5 += usize::from(in_five);
            let (right, all) = by_class.entry(*class).or_default();
            *right += usize::from(first);
            *all += 1;
        }
        let percent = |part: usize, all: usize| 100.0 * part as f64 / all as f64;
        let mean_class = by_class.values().map(|&(right, all)| percent(right, all)).sum::<f64>() / by_class.len() as f64;
        Self { top1: percent(top1, classes.len()), top5: percent(top5, classes.len()), mean_class }
    }
}
