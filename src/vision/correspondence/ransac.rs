//! Random sample consensus: the geometry that most pairs of points agree on (Fischler and Bolles, 1981), scored as MSAC (Torr and
//! Zisserman, 2000) and fitted anew to what agrees (Chum, Matas and Kittler, 2003). The samples are the same each time.

use super::geometry::{Geometry, Matrix, PointPair};
use crate::cancel::{self, Cancelled};
use crate::splitmix::{self, splitmix64};

/// Most samples that are tried.
const MOST_SAMPLES: usize = 3000;
/// How sure it is that one of the samples was free of wrong pairs when the search ends early.
const CONFIDENCE: f64 = 0.9999;
/// Most times that a good sample's geometry is fitted anew.
const REFITS: usize = 8;
/// Pairs that agree have to be so many times as many as a sample: a sample agrees with itself.
const LEAST: usize = 2;

/// A geometry, and what agrees with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// For [`Geometry::Affine`] and [`Geometry::Homography`], what maps a point of the first picture to the second one; for
    /// [`Geometry::Fundamental`], the matrix F of x'ᵀ F x = 0.
    pub matrix: Matrix,
    /// Numbers of the pairs that agree, in their order.
    pub inliers: Vec<usize>,
}

/// The geometry that most of `pairs` are within `tolerance` pixels of; `None` where fewer than twice a sample agree, 6, 8 or 16.
///
/// # Errors
/// [`Cancelled`].
pub fn fit(kind: Geometry, pairs: &[PointPair], tolerance: f64) -> Result<Option<Fit>, Cancelled> {
    let size = kind.sample();
    if pairs.len() < LEAST * size {
        return Ok(None);
    }
    let search = Search { kind, pairs, limit: tolerance * tolerance };
    let mut random = SplitMix(0);
    let mut best: Option<(f64, Matrix)> = None;
    let (mut tried, mut enough) = (0, MOST_SAMPLES);
    while tried < enough {
        cancel::check()?;
        tried += 1;
        let sample: Vec<PointPair> = random.sample(size, pairs.len()).into_iter().map(|at| pairs[at]).collect();
        let Some(matrix) = kind.of(&sample) else { continue };
        let cost = search.cost(&matrix);
        if best.as_ref().is_some_and(|(least, _)| cost >= *least) {
            continue;
        }
        let refitted = search.refitted(cost, matrix);
        enough = enough.min(search.samples(&refitted.1));
        best = Some(refitted);
    }
    let fit = best.map(|(_, matrix)| Fit { matrix, inliers: search.inliers(&matrix) });
    Ok(fit.filter(|fit| fit.inliers.len() >= LEAST * size))
}

struct Search<'a> {
    kind: Geometry,
    pairs: &'a [PointPair],
    /// Square of the tolerance.
    limit: f64,
}

impl Search<'_> {
    fn square(&self, matrix: &Matrix, pair: PointPair) -> f64 {
        self.kind.error(matrix, pair).powi(2)
    }

    /// Sum of the squared errors, each at most that of a pair that does not agree.
    fn cost(&self, matrix: &Matrix) -> f64 {
        // An error that is no number is the largest.
        self.pairs.iter().map(|pair| self.square(matrix, *pair).min(self.limit)).sum()
    }

    fn inliers(&self, matrix: &Matrix) -> Vec<usize> {
        (0..self.pairs.len()).filter(|&at| self.square(matrix, self.pairs[at]) < self.limit).collect()
    }

    /// Fits what agrees, as long as that makes it better.
    fn refitted(&self, mut cost: f64, mut matrix: Matrix) -> (f64, Matrix) {
        for _ in 0..REFITS {
            let agreeing: Vec<PointPair> = self.inliers(&matrix).into_iter().map(|at| self.pairs[at]).collect();
            let Some(next) = (agreeing.len() >= self.kind.sample()).then(|| self.kind.of(&agreeing)).flatten() else { break };
            let of_next = self.cost(&next);
            if of_next >= cost {
                break;
            }
            (cost, matrix) = (of_next, next);
        }
        (cost, matrix)
    }

    /// How many samples are enough, if the pairs that agree with the matrix are the right ones.
    fn samples(&self, matrix: &Matrix) -> usize {
        let share = self.inliers(matrix).len() as f64 / self.pairs.len() as f64;
        let all_right = share.powi(self.kind.sample() as i32);
        let samples = (1.0 - CONFIDENCE).ln() / (-all_right).ln_1p();
        // A cast of a float keeps to the range.
        if samples.is_nan() { MOST_SAMPLES } else { samples.ceil() as usize }
    }
}

