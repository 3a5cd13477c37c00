//! How well objects that were found fit those that people drew.
//!
//! ```
//! use dino_train::evaluate::segmentation::{Prediction, Tally, Truth, bounds};
//!
//! // A picture of 2 x 2 pixels: its upper row is drawn, and its left column is found.
//! let drawn = vec![true, true, false, false];
//! let found = vec![true, false, true, false];
//! let truth = Truth { void: vec![false; 4], boxes: vec![bounds(&drawn, 2)], pixels: drawn };
//! let saliency = vec![1.0, 0.0, 1.0, 0.0];
//! let prediction = Prediction { saliency, bbox: bounds(&found, 2), score: None, pixels: found };
//! assert_eq!((truth.boxes[0], prediction.bbox), ([0, 0, 2, 1], [0, 0, 1, 2]));
//!
//! let mut tally = Tally::default();
//! tally.add("scene", &truth, &prediction);
//! let figures = tally.figures().unwrap();
//! assert!((figures.jaccard - 100.0 / 3.0).abs() < 1e-9);
//! assert_eq!(figures.accuracy, 50.0);
//! ```

use std::collections::BTreeMap;
use std::iter::zip;

use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

/// Weight of precision against recall in the F measure, as the literature on salient objects has it.
const BETA_SQUARED: f64 = 0.3;
/// Grey levels at which a map is cut for the F measure.
const LEVELS: usize = 256;
/// Draws of the bootstrap over scenes.
const DRAWS: usize = 2000;

/// A box, `[x, y, width, height]` in pixels.
pub type Box = [u32; 4];

/// What people drew over one picture: one flag per pixel, row by row, and the box of each object.
#[derive(Clone, Debug, PartialEq)]
pub struct Truth {
    /// Whether a pixel belongs to an object.
    pub pixels: Vec<bool>,
    /// Whether the mask leaves that open: such a pixel is in no figure.
    pub void: Vec<bool>,
    /// One box per object.
    pub boxes: Vec<Box>,
}

/// What a method says of one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Whether a pixel belongs to an object.
    pub pixels: Vec<bool>,
    /// How much each pixel does, in any unit: it is scaled to the levels between its least and its largest value.
    pub saliency: Vec<f32>,
    /// The first object's box; zeros without one.
    pub bbox: Box,
    /// The first object's score; `None` for what has none.
    pub score: Option<f32>,
}

/// Figures of one method, in percent, means over the pictures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Intersection over union of the pixels.
    pub jaccard: f64,
    /// Where nine tenths of its bootstrap over scenes lie: pictures of one scene are no independent measurements.
    pub jaccard_interval: [f64; 2],
    /// The largest F measure (beta squared 0.3) of mean precision and mean recall over all levels at which the maps are cut.
    pub max_f: f64,
    /// Pixels that are right.
    pub accuracy: f64,
    /// Pictures whose box overlaps one of the drawn boxes by at least a half (intersection over union).
    pub corloc: f64,
    /// Rank correlation (Spearman's) of the first object's score with the intersection over union, -1 to 1: whether the score tells a
    /// good mask from a bad one. Absent where there are no scores, or all are the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_correlation: Option<f64>,
}

/// Sums of one method over the pictures.
#[derive(Clone, Debug)]
pub struct Tally {
    pictures: usize,
    /// Intersections over union of each scene's pictures.
    scenes: BTreeMap<String, Vec<f64>>,
    /// Score and intersection over union of each picture.
    scores: Vec<(f64, f64)>,
    accuracy: f64,
    located: usize,
    precision: Vec<f64>,
    recall: Vec<f64>,
}

impl Default for Tally {
    fn default() -> Self {
        let (precision, recall) = (vec![0.0; LEVELS], vec![0.0; LEVELS]);
        Self { pictures: 0, scenes: BTreeMap::new(), scores: Vec::new(), accuracy: 0.0, located: 0, precision, recall }
    }
}

