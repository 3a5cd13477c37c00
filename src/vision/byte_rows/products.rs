//! Cosines of many rows with a block of rows, as one matrix product.
//!
//! Processors with AVX-512 VNNI multiply bytes; elsewhere the codes become floats, whose products are those of the bytes to the last
//! digit as long as they stay below 2^24, which is so up to 1,040 dimensions.

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2, linalg::general_mat_mul};

use super::Rows;

/// Rows that one step of the kernel multiplies with, and their multiple in a block.
const LANES: usize = 64;

/// The rows of a matrix product's left side.
pub(crate) struct Left {
    /// `[rows, width]`, four codes in each.
    words: Vec<i32>,
    /// 128 times the sum of each row's codes: what adding 128 to the codes of the other side adds to a product.
    offsets: Vec<i32>,
    floats: Option<Array2<f32>>,
    scales: Vec<f32>,
}

/// A block of rows as the right side.
pub(crate) struct Right {
    /// `[blocks of 64 rows, width, 4, 16]`, four codes of a row in each, plus 128.
    words: Vec<[u8; 64]>,
    floats: Option<Array2<f32>>,
    scales: Vec<f32>,
}

impl Left {
    pub(crate) fn new(rows: &Rows, part: Range<usize>) -> Self {
        let scales = rows.scales()[part.clone()].to_vec();
        if !has_byte_products() {
            return Self { words: Vec::new(), offsets: Vec::new(), floats: Some(floats(rows, part)), scales };
        }
        let mut words = Vec::with_capacity(part.len() * rows.dim().div_ceil(4));
        let mut offsets = Vec::with_capacity(part.len());
        for row in part {
            let codes = rows.codes(row);
            words.extend(
                codes.chunks(4).map(|four| i32::from_le_bytes(std::array::from_fn(|at| four.get(at).map_or(0, |code| *code as u8)))),
            );
            offsets.push(128 * codes.iter().map(|&code| i32::from(code)).sum::<i32>());
        }
        Self { words, offsets, floats: None, scales }
    }

    pub(crate) fn len(&self) -> usize {
        self.scales.len()
    }
}

impl Right {
    pub(crate) fn new(rows: &Rows, part: Range<usize>) -> Self {
        let scales = rows.scales()[part.clone()].to_vec();
        if !has_byte_products() {
            return Self { words: Vec::new(), floats: Some(floats(rows, part)), scales };
        }
        let (width, blocks) = (rows.dim().div_ceil(4), part.len().div_ceil(LANES));
        let mut words = vec![[128; 64]; blocks * width * 4];
        for (at, row) in part.enumerate() {
            let (block, lane) = (at / LANES, at % LANES);
            for (word, four) in rows.codes(row).chunks(4).enumerate() {
                let place = &mut words[(block * width + word) * 4 + lane / 16][lane % 16 * 4..];
                place.iter_mut().zip(four).for_each(|(byte, code)| *byte = (*code as u8) ^ 128);
            }
        }
        Self { words, floats: None, scales }
    }

    pub(crate) fn len(&self) -> usize {
        self.scales.len()
    }

