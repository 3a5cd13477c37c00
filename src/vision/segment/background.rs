//! The background's seed and what resembles it (FOUND, Siméoni et al. 2023, section 3.1); the rest is foreground.

use ndarray::{Array1, ArrayView2, Axis};

use super::affinity::normalised;

/// A picture's background.
#[derive(Clone, Debug, PartialEq)]
pub struct Background {
    /// The patch that gets least attention.
    pub seed: usize,
    /// Cosine similarity of each patch to the seed.
    pub similarity: Vec<f32>,
    /// The patches whose similarity is above the threshold. None is where the seed itself has no direction (zeros, or
    /// not finite): nothing is known of such a picture.
    pub cells: Vec<bool>,
}

/// Finds the background of a picture. `attention` is `[heads, patches]`, `keys` `[patches, D]` with the heads side by
/// side; `None` where there is no patch, or where the heads do not divide D.
///
/// Heads are weighted by how sparse their attention is: `beta_h = ln(sum_i q_i / q_h)`, where `q_h` is the share of
/// patches above the mean of all attention. The seed has the least weighted attention, and similarity is the cosine of
/// weighted keys.
pub fn background(attention: ArrayView2<'_, f32>, keys: ArrayView2<'_, f32>, threshold: f32) -> Option<Background> {
    let (heads, patches) = attention.dim();
    if heads == 0 || patches == 0 || keys.nrows() != patches || !keys.ncols().is_multiple_of(heads) {
        return None;
    }
    let mean = attention.mean().unwrap_or_default();
    let above = |row: ndarray::ArrayView1<'_, f32>| row.iter().filter(|weight| **weight > mean).count() as f32 / patches as f32 + 1e-10;
    let shares: Array1<f32> = attention.rows().into_iter().map(above).collect();
    let weights = shares.mapv(|share| (shares.sum() / share).ln());

    let weighted = attention.t().dot(&weights);
    let seed = weighted.iter().enumerate().min_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(patch, _)| patch)?;

    let mut keys = keys.as_standard_layout().into_owned();
    let per_head = (keys.ncols() / heads).max(1);
    for (mut head, weight) in keys.axis_chunks_iter_mut(Axis(1), per_head).zip(&weights) {
        head *= *weight;
    }
    let keys = normalised(keys.view());
    let similarity = keys.dot(&keys.row(seed)).to_vec();
    let known = similarity[seed] > 0.5;
    let cells = similarity.iter().map(|similarity| known && *similarity > threshold).collect();
    Some(Background { seed, similarity, cells })
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::background;

    #[test]
    fn what_resembles_the_patch_without_attention_is_background() {
        let attention = array![[0.1, 0.5, 0.2, 0.1], [0.0, 0.6, 0.3, 0.1]];
        let keys = array![[1.0, 0.0], [-1.0, 0.2], [0.0, 1.0], [1.0, 0.1]];
        let found = background(attention.view(), keys.view(), 0.3).unwrap();
        assert_eq!((found.seed, found.cells), (0, vec![true, false, false, true]));
    }

    #[test]
    fn nothing_is_known_of_broken_pictures() {
        for broken in [0.0, f32::NAN, f32::INFINITY] {
            let found = background(Array2::from_elem((2, 6), 0.1).view(), Array2::from_elem((6, 4), broken).view(), 0.3).unwrap();
            assert_eq!(found.cells, [false; 6]);
        }
        assert!(background(Array2::from_elem((2, 6), f32::NAN).view(), Array2::ones((6, 4)).view(), 0.3).is_some());
        assert!(background(Array2::zeros((0, 6)).view(), Array2::zeros((6, 4)).view(), 0.3).is_none());
        assert!(background(Array2::zeros((3, 6)).view(), Array2::zeros((6, 4)).view(), 0.3).is_none());
        assert!(background(Array2::zeros((2, 0)).view(), Array2::zeros((0, 4)).view(), 0.3).is_none());
    }
}
