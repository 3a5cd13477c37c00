//! AnomalyDINO's masking: which patches show the object, by the first principal component of the picture's patches.

use ndarray::{Array1, ArrayView2, Axis};

use crate::lanczos::{largest, start};
use crate::transform::PatchGrid;

/// A patch is foreground where the component is above this.
const THRESHOLD: f32 = 10.0;
/// Where this share of the middle or less is foreground, the component is turned.
const LEAST_IN_MIDDLE: f64 = 0.35;
/// The middle leaves out this share at each side.
const BORDER: f64 = 0.2;

/// One flag for each patch of `features` `[patches, D]`, as the model gave them.
///
/// Where no patch would be left, which is so for models whose features are small, all are foreground: the paper's threshold is one for
/// the features of `DINOv2`.
pub fn foreground(features: ArrayView2<'_, f32>, grid: PatchGrid) -> Vec<bool> {
    let all = || vec![true; features.nrows()];
    let Some(component) = first_component(features) else { return all() };
    let above = |sign: f32| component.iter().map(|value| sign * value > THRESHOLD).collect::<Vec<_>>();
    let mut mask = above(1.0);
    let part = |length: usize| (length as f64 * BORDER) as usize..(length as f64 * (1.0 - BORDER)) as usize;
    let (rows, columns) = (part(grid.rows), part(grid.columns));
    let size = rows.len() * columns.len();
    let set = rows.flat_map(|row| columns.clone().map(move |column| row * grid.columns + column)).filter(|&at| mask[at]).count();
    if set as f64 <= size as f64 * LEAST_IN_MIDDLE {
        mask = above(-1.0);
    }
    // Enlarged, then holes closed.
    for grows in [true, true, false] {
        mask = morphed(&mask, grows);
    }
    if mask.iter().any(|&set| set) { mask } else { all() }
}

/// The coordinate of each row along the direction of largest variance, whose largest number is positive, as scikit-learn turns it.
fn first_component(features: ArrayView2<'_, f32>) -> Option<Array1<f32>> {
    let mean = features.mean_axis(Axis(0))?;
    let centred = &features - &mean;
    let covariance = centred.t().dot(&centred);
    let found = largest(&[], start(features.ncols()), |direction, image| {
        let direction: Array1<f32> = direction.iter().map(|value| *value as f32).collect();
        image.iter_mut().zip(covariance.dot(&direction)).for_each(|(image, product)| *image = f64::from(product));
    })?;
    let peak = found.vector.iter().copied().reduce(|peak, value| if value.abs() > peak.abs() { value } else { peak })?;
    let direction: Array1<f32> = found.vector.iter().map(|value| (value * peak.signum()) as f32).collect();
    Some(centred.dot(&direction)).filter(|component| component.iter().all(|value| value.is_finite()))
}

/// Whether a patch or one beside it is set; or, where the mask shrinks, whether all of them are. Beside a patch are the one before and
/// the one after it in reading order: the public code hands OpenCV one column of all patches.
fn morphed(mask: &[bool], grows: bool) -> Vec<bool> {
    let near = |at: usize| &mask[at.saturating_sub(1)..(at + 2).min(mask.len())];
    (0..mask.len()).map(|at| if grows { near(at).contains(&true) } else { !near(at).contains(&false) }).collect()
}
