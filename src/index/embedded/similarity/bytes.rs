//! Products of bytes, with the instructions that processors have for them (AVX-512 VNNI), else as the compiler makes them.

/// Products of a row with the high and the low part of a query.
pub(in crate::index::embedded) type Products = [i32; 2];

/// Products of each row of `rows` `[_, width]` with `high` and `low` `[width]`; the width is a multiple of 64.
pub(in crate::index::embedded) fn products(rows: &[u8], high: &[i8], low: &[i8], products: &mut Vec<Products>) {
    products.clear();
    #[cfg(target_arch = "x86_64")]
    if vnni::available() {
        #[expect(unsafe_code, reason = "instructions that not every processor has")]
        // SAFETY: the processor has been asked.
        unsafe {
            vnni::products(rows, high, low, products);
        }
        return;
    }
    plain(rows, high, low, products);
}

fn plain(rows: &[u8], high: &[i8], low: &[i8], products: &mut Vec<Products>) {
    let product = |row: &[u8], query: &[i8]| row.iter().zip(query).map(|(&a, &b)| i32::from(i16::from(a) * i16::from(b))).sum();
    products.extend(rows.chunks_exact(high.len()).map(|row| [product(row, high), product(row, low)]));
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    use std::arch::x86_64::{__m512i, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_reduce_add_epi32, _mm512_setzero_si512};
    use std::sync::LazyLock;

    use super::Products;

    pub(super) fn available() -> bool {
        static AVAILABLE: LazyLock<bool> = LazyLock::new(|| is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni"));
        *AVAILABLE
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn products(rows: &[u8], high: &[i8], low: &[i8], products: &mut Vec<Products>) {
        let (rows, _) = rows.as_chunks::<64>();
        let (high, low): (&[[u8; 64]], &[[u8; 64]]) = (bytemuck::cast_slice(high), bytemuck::cast_slice(low));
        for row in rows.chunks_exact(high.len()) {
            let mut sums = [_mm512_setzero_si512(); 2];
            for ((bytes, high), low) in row.iter().zip(high).zip(low) {
                let bytes = load(bytes);
                sums = [_mm512_dpbusd_epi32(sums[0], bytes, load(high)), _mm512_dpbusd_epi32(sums[1], bytes, load(low))];
            }
            products.push([_mm512_reduce_add_epi32(sums[0]), _mm512_reduce_add_epi32(sums[1])]);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    #[expect(unsafe_code, reason = "the instruction's name in the standard library takes a pointer")]
    fn load(bytes: &[u8; 64]) -> __m512i {
        // SAFETY: the array is as long as what is read, wherever it lies.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_give_the_same_numbers() {
        for width in [64, 384, 1024] {
            let rows: Vec<u8> = (0..width * 5).map(|i| (i * 31 % 256) as u8).chain(vec![255; width]).collect();
            let query = |step: usize| -> Vec<i8> { (0..width).map(|i| (i * step % 255) as u8 as i8).collect() };
            for (high, low) in [(query(7), query(13)), (vec![127; width], vec![-127; width])] {
                let (mut fast, mut slow) = (Vec::new(), Vec::new());
                products(&rows, &high, &low, &mut fast);
                plain(&rows, &high, &low, &mut slow);
                assert_eq!(fast, slow);
                let first: i32 = rows[..width].iter().zip(&high).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
                assert_eq!(fast[0][0], first);
            }
        }
    }
}
