//! Cross-entropy of the class of each pixel.
//!
//! ```
//! use std::sync::Arc;
//!
//! use dino_train::evaluate::dense::{Example, Objective as _, segmentation::{IGNORE, Segmentation}};
//! use dino_vision::transform::PatchGrid;
//! use ndarray::{Array2, array};
//!
//! // Two patches, of which the second is left out; logits that know nothing of two classes cost ln 2.
//! let grid = PatchGrid { rows: 1, columns: 2 };
//! let labels = Arc::from([1, IGNORE]);
//! let batch = [Example { features: Arc::new(Array2::zeros((2, 3))), grid, labels, size: grid }];
//! let (loss, gradients) = Segmentation.loss(&[array![[0.0, 0.0], [0.0, 0.0]]], &batch, 0);
//! assert!((loss - 2_f64.ln()).abs() < 1e-6);
//! assert_eq!(gradients[0], array![[0.5, -0.5], [0.0, 0.0]]);
//! ```

use dino_vision::dense::enlarge::Enlargement;
use ndarray::Array2;
use rayon::prelude::*;

use super::{Example, Objective};

/// What masks leave out.
pub const IGNORE: u8 = 255;

/// The mean cross-entropy over the pixels of a batch that have a class, in nats: PyTorch's `cross_entropy(ignore_index=255)` of logits that
/// are enlarged bilinearly to the mask.
#[derive(Clone, Copy, Debug)]
pub struct Segmentation;

impl Objective for Segmentation {
    type Label = u8;

    fn loss(&self, logits: &[Array2<f32>], batch: &[Example<u8>], _: usize) -> (f64, Vec<Array2<f32>>) {
        let labelled: usize = batch.iter().map(|example| example.labels.iter().filter(|label| **label != IGNORE).count()).sum();
        let share = (labelled.max(1) as f64).recip();
        let parts: Vec<(f64, Array2<f32>)> =
            logits.par_iter().zip(batch).map(|(logits, example)| cross_entropy(logits, example, share as f32)).collect();
        let sum: f64 = parts.iter().map(|part| part.0).sum();
        (sum * share, parts.into_iter().map(|part| part.1).collect())
    }
}

/// The sum over the pixels of a picture, and its gradient in the logits, multiplied by `share`.
fn cross_entropy(logits: &Array2<f32>, example: &Example<u8>, share: f32) -> (f64, Array2<f32>) {
    let classes = logits.ncols();
    let mut gradient = Array2::zeros(logits.dim());
    let logits = logits.as_standard_layout();
    let (values, of_values) = (logits.as_slice().expect("standard layout"), gradient.as_slice_mut().expect("standard layout"));
    let enlargement = Enlargement::new(example.grid, example.size);
    let mut row = vec![0.0_f32; example.size.columns * classes];
    let mut sum = 0.0;
    for (y, labels) in example.labels.chunks_exact(example.size.columns).enumerate() {
        if labels.iter().all(|label| *label == IGNORE) {
            continue;
        }
        enlargement.row(values, classes, y, &mut row);
        for (pixel, &label) in row.chunks_exact_mut(classes).zip(labels) {
            if label == IGNORE {
                pixel.fill(0.0);
                continue;
            }
            let largest = pixel.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let right = pixel[usize::from(label)] - largest;
            let mut total = 0.0;
            for logit in pixel.iter_mut() {
                *logit = (*logit - largest).exp();
                total += *logit;
            }
            sum += f64::from(total.ln() - right);
            for value in pixel.iter_mut() {
                *value *= share / total;
            }
            pixel[usize::from(label)] -= share;
        }
        enlargement.add_gradient(of_values, classes, y, &row);
    }
    (sum, gradient)
}