impl Tally {
    /// Adds a picture of a scene.
    ///
    /// # Panics
    /// If truth and prediction have not the same number of pixels.
    pub fn add(&mut self, scene: &str, truth: &Truth, prediction: &Prediction) {
        assert!(truth.pixels.len() == prediction.pixels.len() && truth.pixels.len() == prediction.saliency.len(), "one flag per pixel");
        self.pictures += 1;
        let jaccard = truth.jaccard(prediction);
        self.scenes.entry(scene.to_owned()).or_default().push(jaccard);
        self.scores.extend(prediction.score.map(|score| (f64::from(score), jaccard)));
        let (drawn, predicted) = (truth.decided(&truth.pixels), truth.decided(&prediction.pixels));
        let right = zip(&drawn, &predicted).filter(|(truth, predicted)| truth == predicted).count();
        self.accuracy += right as f64 / drawn.len().max(1) as f64;
        self.located += usize::from(truth.boxes.iter().any(|drawn| overlap(*drawn, prediction.bbox) >= 0.5));
        self.add_levels(&drawn, &truth.decided(&prediction.saliency));
    }

    fn add_levels(&mut self, truth: &[bool], saliency: &[f32]) {
        let (low, high) =
            saliency.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), value| (low.min(*value), high.max(*value)));
        let scale = if high > low { (LEVELS - 1) as f32 / (high - low) } else { 0.0 };
        // How many pixels lie at each level: all, and those of objects.
        let (mut all, mut inside) = ([0_u64; LEVELS], [0_u64; LEVELS]);
        for (value, truth) in zip(saliency, truth) {
            let level = (((value - low) * scale) as usize).min(LEVELS - 1);
            all[level] += 1;
            inside[level] += u64::from(*truth);
        }
        let objects: u64 = inside.iter().sum();
        let (mut kept, mut right) = (0, 0);
        for level in (0..LEVELS).rev() {
            kept += all[level];
            right += inside[level];
            self.precision[level] += right as f64 / kept.max(1) as f64;
            self.recall[level] += right as f64 / objects.max(1) as f64;
        }
    }

    /// The means; `None` without a picture.
    pub fn figures(&self) -> Option<Figures> {
        let count = if self.pictures == 0 { return None } else { self.pictures as f64 };
        let f = |(precision, recall): (&f64, &f64)| {
            let (precision, recall) = (precision / count, recall / count);
            (1.0 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall).max(f64::MIN_POSITIVE)
        };
        let max_f = zip(&self.precision, &self.recall).map(f).fold(0.0, f64::max);
        let percent = |sum: f64| 100.0 * sum / count;
        Some(Figures {
            jaccard: percent(self.scenes.values().flatten().sum()),
            jaccard_interval: self.interval().map(|end| 100.0 * end),
            max_f: 100.0 * max_f,
            accuracy: percent(self.accuracy),
            corloc: percent(self.located as f64),
            score_correlation: rank_correlation(&self.scores),
        })
    }

    /// Mean intersection over union of the pictures.
    pub fn jaccard(&self) -> f64 {
        self.scenes.values().flatten().sum::<f64>() / self.pictures.max(1) as f64
    }

    /// The 5 % and the 95 % quantile of the mean over scenes that are drawn with replacement; the same each time.
    fn interval(&self) -> [f64; 2] {
        let scenes: Vec<&Vec<f64>> = self.scenes.values().collect();
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(0);
        let mut draw = || {
            let drawn = (0..scenes.len()).map(|_| scenes[random.random_range(0..scenes.len())]);
            let (sum, count) = drawn.fold((0.0, 0), |(sum, count), scene| (sum + scene.iter().sum::<f64>(), count + scene.len()));
            sum / count as f64
        };
        let mut means: Vec<f64> = (0..DRAWS).map(|_| draw()).collect();
        means.sort_unstable_by(f64::total_cmp);
        [means[DRAWS / 20], means[DRAWS - 1 - DRAWS / 20]]
    }
}

