//! The vectors of processors with AVX512-BF16.
//!
//! `VDPBF16PS` adds the products of 16 pairs to 16 float32 sums. A right tile's row is such a vector as it lies; a pair of the left one is
//! repeated over all lanes. Eight rows by 32 columns of sums stay in registers over the whole inner dimension: sixteen chains, enough to
//! hide the latency of the additions, and ten loads for sixteen products.

use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
};
use std::mem::transmute;

use super::{DEPTH, ROWS, Tile};

/// Rows of sums in registers at once; divides [`ROWS`].
const HEIGHT: usize = 8;
/// Pairs of values in a row of a left tile.
const PAIRS: usize = DEPTH / 2;

/// The first `height` rows, or some more, of 32 x 32 sums from two left and two right strips, `[32, 32]` at `c` with rows `stride` floats
/// apart; added to what is there if `add`. The inner dimension has `pairs` pairs of values.
///
/// # Safety
/// The processor has AVX512-BF16; `left` and `right` point at two strips of as many tiles each as hold `pairs` pairs, `c` at 32 rows of 32
/// floats.
pub(super) unsafe fn block(
    left: [*const Tile; 2],
    right: [*const Tile; 2],
    pairs: usize,
    height: usize,
    c: *mut f32,
    stride: usize,
    add: bool,
) {
    for row in (0..height.min(2 * ROWS)).step_by(HEIGHT) {
        // SAFETY: the rows lie inside the strip and the block, and the caller has checked the processor.
        unsafe { rows(left[row / ROWS], row % ROWS, right, pairs, c.add(row * stride), stride, add) };
    }
}

/// [`HEIGHT`] rows of the block, from row `first` of the left strip on.
///
/// # Safety
/// As [`block`], with `c` at the first of these rows.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rows(left: *const Tile, first: usize, right: [*const Tile; 2], count: usize, c: *mut f32, stride: usize, add: bool) {
    let mut sums = [[_mm512_setzero_ps(); 2]; HEIGHT];
    if add {
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: 32 floats of each row of `c` are there.
            *sums = unsafe { [_mm512_loadu_ps(c.add(row * stride)), _mm512_loadu_ps(c.add(row * stride + 16))] };
        }
    }
    for step in 0..count.div_ceil(PAIRS) {
        // SAFETY: as many tiles are there in each strip; a tile is [`ROWS`] rows of [`PAIRS`] pairs.
        unsafe {
            let left = left.add(step).cast::<i32>().add(first * PAIRS);
            let [low, high] = [right[0].add(step).cast::<i32>(), right[1].add(step).cast::<i32>()];
            // Behind the inner dimension a tile holds zeros.
            for pair in 0..PAIRS.min(count - step * PAIRS) {
                let low = pairs(_mm512_loadu_si512(low.add(pair * ROWS).cast()));
                let high = pairs(_mm512_loadu_si512(high.add(pair * ROWS).cast()));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = pairs(_mm512_set1_epi32(*left.add(row * PAIRS + pair)));
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
