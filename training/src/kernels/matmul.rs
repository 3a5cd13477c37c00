//! Matrix products on one core. [`Accum`] says whether a product replaces what its destination holds or is added to it.

pub use faer::Accum;
use faer::linalg::matmul::matmul;
use faer::{MatMut, MatRef, Par};

fn rows(x: &[f32], columns: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(x, x.len() / columns, columns)
}

/// `c[m, n] = a[m, k] · b[n, k]ᵀ`: a linear layer's forward pass.
pub fn a_bt(c: &mut [f32], accum: Accum, a: &[f32], b: &[f32], k: usize) {
    let n = b.len() / k;
    let c = MatMut::from_row_major_slice_mut(c, a.len() / k, n);
    matmul(c, accum, rows(a, k), rows(b, k).transpose(), 1.0, Par::Seq);
}

/// `c[m, n] = a[m, k] · b[k, n]`: the gradient of a linear layer's input.
pub fn a_b(c: &mut [f32], accum: Accum, a: &[f32], b: &[f32], k: usize) {
    let n = b.len() / k;
    let c = MatMut::from_row_major_slice_mut(c, a.len() / k, n);
    matmul(c, accum, rows(a, k), rows(b, n), 1.0, Par::Seq);
}

/// `c[m, n] = a[k, m]ᵀ · b[k, n]`: the gradient of a linear layer's weight.
pub fn at_b(c: &mut [f32], accum: Accum, a: &[f32], b: &[f32], k: usize) {
    let (m, n) = (a.len() / k, b.len() / k);
    let c = MatMut::from_row_major_slice_mut(c, m, n);
    matmul(c, accum, rows(a, m).transpose(), rows(b, n), 1.0, Par::Seq);
}