/// Spearman's rank correlation; equal values share their mean rank. `None` where one side is all the same.
fn rank_correlation(pairs: &[(f64, f64)]) -> Option<f64> {
    let (a, b): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    let [a, b] = [ranks(&a), ranks(&b)];
    let mean = (pairs.len() as f64 - 1.0) / 2.0;
    let sum = |a: &[f64], b: &[f64]| zip(a, b).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
    let scale = (sum(&a, &a) * sum(&b, &b)).sqrt();
    (scale > 0.0).then(|| sum(&a, &b) / scale)
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for equal in order.chunk_by(|a, b| values[*a].total_cmp(&values[*b]).is_eq()) {
        for at in equal {
            ranks[*at] = first as f64 + (equal.len() - 1) as f64 / 2.0;
        }
        first += equal.len();
    }
    ranks
}

impl Truth {
    /// Intersection over union with what was found; 1 where both are empty.
    pub fn jaccard(&self, found: &Prediction) -> f64 {
        jaccard(&self.decided(&self.pixels), &self.decided(&found.pixels))
    }

    /// The values of the pixels that are not void.
    fn decided<T: Copy>(&self, values: &[T]) -> Vec<T> {
        zip(values, &self.void).filter(|(_, void)| !**void).map(|(value, _)| *value).collect()
    }
}

fn jaccard(a: &[bool], b: &[bool]) -> f64 {
    let both = zip(a, b).filter(|(a, b)| **a && **b).count();
    let either = zip(a, b).filter(|(a, b)| **a || **b).count();
    if either == 0 { 1.0 } else { both as f64 / either as f64 }
}

/// Intersection over union of two boxes; 0 where one is empty.
fn overlap(a: Box, b: Box) -> f64 {
    let side = |axis: usize| {
        let end = (a[axis] + a[axis + 2]).min(b[axis] + b[axis + 2]);
        u64::from(end.saturating_sub(a[axis].max(b[axis])))
    };
    let area = |of: Box| u64::from(of[2]) * u64::from(of[3]);
    let both = side(0) * side(1);
    if both == 0 { 0.0 } else { both as f64 / (area(a) + area(b) - both) as f64 }
}

/// The smallest box around the set pixels of a picture of this width; zeros without one.
pub fn bounds(pixels: &[bool], width: usize) -> Box {
    let set = || pixels.iter().enumerate().filter(|(_, set)| **set).map(|(at, _)| ((at % width) as u32, (at / width) as u32));
    let Some((_, top)) = set().next() else { return [0; 4] };
    let (left, right) = set().fold((u32::MAX, 0), |(left, right), (x, _)| (left.min(x), right.max(x + 1)));
    let bottom = set().next_back().map_or(top, |(_, y)| y + 1);
    [left, top, right - left, bottom - top]
}

#[cfg(test)]
mod tests {
    use super::{Prediction, Tally, Truth, bounds, overlap, rank_correlation};

    fn flags(text: &str) -> Vec<bool> {
        text.bytes().map(|byte| byte == b'#').collect()
    }

    fn prediction(text: &str, saliency: &[f32]) -> Prediction {
        let pixels = flags(text);
        Prediction { bbox: bounds(&pixels, 4), pixels, saliency: saliency.to_vec(), score: None }
    }

    #[test]
    fn figures_are_those_of_a_sum_by_hand() {
        let pixels = flags("##..##..");
        let truth = Truth { boxes: vec![bounds(&pixels, 4)], pixels, void: vec![false; 8] };
        let mut tally = Tally::default();
        assert_eq!(tally.figures(), None);
        tally.add("scene", &truth, &prediction("###.....", &[0.9, 0.8, 0.5, 0.0, 0.1, 0.2, 0.0, 0.0]));
        let figures = tally.figures().unwrap();
        assert!((figures.jaccard - 40.0).abs() < 1e-9);
        assert!((figures.accuracy - 62.5).abs() < 1e-9);
        // Boxes of 2 x 2 and 3 x 1 share 2 of 5 pixels.
        assert!(figures.corloc.abs() < 1e-9);
        // Cut at 0.1 all four are kept and one more: precision 0.8, recall 1. Cut at 0.8: precision 1, recall 0.5.
        let f = |precision: f64, recall: f64| 130.0 * precision * recall / (0.3 * precision + recall);
        assert!((figures.max_f - f(0.8, 1.0).max(f(1.0, 0.5))).abs() < 1e-9, "{figures:?}");
    }

