//! Cosine similarity of normalised vectors: one dot product, with the widest vector instructions of the machine.

use pulp::{Arch, Simd, WithSimd};

/// Dot products of `f32` vectors. The instruction set is looked up once.
///
/// A product depends on its two vectors alone, never on where they lie or what is compared beside them: the order of
/// additions is fixed. Answers are therefore the same before and after items move in memory.
#[derive(Clone, Copy)]
pub struct Similarity(Arch);

impl Default for Similarity {
    fn default() -> Self {
        Self(Arch::new())
    }
}

impl Similarity {
    /// Dot product of two vectors of the same length.
    #[inline]
    pub fn dot(self, a: &[f32], b: &[f32]) -> f32 {
        self.0.dispatch(Dot(a, b))
    }
}

struct Dot<'a>(&'a [f32], &'a [f32]);

impl WithSimd for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "must be compiled inside the function that enables the instructions")]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (a, a_rest) = S::as_simd_f32s(self.0);
        let (b, b_rest) = S::as_simd_f32s(self.1);
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
}
