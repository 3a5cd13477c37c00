//! The threshold of a collection: what its own pictures would score if they were new to it.
//!
//! For each patch of a picture the nearest patch of another good picture is known, so that the score of each picture without itself
//! costs next to nothing. Good pictures alone give the largest of their scores. Pictures that are labelled anomalous say where the
//! line runs: between the scores of both, so that the mean of the shares that are told right is largest (Youden's index).
//!
//! Once only some patches are compared with (`coreset`), leaving out a picture takes patches away that are kept in place of those of other
//! pictures. Without the picture one of theirs would be kept, so [`Best`] is of a patch that would be kept then. And a patch that is not
//! compared with any more follows the one of its own picture that covers it ([`Cover`]). So a score is never below that of comparing with
//! all patches of the others, and above it by a few radii at most.

use super::mean_of_largest;
use super::scan::{NONE, distance};
use crate::cancel::{self, Cancelled};

/// The nearest patch of another good picture, of those that are kept or would be without this picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Best {
    pub(super) cosine: f32,
    /// Number of that picture.
    pub(super) of: u32,
}

/// A patch that pictures are not compared with, since one of the same picture is near it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cover {
    pub(super) patch: u32,
    /// The patch near it.
    pub(super) by: u32,
    /// Of the two.
    pub(super) cosine: f32,
}

/// A picture with what its score depends on.
#[derive(Clone, Debug)]
pub(super) struct Scored {
    pub(super) is_anomalous: bool,
    /// Of each patch of its grid.
    pub(super) best: Vec<Best>,
    pub(super) foreground: Vec<bool>,
    /// Patches without another picture's near them. What covers one may be covered later.
    pub(super) covers: Vec<Cover>,
}

impl Scored {
    pub(super) fn bytes(&self) -> usize {
        self.best.len() * size_of::<Best>() + self.foreground.len() + self.covers.len() * size_of::<Cover>()
    }

    /// Numbers of the pictures that its distances are to.
    pub(super) fn referred(&self) -> impl Iterator<Item = u32> {
        self.best.iter().map(|best| best.of)
    }

    /// Its score without itself; `None` where there is no other picture.
    fn score(&self, top: f64, masked: bool) -> Option<f32> {
        if self.best.iter().all(|best| best.cosine <= NONE) {
            return None;
        }
        let mut cosines: Vec<f32> = self.best.iter().map(|best| best.cosine).collect();
        for &Cover { patch, by, cosine } in self.covers.iter().rev() {
            let (patch, by) = (patch as usize, by as usize);
            cosines[patch] = cosines[patch].max(farther(cosines[by], cosine));
        }
        let counts = |at: usize| !masked || self.foreground.get(at).copied().unwrap_or(true);
        let distances: Vec<f32> = cosines.iter().enumerate().map(|(at, &cosine)| if counts(at) { distance(cosine) } else { 0.0 }).collect();
        Some(mean_of_largest(&distances, top))
    }
}

/// The least cosine of two vectors whose cosines with a third are these: that of the sum of both angles.
pub(super) fn farther(cosine: f32, by: f32) -> f32 {
    if cosine <= NONE {
        return NONE;
    }
    let angle = |cosine: f32| f64::from(cosine.clamp(-1.0, 1.0)).acos();
    (angle(cosine) + angle(by)).min(std::f64::consts::PI).cos() as f32
}

/// Above which score a picture is anomalous. `None` where no good picture can be compared with another.
pub(super) fn threshold<'a>(pictures: impl Iterator<Item = &'a Scored>, top: f64, masked: bool) -> Result<Option<f32>, Cancelled> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for picture in pictures {
        cancel::check()?;
        if let Some(score) = picture.score(top, masked) {
            if picture.is_anomalous { bad.push(score) } else { good.push(score) }
        }
    }
    Ok(between(&mut good, &mut bad))
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
    use super::{Best, Cover, NONE, Scored, between, farther};

    #[test]
    fn angles_add_up_to_a_half_turn() {
        let is = |a: f32, b: f32, expected: f32| assert!((farther(a, b) - expected).abs() < 1e-6, "{a} {b}: {}", farther(a, b));
        is(1.0, 0.5, 0.5);
        is(0.5, 0.5, -0.5);
        is(-0.5, 0.0, -1.0);
        is(NONE, 1.0, NONE);
    }

    #[test]
    fn a_patch_that_is_covered_follows_what_covers_it() {
        let best = [0.0, 0.1, 1.0].map(|cosine| Best { cosine, of: 1 }).to_vec();
        let covers = vec![Cover { patch: 0, by: 1, cosine: 1.0 }, Cover { patch: 1, by: 2, cosine: 0.5 }];
        let mut scored = Scored { is_anomalous: false, best, foreground: vec![true; 3], covers };
        assert!((scored.score(0.01, false).unwrap() - 0.5).abs() < 1e-6);
        scored.covers.clear();
        assert!((scored.score(0.01, false).unwrap() - 1.0).abs() < 1e-6);
    }

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
