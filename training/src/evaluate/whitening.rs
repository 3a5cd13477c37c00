//! Whitening of features, learnt from pictures that have nothing to do with those that are compared.
//!
//! ```
//! use dino_train::evaluate::whitening::Whitening;
//! use ndarray::{Axis, array};
//!
//! let features = array![[1.0_f32, 0.1], [-1.0, 0.1], [1.0, -0.1], [-1.0, -0.1]];
//! let whitened = Whitening::learn(features.view())?.apply(features.view());
//! // Both directions have the same variance now.
//! let variances = whitened.var_axis(Axis(0), 0.0);
//! assert!((variances[0] / variances[1] - 1.0).abs() < 1e-3);
//! # Ok::<(), anyhow::Error>(())
//! ```

use anyhow::ensure;
use faer::{Mat, Side};
use ndarray::{Array1, Array2, ArrayView2, Axis};

/// Directions with less of the largest variance than this are taken to have as much.
const LEAST: f64 = 1e-5;

/// Directions of features, scaled to the same variance.
#[derive(Clone, Debug)]
pub struct Whitening {
    mean: Array1<f32>,
    /// `[dim, dim]`, one direction in each row.
    directions: Array2<f32>,
}

impl Whitening {
    /// Learns it from features `[n, dim]`. As in the public evaluation of DINO the variances are those around zero, although the mean is
    /// taken off what is whitened.
    ///
    /// # Errors
    /// Where there are no features, or they are not finite.
    pub fn learn(features: ArrayView2<'_, f32>) -> anyhow::Result<Self> {
        ensure!(features.iter().all(|number| number.is_finite()), "features to learn whitening from are not finite");
        let Some(mean) = features.mean_axis(Axis(0)) else { anyhow::bail!("there are no features to learn whitening from") };
        let wide = features.mapv(f64::from);
        let variances = wide.t().dot(&wide) / features.nrows() as f64;
        let dim = features.ncols();
        let variances = Mat::from_fn(dim, dim, |row, column| variances[[row, column]]);
        let Ok(eigen) = variances.self_adjoint_eigen(Side::Lower) else {
            anyhow::bail!("the variances of the features cannot be decomposed")
        };
        let (values, vectors) = (eigen.S().column_vector(), eigen.U());
        let largest = (0..dim).map(|at| values[at]).fold(0.0, f64::max);
        ensure!(largest > 0.0, "features to learn whitening from are all zero");
        let scale = |at: usize| values[at].max(LEAST * largest).sqrt().recip();
        Ok(Self { mean, directions: Array2::from_shape_fn((dim, dim), |(row, column)| (vectors[(column, row)] * scale(row)) as f32) })
    }

    /// Features `[n, dim]` without the mean, in the directions.
    ///
    /// # Panics
    /// If they have another length.
    pub fn apply(&self, features: ArrayView2<'_, f32>) -> Array2<f32> {
        (&features - &self.mean).dot(&self.directions.t())
    }
}
