//! Vectors of length 1, whose products are cosines.
//!
//! ```
//! use dino_vision::unit_rows::scale;
//! use ndarray::array;
//!
//! let mut rows = array![[3.0, 4.0], [0.0, 2.0]];
//! assert_eq!(scale(&mut rows), Ok(()));
//! assert_eq!(rows, array![[0.6, 0.8], [0.0, 1.0]]);
//! assert_eq!(scale(&mut array![[1.0, 0.0], [0.0, 0.0]]), Err(1), "zeros have no direction");
//! ```

use ndarray::{Array2, ArrayView2, Axis};

/// Length of a vector. In f64 neither the square of the largest f32 overflows nor that of the smallest vanishes.
pub fn length<'a>(vector: impl IntoIterator<Item = &'a f32>) -> f64 {
    vector.into_iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

/// Scales every row `[F]` of `[n, F]` to length 1, in place.
///
/// # Errors
/// The number of the first row that has no direction: it is all zeros, or not finite.
pub fn scale(rows: &mut Array2<f32>) -> Result<(), usize> {
    for (number, mut row) in rows.axis_iter_mut(Axis(0)).enumerate() {
        let length = length(&row);
        if !length.is_finite() || length == 0.0 {
            return Err(number);
        }
        row.mapv_inplace(|x| (f64::from(x) / length) as f32);
    }
    Ok(())
}

/// The rows, scaled to length 1; one that has no direction stays as it is.
pub fn scaled(rows: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut rows = rows.to_owned();
    for mut row in rows.rows_mut() {
        let length = length(&row);
        if length.is_finite() && length > 0.0 {
            row.mapv_inplace(|x| (f64::from(x) / length) as f32);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::{scale, scaled};

    #[test]
    fn rows_of_every_size_get_length_1() {
        let mut rows = array![[3.0, -4.0], [3e38, 3e38], [1e-45, 0.0]];
        scale(&mut rows).unwrap();
        let half = 0.5_f32.sqrt();
        assert_eq!(rows, array![[0.6, -0.8], [half, half], [1.0, 0.0]]);
    }

    #[test]
    fn rows_without_a_direction_stay_where_none_is_needed() {
        assert_eq!(scaled(array![[3.0, -4.0], [0.0, 0.0]].view()), array![[0.6, -0.8], [0.0, 0.0]]);
    }

    #[test]
    fn rows_without_a_direction_are_named() {
        assert_eq!(scale(&mut array![[1.0, 0.0], [0.0, 0.0]]), Err(1));
        assert_eq!(scale(&mut array![[f32::NAN, 0.0]]), Err(0));
        assert_eq!(scale(&mut array![[1.0, f32::INFINITY]]), Err(0));
    }
}
