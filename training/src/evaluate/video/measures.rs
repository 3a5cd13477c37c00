//! DAVIS's measures of a mask: region similarity J, contour accuracy F (Perazzi et al. 2016), and their statistics over a sequence.
//!
//! ```
//! use dino_train::evaluate::video::measures::{Statistics, contour, region};
//!
//! let drawn = [true, true, false, false];
//! assert_eq!(region(&drawn, &[true, false, false, false]), 0.5);
//! assert_eq!(contour(&drawn, &drawn, 2), 1.0);
//! let of_sequence = Statistics::of(&[1.0, 0.75, 0.75, 0.25]).unwrap();
//! assert_eq!((of_sequence.mean, of_sequence.recall), (0.6875, 0.75));
//! ```

use serde::Serialize;

/// Contours may lie apart by this share of the frame's diagonal.
const TOLERANCE: f64 = 0.008;
/// A frame counts for recall where its measure is above this.
const FOUND: f64 = 0.5;

/// Jaccard index of two masks; 1 where both are empty.
pub fn region(truth: &[bool], found: &[bool]) -> f64 {
    let both = truth.iter().zip(found).filter(|(truth, found)| **truth && **found).count();
    let either = truth.iter().zip(found).filter(|(truth, found)| **truth || **found).count();
    if either == 0 { 1.0 } else { both as f64 / either as f64 }
}

/// F measure of two masks' contours, which match where they are near each other.
pub fn contour(truth: &[bool], found: &[bool], width: usize) -> f64 {
    let (truth, found) = (border(truth, width), border(found, width));
    let count = |border: &[bool]| border.iter().filter(|is_border| **is_border).count();
    let near = |border: &[bool], other: &[bool]| {
        let reach = reached(other, width);
        border.iter().zip(reach).filter(|(is_border, is_near)| **is_border && *is_near).count() as f64
    };
    let (precision, recall) = match (count(&found), count(&truth)) {
        (0, 0) => (1.0, 1.0),
        (0, _) => (1.0, 0.0),
        (_, 0) => (0.0, 1.0),
        (of_found, of_truth) => (near(&found, &truth) / of_found as f64, near(&truth, &found) / of_truth as f64),
    };
    if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
}

/// Pixels that differ from their right, lower or lower right neighbour.
fn border(mask: &[bool], width: usize) -> Vec<bool> {
    let differs = |at: usize| {
        let (right, below) = (at % width + 1 < width, at + width < mask.len());
        let differs = |is_there: bool, by: usize| is_there && mask[at] != mask[at + by];
        differs(right, 1) || differs(below, width) || differs(right && below, width + 1)
    };
    (0..mask.len()).map(differs).collect()
}

/// Pixels within the tolerance of a border.
fn reached(border: &[bool], width: usize) -> Vec<bool> {
    let height = border.len() / width;
    let radius = (TOLERANCE * (width as f64).hypot(height as f64)).ceil() as usize;
    // Half the width of the disc's rows, by their distance from its middle.
    let reach: Vec<usize> = (0..=radius).map(|distance| (radius * radius - distance * distance).isqrt()).collect();
    let mut reached = vec![false; border.len()];
    for at in (0..border.len()).filter(|at| border[*at]) {
        let (x, y) = (at % width, at / width);
        for row in y.saturating_sub(radius)..(y + radius + 1).min(height) {
            let reach = reach[row.abs_diff(y)];
            reached[row * width..][x.saturating_sub(reach)..(x + reach + 1).min(width)].fill(true);
        }
    }
    reached
}

/// A measure over the frames of a sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Statistics {
    /// Mean.
    pub mean: f64,
    /// Share of the frames above one half.
    pub recall: f64,
    /// Mean of the first quarter less that of the last.
    pub decay: f64,
}

impl Statistics {
    /// Those of the frames' values; `None` without a frame.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let last = values.len().checked_sub(1)?;
        // Five places from the first to the last frame; neighbouring quarters share one.
        let place = |quarter: usize| (1.0 + last as f64 * quarter as f64 / 4.0 + 1e-10).round_ties_even() as usize - 1;
        Some(Self {
            mean: mean(values),
            recall: values.iter().filter(|value| **value > FOUND).count() as f64 / values.len() as f64,
            decay: mean(&values[..=place(1)]) - mean(&values[place(3)..]),
        })
    }

    /// Their mean over objects; `None` of none.
    pub fn mean_of(all: &[Self]) -> Option<Self> {
        let mean = |part: fn(&Self) -> f64| all.iter().map(part).sum::<f64>() / all.len() as f64;
        (!all.is_empty()).then(|| Self { mean: mean(|one| one.mean), recall: mean(|one| one.recall), decay: mean(|one| one.decay) })
    }
}

/// The columns of DAVIS 2017's tables, between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Mean of the two means.
    #[serde(rename = "J&F-Mean")]
    pub both: f64,
    /// Region similarity.
    #[serde(rename = "J-Mean")]
    pub region_mean: f64,
    /// Share of the frames with a region similarity above one half.
    #[serde(rename = "J-Recall")]
    pub region_recall: f64,
    /// What region similarity loses from the first quarter of the frames to the last.
    #[serde(rename = "J-Decay")]
    pub region_decay: f64,
    /// Contour accuracy.
    #[serde(rename = "F-Mean")]
    pub contour_mean: f64,
    /// Share of the frames with a contour accuracy above one half.
    #[serde(rename = "F-Recall")]
    pub contour_recall: f64,
    /// What contour accuracy loses from the first quarter of the frames to the last.
    #[serde(rename = "F-Decay")]
    pub contour_decay: f64,
}

impl Figures {
    /// Of both measures.
    pub fn of(region: Statistics, contour: Statistics) -> Self {
        Self {
            both: f64::midpoint(region.mean, contour.mean),
            region_mean: region.mean,
            region_recall: region.recall,
            region_decay: region.decay,
            contour_mean: contour.mean,
            contour_recall: contour.recall,
            contour_decay: contour.decay,
        }
    }
}
