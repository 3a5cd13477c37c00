//! Eight bits that lose little: calibrated on the bundled pictures, with a way back to float32.

use dino_vision::model::RawSession;
use dino_vision::model::manifest::{Cost, Manifest};
use ndarray::Axis;

use super::{Error, pictures};
use crate::export::onnx::{Plan, Rows};
use crate::show::progress;

/// Tokens of each picture that the calibration sees.
const TOKENS: usize = 12;
/// Lowest cosine that is good enough, see [`Cost`].
const LEAST_COSINE: f64 = 0.995;
/// Overlap of the ten nearest neighbours that is good enough.
const LEAST_OVERLAP: f64 = 0.95;
/// A layer in this many goes back to float32 at a time.
const STEP: usize = 16;
/// At most one layer in this many goes back: beyond, 8 bits are hardly faster.
const MOST: usize = 4;

/// Every so many tokens of a picture are looked at.
pub(super) fn step(manifest: &Manifest) -> usize {
    let (height, width) = manifest.transform.output_size().unwrap_or((manifest.patch_size, manifest.patch_size));
    let patches = (height / manifest.patch_size) as usize * (width / manifest.patch_size) as usize;
    (patches / TOKENS).max(1)
}

/// What the matrix products of the graph of [`onnx::taps`] read while it looks at the bundled pictures.
pub(super) fn rows(mut taps: RawSession, manifest: &Manifest) -> Result<Rows, Error> {
    let mut rows = Rows::default();
    let inputs = pictures::for_calibration(&manifest.transform);
    tracing::info!("calibrating int8 on {} pictures", inputs.len());
    let bar = progress::bar(inputs.len(), "calibrate int8");
    for input in inputs {
        let outputs = taps.run(input.insert_axis(Axis(0)).view())?;
        rows.add(outputs);
        bar.inc(1);
    }
    bar.finish_and_clear();
    if rows.are_finite() { Ok(rows) } else { Err(Error::NotFinite("its layers".to_owned())) }
}

/// Whether nothing has to be given back.
pub(super) fn is_enough(cost: &Cost) -> bool {
    cost.cosine_min >= LEAST_COSINE && cost.top10_overlap >= LEAST_OVERLAP
}

/// Gives some more layers back to float32; `false` where enough of them are.
pub(super) fn widen(plan: &mut Plan) -> bool {
    let next = plan.floats() + plan.layers().div_ceil(STEP);
    let more = next <= plan.layers() / MOST;
    if more {
        plan.keep_float(next);
    }
    more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_enough() {
        let cost = |cosine_min, top10_overlap| Cost { pictures: 75, cosine_min, cosine_mean: 1.0, top10_overlap, knn_agreement: None };
        assert!(is_enough(&cost(0.995, 0.95)));
        assert!(!is_enough(&cost(0.9949, 1.0)) && !is_enough(&cost(1.0, 0.949)));
    }
}