    /// Cosines `[left, self.len()]`, in `out`.
    pub(crate) fn cosines(&self, left: &Left, out: &mut Vec<f32>) {
        out.clear();
        out.resize(left.len() * self.len(), 0.0);
        match (&left.floats, &self.floats) {
            (Some(a), Some(b)) => {
                let shape = (left.len(), self.len());
                let mut products = ArrayViewMut2::from_shape(shape, out).expect("as long as its shape");
                general_mat_mul(1.0, a, &b.t(), 0.0, &mut products);
                for (mut row, scale) in products.rows_mut().into_iter().zip(&left.scales) {
                    row.iter_mut().zip(&self.scales).for_each(|(product, other)| *product = cosine(*product, *scale, *other));
                }
            }
            _ => self.cosines_of_bytes(left, out),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn cosines_of_bytes(&self, _: &Left, _: &mut [f32]) {}

    #[cfg(target_arch = "x86_64")]
    fn cosines_of_bytes(&self, left: &Left, out: &mut [f32]) {
        const ROWS: usize = 6;
        let (columns, width) = (self.len(), left.words.len() / left.len().max(1));
        if width == 0 || columns == 0 {
            return;
        }
        for (block, words) in self.words.chunks_exact(width * 4).enumerate() {
            let scales = &self.scales[block * LANES..columns.min((block + 1) * LANES)];
            for first in (0..left.len()).step_by(ROWS) {
                let rows = ROWS.min(left.len() - first);
                let mut sums = [[0; LANES]; ROWS];
                let part = &left.words[first * width..(first + rows) * width];
                #[expect(unsafe_code, reason = "instructions that not every processor has")]
                // SAFETY: without them there would be no words, but floats.
                unsafe {
                    match rows {
                        6 => vnni::products::<6>(part, words, &mut sums),
                        _ => (0..rows).for_each(|row| {
                            let mut sum = [[0; LANES]; 1];
                            vnni::products::<1>(&part[row * width..(row + 1) * width], words, &mut sum);
                            sums[row] = sum[0];
                        }),
                    }
                }
                for (row, sums) in (first..first + rows).zip(&sums) {
                    let (offset, scale) = (left.offsets[row], left.scales[row]);
                    let out = &mut out[row * columns + block * LANES..][..scales.len()];
                    for ((out, sum), other) in out.iter_mut().zip(sums).zip(scales) {
                        *out = cosine((sum - offset) as f32, scale, *other);
                    }
                }
            }
        }
    }
}

/// Rounding may take it a little out of its range.
fn cosine(product: f32, a: f32, b: f32) -> f32 {
    (product * a * b).clamp(-1.0, 1.0)
}

fn floats(rows: &Rows, part: Range<usize>) -> Array2<f32> {
    let codes = &rows.all_codes()[part.start * rows.dim()..part.end * rows.dim()];
    Array2::from_shape_vec((part.len(), rows.dim()), codes.iter().map(|&code| f32::from(code)).collect()).expect("whole rows")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_byte_products() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
fn has_byte_products() -> bool {
    use std::sync::LazyLock;
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni"));
    *AVAILABLE
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    use std::arch::x86_64::{
        __m512i, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_storeu_si512,
    };

    use super::LANES;

    /// Products of `ROWS` rows `[ROWS, width]` with 64 rows `[width, 4]`. The sums stay in registers.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(crate) fn products<const ROWS: usize>(rows: &[i32], others: &[[u8; 64]], out: &mut [[i32; LANES]; ROWS]) {
        let width = rows.len() / ROWS;
        let mut sums = [[_mm512_setzero_si512(); 4]; ROWS];
        for (at, others) in others.as_chunks::<4>().0.iter().enumerate() {
            let others = [load(&others[0]), load(&others[1]), load(&others[2]), load(&others[3])];
            for (row, sums) in sums.iter_mut().enumerate() {
                let word = _mm512_set1_epi32(rows[row * width + at]);
                for (sum, other) in sums.iter_mut().zip(others) {
                    *sum = _mm512_dpbusd_epi32(*sum, other, word);
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, sum) in out.as_chunks_mut::<16>().0.iter_mut().zip(sums) {
                store(out, sum);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    #[expect(unsafe_code, reason = "the instruction's name in the standard library takes a pointer")]
    fn load(bytes: &[u8; 64]) -> __m512i {
        // SAFETY: the array is as long as what is read, wherever it lies.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    #[expect(unsafe_code, reason = "the instruction's name in the standard library takes a pointer")]
    fn store(out: &mut [i32; 16], sum: __m512i) {
        // SAFETY: the array is as long as what is written, wherever it lies.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sum) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Left, Right, cosine, floats};
    use crate::byte_rows::Rows;

    fn rows(count: usize, dim: usize, step: usize) -> Rows {
        Rows::of_codes(dim, (0..count * dim).map(|at| ((at * step + at / 7) % 255) as u8 as i8).map(|code| code.max(-127)).collect())
    }

    #[test]
    fn every_shape_gives_the_products_of_whole_numbers() {
        for (a, b, dim) in [(1, 1, 1), (6, 64, 64), (7, 65, 30), (20, 200, 384), (5, 3, 1000)] {
            let (left, right) = (rows(a, dim, 31), rows(b, dim, 17));
            let exact: Vec<f32> = (0..a * b)
                .map(|at| {
                    let (row, column) = (at / b, at % b);
                    let product: i32 = left.codes(row).iter().zip(right.codes(column)).map(|(&x, &y)| i32::from(x) * i32::from(y)).sum();
                    cosine(product as f32, left.scales()[row], right.scales()[column])
                })
                .collect();
            let mut found = Vec::new();
            Right::new(&right, 0..b).cosines(&Left::new(&left, 0..a), &mut found);
            assert_eq!(found, exact, "{a} {b} {dim}");
            let plain = |rows: &Rows, count| (Some(floats(rows, 0..count)), rows.scales().to_vec());
            let ((a_floats, a_scales), (b_floats, b_scales)) = (plain(&left, a), plain(&right, b));
            let left = Left { words: Vec::new(), offsets: Vec::new(), floats: a_floats, scales: a_scales };
            Right { words: Vec::new(), floats: b_floats, scales: b_scales }.cosines(&left, &mut found);
            assert_eq!(found, exact, "{a} {b} {dim}");
        }
    }
}
