//! Whether a run made the weights better that it began with.
//!
//! ```
//! use dino_train::log::{Knn, Measured};
//! use dino_train::run::verdict::Verdict;
//!
//! let measured = |top1| Measured::Knn(Knn { k: 20, top1, top5: 90.0, mean_class: top1, pictures: 500 });
//! let verdict = Verdict { baseline: measured(61.0), best: (7, measured(64.5)), count: 10 };
//! assert!(verdict.helped());
//! assert!(verdict.sentence().contains("64.5"));
//! ```

use crate::log::{Line, Measured};

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// What the first weights could do.
    pub baseline: Measured,
    /// The best epoch, counted from 1, and what its teacher could do.
    pub best: (usize, Measured),
    /// Evaluations.
    pub count: usize,
}

impl Verdict {
    /// By the lines of a log that measured what the baseline did; none without a baseline, or before the first evaluation.
    pub fn of(lines: &[Line]) -> Option<Self> {
        let baseline = lines.last()?.baseline?;
        let measured = || {
            let all = lines.iter().filter_map(|line| Some((line.epoch, line.measured()?)));
            all.filter(|(_, measured)| measured.is_comparable(&baseline))
        };
        // Of equal ones the first.
        let best = measured().reduce(|best, new| if new.1.figure() > best.1.figure() { new } else { best })?;
        Some(Self { baseline, best, count: measured().count() })
    }

    /// Evaluations in a row, up to the last one, below what the first weights could do.
    pub fn below(lines: &[Line]) -> usize {
        let Some(baseline) = lines.last().and_then(|line| line.baseline) else { return 0 };
        let measured = lines.iter().rev().filter_map(Line::measured).filter(|measured| measured.is_comparable(&baseline));
        measured.take_while(|measured| measured.figure() < baseline.figure()).count()
    }

    /// By how much two figures over so many pictures may differ by chance, in points: 95 % of the time it is less. The pictures are the
    /// same in both, which makes it less still; that the best of several epochs is taken makes it more.
    fn chance(&self) -> f64 {
        let count = self.baseline.pictures().max(1) as f64;
        let mean = (self.baseline.figure() + self.best.1.figure()) / 200.0;
        // Also where no picture, or each one, is right.
        let share = (mean.clamp(0.0, 1.0) * count + 1.0) / (count + 2.0);
        100.0 * 1.96 * (2.0 * share * (1.0 - share) / count).sqrt()
    }

    /// Whether the best teacher is better than the first weights.
    pub fn helped(&self) -> bool {
        self.best.1.figure() > self.baseline.figure()
    }

    /// One sentence.
    pub fn sentence(&self) -> String {
        let (name, before, (epoch, best)) = (self.baseline.name(), self.baseline.figure(), self.best);
        let (best, chance, pictures) = (best.figure(), self.chance(), self.baseline.pictures());
        if !self.helped() {
            let evaluations =
                if self.count == 1 { "the one evaluation".to_owned() } else { format!("the best of {} evaluations", self.count) };
            return format!(
                "the run did not help: {evaluations} has {name} {best:.1} %, and the weights that it began with have {before:.1} %"
            );
        }
        let change = format!("{name} went from {before:.1} % to {best:.1} % in epoch {epoch}");
        if best - before > chance {
            return format!("the run helped: {change}");
        }
        format!(
            "the run may have helped: {change}, within the {chance:.1} points by which two figures over {pictures} pictures differ by chance"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Agreement;

    fn lines(figures: &[f64]) -> Vec<Line> {
        let agreement = |agreement: f64| serde_json::to_value(Agreement { pictures: 400, agreement }).unwrap();
        let line = |(epoch, figure): (usize, &f64)| {
            serde_json::from_value(serde_json::json!({
                "epoch": epoch + 1, "step": 1, "loss": 1.0, "ln_k": 1.0, "teacher_entropy": 1.0, "kl": 0.0, "lr": 0.1, "weight_decay": 0.0,
                "momentum": 0.9, "teacher_temp": 0.04, "images_per_second": 1.0, "seconds": 1.0, "broken_pictures": 0,
                "agreement": figure.is_finite().then(|| agreement(*figure)), "baseline": agreement(50.0),
            }))
            .unwrap()
        };
        figures.iter().enumerate().map(line).collect()
    }

    #[test]
    fn runs_are_judged_by_their_best_teacher() {
        assert_eq!(Verdict::of(&lines(&[f64::NAN])), None);
        let said = |figures: &[f64]| Verdict::of(&lines(figures)).unwrap().sentence();
        assert_eq!(said(&[40.0, 70.0, f64::NAN, 70.0]), "the run helped: agreement of crops went from 50.0 % to 70.0 % in epoch 2");
        assert!(said(&[51.0]).ends_with("within the 6.9 points by which two figures over 400 pictures differ by chance"));
        assert!(said(&[51.0]).starts_with("the run may have helped: agreement of crops went from 50.0 % to 51.0 % in epoch 1, "));
        assert!(said(&[40.0, 50.0]).starts_with("the run did not help: the best of 2 evaluations has agreement of crops 50.0 %"));
        let below = |figures: &[f64]| Verdict::below(&lines(figures));
        assert_eq!((below(&[40.0, 60.0, 49.0, f64::NAN, 48.0]), below(&[40.0, 50.0]), below(&[])), (2, 0, 0));
    }
}
