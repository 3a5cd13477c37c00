//! Cosine similarity of normalised vectors: one dot product, with the widest vector instructions of the machine.

pub(super) mod bytes;

use pulp::{Arch, Simd, WithSimd};

/// Dot products of `f32` vectors. The instruction set is looked up once.
///
/// A product depends on its two vectors alone, never on where they lie or what is compared beside them: the order of
/// additions is fixed. Answers are therefore the same before and after items move in memory.
#[derive(Clone, Copy, Default)]
pub struct Similarity(Arch);

impl Similarity {
    /// Dot product of two vectors of the same length.
    #[inline]
    pub fn dot(self, a: &[f32], b: &[f32]) -> f32 {
        self.0.dispatch(Dot(a, b))
    }

    /// Dot products of a query `[dim]` with all rows of `block` `[rows, dim]`, into `products` `[rows]`.
    pub(super) fn block(self, query: &[f32], block: &[f32], products: &mut Vec<f32>) {
        products.clear();
        self.0.dispatch(OfBlock { query, block, products });
    }

    /// Dot products of a query `[dim]` with some rows of `vectors` `[_, dim]`, in their order, into `products`.
    pub(super) fn rows(self, query: &[f32], vectors: &[f32], rows: &[u32], products: &mut Vec<f32>) {
        products.clear();
        self.0.dispatch(OfRows { query, vectors, rows, products });
    }
}

struct Dot<'a>(&'a [f32], &'a [f32]);

struct OfBlock<'a> {
    query: &'a [f32],
    block: &'a [f32],
    products: &'a mut Vec<f32>,
}

struct OfRows<'a> {
    query: &'a [f32],
    vectors: &'a [f32],
    rows: &'a [u32],
    products: &'a mut Vec<f32>,
}

impl WithSimd for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "must be compiled inside the function that enables the instructions")]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        dot(simd, self.0, self.1)
    }
}

impl WithSimd for OfBlock<'_> {
    type Output = ();

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "as above")]
    fn with_simd<S: Simd>(self, simd: S) {
        // A loop, since a closure would be compiled without the instructions.
        for row in self.block.chunks_exact(self.query.len()) {
            self.products.push(dot(simd, self.query, row));
        }
    }
}

impl WithSimd for OfRows<'_> {
    type Output = ();

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "as above")]
    fn with_simd<S: Simd>(self, simd: S) {
        let dim = self.query.len();
        let row = |row: u32| &self.vectors[row as usize * dim..][..dim];
        // Rows lie anywhere: each is fetched from memory while those before it are compared.
        self.rows.iter().take(AHEAD).for_each(|&ahead| prefetch(row(ahead)));
        for (at, &number) in self.rows.iter().enumerate() {
            if let Some(&ahead) = self.rows.get(at + AHEAD) {
                prefetch(row(ahead));
            }
            self.products.push(dot(simd, self.query, row(number)));
        }
    }
}

/// Rows that are fetched ahead: of 1 to 32 the fastest, with vectors of 384 numbers.
const AHEAD: usize = 6;

/// Asks for a row before it is needed.
#[inline]
#[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "the instruction's name in the standard library takes a pointer"))]
fn prefetch(row: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in row.chunks(16) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing, and every x86-64 has it.
        unsafe { _mm_prefetch(line.as_ptr().cast(), _MM_HINT_T0) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "as above")]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = S::as_simd_f32s(a);
    let (b, b_rest) = S::as_simd_f32s(b);
    // Four sums at once, since one alone waits for its own last addition.
    let mut sums = [simd.splat_f32s(0.0); 4];
    let (a_fours, a_last) = pulp::as_arrays::<4, _>(a);
    let (b_fours, b_last) = pulp::as_arrays::<4, _>(b);
    for (a, b) in a_fours.iter().zip(b_fours) {
        for lane in 0..4 {
            sums[lane] = simd.mul_add_e_f32s(a[lane], b[lane], sums[lane]);
        }
    }
    for (&a, &b) in a_last.iter().zip(b_last) {
        sums[0] = simd.mul_add_e_f32s(a, b, sums[0]);
    }
    let sum = simd.add_f32s(simd.add_f32s(sums[0], sums[1]), simd.add_f32s(sums[2], sums[3]));
    simd.reduce_sum_f32s(sum) + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_plain_sum_at_every_length() {
        let similarity = Similarity::default();
        for len in 0..200_usize {
            let a: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..len).map(|i| (i as f32 * 0.71).cos()).collect();
            let expected: f64 = a.iter().zip(&b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            assert!((f64::from(similarity.dot(&a, &b)) - expected).abs() < 1e-4, "length {len}");
        }
    }

    #[test]
    fn a_product_is_the_same_in_every_company() {
        let similarity = Similarity::default();
        for dim in [1, 7, 32, 100, 384] {
            let query: Vec<f32> = (0..dim).map(|i| (i as f32 * 0.37).sin()).collect();
            let vectors: Vec<f32> = (0..dim * 9).map(|i| (i as f32 * 0.71).cos()).collect();
            let alone: Vec<f32> = vectors.chunks_exact(dim).map(|row| similarity.dot(&query, row)).collect();
            let mut products = Vec::new();
            similarity.block(&query, &vectors, &mut products);
            assert_eq!(products, alone);
            similarity.rows(&query, &vectors, &[8, 0, 3], &mut products);
            assert_eq!(products, [alone[8], alone[0], alone[3]]);
        }
    }
}
