//! What the CLS token looks at, and what does not resemble the picture's border.
//!
//! Border patches as a model of the background are those of Wei et al. 2012 ("Geodesic Saliency Using Background Priors"), here on
//! a network's features; the cut is Otsu's (1979).

use ndarray::{ArrayView2, Axis};

use super::affinity::normalised;
use crate::cancel;
use crate::transform::PatchGrid;

/// Border patches that each patch is compared with: those that resemble it most.
const NEIGHBOURS: usize = 5;
/// Standard deviation of the preference for the middle, where half of a side is 1: people point cameras at things.
const CENTRE: f32 = 0.5;
/// Levels of the histogram that is cut.
const LEVELS: usize = 64;
/// Patches that are compared with the border at a time: the whole matrix of similarities is never in memory.
const BLOCK: usize = 128;

/// How much each patch stands out, at least 0: the geometric mean of its attention (the mean over the heads) and its distance to the
/// border, less towards the border.
///
/// `features` is `[patches, D]`, `attention` `[heads, patches]`; without attention the distance alone counts. The distance of a patch
/// is 1 minus the mean cosine to the five border patches that resemble it most. All are 0 where the attention is not finite.
pub fn saliency(features: ArrayView2<'_, f32>, attention: Option<ArrayView2<'_, f32>>, grid: PatchGrid) -> Vec<f32> {
    let PatchGrid { rows, columns } = grid;
    let features = normalised(features);
    let is_border = |patch: usize| {
        let (row, column) = (patch / columns, patch % columns);
        row == 0 || row + 1 == rows || column == 0 || column + 1 == columns
    };
    let border: Vec<usize> = (0..grid.len()).filter(|patch| is_border(*patch)).collect();
    let border = features.select(Axis(0), &border);
    let attention = attention.and_then(|heads| heads.mean_axis(Axis(0)));
    let mut heat = Vec::with_capacity(grid.len());
    for block in features.axis_chunks_iter(Axis(0), BLOCK) {
        if cancel::is_cancelled() {
            break;
        }
        for similarities in block.dot(&border.t()).rows() {
            let patch = heat.len();
            let looked_at = attention.as_ref().map_or(1.0, |attention| attention[patch]);
            let value = (looked_at * distance(similarities.to_vec())).sqrt() * centre(patch, grid);
            heat.push(if value.is_finite() { value } else { 0.0 });
        }
    }
    heat.resize(grid.len(), 0.0);
    heat
}

/// 1 minus the mean of the largest similarities.
fn distance(mut similarities: Vec<f32>) -> f32 {
    let nearest = NEIGHBOURS.min(similarities.len());
    if nearest == 0 {
        return 0.0;
    }
    similarities.select_nth_unstable_by(nearest - 1, |a, b| b.total_cmp(a));
    let mean = similarities[..nearest].iter().sum::<f32>() / nearest as f32;
    (1.0 - mean).max(0.0)
}

/// The preference for the middle at a patch's own middle, up to 1.
fn centre(patch: usize, PatchGrid { rows, columns }: PatchGrid) -> f32 {
    let place = |at: usize, count: usize| (2 * at + 1) as f32 / count as f32 - 1.0;
    let (x, y) = (place(patch % columns, columns), place(patch / columns, rows));
    (-(x * x + y * y) / (2.0 * CENTRE * CENTRE)).exp()
}

