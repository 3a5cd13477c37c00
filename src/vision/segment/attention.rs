//! The part of a picture that holds most of the CLS token's attention.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use ndarray::{ArrayView1, ArrayView2, Axis};

use super::SegmentError;
use super::components::components;
use super::method::Region;
use crate::transform::PatchGrid;

/// Whose attention makes the mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Head {
    /// The mean over the heads.
    #[default]
    Mean,
    /// The most concentrated head: the one with the lowest entropy over the patches.
    Best,
    /// Each head on its own; their objects together, none twice.
    All,
    /// The head of this number, from 0.
    Number(usize),
}

impl fmt::Display for Head {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mean => formatter.write_str("mean"),
            Self::Best => formatter.write_str("best"),
            Self::All => formatter.write_str("all"),
            Self::Number(number) => write!(formatter, "{number}"),
        }
    }
}

impl FromStr for Head {
    type Err = SegmentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "mean" => Ok(Self::Mean),
            "best" => Ok(Self::Best),
            "all" => Ok(Self::All),
            _ => text.parse().map(Self::Number).map_err(|_| SegmentError::UnknownHead(text.to_owned())),
        }
    }
}

/// The connected parts of the patches that hold `threshold` of the attention, most attention first. `attention` is
/// `[heads, patches]`. Parts of several heads may be the same.
pub(super) fn parts(attention: ArrayView2<'_, f32>, grid: PatchGrid, threshold: f32, head: Head) -> Result<Vec<Region>, SegmentError> {
    let mut found: Vec<(f32, Region)> = Vec::new();
    for weights in chosen(attention, head)? {
        let kept = head_cells(&weights, threshold);
        let heat: Arc<[f32]> = weights.into();
        for cells in components(&kept, grid.columns) {
            let mass = cells.iter().zip(heat.iter()).filter(|(cell, _)| **cell).map(|(_, weight)| *weight).sum();
            let contrast = Some(contrast(heat.iter().copied(), &cells, &kept).max(0.0));
            found.push((mass, Region { cells, heat: heat.clone(), contrast }));
        }
    }
    // Stable, so equal masses keep the order of heads and reading direction.
    found.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    Ok(found.into_iter().map(|(_, part)| part).collect())
}

/// The smallest set of patches that holds `threshold` of the attention, as the public DINO code
/// (`visualize_attention.py`) takes it: sorted ascending, what lies beyond `1 - threshold` of the cumulated mass.
///
/// One flag per patch; none is set where the attention is not finite or sums to nothing.
pub fn head_cells(weights: &[f32], threshold: f32) -> Vec<bool> {
    let mut kept = vec![false; weights.len()];
    let total: f32 = weights.iter().sum();
    if !total.is_finite() || total <= 0.0 {
        return kept;
    }
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|a, b| weights[*a].total_cmp(&weights[*b]));
    // Cumulated in double, as PyTorch does for floats on a CPU.
    let mut cumulated = 0.0_f64;
    for patch in order {
        cumulated += f64::from(weights[patch] / total);
        kept[patch] = cumulated as f32 > 1.0 - threshold;
    }
    kept
}

/// One row of weights per mask to make.
fn chosen(patches: ArrayView2<'_, f32>, head: Head) -> Result<Vec<Vec<f32>>, SegmentError> {
    let heads = patches.len_of(Axis(0));
    match head {
        Head::Mean => Ok(patches.mean_axis(Axis(0)).map(|mean| mean.to_vec()).into_iter().collect()),
        Head::All => Ok(patches.rows().into_iter().map(|row| row.to_vec()).collect()),
        Head::Best => {
            let best = patches.rows().into_iter().min_by(|a, b| entropy(*a).total_cmp(&entropy(*b)));
            Ok(best.map(|row| row.to_vec()).into_iter().collect())
        }
        Head::Number(head) if head < heads => Ok(vec![patches.row(head).to_vec()]),
        Head::Number(head) => Err(SegmentError::NoSuchHead { head, heads }),
    }
}

/// Shannon entropy of the attention over the patches, in nats.
fn entropy(weights: ArrayView1<'_, f32>) -> f32 {
    let total = weights.sum().max(f32::MIN_POSITIVE);
    weights.iter().map(|weight| weight / total).filter(|share| *share > 0.0).map(|share| -share * share.ln()).sum()
}

