//! The losses of a depth head: the scale-invariant loss (Eigen et al. 2014, as `SigLoss` has it in DINOv2's code) and a share of the
//! gradient loss.
//!
//! The gradient loss is that of `MegaDepth` (Li and Snavely 2018): differences of the logarithms between places two rows or columns apart,
//! at four strides. The public `GradientLoss` slices the first two axes of its tensors; with batches `[B, 1, H, W]` these are
//! pictures and channels, so that it compares pictures with each other. Here the axes are rows and columns, as in the paper.
//!
//! ```
//! use dino_train::evaluate::dense::depth::Depth;
//! use dino_vision::head::DepthRange;
//!
//! let depth = Depth { range: DepthRange { min: 0.1, max: 10.0 }, warmup: 0 };
//! let truth = [1.0_f32, 2.0];
//! let loss = |found: [f32; 2]| depth.scale_invariant(&[found.to_vec()], &[&truth], false).0;
//! assert!(loss([1.0, 2.0]) < 1e-2);
//! // All depths doubled cost less than one of them.
//! assert!(loss([2.0, 4.0]) < loss([2.0, 2.0]));
//! ```

use std::iter::zip;

use dino_vision::dense::depth::{UPSAMPLE, bins, expected};
use dino_vision::dense::enlarge::Enlargement;
use dino_vision::head::DepthRange;
use dino_vision::transform::PatchGrid;
use ndarray::Array2;
use rayon::prelude::*;

use super::{Example, Objective};

/// What keeps logarithms finite (`eps` of both losses).
const EPSILON: f64 = 1e-3;
/// Share of the squared mean in the scale-invariant loss.
const MEAN_SHARE: f64 = 0.15;
/// Weight of the gradient loss in the public configurations.
const GRADIENT_WEIGHT: f64 = 0.5;
/// Strides at which it compares.
const STRIDES: [usize; 4] = [1, 2, 4, 6];

/// Depths by bins. A truth of 0, or beyond the range, is not known.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    /// Of the bins.
    pub range: DepthRange,
    /// In the first steps, as many as this, the scale-invariant loss is its mean alone (`warm_up` of the public loss).
    pub warmup: usize,
}

impl Depth {
    fn is_known(&self, truth: f32) -> bool {
        truth > 0.0 && truth <= self.range.max
    }

    /// The scale-invariant loss of depths, and its gradient: sqrt(var(g) + 0.15 mean(g)²), g the difference of the logarithms.
    pub fn scale_invariant(&self, found: &[Vec<f32>], truth: &[&[f32]], warmup: bool) -> (f64, Vec<Vec<f64>>) {
        let pairs = || zip(found, truth).flat_map(|(found, truth)| zip(found, *truth)).filter(|(_, truth)| self.is_known(**truth));
        let count = pairs().count() as f64;
        if count == 0.0 {
            return (0.0, found.iter().map(|found| vec![0.0; found.len()]).collect());
        }
        let mean = pairs().map(|(found, truth)| difference(*found, *truth)).sum::<f64>() / count;
        let spread = pairs().map(|(found, truth)| (difference(*found, *truth) - mean).powi(2)).sum::<f64>();
        let degrees = (count - 1.0).max(1.0);
        let variance = if warmup { 0.0 } else { spread / degrees };
        let loss = (variance + MEAN_SHARE * mean * mean).sqrt();
        // At 0 the root has no slope.
        let outer = if loss > 0.0 { 0.5 / loss } else { 0.0 };
        let of = |found: f32, truth: f32| {
            if !self.is_known(truth) {
                return 0.0;
            }
            let of_variance = if warmup { 0.0 } else { 2.0 * (difference(found, truth) - mean) / degrees };
            outer * (of_variance + 2.0 * MEAN_SHARE * mean / count) / (f64::from(found) + EPSILON)
        };
        (loss, zip(found, truth).map(|(found, truth)| zip(found, *truth).map(|(found, truth)| of(*found, *truth)).collect()).collect())
    }

    /// The gradient loss of depths on grids of these sizes, and its gradient.
    pub fn gradient(&self, found: &[Vec<f32>], truth: &[&[f32]], sizes: &[PatchGrid]) -> (f64, Vec<Vec<f64>>) {
        let mut gradients: Vec<Vec<f64>> = found.iter().map(|found| vec![0.0; found.len()]).collect();
        let mut total = 0.0;
        for stride in STRIDES {
            let places = |size: PatchGrid| {
                let rows = (0..size.rows).step_by(stride);
                rows.flat_map(move |row| (0..size.columns).step_by(stride).map(move |column| (row, column)))
            };
            let known = zip(truth, sizes)
                .map(|(truth, size)| places(*size).filter(|(row, column)| self.is_known(truth[row * size.columns + column])).count());
            let share = (known.sum::<usize>().max(1) as f64).recip();
            for ((found, truth), (size, gradient)) in zip(zip(found, truth), zip(sizes, &mut gradients)) {
                let known = |at: usize| self.is_known(truth[at]).then(|| difference(found[at], truth[at]));
                for (row, column) in places(*size) {
                    let at = row * size.columns + column;
                    let Some(here) = known(at) else { continue };
                    let below = (row + 2 * stride < size.rows).then_some(at + 2 * stride * size.columns);
                    let right = (column + 2 * stride < size.columns).then_some(at + 2 * stride);
                    for other in [below, right].into_iter().flatten() {
                        let Some(there) = known(other) else { continue };
                        total += share * (here - there).abs();
                        let sign = if here > there {
                            share
                        } else if here < there {
                            -share
                        } else {
                            0.0
                        };
                        gradient[at] += sign / (f64::from(found[at]) + EPSILON);
                        gradient[other] -= sign / (f64::from(found[other]) + EPSILON);
                    }
                }
            }
        }
        (total, gradients)
    }
}

