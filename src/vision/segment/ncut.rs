//! The normalised cut of a picture's patches (TokenCut, Wang et al. 2022, section 3; Shi and Malik 2000).

use ndarray::ArrayView2;

use super::affinity::{Graph, normalised};
use super::components::component;
use crate::lanczos::{largest, start};
use crate::transform::PatchGrid;

/// Weight of patches that are not similar, so that the graph is connected.
const EPSILON: f64 = 1e-5;
/// Cuts that leave less than this of the graph's connections inside the parts are none: such a graph has no two parts.
const LEAST_VALUE: f64 = 1e-3;
/// Most cuts of one picture: each costs an eigenvector.
const MOST_CUTS: usize = 32;

/// One cut of a picture in two.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    /// The second smallest generalised eigenvector, 1 at the seed, one value per patch; 0 for the patches of earlier objects.
    /// Minus its mean where the smaller side was taken.
    pub eigenvector: Vec<f32>,
    /// 1 minus its eigenvalue: the closer to 1, the fewer connections are cut.
    pub value: f64,
    /// The side of the seed: above the mean.
    pub partition: Vec<bool>,
    /// The first patch of largest absolute value; in a later cut perhaps only on its own side, see [`ncut`].
    pub seed: usize,
    /// The connected part of the partition that holds the seed.
    pub object: Vec<bool>,
}

/// Cuts objects out of a picture, one after the other, at most `most` and never more than 32; each is cut out of what the
/// earlier ones left. The first is TokenCut's. Of later cuts the smaller side is taken where the seed lies on the
/// larger: what remains around all objects is no further object.
///
/// `features` is `[patches, D]`. Patches whose cosine is above `tau` are connected with weight 1, all others with 1e-5. The
/// cut is the second smallest solution of `(D - W) x = lambda D x`, split at its mean. Found by Lanczos' method on
/// `D^-1/2 W D^-1/2`, whose first eigenvector is known; the graph takes one bit per pair of patches, which is little beside
/// the attention of a transformer over the same patches.
pub fn ncut(features: ArrayView2<'_, f32>, grid: PatchGrid, tau: f32, most: usize) -> Vec<Cut> {
    let nodes = features.nrows();
    let graph = Graph::new(&normalised(features), tau);
    let mut left = vec![true; nodes];
    let mut cuts = Vec::new();
    while cuts.len() < most.min(MOST_CUTS) {
        let Some(cut) = next(&graph, &left, grid) else { break };
        for (left, taken) in left.iter_mut().zip(&cut.object) {
            *left &= !taken;
        }
        cuts.push(cut);
    }
    cuts
}

/// Products with the weights: `W x` for an `x` that is zero outside of what is left.
fn weigh(graph: &Graph, x: &[f64], product: &mut [f64]) {
    graph.sums(x, product);
    let all: f64 = x.iter().sum();
    for near in product {
        *near = EPSILON * all + (1.0 - EPSILON) * *near;
    }
}

fn next(graph: &Graph, left: &[bool], grid: PatchGrid) -> Option<Cut> {
    let nodes = left.len();
    let ones: Vec<f64> = left.iter().map(|left| f64::from(u8::from(*left))).collect();
    let mut degrees = vec![0.0; nodes];
    weigh(graph, &ones, &mut degrees);
    // One over the root of the degree; zero takes a patch out of the graph.
    let roots: Vec<f64> = degrees.iter().zip(&ones).map(|(degree, one)| one / degree.sqrt()).collect();
    // D^1/2 1 solves it with eigenvalue 0.
    let mut trivial: Vec<f64> = degrees.iter().zip(&ones).map(|(degree, one)| one * degree.sqrt()).collect();
    let length = trivial.iter().map(|value| value * value).sum::<f64>().sqrt();
    for value in &mut trivial {
        *value /= length;
    }

    let first: Vec<f64> = start(nodes).iter().zip(&ones).map(|(start, one)| start * one).collect();
    let mut scaled = vec![0.0; nodes];
    let solution = largest(&[&trivial], first, |y, product| {
        for ((scaled, y), root) in scaled.iter_mut().zip(y).zip(&roots) {
            *scaled = y * root;
        }
        weigh(graph, &scaled, product);
        for (product, root) in product.iter_mut().zip(&roots) {
            *product *= root;
        }
    })?;
    if solution.value < LEAST_VALUE {
        return None;
    }
    split(&solution.vector.iter().zip(&roots).map(|(y, root)| y * root).collect::<Vec<_>>(), left, solution.value, grid)
}

