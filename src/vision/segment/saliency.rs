//! What lies towards the middle and does not resemble the picture's border.
//!
//! Border patches as a model of the background are those of Wei et al. 2012 ("Geodesic Saliency Using Background Priors"), here on
//! a network's features; the cut is Otsu's (1979).

use ndarray::{Array2, ArrayView2, Axis};

use super::affinity::{finite, normalised};
use super::diffusion;
use crate::cancel;
use crate::transform::PatchGrid;

/// Border patches that each patch is compared with: those that resemble it most.
const NEIGHBOURS: usize = 5;
/// Standard deviation of the preference for the middle, where half of a side is 1: people point cameras at things.
const CENTRE: f32 = 0.5;
/// Distances under this are rounding.
const LEAST_DISTANCE: f32 = 1e-6;
/// A Gaussian with a standard deviation of one patch: single patches are noisy.
const KERNEL: [f32; 3] = [0.402_620, 0.244_201, 0.054_489];
/// Levels of the histogram that is cut.
const LEVELS: usize = 64;
/// Patches that are compared with the border at a time: the whole matrix of similarities is never in memory.
const BLOCK: usize = 128;

/// How much each patch stands out, at least 0: its distance to the border, less towards the border, averaged over the patches that are
/// near and alike. `features` is `[patches, D]`.
///
/// The distance of a patch is 1 minus the mean cosine to the five border patches that resemble it most, of features that are smoothed
/// over neighbouring patches. Patches whose features are not finite have 0.
pub fn saliency(features: ArrayView2<'_, f32>, grid: PatchGrid) -> Vec<f32> {
    let PatchGrid { rows, columns } = grid;
    let features = finite(features);
    let smooth = normalised(smoothed(&features, grid).view());
    let is_border = |patch: usize| {
        let (row, column) = (patch / columns, patch % columns);
        row == 0 || row + 1 == rows || column == 0 || column + 1 == columns
    };
    let border: Vec<usize> = (0..grid.len()).filter(|patch| is_border(*patch)).collect();
    let border = smooth.select(Axis(0), &border);
    let mut heat = Vec::with_capacity(grid.len());
    for block in smooth.axis_chunks_iter(Axis(0), BLOCK) {
        if cancel::is_cancelled() {
            break;
        }
        for (similarities, patch) in block.dot(&border.t()).rows().into_iter().zip(block.rows()) {
            let is_empty = patch.iter().all(|value| *value == 0.0);
            let at = heat.len();
            heat.push(if is_empty { 0.0 } else { distance(similarities.to_vec()) * centre(at, grid) });
        }
    }
    heat.resize(grid.len(), 0.0);
    diffusion::diffused(&normalised(features.view()), grid, heat)
}

/// How far an object's `cells` stand out, 0 to 1: the share of the variance of the heat that lies between the object and what is outside
/// of all objects (not `kept`), which is what Otsu's cut maximises, times the share of its box that it fills.
pub(super) fn score(heat: &[f32], cells: &[bool], kept: &[bool], grid: PatchGrid) -> f32 {
    // Number, sum and sum of squares, outside and inside.
    let mut sides = [(0.0_f64, 0.0_f64, 0.0_f64); 2];
    let (mut top, mut bottom, mut left, mut right) = (usize::MAX, 0, usize::MAX, 0);
    for (at, (value, (cell, kept))) in heat.iter().zip(cells.iter().zip(kept)).enumerate() {
        if *cell {
            let (row, column) = (at / grid.columns, at % grid.columns);
            (top, bottom, left, right) = (top.min(row), bottom.max(row), left.min(column), right.max(column));
        }
        if *cell || !*kept {
            let value = f64::from(*value);
            let side = &mut sides[usize::from(*cell)];
            *side = (side.0 + 1.0, side.1 + value, side.2 + value * value);
        }
    }
    let [outside, inside] = sides;
    if outside.0 < 1.0 || inside.0 < 1.0 {
        return 0.0;
    }
    let count = inside.0 + outside.0;
    let mean = (inside.1 + outside.1) / count;
    let variance = (inside.2 + outside.2) / count - mean * mean;
    let between = inside.0 * outside.0 / (count * count) * (inside.1 / inside.0 - outside.1 / outside.0).powi(2);
    let filled = inside.0 / ((bottom - top + 1) * (right - left + 1)) as f64;
    let score = between / variance.max(f64::MIN_POSITIVE) * filled;
    if score.is_finite() { score.clamp(0.0, 1.0) as f32 } else { 0.0 }
}

/// The features, averaged with those of the neighbours; outside of the picture its outermost patches go on.
fn smoothed(features: &Array2<f32>, grid: PatchGrid) -> Array2<f32> {
    let along = |from: &Array2<f32>, neighbour: &dyn Fn(usize, isize) -> usize| {
        let mut sums = Array2::zeros(from.dim());
        for (patch, mut sum) in sums.rows_mut().into_iter().enumerate() {
            for step in -2..=2_isize {
                sum.scaled_add(KERNEL[step.unsigned_abs()], &from.row(neighbour(patch, step)));
            }
        }
        sums
    };
    let moved = |at: usize, step: isize, count: usize| at.saturating_add_signed(step).min(count - 1);
    let PatchGrid { rows, columns } = grid;
    let across = along(features, &|patch, step| patch / columns * columns + moved(patch % columns, step, columns));
    along(&across, &|patch, step| moved(patch / columns, step, rows) * columns + patch % columns)
}

