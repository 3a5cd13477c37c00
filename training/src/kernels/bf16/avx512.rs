//! The vectors of processors with AVX512-BF16.
//!
//! `VDPBF16PS` adds the products of 16 pairs to 16 float32 sums. A right tile's row is such a vector as it lies; a pair of the left one is
//! repeated over all lanes. Eight rows by 32 columns of sums stay in registers over the whole inner dimension: sixteen chains, enough to
//! hide the latency of the additions, and ten loads for sixteen products.

use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
};
use std::mem::transmute;

use super::{ROWS, Tile};

/// Rows of sums in registers at once; divides [`ROWS`].
const HEIGHT: usize = 8;

/// 32 x 32 sums from two left and two right strips, `[32, 32]` at `c` with rows `stride` floats apart; added to what is there if `add`.
///
/// # Safety
/// The processor has AVX512-BF16; `left` and `right` point at two strips of `depth` tiles each, `c` at 32 rows of 32 floats.
pub(super) unsafe fn block(left: [*const Tile; 2], right: [*const Tile; 2], depth: usize, c: *mut f32, stride: usize, add: bool) {
    for (strip, left) in left.into_iter().enumerate() {
        for row in (0..ROWS).step_by(HEIGHT) {
            // SAFETY: the rows lie inside the strip and the block, and the caller has checked the processor.
            unsafe { rows(left, row, right, depth, c.add((strip * ROWS + row) * stride), stride, add) };
        }
    }
}

/// [`HEIGHT`] rows of the block, from row `first` of the left strip on.
///
/// # Safety
/// As [`block`], with `c` at the first of these rows.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rows(left: *const Tile, first: usize, right: [*const Tile; 2], depth: usize, c: *mut f32, stride: usize, add: bool) {
    let mut sums = [[_mm512_setzero_ps(); 2]; HEIGHT];
    if add {
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: 32 floats of each row of `c` are there.
            *sums = unsafe { [_mm512_loadu_ps(c.add(row * stride)), _mm512_loadu_ps(c.add(row * stride + 16))] };
        }
    }
    for step in 0..depth {
        // SAFETY: `depth` tiles are there in each strip; a tile is [`ROWS`] rows of 16 pairs.
        unsafe {
            let left = left.add(step).cast::<i32>().add(first * 16);
            let [low, high] = [right[0].add(step).cast::<i32>(), right[1].add(step).cast::<i32>()];
            for pair in 0..16 {
                let low = pairs(_mm512_loadu_si512(low.add(pair * 16).cast()));
                let high = pairs(_mm512_loadu_si512(high.add(pair * 16).cast()));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = pairs(_mm512_set1_epi32(*left.add(row * 16 + pair)));
                    sums[0] = _mm512_dpbf16_ps(sums[0], value, low);
                    sums[1] = _mm512_dpbf16_ps(sums[1], value, high);
                }
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        // SAFETY: as above.
        unsafe {
            _mm512_storeu_ps(c.add(row * stride), sums[0]);
            _mm512_storeu_ps(c.add(row * stride + 16), sums[1]);
        }
    }
}

fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits without invalid values.
    unsafe { transmute(bits) }
}
