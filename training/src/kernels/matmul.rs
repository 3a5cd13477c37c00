//! Matrix products on one core, in float32 or with operands rounded to bfloat16.
//!
//! ```
//! use dino_train::kernels::matmul::{Accum, Precision, Weight, at_b};
//!
//! let mut product = [0.0; 2];
//! Weight::transposed(&[1.0, 2.0, 3.0, 4.0], 2, Precision::F32).multiply(&mut product, Accum::Replace, &[10.0, 1.0]);
//! assert_eq!(product, [12.0, 34.0]);
//!
//! // The gradient of a weight: of each of two rows, added up.
//! let mut gradient = [0.0];
//! at_b(Precision::F32, &mut gradient, Accum::Replace, &[1.0, 2.0], &[3.0, 4.0], 2);
//! assert_eq!(gradient, [11.0]);
//! ```

use std::ops::Range;

pub use faer::Accum;
use faer::linalg::matmul::matmul;
use faer::{MatMut, MatRef, Par};

#[cfg(target_arch = "x86_64")]
use super::bf16::{self, Layout, Packed, Side};

/// Arithmetic of large products. Sums are float32 in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// float32 throughout.
    F32,
    /// Operands rounded to bfloat16, by tiles or vectors of the processor.
    Bf16,
}

/// True where [`Precision::Bf16`] can be used.
pub fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return bf16::available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn rows(x: &[f32], columns: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(x, x.len() / columns, columns)
}

/// A weight `[n, k]` of a linear layer, made ready once, on all cores, for products with many left sides.
pub struct Weight<'a> {
    values: &'a [f32],
    columns: usize,
    transposed: bool,
    #[cfg(target_arch = "x86_64")]
    packed: Option<Packed>,
}

impl<'a> Weight<'a> {
    /// For `x · wᵀ`, the layer's forward pass. `k` is the weight's number of columns.
    pub fn transposed(values: &'a [f32], k: usize, precision: Precision) -> Self {
        Self::new(values, k, true, precision)
    }

    /// For `dy · w`, the gradient of the layer's input.
    pub fn plain(values: &'a [f32], k: usize, precision: Precision) -> Self {
        Self::new(values, k, false, precision)
    }