    #[test]
    fn the_truth_itself_is_perfect_and_nothing_is_worth_nothing() {
        let pixels = flags("##..##..");
        let truth = Truth { boxes: vec![[0, 0, 2, 2]], pixels: pixels.clone(), void: vec![false; 8] };
        let mut perfect = Tally::default();
        perfect.add("scene", &truth, &prediction("##..##..", &[1., 1., 0., 0., 1., 1., 0., 0.]));
        let figures = perfect.figures().unwrap();
        assert!([figures.jaccard, figures.max_f, figures.accuracy, figures.corloc].iter().all(|value| (value - 100.0).abs() < 1e-9));
        let mut nothing = Tally::default();
        nothing.add("scene", &truth, &prediction("........", &[0.0; 8]));
        let figures = nothing.figures().unwrap();
        assert!(figures.jaccard.abs() < 1e-9 && figures.corloc.abs() < 1e-9 && (figures.accuracy - 50.0).abs() < 1e-9);
    }

    #[test]
    fn void_pixels_are_in_no_figure() {
        let pixels = flags("##..##..");
        let truth = Truth { boxes: vec![[0, 0, 2, 2]], pixels, void: flags("..##..##") };
        let mut tally = Tally::default();
        tally.add("scene", &truth, &prediction("########", &[1.0; 8]));
        let figures = tally.figures().unwrap();
        assert!((figures.jaccard - 100.0).abs() < 1e-9 && (figures.accuracy - 100.0).abs() < 1e-9, "{figures:?}");
        assert!((figures.max_f - 100.0).abs() < 1e-9);
    }

    #[test]
    fn the_interval_is_that_of_scenes_and_not_of_pictures() {
        let pixels = flags("##..##..");
        let truth = Truth { boxes: vec![[0, 0, 2, 2]], pixels, void: vec![false; 8] };
        let interval = |scenes: [&str; 4]| {
            let mut tally = Tally::default();
            for (scene, drawn) in scenes.into_iter().zip(["##..##..", "##..##..", "........", "........"]) {
                tally.add(scene, &truth, &prediction(drawn, &[0.0; 8]));
            }
            let figures = tally.figures().unwrap();
            assert!((figures.jaccard - 50.0).abs() < 1e-9);
            figures.jaccard_interval
        };
        // One scene is one measurement; of two, all may be drawn from the one or the other; four scatter less.
        let is = |found: [f64; 2], wanted: [f64; 2]| found.iter().zip(wanted).all(|(found, wanted)| (found - wanted).abs() < 1e-9);
        assert!(is(interval(["a"; 4]), [50.0, 50.0]));
        assert!(is(interval(["a", "a", "b", "b"]), [0.0, 100.0]));
        let [low, high] = interval(["a", "b", "c", "d"]);
        assert!((0.0..50.0).contains(&low) && high > 50.0 && high <= 100.0);
    }

    #[test]
    fn rank_correlation_sees_order_alone_and_shares_equal_ranks() {
        let of = |pairs: &[(f64, f64)]| rank_correlation(pairs);
        assert_eq!(of(&[(1.0, 1.0), (2.0, 100.0), (3.0, 101.0)]), Some(1.0));
        assert_eq!(of(&[(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]), Some(-1.0));
        assert_eq!(of(&[(1.0, 3.0), (1.0, 2.0)]), None);
        assert_eq!(of(&[]), None);
        // Ranks 0.5 0.5 2 against 0 1 2: 1.5 / sqrt(1.5 * 2).
        let tied = of(&[(1.0, 1.0), (1.0, 2.0), (5.0, 3.0)]).unwrap();
        assert!((tied - 1.5 / 3.0_f64.sqrt()).abs() < 1e-12, "{tied}");
    }

    #[test]
    fn boxes_that_touch_do_not_overlap() {
        assert!(overlap([0, 0, 2, 2], [2, 0, 2, 2]).abs() < 1e-9);
        assert!((overlap([0, 0, 2, 2], [1, 0, 2, 2]) - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!(bounds(&flags(".....##."), 4), [1, 1, 2, 1]);
        assert_eq!(bounds(&flags("........"), 4), [0; 4]);
    }
}