/// A generator of random numbers, by its state.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        let number = splitmix64(self.0);
        self.0 = self.0.wrapping_add(splitmix::STEP);
        number
    }

    /// Different numbers below `below`, of which there are enough.
    fn sample(&mut self, count: usize, below: usize) -> Vec<usize> {
        let mut sample = Vec::with_capacity(count);
        while sample.len() < count {
            let at = (self.next() % below as u64) as usize;
            if !sample.contains(&at) {
                sample.push(at);
            }
        }
        sample
    }
}

#[cfg(test)]
mod tests {
    use super::{SplitMix, fit};
    use crate::correspondence::geometry::tests::{PERSPECTIVE, mapped, points, scene};
    use crate::correspondence::{Geometry, PointPair};

    /// Uniform in -1..1.
    fn uniform(random: &mut SplitMix) -> f64 {
        (random.next() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }

    /// Every pair is off by up to a pixel, and of every `wrong` one is somewhere else.
    fn disturbed(pairs: Vec<PointPair>, wrong: usize) -> Vec<PointPair> {
        let mut random = SplitMix(7);
        let disturb = |(at, (from, to)): (usize, PointPair)| {
            let [x, y] = [uniform(&mut random), uniform(&mut random)];
            let to = if at.is_multiple_of(wrong) { [320.0 + 320.0 * x, 240.0 + 240.0 * y] } else { [to[0] + x, to[1] + y] };
            (from, to)
        };
        pairs.into_iter().enumerate().map(disturb).collect()
    }

    fn plane(count: usize) -> Vec<PointPair> {
        points(count).map(|point| (point, mapped(&PERSPECTIVE, point))).collect()
    }

    #[test]
    fn the_right_pairs_are_found_among_wrong_ones() {
        for (kind, right, wrong) in [(Geometry::Homography, plane(200), 2), (Geometry::Fundamental, scene(200), 3)] {
            let pairs = disturbed(right.clone(), wrong);
            let found = fit(kind, &pairs, 4.0).unwrap().unwrap();
            let is_right = |at: &usize| !at.is_multiple_of(wrong);
            let (hits, all) = (found.inliers.iter().filter(|at| is_right(at)).count(), (0..200).filter(is_right).count());
            assert!(hits * 100 >= all * 97, "{kind:?}: {hits} of {all}");
            // Wrong pairs may agree by chance: a tolerance of 4 around a line is more than that around a point.
            assert!(found.inliers.len() - hits <= 200 / 16, "{kind:?}: {} wrong", found.inliers.len() - hits);
            let worst = right.iter().map(|pair| kind.error(&found.matrix, *pair)).fold(0.0, f64::max);
            assert!(worst < 2.5, "{kind:?}: {worst}");
            assert_eq!(fit(kind, &pairs, 4.0).unwrap().unwrap(), found, "the same each time");
        }
    }

    #[test]
    fn chance_is_no_geometry() {
        let mut random = SplitMix(3);
        let mut point = || [320.0 + 320.0 * uniform(&mut random), 240.0 + 240.0 * uniform(&mut random)];
        let pairs: Vec<PointPair> = (0..60).map(|_| (point(), point())).collect();
        assert_eq!(fit(Geometry::Homography, &pairs, 4.0).unwrap(), None);
        assert_eq!(fit(Geometry::Affine, &pairs, 4.0).unwrap(), None);
        assert_eq!(fit(Geometry::Fundamental, &pairs[..15], 4.0).unwrap(), None);
        assert_eq!(fit(Geometry::Affine, &[], 4.0).unwrap(), None);
        assert_eq!(fit(Geometry::Homography, &vec![([1.0, 1.0], [2.0, 2.0]); 20], 4.0).unwrap(), None);
    }
}
