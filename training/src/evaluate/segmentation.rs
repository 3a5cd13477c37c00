//! How well objects that were found fit those that people drew.

use std::iter::zip;

use serde::Serialize;

/// Weight of precision against recall in the F measure, as the literature on salient objects has it.
const BETA_SQUARED: f64 = 0.3;
/// Grey levels at which a map is cut for the F measure.
const LEVELS: usize = 256;

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
}

/// Figures of one method, in percent, means over the pictures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Intersection over union of the pixels.
    pub jaccard: f64,
    /// The largest F measure (beta squared 0.3) of mean precision and mean recall over all levels at which the maps are cut.
    pub max_f: f64,
    /// Pixels that are right.
    pub accuracy: f64,
    /// Pictures whose box overlaps one of the drawn boxes by at least a half (intersection over union).
    pub corloc: f64,
}

/// Sums of one method over the pictures.
#[derive(Clone, Debug)]
pub struct Tally {
    pictures: usize,
    jaccard: f64,
    accuracy: f64,
    located: usize,
    precision: Vec<f64>,
    recall: Vec<f64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self { pictures: 0, jaccard: 0.0, accuracy: 0.0, located: 0, precision: vec![0.0; LEVELS], recall: vec![0.0; LEVELS] }
    }
}

impl Tally {
    /// Adds a picture.
    ///
    /// # Panics
    /// If truth and prediction have not the same number of pixels.
    pub fn add(&mut self, truth: &Truth, prediction: &Prediction) {
        assert!(truth.pixels.len() == prediction.pixels.len() && truth.pixels.len() == prediction.saliency.len(), "one flag per pixel");
        self.pictures += 1;
        self.jaccard += truth.jaccard(prediction);
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
            jaccard: percent(self.jaccard),
            max_f: 100.0 * max_f,
            accuracy: percent(self.accuracy),
            corloc: percent(self.located as f64),
        })
    }
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
    use super::{Prediction, Tally, Truth, bounds, overlap};

    fn flags(text: &str) -> Vec<bool> {
        text.bytes().map(|byte| byte == b'#').collect()
    }

    fn prediction(text: &str, saliency: &[f32]) -> Prediction {
        let pixels = flags(text);
        Prediction { bbox: bounds(&pixels, 4), pixels, saliency: saliency.to_vec() }
    }

    #[test]
    fn figures_are_those_of_a_sum_by_hand() {
        let pixels = flags("##..##..");
        let truth = Truth { boxes: vec![bounds(&pixels, 4)], pixels, void: vec![false; 8] };
        let mut tally = Tally::default();
        assert_eq!(tally.figures(), None);
        tally.add(&truth, &prediction("###.....", &[0.9, 0.8, 0.5, 0.0, 0.1, 0.2, 0.0, 0.0]));
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
        perfect.add(&truth, &prediction("##..##..", &[1., 1., 0., 0., 1., 1., 0., 0.]));
        let figures = perfect.figures().unwrap();
        assert!([figures.jaccard, figures.max_f, figures.accuracy, figures.corloc].iter().all(|value| (value - 100.0).abs() < 1e-9));
        let mut nothing = Tally::default();
        nothing.add(&truth, &prediction("........", &[0.0; 8]));
        let figures = nothing.figures().unwrap();
        assert!(figures.jaccard.abs() < 1e-9 && figures.corloc.abs() < 1e-9 && (figures.accuracy - 50.0).abs() < 1e-9);
    }

    #[test]
    fn void_pixels_are_in_no_figure() {
        let pixels = flags("##..##..");
        let truth = Truth { boxes: vec![[0, 0, 2, 2]], pixels, void: flags("..##..##") };
        let mut tally = Tally::default();
        tally.add(&truth, &prediction("########", &[1.0; 8]));
        let figures = tally.figures().unwrap();
        assert!((figures.jaccard - 100.0).abs() < 1e-9 && (figures.accuracy - 100.0).abs() < 1e-9, "{figures:?}");
        assert!((figures.max_f - 100.0).abs() < 1e-9);
    }

    #[test]
    fn boxes_that_touch_do_not_overlap() {
        assert!(overlap([0, 0, 2, 2], [2, 0, 2, 2]).abs() < 1e-9);
        assert!((overlap([0, 0, 2, 2], [1, 0, 2, 2]) - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!(bounds(&flags(".....##."), 4), [1, 1, 2, 1]);
        assert_eq!(bounds(&flags("........"), 4), [0; 4]);
    }
}