/// (inside - outside) / (inside + outside) of the mean weight per patch of an object's `cells` and of what lies outside of all objects
/// (not `kept`), -1 to 1.
pub(super) fn contrast(weights: impl Iterator<Item = f32>, cells: &[bool], kept: &[bool]) -> f32 {
    let [mut inside, mut outside] = [(0, 0.0_f32); 2];
    for (weight, (cell, kept)) in weights.zip(cells.iter().zip(kept)) {
        let side = if *cell { &mut inside } else { &mut outside };
        if *cell || !*kept {
            *side = (side.0 + 1, side.1 + weight);
        }
    }
    let [inside, outside] = [inside, outside].map(|(count, sum)| sum / f32::max(count as f32, 1.0));
    ((inside - outside) / (inside + outside).max(f32::MIN_POSITIVE)).clamp(-1.0, 1.0)
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::{Head, SegmentError, head_cells};
    use crate::segment::{Object, Options, Patches, segment};
    use crate::transform::PatchGrid;

    const GRID: PatchGrid = PatchGrid { rows: 2, columns: 4 };
    const SIZE: (u32, u32) = (8, 4);

    /// Two blobs: the left column, and less of the right one.
    fn two_blobs() -> Array2<f32> {
        array![[0.3, 0.01, 0.01, 0.2, 0.3, 0.01, 0.01, 0.16], [0., 0., 0., 0., 0., 0., 1.0, 0.]]
    }

    fn ask(weights: &Array2<f32>, grid: PatchGrid, size: (u32, u32), options: &Options) -> Result<Vec<Object>, SegmentError> {
        Ok(segment(&Patches::new(Some(weights.view()), None, grid), size, 1.0, options)?.objects)
    }

    fn objects(head: Head, max_objects: usize) -> Vec<([u32; 4], f32)> {
        let options = Options { head, max_objects, threshold: Some(0.9), ..Options::default() };
        let objects = ask(&two_blobs(), GRID, SIZE, &options).unwrap();
        objects.iter().map(|object| (object.mask.bbox(), object.score)).collect()
    }

    #[test]
    fn objects_come_by_their_mass_and_never_twice() {
        let first = objects(Head::Number(0), 5);
        assert_eq!(first.iter().map(|(bbox, _)| *bbox).collect::<Vec<_>>(), [[0, 0, 2, 4], [6, 0, 2, 4]]);
        assert!(first[0].1 > first[1].1 && first[1].1 > 0.8);
        assert_eq!(objects(Head::Number(0), 1).len(), 1);
        assert_eq!(objects(Head::Best, 5), objects(Head::Number(1), 5));
        assert_eq!(objects(Head::Best, 5)[0].0, [4, 2, 2, 2]);
        assert_eq!(objects(Head::All, 9).len(), 3);

        let same = array![[0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]];
        let options = Options { head: Head::All, max_objects: 9, ..Options::default() };
        assert_eq!(ask(&same, PatchGrid { rows: 1, columns: 4 }, (4, 1), &options).unwrap().len(), 1);
    }

    #[test]
    fn even_attention_scores_near_zero_and_broken_attention_gives_no_object() {
        let options = Options::default();
        let even = Array2::from_elem((1, 8), 0.125);
        assert!(ask(&even, GRID, SIZE, &options).unwrap()[0].score < 1e-6);
        for broken in [0.0, f32::NAN, f32::INFINITY] {
            let broken = Array2::from_elem((2, 8), broken);
            assert_eq!(ask(&broken, GRID, SIZE, &options).unwrap(), []);
        }
        assert_eq!(head_cells(&[], 0.6), [false; 0]);
    }

    #[test]
    fn bad_options_are_refused() {
        let refused = |head, threshold| {
            let options = Options { head, threshold: Some(threshold), ..Options::default() };
            ask(&two_blobs(), GRID, SIZE, &options).unwrap_err()
        };
        assert_eq!(refused(Head::Number(2), 0.6), SegmentError::NoSuchHead { head: 2, heads: 2 });
        assert!(matches!(refused(Head::Mean, 0.0), SegmentError::Threshold { .. }));
        assert!(matches!(refused(Head::Mean, f32::NAN), SegmentError::Threshold { .. }));
        for name in ["mean", "best", "all", "3"] {
            assert_eq!(name.parse::<Head>().unwrap().to_string(), name);
        }
        assert!("-1".parse::<Head>().is_err());
    }
}