/// The value that splits `values` into the two classes with the least variance inside of them; infinite where all are the same.
pub(super) fn otsu(values: &[f32]) -> f32 {
    let (low, high) = values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), value| (low.min(*value), high.max(*value)));
    let width = (high - low) / LEVELS as f32;
    if width.is_nan() || width <= 0.0 {
        return f32::INFINITY;
    }
    let mut counts = [0.0_f64; LEVELS];
    for value in values {
        counts[(((value - low) / width) as usize).min(LEVELS - 1)] += 1.0;
    }
    let total: f64 = counts.iter().sum();
    let mean = counts.iter().zip(0..).map(|(count, level)| count * f64::from(level)).sum::<f64>() / total;
    let (mut below, mut sum) = (0.0, 0.0);
    // The best variance between the classes, and the first and the last level that has it: between the classes there may be a gap.
    let mut best = (f64::NEG_INFINITY, 0, 0);
    for (level, count) in counts.iter().enumerate().take(LEVELS - 1) {
        below += count / total;
        sum += count / total * level as f64;
        let between = (mean * below - sum).powi(2) / (below * (1.0 - below)).max(f64::MIN_POSITIVE);
        if between > best.0 {
            best = (between, level, level);
        } else if between >= best.0 {
            best.2 = level;
        }
    }
    low + width * ((best.1 + best.2) as f32 / 2.0 + 1.0)
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::{otsu, saliency};
    use crate::segment::{Method, Options, Patches, segment};
    use crate::transform::PatchGrid;

    const GRID: PatchGrid = PatchGrid { rows: 6, columns: 8 };
    const SIZE: (u32, u32) = (80, 60);

    /// Features of one kind, and of another in the middle.
    fn features() -> Array2<f32> {
        let inside = |patch: usize| (2..4).contains(&(patch / 8)) && (3..6).contains(&(patch % 8));
        Array2::from_shape_fn((48, 4), |(patch, column)| if column == usize::from(inside(patch)) { 1.0 } else { 0.01 })
    }

    fn boxes(features: &Array2<f32>, attention: Option<&Array2<f32>>, threshold: Option<f32>) -> Vec<[u32; 4]> {
        let patches = Patches::new(attention.map(|attention| attention.view()), Some(features.view()), GRID);
        let options = Options { method: Method::Saliency, threshold, max_objects: 9, ..Options::default() };
        segment(&patches, SIZE, 1.0, &options).unwrap().objects.iter().map(|object| object.mask.bbox()).collect()
    }

    #[test]
    fn what_differs_from_the_border_is_an_object_with_and_without_attention() {
        assert_eq!(boxes(&features(), None, None), [[30, 20, 30, 20]]);
        let even = Array2::from_elem((2, 48), 1.0 / 48.0);
        assert_eq!(boxes(&features(), Some(&even), None), [[30, 20, 30, 20]]);
        // Looked at is one patch of it.
        let mut one = even;
        one.column_mut(2 * 8 + 4).fill(0.9);
        assert_eq!(boxes(&features(), Some(&one), None), [[40, 20, 10, 10]]);
    }

    #[test]
    fn a_higher_threshold_keeps_less() {
        let found = |threshold| boxes(&features(), None, Some(threshold)).iter().map(|[.., w, h]| w * h).sum::<u32>();
        assert!(found(0.5) >= found(1.0) && found(1.0) >= found(1.8) && found(50.0) == 0);
    }

    #[test]
    fn flat_and_broken_features_have_no_object() {
        for broken in [0.0, 1.0, f32::NAN, f32::INFINITY] {
            let features = Array2::from_elem((48, 4), broken);
            assert!(boxes(&features, Some(&Array2::from_elem((2, 48), f32::NAN)), None).is_empty(), "{broken}");
        }
        assert!(boxes(&Array2::from_elem((48, 4), 1.0), None, None).is_empty());
        assert_eq!(saliency(Array2::zeros((0, 3)).view(), None, PatchGrid { rows: 0, columns: 0 }), [0.0; 0]);
        assert_eq!(saliency(Array2::ones((1, 3)).view(), None, PatchGrid { rows: 1, columns: 1 }).len(), 1);
    }

    #[test]
    fn otsu_cuts_between_two_classes() {
        let values: Vec<f32> = (0..90).map(|i| (i % 3) as f32 * 0.1).chain((0..10).map(|i| 5.0 + (i % 2) as f32 * 0.1)).collect();
        let cut = otsu(&values);
        assert!(cut > 0.2 && cut < 5.0, "{cut}");
        assert!(otsu(&[1.0; 5]).is_infinite() && otsu(&[]).is_infinite() && otsu(&[f32::NAN]).is_infinite());
    }
}
