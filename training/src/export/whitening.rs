//! Whitening: a linear map after which the embeddings of pictures have no correlations left, and each direction counts alike.
//!
//! DINO's paper whitens CLS and pooled patches together for copy detection (Caron et al. 2021, section 4.2.1); here both are scaled to length
//! 1 first. What most pictures have in common then no longer decides which of them are near each other.

use faer::{Mat, Side};
use ndarray::{Array1, Array2, Axis, s};

use super::Error;

/// Share of the largest variance below which a direction counts as none: dividing by less would show rounding.
const LEAST: f64 = 1e-9;
/// Pictures that are wanted for each dimension of the embedding: a covariance of fewer is mostly chance.
const PICTURES_PER_DIM: usize = 4;

/// The map from `[CLS, mean of the patches]`, each of length 1, to the embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Whitening {
    /// `[2 D, D]`.
    pub matrix: Array2<f32>,
    /// `[D]`.
    pub bias: Array1<f32>,
    /// Pictures that it was computed of.
    pub pictures: usize,
}

impl Whitening {
    /// The map of `rows` `[pictures, 2 D]`: the D directions in which they differ most, from their mean, each divided by its deviation.
    ///
    /// # Errors
    /// For fewer than four pictures for each dimension.
    pub(super) fn fit(rows: Array2<f64>, place: &str) -> Result<Self, Error> {
        let (found, dim) = (rows.nrows(), rows.ncols() / 2);
        let needed = PICTURES_PER_DIM * dim;
        if found < needed {
            return Err(Error::Whitening { place: place.to_owned(), found, needed });
        }
        let mean = rows.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(2 * dim));
        let centred = rows - &mean;
        let covariance = centred.t().dot(&centred) / (found - 1) as f64;
        let matrix = Mat::from_fn(2 * dim, 2 * dim, |row, column| covariance[[row, column]]);
        let decomposition =
            matrix.self_adjoint_eigen(Side::Lower).map_err(|_| Error::NotFinite("the embeddings of --whiten".to_owned()))?;
        let (variances, directions) = (decomposition.S().column_vector(), decomposition.U());
        let largest = variances[2 * dim - 1];
        // Ascending: the last ones are those that differ most. A direction without variance is left at 0.
        let scaled = |row: usize, column: usize| {
            let from = 2 * dim - 1 - column;
            let variance = variances[from];
            if variance > LEAST * largest { directions[(row, from)] / variance.sqrt() } else { 0.0 }
        };
        let matrix = Array2::from_shape_fn((2 * dim, dim), |(row, column)| scaled(row, column));
        let bias = -mean.dot(&matrix);
        Ok(Self { matrix: matrix.mapv(|value| value as f32), bias: bias.mapv(|value| value as f32), pictures: found })
    }

    /// SHA-256 of the map in hex: embeddings of another one are not comparable.
    pub(super) fn sha256(&self) -> String {
        let bytes: Vec<u8> = self.matrix.iter().chain(&self.bias).flat_map(|value| value.to_le_bytes()).collect();
        dino_vision::model::sha256(&bytes)
    }
}

/// What the map takes of a picture's tokens `[T, D]`, of which `registers` stand between CLS and the patches.
pub(super) fn row(tokens: ndarray::ArrayView2<'_, f32>, registers: usize) -> Vec<f64> {
    let unit = |vector: Array1<f64>| {
        let length = vector.dot(&vector).sqrt().max(f64::MIN_POSITIVE);
        vector / length
    };
    let cls = tokens.row(0).mapv(f64::from);
    let patches = tokens.slice(s![1 + registers.., ..]).mapv(f64::from);
    let mean = patches.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(tokens.ncols()));
    let mut row = unit(cls).to_vec();
    row.extend(unit(mean));
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows whose directions differ in how far they spread.
    fn rows(count: usize, dim: usize) -> Array2<f64> {
        Array2::from_shape_fn((count, 2 * dim), |(row, column)| {
            let noise = |seed: usize| ((row * 7919 + seed * 104_729 + 13) as f64 * 0.618_034).fract() - 0.5;
            (column + 1) as f64 * noise(column) + 3.0 * noise(99) + 5.0
        })
    }

    #[test]
    fn what_it_gives_has_no_correlations_left() {
        let (count, dim) = (400, 4);
        let rows = rows(count, dim);
        let whitening = Whitening::fit(rows.clone(), "here").unwrap();
        let given = rows.mapv(|value| value as f32).dot(&whitening.matrix) + &whitening.bias;
        let mean = given.mean_axis(Axis(0)).unwrap();
        let covariance = given.t().dot(&given) / (count - 1) as f32;
        for i in 0..dim {
            assert!(mean[i].abs() < 1e-4, "{mean}");
            for j in 0..dim {
                let want = if i == j { 1.0 } else { 0.0 };
                assert!((covariance[[i, j]] - want).abs() < 1e-3, "{covariance}");
            }
        }
    }

    #[test]
    fn a_direction_without_variance_is_left_out_and_few_pictures_are_refused() {
        let mut flat = rows(64, 2);
        for column in 1..4 {
            let first = flat.column(0).to_owned();
            flat.column_mut(column).assign(&first);
        }
        let whitening = Whitening::fit(flat, "here").unwrap();
        assert!(whitening.matrix.column(1).iter().all(|value| *value == 0.0) && whitening.matrix.iter().all(|value| value.is_finite()));
        let error = Whitening::fit(rows(7, 2), "here").unwrap_err().to_string();
        assert!(error.contains("here has 7") && error.contains("at least 8"), "{error}");
    }
}