impl Objective for Depth {
    type Label = f32;

    fn loss(&self, logits: &[Array2<f32>], batch: &[Example<f32>], step: usize) -> (f64, Vec<Array2<f32>>) {
        let bins = bins(self.range, logits.first().map_or(2, Array2::ncols));
        let forward = |(logits, example): (&Array2<f32>, &Example<f32>)| {
            let enlargement = Enlargement::new(fine(example.grid), example.size);
            enlargement.apply(&depths(logits, example.grid, &bins), 1)
        };
        let found: Vec<Vec<f32>> = logits.par_iter().zip(batch).map(forward).collect();
        let truth: Vec<&[f32]> = batch.iter().map(|example| &example.labels[..]).collect();
        let sizes: Vec<PatchGrid> = batch.iter().map(|example| example.size).collect();
        let (invariant, mut gradients) = self.scale_invariant(&found, &truth, step < self.warmup);
        let (gradient, of_gradient) = self.gradient(&found, &truth, &sizes);
        for (sum, part) in zip(gradients.iter_mut().flatten(), of_gradient.iter().flatten()) {
            *sum += GRADIENT_WEIGHT * part;
        }
        let backward = |((logits, example), gradient): ((&Array2<f32>, &Example<f32>), &Vec<f64>)| {
            let enlargement = Enlargement::new(fine(example.grid), example.size);
            let mut of_depths = vec![0.0; fine(example.grid).len()];
            for (y, row) in gradient.chunks_exact(example.size.columns).enumerate() {
                let row: Vec<f32> = row.iter().map(|value| *value as f32).collect();
                enlargement.add_gradient(&mut of_depths, 1, y, &row);
            }
            in_logits(logits, example.grid, &bins, &of_depths)
        };
        let gradients = logits.par_iter().zip(batch).zip(&gradients).map(backward).collect();
        (invariant + GRADIENT_WEIGHT * gradient, gradients)
    }
}

fn difference(found: f32, truth: f32) -> f64 {
    (f64::from(found) + EPSILON).ln() - (f64::from(truth) + EPSILON).ln()
}

fn fine(grid: PatchGrid) -> PatchGrid {
    PatchGrid { rows: UPSAMPLE * grid.rows, columns: UPSAMPLE * grid.columns }
}

/// Depths on the finer grid.
fn depths(logits: &Array2<f32>, grid: PatchGrid, bins: &[f32]) -> Vec<f32> {
    let logits = logits.as_standard_layout();
    let values = logits.as_slice().expect("standard layout");
    let enlargement = Enlargement::new(grid, fine(grid));
    let mut row = vec![0.0; fine(grid).columns * bins.len()];
    let mut depths = Vec::with_capacity(fine(grid).len());
    for y in 0..fine(grid).rows {
        enlargement.row(values, bins.len(), y, &mut row);
        depths.extend(row.chunks_exact(bins.len()).map(|logits| expected(logits, bins).0));
    }
    depths
}

/// The gradient in the logits that follows from that in the depths on the finer grid.
fn in_logits(logits: &Array2<f32>, grid: PatchGrid, bins: &[f32], gradient: &[f32]) -> Array2<f32> {
    let mut of_logits = Array2::zeros(logits.dim());
    let logits = logits.as_standard_layout();
    let (values, of_values) = (logits.as_slice().expect("standard layout"), of_logits.as_slice_mut().expect("standard layout"));
    let enlargement = Enlargement::new(grid, fine(grid));
    let columns = fine(grid).columns;
    let mut row = vec![0.0; columns * bins.len()];
    for (y, gradient) in gradient.chunks_exact(columns).enumerate() {
        enlargement.row(values, bins.len(), y, &mut row);
        for (logits, gradient) in row.chunks_exact_mut(bins.len()).zip(gradient) {
            let (depth, sum) = expected(logits, bins);
            for (logit, bin) in logits.iter_mut().zip(bins) {
                *logit = if *logit > 0.0 { gradient * (bin - depth) / sum } else { 0.0 };
            }
        }
        enlargement.add_gradient(of_values, bins.len(), y, &row);
    }
    of_logits
}
