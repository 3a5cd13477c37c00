//! The threshold of a collection: what its own pictures would score if they were new to it.
//!
//! For each patch of a picture the nearest patch of another good picture is known, so that the score of each picture without itself
//! costs next to nothing. Good pictures alone give the largest of their scores. Pictures that are labelled anomalous say where the
//! line runs: between the scores of both, so that the mean of the shares that are told right is largest (Youden's index).

use super::mean_of_largest;
use super::scan::{NONE, distance};

/// The nearest patch of another good picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Best {
    pub(super) cosine: f32,
    /// Number of that picture.
    pub(super) of: u32,
}

/// A picture with what its score depends on.
#[derive(Clone, Debug)]
pub(super) struct Scored {
    pub(super) is_anomalous: bool,
    /// Of each patch of its grid.
    pub(super) best: Vec<Best>,
    pub(super) foreground: Vec<bool>,
}

impl Scored {
    pub(super) fn bytes(&self) -> usize {
        self.best.len() * size_of::<Best>() + self.foreground.len()
    }

    /// Its score without itself; `None` where there is no other picture.
    fn score(&self, top: f64, masked: bool) -> Option<f32> {
        if self.best.iter().all(|best| best.cosine <= NONE) {
            return None;
        }
        let counts = |at: usize| !masked || self.foreground.get(at).copied().unwrap_or(true);
        let distances: Vec<f32> =
            self.best.iter().enumerate().map(|(at, best)| if counts(at) { distance(best.cosine) } else { 0.0 }).collect();
        Some(mean_of_largest(&distances, top))
    }
}

/// Above which score a picture is anomalous. `None` where no good picture can be compared with another.
pub(super) fn threshold<'a>(pictures: impl Iterator<Item = &'a Scored>, top: f64, masked: bool) -> Option<f32> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for picture in pictures {
        if let Some(score) = picture.score(top, masked) {
            if picture.is_anomalous { bad.push(score) } else { good.push(score) }
        }
    }
    between(&mut good, &mut bad)
}

/// Where the line runs between the scores of good and of anomalous pictures.
fn between(good: &mut [f32], bad: &mut [f32]) -> Option<f32> {
    good.sort_unstable_by(f32::total_cmp);
    bad.sort_unstable_by(f32::total_cmp);
    let largest = *good.last()?;
    if bad.is_empty() {
        return Some(largest);
    }
    let mut scores: Vec<f32> = good.iter().chain(bad.iter()).copied().collect();
    scores.sort_unstable_by(f32::total_cmp);
    let right = |line: f32| {
        let below = good.partition_point(|&score| score <= line) as f64 / good.len() as f64;
        let above = (bad.len() - bad.partition_point(|&score| score <= line)) as f64 / bad.len() as f64;
        below + above
    };
    let lines = scores.windows(2).map(|pair| f32::midpoint(pair[0], pair[1])).chain([largest]);
    // Of lines that are equally good the lowest: an anomaly that is missed costs more than a second look.
    lines.map(|line| (line, right(line))).reduce(|best, next| if next.1 > best.1 + 1e-9 { next } else { best }).map(|(line, _)| line)
}

#[cfg(test)]
mod tests {
    use super::between;

    #[test]
    fn the_line_runs_between_good_and_bad() {
        let is = |good: &[f32], bad: &[f32], expected: Option<f32>| {
            assert_eq!(between(&mut good.to_vec(), &mut bad.to_vec()), expected);
        };
        is(&[], &[0.5], None);
        is(&[0.25, 0.5, 0.125], &[], Some(0.5));
        is(&[0.25, 0.5, 0.125], &[1.0, 2.0], Some(0.75));
        // One good picture that is unlike the others does not hide the bad ones.
        is(&[0.1, 0.1, 0.125, 4.0], &[0.375, 2.0], Some(0.25));
    }
}
