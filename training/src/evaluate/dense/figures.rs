//! How good answers are for pixels.
//!
//! ```
//! use dino_train::evaluate::dense::figures::{Confusion, DepthFigures};
//! use dino_vision::head::DepthRange;
//!
//! let mut confusion = Confusion::new(2);
//! confusion.add(&[0, 0, 1, 255], &[0, 1, 1, 0]);
//! let figures = confusion.figures();
//! assert_eq!((figures.miou, figures.mean_accuracy), (50.0, 75.0));
//!
//! let depths = DepthFigures::of(&[1.0, 2.0], &[1.0, 4.0], DepthRange { min: 0.1, max: 10.0 }).unwrap();
//! assert_eq!((depths.abs_rel, depths.delta1), (0.5, 0.5));
//! ```

use std::iter::zip;

use dino_vision::head::DepthRange;
use serde::Serialize;

use super::segmentation::IGNORE;

/// How often pixels of each class were given each class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// `[truth][answer]`.
    counts: Vec<u64>,
}

/// Figures of a segmentation, in percent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SegmentationFigures {
    /// Mean of the classes' intersections over unions. Classes that are neither in the masks nor answered do not count.
    pub miou: f64,
    /// Pixels that are right, of those that have a class.
    pub accuracy: f64,
    /// The same, as a mean over the classes that are in the masks.
    pub mean_accuracy: f64,
    /// Intersection over union of each class; `None` where it does not count.
    #[serde(skip)]
    pub iou: Vec<Option<f64>>,
}

impl Confusion {
    /// Of this number of classes.
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: vec![0; classes * classes] }
    }

    /// Adds a picture. Pixels whose truth is 255 are left out.
    pub fn add(&mut self, truth: &[u8], answers: &[u8]) {
        for (&truth, &answer) in zip(truth, answers).filter(|(truth, _)| **truth != IGNORE) {
            self.counts[usize::from(truth) * self.classes + usize::from(answer)] += 1;
        }
    }

    /// Adds the counts of another one.
    pub fn merge(&mut self, other: &Self) {
        zip(&mut self.counts, &other.counts).for_each(|(sum, count)| *sum += count);
    }

    /// The figures; zeros where no pixel has a class.
    pub fn figures(&self) -> SegmentationFigures {
        let of_truth = |class: usize| self.counts[class * self.classes..][..self.classes].iter().sum::<u64>();
        let of_answer = |class: usize| self.counts.iter().skip(class).step_by(self.classes).sum::<u64>();
        let right = |class: usize| self.counts[class * self.classes + class];
        let share = |part: u64, whole: u64| (whole > 0).then(|| 100.0 * part as f64 / whole as f64);
        let classes = || 0..self.classes;
        let iou: Vec<Option<f64>> = classes().map(|class| share(right(class), of_truth(class) + of_answer(class) - right(class))).collect();
        let accuracies: Vec<f64> = classes().filter_map(|class| share(right(class), of_truth(class))).collect();
        let counted: Vec<f64> = iou.iter().flatten().copied().collect();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let all = self.counts.iter().sum();
        let accuracy = share(classes().map(right).sum(), all).unwrap_or(0.0);
        SegmentationFigures { miou: mean(&counted), accuracy, mean_accuracy: mean(&accuracies), iou }
    }
}

/// Figures of depths, means over pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct DepthFigures {
    /// Mean of the error's share of the true depth.
    pub abs_rel: f64,
    /// Root of the mean squared error, in the unit of the depths.
    pub rmse: f64,
    /// Share of the pixels within a factor of 1.25.
    pub delta1: f64,
    /// Within 1.25².
    pub delta2: f64,
    /// Within 1.25³.
    pub delta3: f64,
}

impl DepthFigures {
    /// Of one picture: over the pixels whose truth lies inside the range, answers being brought into it. `None` where there is no such
    /// pixel.
    pub fn of(truth: &[f32], answers: &[f32], range: DepthRange) -> Option<Self> {
        let mut figures = Self::default();
        let mut count = 0.0;
        for (&truth, &answer) in zip(truth, answers).filter(|(truth, _)| **truth > range.min && **truth < range.max) {
            let (truth, answer) = (f64::from(truth), f64::from(answer.clamp(range.min, range.max)));
            let ratio = (answer / truth).max(truth / answer);
            let is_within = |power: i32| f64::from(u8::from(ratio < 1.25_f64.powi(power)));
            figures.abs_rel += (answer - truth).abs() / truth;
            figures.rmse += (answer - truth).powi(2);
            figures.delta1 += is_within(1);
            figures.delta2 += is_within(2);
            figures.delta3 += is_within(3);
            count += 1.0;
        }
        let Self { abs_rel, rmse, delta1, delta2, delta3 } = figures;
        let mean = Self {
            abs_rel: abs_rel / count,
            rmse: (rmse / count).sqrt(),
            delta1: delta1 / count,
            delta2: delta2 / count,
            delta3: delta3 / count,
        };
        (count > 0.0).then_some(mean)
    }

    /// The mean over pictures; `None` without one.
    pub fn mean(pictures: &[Self]) -> Option<Self> {
        let mean = |of: fn(&Self) -> f64| pictures.iter().map(of).sum::<f64>() / pictures.len() as f64;
        let all = Self {
            abs_rel: mean(|figures| figures.abs_rel),
            rmse: mean(|figures| figures.rmse),
            delta1: mean(|figures| figures.delta1),
            delta2: mean(|figures| figures.delta2),
            delta3: mean(|figures| figures.delta3),
        };
        (!pictures.is_empty()).then_some(all)
    }
}