/// 1 minus the mean of the largest similarities.
fn distance(mut similarities: Vec<f32>) -> f32 {
    let nearest = NEIGHBOURS.min(similarities.len());
    if nearest == 0 {
        return 0.0;
    }
    similarities.select_nth_unstable_by(nearest - 1, |a, b| b.total_cmp(a));
    let distance = 1.0 - similarities[..nearest].iter().sum::<f32>() / nearest as f32;
    if distance > LEAST_DISTANCE { distance } else { 0.0 }
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

    use super::{otsu, saliency, score, smoothed};
    use crate::segment::{Method, Options, Patches, segment};
    use crate::transform::PatchGrid;

    const GRID: PatchGrid = PatchGrid { rows: 12, columns: 16 };
    const SIZE: (u32, u32) = (160, 120);

    fn is_inside(patch: usize) -> bool {
        (4..8).contains(&(patch / 16)) && (6..11).contains(&(patch % 16))
    }

    /// Features of one kind, and of another in the middle.
    fn features() -> Array2<f32> {
        Array2::from_shape_fn((GRID.len(), 4), |(patch, column)| if column == usize::from(is_inside(patch)) { 1.0 } else { 0.01 })
    }

    /// Boxes and scores.
    fn found(features: &Array2<f32>, threshold: Option<f32>) -> Vec<([u32; 4], f32)> {
        let patches = Patches::new(None, Some(features.view()), GRID);
        let options = Options { method: Method::Saliency, threshold, max_objects: 9, ..Options::default() };
        segment(&patches, SIZE, 1.0, &options).unwrap().objects.iter().map(|object| (object.mask.bbox(), object.score)).collect()
    }

    #[test]
    fn what_differs_from_the_border_is_an_object() {
        let found = found(&features(), None);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, [60, 40, 50, 40]);
        assert!(found[0].1 > 0.9, "{found:?}");
    }

    #[test]
    fn a_patch_that_differs_from_its_like_is_part_of_the_object() {
        // As dissimilar from the border as the others of the object are, but for a hole that resembles it in part.
        let mut holed = features();
        holed.row_mut(5 * 16 + 8).assign(&ndarray::aview1(&[0.6, 0.8, 0.0, 0.0]));
        assert_eq!(found(&holed, None)[0].0, [60, 40, 50, 40]);
    }

    #[test]
    fn a_higher_threshold_keeps_less() {
        let area = |threshold| found(&features(), Some(threshold)).iter().map(|([.., w, h], _)| w * h).sum::<u32>();
        assert!(area(0.5) >= area(1.0) && area(1.0) >= area(1.8) && area(50.0) == 0);
    }

    #[test]
    fn flat_and_broken_features_have_no_object() {
        for broken in [0.0, 1.0, f32::NAN, f32::INFINITY] {
            assert!(found(&Array2::from_elem((GRID.len(), 4), broken), None).is_empty(), "{broken}");
        }
        assert_eq!(saliency(Array2::zeros((0, 3)).view(), PatchGrid { rows: 0, columns: 0 }), [0.0; 0]);
        for (rows, columns) in [(1, 1), (1, 7), (7, 1), (2, 2)] {
            let grid = PatchGrid { rows, columns };
            assert_eq!(saliency(Array2::ones((grid.len(), 3)).view(), grid), vec![0.0; grid.len()]);
        }
    }

    #[test]
    fn what_is_smooth_stays_as_it_is() {
        let even = Array2::from_elem((GRID.len(), 2), 3.0);
        assert!(smoothed(&even, GRID).iter().all(|value| (value - 3.0).abs() < 1e-4));
        let slope = Array2::from_shape_fn((GRID.len(), 1), |(patch, _)| (patch % 16) as f32);
        let middle = smoothed(&slope, GRID)[[5 * 16 + 8, 0]];
        assert!((middle - 8.0).abs() < 1e-4, "{middle}");
    }

    #[test]
    fn clear_and_compact_objects_have_the_highest_scores() {
        let grid = PatchGrid { rows: 4, columns: 4 };
        let cells = |pattern: &str| pattern.bytes().map(|cell| cell == b'#').collect::<Vec<_>>();
        let square = cells(".....##..##.....");
        let heat: Vec<f32> = square.iter().map(|inside| if *inside { 1.0 } else { 0.1 }).collect();
        assert!((score(&heat, &square, &square, grid) - 1.0).abs() < 1e-6);
        let noisy: Vec<f32> = heat.iter().enumerate().map(|(at, value)| value + 0.4 * (at % 3) as f32).collect();
        assert!(score(&noisy, &square, &square, grid) < 0.8);
        let diagonal = cells("#....#....#....#");
        let heat: Vec<f32> = diagonal.iter().map(|inside| if *inside { 1.0 } else { 0.1 }).collect();
        assert!((score(&heat, &diagonal, &diagonal, grid) - 0.25).abs() < 1e-6);
        assert!(score(&heat, &[true; 16], &[true; 16], grid) < 1e-9);
        assert!(score(&[f32::NAN; 16], &square, &square, grid) < 1e-9);
    }

    #[test]
    fn otsu_cuts_between_two_classes() {
        let values: Vec<f32> = (0..90).map(|i| (i % 3) as f32 * 0.1).chain((0..10).map(|i| 5.0 + (i % 2) as f32 * 0.1)).collect();
        let cut = otsu(&values);
        assert!(cut > 0.2 && cut < 5.0, "{cut}");
        assert!(otsu(&[1.0; 5]).is_infinite() && otsu(&[]).is_infinite() && otsu(&[f32::NAN]).is_infinite());
    }
}
