//! How much the patches of a picture resemble one patch of the same or of another.

use ndarray::{ArrayView1, Axis};

use super::affinity::normalised;
use super::mask::patch_at;
use super::{Patches, SegmentError};

/// Cosine similarity of each patch of `target` to the patch of `source` under the pixel `point` (x, y) of its picture of `size`
/// (width, height), one value per patch, row by row. The features are [`Patches::features`].
///
/// # Errors
/// [`SegmentError::Point`] outside of the picture, [`SegmentError::LacksOutput`].
pub fn similarity(source: &Patches<'_>, size: (u32, u32), point: (u32, u32), target: &Patches<'_>) -> Result<Vec<f32>, SegmentError> {
    if point.0 >= size.0 || point.1 >= size.1 {
        return Err(SegmentError::Point { point, size });
    }
    let patch = patch_at(point, source.grid(), size);
    let of_point = normalised(source.features()?.slice(ndarray::s![patch..=patch, ..]));
    Ok(normalised(target.features()?).dot(&of_point.row(0)).to_vec())
}

/// Cosine similarity of each patch of `target` to what a mask covers in `source`: the mean of its patches, each of length 1 before and
/// weighted by the share of it that is covered (`coverage`, one for each patch, as [`DrawnMask::coverage`](super::DrawnMask::coverage)
/// gives it). 0 for a mask that covers nothing.
///
/// # Errors
/// [`SegmentError::LacksOutput`].
///
/// # Panics
/// If the shares are not as many as the patches of `source`.
pub fn similarity_to_mask(source: &Patches<'_>, coverage: &[f32], target: &Patches<'_>) -> Result<Vec<f32>, SegmentError> {
    let sum = ArrayView1::from(coverage).dot(&normalised(source.features()?));
    let mean = normalised(sum.view().insert_axis(Axis(0)));
    Ok(normalised(target.features()?).dot(&mean.row(0)).to_vec())
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::{similarity, similarity_to_mask};
    use crate::segment::{Patches, SegmentError};
    use crate::transform::PatchGrid;

    #[test]
    fn a_patch_is_most_similar_to_itself() {
        let keys = array![[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-3.0, 0.0]];
        let patches = Patches::new(None, Some(keys.view()), PatchGrid { rows: 2, columns: 2 });
        let map = similarity(&patches, (10, 10), (9, 0), &patches).unwrap();
        for (value, expected) in map.iter().zip([0.0, 1.0, 0.5_f32.sqrt(), 0.0]) {
            assert!((value - expected).abs() < 1e-6, "{map:?}");
        }
        let of_one = similarity_to_mask(&patches, &[0.0, 0.25, 0.0, 0.0], &patches).unwrap();
        assert!(of_one.iter().zip(&map).all(|(a, b)| (a - b).abs() < 1e-6), "{of_one:?}");
        // Between the first two, whatever their lengths.
        let of_both = similarity_to_mask(&patches, &[1.0, 1.0, 0.0, 0.0], &patches).unwrap();
        for (value, expected) in of_both.iter().zip([0.5_f32.sqrt(), 0.5_f32.sqrt(), 1.0, -(0.5_f32.sqrt())]) {
            assert!((value - expected).abs() < 1e-6, "{of_both:?}");
        }
        assert!(similarity_to_mask(&patches, &[0.0; 4], &patches).unwrap().iter().all(|value| value.abs() < 1e-9));
        let outside = similarity(&patches, (10, 10), (10, 0), &patches).unwrap_err();
        assert_eq!(outside, SegmentError::Point { point: (10, 0), size: (10, 10) });
    }
}
