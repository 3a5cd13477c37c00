//! Vectors as bytes: only their directions count here, and bytes keep those to about half a percent.

/// Rows of one dimension, each as whole numbers in -127..=127 that point where the vector did.
///
/// The cosine of two rows is computed from the whole numbers alone, so that a picture that is compared with itself has distance 0, and
/// so that the same picture gives the same numbers on every processor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    dim: usize,
    /// `[rows, dim]`.
    codes: Vec<i8>,
    /// 1 / length of each row; 0 for a row of zeros, which is similar to nothing.
    scales: Vec<f32>,
}

impl Rows {
    /// No rows yet, of `dim` numbers each.
    pub fn new(dim: usize) -> Self {
        Self { dim, codes: Vec::new(), scales: Vec::new() }
    }

    /// Rows whose codes `[rows, dim]` these are.
    pub(crate) fn of_codes(dim: usize, codes: Vec<i8>) -> Self {
        let scales = codes.chunks_exact(dim.max(1)).map(scale).collect();
        Self { dim, codes, scales }
    }

    /// Numbers of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.scales.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.scales.is_empty()
    }

    /// Memory of the rows in bytes.
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.scales.len() * size_of::<f32>()
    }

    /// Adds a vector `[dim]` of any length. One with numbers that are not finite counts as zeros.
    pub fn push(&mut self, vector: impl ExactSizeIterator<Item = f32> + Clone) {
        debug_assert_eq!(vector.len(), self.dim);
        let largest = vector.clone().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let is_finite = vector.clone().all(f32::is_finite);
        let by = if is_finite && largest > 0.0 { 127.0 / largest } else { 0.0 };
        let start = self.codes.len();
        // By a subnormal number the quotient overflows.
        let code = |value: f32| if by.is_finite() { (value * by).round() as i8 } else { 0 };
        self.codes.extend(vector.map(code));
        self.scales.push(scale(&self.codes[start..]));
    }

    /// The cosine of two rows; 0 with a row of zeros.
    pub(crate) fn cosine(&self, a: usize, b: usize) -> f32 {
        self.cosine_with(a, self, b)
    }

    /// The cosine with a row of others of the same dimension; 0 with a row of zeros.
    pub(crate) fn cosine_with(&self, a: usize, others: &Self, b: usize) -> f32 {
        let product = |a: &[i8], b: &[i8]| a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b)).map(f64::from).sum::<f64>();
        let (a, b) = (self.codes(a), others.codes(b));
        // So equal rows have exactly 1.
        let lengths = (product(a, a) * product(b, b)).sqrt();
        if lengths == 0.0 { 0.0 } else { (product(a, b) / lengths) as f32 }
    }

    /// Adds a row of others of the same dimension.
    pub(crate) fn push_from(&mut self, other: &Self, row: usize) {
        self.codes.extend_from_slice(other.codes(row));
        self.scales.push(other.scales[row]);
    }

    /// The rows of these numbers.
    pub(crate) fn select(&self, rows: impl IntoIterator<Item = usize>) -> Self {
        let mut selected = Self::new(self.dim);
        rows.into_iter().for_each(|row| selected.push_from(self, row));
        selected
    }

    /// The codes `[dim]` of a row.
    pub(crate) fn codes(&self, row: usize) -> &[i8] {
        &self.codes[row * self.dim..(row + 1) * self.dim]
    }

    /// All codes, `[rows, dim]`.
    pub(crate) fn all_codes(&self) -> &[i8] {
        &self.codes
    }

    /// 1 / length of each row.
    pub(crate) fn scales(&self) -> &[f32] {
        &self.scales
    }
}

fn scale(codes: &[i8]) -> f32 {
    let square: i64 = codes.iter().map(|&code| i64::from(code) * i64::from(code)).sum();
    if square == 0 { 0.0 } else { 1.0 / (square as f32).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::Rows;

    #[test]
    fn only_the_direction_is_kept() {
        let mut rows = Rows::new(2);
        for vector in [[3.0, -4.0], [3e-20, -4e-20], [0.0, 0.0], [f32::NAN, 1.0], [1e-45, 0.0]] {
            rows.push(vector.into_iter());
        }
        assert_eq!((rows.codes(0), rows.codes(1)), (&[95, -127][..], &[95, -127][..]));
        assert_eq!(&rows.scales()[2..], &[0.0; 3]);
        assert_eq!(rows, Rows::of_codes(2, rows.all_codes().to_vec()));
    }
}
