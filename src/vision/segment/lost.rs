//! Boxes by seed expansion (LOST, Siméoni et al. 2021, section 3).

use ndarray::{Array1, Array2, ArrayView2, Axis};

use super::affinity::{Degrees, centred};
use super::components::component;
use crate::cancel;
use crate::transform::PatchGrid;

/// Patches of lowest degree that may join the seed, as in the paper.
pub const LOST_PATCHES: usize = 100;
/// Most seeds of one picture: each costs a product with all features.
const MOST_SEEDS: usize = 256;

/// An object that grew from one seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Expansion {
    /// The patch with the fewest similar patches.
    pub seed: usize,
    /// Correlation of each patch with the seed and its followers: their mean product, 1 being that of the seed with itself.
    pub correlation: Vec<f32>,
    /// The connected part of positive correlation that holds the seed. LOST's box is the box around it.
    pub object: Vec<bool>,
}

/// Grows objects from seeds, at most `most`: the first is LOST's, each further one starts at the patch with the fewest
/// similar patches that no earlier object holds. What grows from there is none where most of it lies in one of the earlier
/// objects, or where it is more than half of what they leave: the first is that object again, the second the background.
///
/// `features` is `[patches, D]`; their mean is taken away. Patches are similar where their product is positive. The seed has
/// fewest of them; those of the `candidates` patches with the lowest degrees that are similar to the seed follow it; the
/// object are the patches around it whose correlation with them all is above `threshold`, 0 in the paper.
pub fn lost(features: ArrayView2<'_, f32>, grid: PatchGrid, candidates: usize, threshold: f32, most: usize) -> Vec<Expansion> {
    let features = centred(features);
    let degrees = Degrees::new(&features).0;
    let mut order: Vec<usize> = (0..degrees.len()).collect();
    // Stable: the first in reading direction among equals.
    order.sort_by_key(|patch| degrees[*patch]);
    let candidates = &order[..candidates.min(order.len())];

    let mut objects: Vec<Expansion> = Vec::new();
    let mut left = vec![true; degrees.len()];
    let mut seeds = 0;
    for &seed in &order {
        if objects.len() == most || seeds == MOST_SEEDS || cancel::is_cancelled() {
            break;
        }
        if !left[seed] {
            continue;
        }
        seeds += 1;
        let Some(grown) = grow(&features, candidates, seed, threshold, grid) else { continue };
        // Followers may outvote a later seed, or a threshold shut it out: then nothing grew.
        if grown.object[seed] && (objects.is_empty() || is_new(&grown.object, &objects, &left)) {
            left.iter_mut().zip(&grown.object).for_each(|(left, taken)| *left &= !taken);
            objects.push(grown);
        } else if objects.is_empty() {
            break;
        }
    }
    objects
}

/// Whether an object is not for the most part an earlier one, and not most of what they leave.
fn is_new(object: &[bool], earlier: &[Expansion], left: &[bool]) -> bool {
    let common = |other: &[bool]| object.iter().zip(other).filter(|(a, b)| **a && **b).count();
    let size = common(object);
    let left_over = left.iter().filter(|left| **left).count();
    earlier.iter().all(|earlier| 2 * common(&earlier.object) <= size) && 2 * common(left) <= left_over
}

/// What grows from a seed; `None` where that has no direction.
fn grow(features: &Array2<f32>, candidates: &[usize], seed: usize, threshold: f32, grid: PatchGrid) -> Option<Expansion> {
    let of_seed = features.row(seed);
    let unit = of_seed.dot(&of_seed);
    if unit <= 0.0 {
        return None;
    }
    let mut followers: Vec<usize> = candidates.iter().copied().filter(|patch| features.row(*patch).dot(&of_seed) > 0.0).collect();
    if !followers.contains(&seed) {
        followers.push(seed);
    }
    let together: Array1<f32> = features.select(Axis(0), &followers).sum_axis(Axis(0));
    let correlation = features.dot(&together) / (unit * followers.len() as f32);
    let near: Vec<bool> = correlation.iter().map(|value| *value > threshold).collect();
    let object = component(&near, grid.columns, seed);
    Some(Expansion { seed, correlation: correlation.to_vec(), object })
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::lost;
    use crate::transform::PatchGrid;

    #[test]
    fn the_rare_patches_are_the_object() {
        let mut features = Array2::from_elem((12, 2), 1.0_f32);
        for patch in [5, 6] {
            features.row_mut(patch).assign(&array![-3.0, 1.0]);
        }
        let objects = lost(features.view(), PatchGrid { rows: 3, columns: 4 }, 100, 0.0, 1);
        assert_eq!(objects[0].seed, 5);
        let cells: Vec<usize> = (0..12).filter(|patch| objects[0].object[*patch]).collect();
        assert_eq!(cells, [5, 6]);
        assert!(objects[0].correlation.iter().all(|value| value.is_finite()));
        // What is left of a plain background is no object.
        assert_eq!(lost(features.view(), PatchGrid { rows: 3, columns: 4 }, 100, 0.0, 9).len(), 1);
    }

    /// Three rare patches, the last of which leads to the first two as well.
    #[test]
    fn an_object_is_found_once() {
        let mut features = Array2::from_elem((30, 3), 1.0_f32);
        for (patch, row) in [(7, [-3.0, 1.0, 0.0]), (8, [-3.0, 1.0, 0.1]), (9, [-0.5, 1.0, 0.9]), (26, [1.0, 1.0, -9.0])] {
            features.row_mut(patch).assign(&array![row[0], row[1], row[2]]);
        }
        let objects = lost(features.view(), PatchGrid { rows: 5, columns: 6 }, 4, 0.0, 9);
        assert!(objects.len() >= 2);
        for (at, a) in objects.iter().enumerate() {
            for b in &objects[at + 1..] {
                let common = a.object.iter().zip(&b.object).filter(|(a, b)| **a && **b).count();
                let size = b.object.iter().filter(|cell| **cell).count();
                assert!(2 * common <= size, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn equal_and_broken_features_have_no_object() {
        let grid = PatchGrid { rows: 2, columns: 3 };
        for value in [0.0, 1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(lost(Array2::from_elem((6, 4), value).view(), grid, 100, 0.0, 3), []);
        }
        assert_eq!(lost(Array2::zeros((0, 4)).view(), PatchGrid { rows: 0, columns: 0 }, 100, 0.0, 3), []);
        assert_eq!(lost(array![[1.0, 2.0]].view(), PatchGrid { rows: 1, columns: 1 }, 100, 0.0, 3), []);
    }
}