    #[cfg(target_arch = "x86_64")]
    fn new(values: &'a [f32], columns: usize, transposed: bool, precision: Precision) -> Self {
        let packed = (precision == Precision::Bf16).then(|| {
            let mut packed = Packed::default();
            let (inner, layout) = if transposed { (columns, Layout::InnerLast) } else { (values.len() / columns, Layout::InnerFirst) };
            packed.fill_on_all_cores(values, inner, layout, Side::Right);
            packed
        });
        Self { values, columns, transposed, packed }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn new(values: &'a [f32], columns: usize, transposed: bool, _precision: Precision) -> Self {
        Self { values, columns, transposed }
    }

    /// Inner dimension and columns of the product.
    fn shape(&self) -> (usize, usize) {
        let n = self.values.len() / self.columns;
        if self.transposed { (self.columns, n) } else { (n, self.columns) }
    }

    /// `c = a · self`, or added to `c`.
    pub fn multiply(&self, c: &mut [f32], accum: Accum, a: &[f32]) {
        let (inner, n) = self.shape();
        #[cfg(target_arch = "x86_64")]
        if let Some(packed) = &self.packed {
            return bf16::with_scratch(|left, _| {
                left.fill(a, inner, Layout::InnerLast, Side::Left);
                bf16::multiply(c, n, accum == Accum::Add, left, packed);
            });
        }
        let right = rows(self.values, self.columns);
        let right = if self.transposed { right.transpose() } else { right };
        matmul(MatMut::from_row_major_slice_mut(c, a.len() / inner, n), accum, rows(a, inner), right, 1.0, Par::Seq);
    }
}

/// `c[m, n] = a[k, m]ᵀ · b[k, n]`, or added to `c`: the gradient of a linear layer's weight.
pub fn at_b(precision: Precision, c: &mut [f32], accum: Accum, a: &[f32], b: &[f32], k: usize) {
    at_b_of(precision, c, accum, a, 0..a.len() / k, b, k);
}

/// The same of some columns of `a`: some rows of the weight.
pub fn at_b_of(precision: Precision, c: &mut [f32], accum: Accum, a: &[f32], columns: Range<usize>, b: &[f32], k: usize) {
    let n = b.len() / k;
    #[cfg(target_arch = "x86_64")]
    if precision == Precision::Bf16 {
        return bf16::with_scratch(|left, right| {
            left.fill_columns(a, k, columns);
            right.fill(b, k, Layout::InnerFirst, Side::Right);
            bf16::multiply(c, n, accum == Accum::Add, left, right);
        });
    }
    let _ = precision;
    let left = rows(a, a.len() / k).subcols(columns.start, columns.len()).transpose();
    matmul(MatMut::from_row_major_slice_mut(c, columns.len(), n), accum, left, rows(b, n), 1.0, Par::Seq);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97)) >> 16) as f32 / 65_536.0 - 0.5).collect()
    }

    fn rounded(x: &[f32]) -> Vec<f32> {
        x.iter().map(|&v| half::bf16::from_f32(v).to_f32()).collect()
    }

    /// Σ over the inner dimension in f64, by index functions.
    fn reference(m: usize, n: usize, k: usize, a: impl Fn(usize, usize) -> f32, b: impl Fn(usize, usize) -> f32) -> Vec<f32> {
        (0..m * n).map(|i| (0..k).map(|t| f64::from(a(i / n, t)) * f64::from(b(t, i % n))).sum::<f64>() as f32).collect()
    }

    fn assert_close(got: &[f32], want: &[f32]) {
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!((g - w).abs() < 1e-4 + 1e-4 * w.abs(), "element {i}: {g}, not {w}");
        }
    }

    /// In bfloat16 the products equal those of operands that were rounded beforehand: nothing but rounding is lost.
    #[test]
    fn products_of_all_layouts_and_odd_shapes() {
        let precisions = if has_bf16() { vec![Precision::F32, Precision::Bf16] } else { vec![Precision::F32] };
        for precision in precisions {
            for (m, n, k) in [(1, 1, 1), (3, 5, 7), (16, 16, 32), (32, 32, 64), (33, 31, 65), (222, 96, 192), (64, 48, 37), (17, 130, 100)]
            {
                let prepare = |x: Vec<f32>| if precision == Precision::Bf16 { rounded(&x) } else { x };
                let (a, w, wt, at) = (values(m * k, 1), values(n * k, 2), values(k * n, 3), values(k * m, 4));
                let (ra, rw, rwt, rat) = (prepare(a.clone()), prepare(w.clone()), prepare(wt.clone()), prepare(at.clone()));
                let mut c = vec![9.0; m * n];
                Weight::transposed(&w, k, precision).multiply(&mut c, Accum::Replace, &a);
                assert_close(&c, &reference(m, n, k, |i, t| ra[i * k + t], |t, j| rw[j * k + t]));
                Weight::plain(&wt, n, precision).multiply(&mut c, Accum::Replace, &a);
                let want = reference(m, n, k, |i, t| ra[i * k + t], |t, j| rwt[t * n + j]);
                assert_close(&c, &want);
                at_b(precision, &mut c, Accum::Add, &at, &wt, k);
                let more = reference(m, n, k, |i, t| rat[t * m + i], |t, j| rwt[t * n + j]);
                let want: Vec<f32> = want.iter().zip(&more).map(|(a, b)| a + b).collect();
                assert_close(&c, &want);
                let columns = m / 3..m;
                let part = &mut c[columns.start * n..];
                at_b_of(precision, part, Accum::Replace, &at, columns.clone(), &wt, k);
                assert_close(part, &more[columns.start * n..]);
            }
        }
    }
}