/// Splits what is left at the mean of the eigenvector.
fn split(x: &[f64], left: &[bool], value: f64, grid: PatchGrid) -> Option<Cut> {
    let count = left.iter().filter(|left| **left).count();
    let mean = x.iter().sum::<f64>() / count as f64;
    let seed = peak(x, left)?;
    let cut = around(x, left, mean, seed, value, grid);
    let is_first = count == left.len();
    if is_first || 2 * size(&cut.partition) <= count {
        return Some(cut);
    }
    // The larger side is what is left around the objects. Beside the mean, the smaller one may lie on the same side of 0.
    let other: Vec<bool> = left.iter().zip(&cut.partition).map(|(left, larger)| *left && !larger).collect();
    let centred: Vec<f64> = x.iter().zip(left).map(|(value, left)| if *left { value - mean } else { 0.0 }).collect();
    peak(&centred, &other).map(|seed| around(&centred, left, 0.0, seed, value, grid))
}

/// The first patch of the largest absolute value in `among`.
fn peak(x: &[f64], among: &[bool]) -> Option<usize> {
    let size = |(value, among): (&f64, &bool)| if *among { value.abs() } else { 0.0 };
    let largest = x.iter().zip(among).map(size).fold(0.0, f64::max);
    // Patches with the same neighbours have the same value but for rounding: the first of them is the seed.
    x.iter().zip(among).position(|of| *of.1 && size(of) >= largest * (1.0 - 1e-6))
}

/// The cut whose object lies around `seed`.
fn around(x: &[f64], left: &[bool], mean: f64, seed: usize, value: f64, grid: PatchGrid) -> Cut {
    let side = x[seed] > mean;
    let partition: Vec<bool> = x.iter().zip(left).map(|(value, left)| *left && (*value > mean) == side).collect();
    let eigenvector = x.iter().map(|value| (value / x[seed]) as f32).collect();
    let object = component(&partition, grid.columns, seed);
    Cut { eigenvector, value, partition, seed, object }
}

fn size(cells: &[bool]) -> usize {
    cells.iter().filter(|cell| **cell).count()
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::ncut;
    use crate::transform::PatchGrid;

    /// Patches of a grid with features by letter: equal letters are equal, others at right angles.
    fn cut(rows: &[&str], most: usize) -> Vec<String> {
        let letters: Vec<u8> = rows.concat().into_bytes();
        let grid = PatchGrid { rows: rows.len(), columns: rows[0].len() };
        let features =
            Array2::from_shape_fn((letters.len(), 26), |(patch, letter)| f32::from(u8::from(letters[patch] - b'a' == letter as u8)));
        let draw = |cells: &[bool]| cells.iter().map(|cell| if *cell { '#' } else { '.' }).collect();
        ncut(features.view(), grid, 0.2, most).iter().map(|cut| draw(&cut.object)).collect()
    }

    #[test]
    fn objects_are_cut_out_one_after_the_other() {
        let scene = ["aaaaaa", "abbaca", "abbaca", "aaaaaa"];
        let cuts = cut(&scene, 9);
        assert!(cuts.contains(&".......##....##.........".to_owned()), "{cuts:?}");
        assert!(cuts.contains(&"..........#.....#.......".to_owned()), "{cuts:?}");
        assert_eq!(cut(&scene, 1).len(), 1);
        for (at, a) in cuts.iter().enumerate() {
            assert!(a.contains('#'));
            assert!(cuts[at + 1..].iter().all(|b| a.bytes().zip(b.bytes()).all(|(a, b)| (a, b) != (b'#', b'#'))), "{cuts:?}");
        }
    }

    /// The colours of the background's parts, and two objects: the first cuts are the objects, and none is most of the rest.
    #[test]
    fn what_is_left_around_the_objects_is_none() {
        for scene in [["aaaadd", "abbadd", "abbacd", "aaaadd"], ["adadad", "dbbdad", "abbaca", "dadada"]] {
            let mut left = 24;
            for (at, object) in cut(&scene, 9).iter().enumerate() {
                let size = object.bytes().filter(|cell| *cell == b'#').count();
                assert!(at == 0 || 2 * size <= left, "{at}: {object} of {left}");
                left -= size;
            }
        }
    }

    #[test]
    fn without_two_parts_there_is_no_cut() {
        assert_eq!(cut(&["aaaa", "aaaa"], 3), [""; 0]);
        assert_eq!(cut(&["a"], 3), [""; 0]);
        assert_eq!(cut(&["aa"], 3), [""; 0]);
        assert_eq!(cut(&["ab"], 1).len(), 1);
        for broken in [0.0, f32::NAN, f32::INFINITY, f32::MAX] {
            let features = Array2::from_elem((6, 4), broken);
            assert_eq!(ncut(features.view(), PatchGrid { rows: 2, columns: 3 }, 0.2, 3), []);
        }
        assert_eq!(ncut(Array2::zeros((0, 4)).view(), PatchGrid { rows: 0, columns: 0 }, 0.2, 3), []);
    }
}
