//! Matrix products in bfloat16 with float32 sums, by one of two units: the tiles of Intel's server processors ([`amx`]), or the vectors of
//! processors with AVX512-BF16 ([`avx512`]; AMD since Zen 4).
//!
//! Both work on tiles of 16 rows of 64 bytes: a left tile is 16 rows of 32 values, a right tile 16 rows of 16 pairs (values 2r and
//! 2r + 1 of each of 16 columns). Operands are rounded to bfloat16 while they are packed into tiles.

#![expect(unsafe_code, reason = "instructions that not every processor has, which read and write through pointers")]

mod amx;
mod avx512;

use std::arch::x86_64::{
    __m512, __m512i, _mm512_cvtne2ps_pbh, _mm512_loadu_si512, _mm512_maskz_loadu_ps, _mm512_permutexvar_epi16, _mm512_set1_epi16,
    _mm512_setzero_ps, _mm512_shuffle_i32x4, _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::OnceLock;

use rayon::prelude::*;

const ROWS: usize = 16;
/// Values of the inner dimension in one tile.
const DEPTH: usize = 32;
/// Rows and columns of the block of sums that is made at once.
const SIDE: usize = 2 * ROWS;

/// One packed tile of bfloat16 values.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Tile([u16; ROWS * DEPTH]);

impl Tile {
    const ZERO: Self = Self([0; ROWS * DEPTH]);
}

/// A packed operand: for each strip of 16 rows (left) or columns (right), its tiles along the inner dimension. The number of strips is even.
#[derive(Clone, Debug, Default)]
pub(super) struct Packed {
    tiles: Vec<Tile>,
    /// The inner dimension.
    inner: usize,
}

/// What multiplies tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Tiles,
    Vectors,
}

impl Unit {
    /// The faster of those that this process may use.
    fn best() -> Option<Self> {
        static BEST: OnceLock<Option<Unit>> = OnceLock::new();
        *BEST.get_or_init(|| Self::all().next())
    }

    /// All that this process may use, the faster first.
    fn all() -> impl Iterator<Item = Self> {
        // Both are fed by the same packing.
        let packs = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512bf16");
        [(packs && amx::available(), Self::Tiles), (packs, Self::Vectors)]
            .into_iter()
            .filter_map(|(available, unit)| available.then_some(unit))
    }
}

/// True where the processor multiplies bfloat16 values and the system lets this process use that.
pub(super) fn available() -> bool {
    Unit::best().is_some()
}

/// How an operand lies in memory, as a row-major matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// `[strip index, inner]`: the inner dimension is contiguous.
    InnerLast,
    /// `[inner, strip index]`.
    InnerFirst,
}

/// Which side of the product an operand is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

impl Packed {
    /// Packs a row-major matrix whose inner dimension is `inner`. Call only where [`available`].
    pub(super) fn fill(&mut self, values: &[f32], inner: usize, layout: Layout, side: Side) {
        self.pack(&Source::new(values, inner, layout, side));
    }

    /// The same on all cores: not from within a task of theirs.
    pub(super) fn fill_on_all_cores(&mut self, values: &[f32], inner: usize, layout: Layout, side: Side) {
        let source = Source::new(values, inner, layout, side);
        self.make_room(&source);
        self.tiles.par_chunks_exact_mut(source.depth()).enumerate().for_each(|(strip, tiles)| source.pack(strip, tiles));
    }

    /// Packs the left side that some columns of a row-major matrix of `inner` rows are, transposed.
    pub(super) fn fill_columns(&mut self, values: &[f32], inner: usize, columns: Range<usize>) {
        let whole = Source::new(values, inner, Layout::InnerFirst, Side::Left);
        assert!(columns.start <= columns.end && columns.end <= whole.outer, "the matrix has fewer columns");
        self.pack(&Source { values: &values[columns.start..], outer: columns.len(), ..whole });
    }

    fn pack(&mut self, source: &Source<'_>) {
        self.make_room(source);
        self.tiles.chunks_exact_mut(source.depth()).enumerate().for_each(|(strip, tiles)| source.pack(strip, tiles));
    }

    /// Tiles for a matrix, all zeros.
    fn make_room(&mut self, source: &Source<'_>) {
        self.inner = source.inner;
        self.tiles.clear();
        self.tiles.resize(source.outer.div_ceil(2 * ROWS) * 2 * source.depth(), Tile::ZERO);
    }

    /// Tiles of a strip.
    fn depth(&self) -> usize {
        self.inner.div_ceil(DEPTH)
    }

    fn strip(&self, index: usize) -> *const Tile {
        self.tiles[index * self.depth()..].as_ptr()
    }
}

/// A row-major matrix that is packed.
#[derive(Clone, Copy)]
struct Source<'a> {
    values: &'a [f32],
    outer: usize,
    inner: usize,
    /// Values from a row to the next.
    stride: usize,
    layout: Layout,
    side: Side,
}

impl<'a> Source<'a> {
    fn new(values: &'a [f32], inner: usize, layout: Layout, side: Side) -> Self {
        assert!(available(), "the processor has no bfloat16 products");
        let outer = values.len() / inner;
        assert_eq!(values.len(), outer * inner, "the operand is not a whole matrix");
        Self { values, outer, inner, stride: if layout == Layout::InnerLast { inner } else { outer }, layout, side }
    }

    /// Tiles of a strip.
    fn depth(&self) -> usize {
        self.inner.div_ceil(DEPTH)
    }

    /// Packs one strip, of which nothing is left where the number of strips was made even.
    fn pack(&self, strip: usize, tiles: &mut [Tile]) {
        let Self { values, outer, inner, stride, layout, side } = *self;
        let (from, width) = (strip * ROWS, ROWS.min(outer.saturating_sub(strip * ROWS)));
        if width == 0 {
            return;
        }
        for (step, tile) in tiles.iter_mut().enumerate() {
            let (at, depth) = (step * DEPTH, DEPTH.min(inner - step * DEPTH));
            // SAFETY: the features were checked by `Source::new`, and the masks below keep all reads inside `values`.
            unsafe {
                match layout {
                    Layout::InnerLast => pack_rows(&values[from * stride + at..], stride, width, depth, tile),
                    Layout::InnerFirst => pack_pairs(&values[at * stride + from..], stride, width, depth, tile),
                }
                // A tile packed by rows is a left tile, one packed by pairs a right tile; the other one is its transpose in units of pairs.
                if (layout == Layout::InnerLast) != (side == Side::Left) {
                    transpose(tile);
                }
            }
        }
    }
}

/// `n` values from `values`, zeros behind them; 16 at most.
///
/// # Safety
/// `values` holds min(`n`, 16) values.
#[target_feature(enable = "avx512f")]
unsafe fn load(values: &[f32], n: usize) -> __m512 {
    if n == 0 {
        return _mm512_setzero_ps();
    }
    let n = n.min(16);
    debug_assert!(n <= values.len());
    let mask = (((1u32 << n) - 1) & 0xffff) as u16;
    // SAFETY: the mask selects elements of the slice only.
    unsafe { _mm512_maskz_loadu_ps(mask, values.as_ptr()) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn round(low: __m512, high: __m512) -> __m512i {
    let pairs = _mm512_cvtne2ps_pbh(high, low);
    // SAFETY: both are 512 bits without invalid values.
    unsafe { std::mem::transmute(pairs) }
}

/// Packs `rows` rows of `depth` values each, `stride` apart.
///
/// # Safety
/// `values` holds `depth` values, at most [`DEPTH`], from each multiple of `stride` below `rows * stride` on.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pack_rows(values: &[f32], stride: usize, rows: usize, depth: usize, tile: &mut Tile) {
    for row in 0..rows {
        let values = &values[row * stride..];
        // SAFETY: `depth` values of each row are there.
        let (low, high) = unsafe { (load(values, depth), if depth > 16 { load(&values[16..], depth - 16) } else { _mm512_setzero_ps() }) };
        // SAFETY: a row of the tile has 64 bytes.
        unsafe { _mm512_storeu_si512(tile.0[row * DEPTH..].as_mut_ptr().cast(), round(low, high)) };
    }
}

/// Packs `depth` rows of `columns` values each, `stride` apart, in pairs of rows.
///
/// # Safety
/// `values` holds `columns` values, at most [`ROWS`], from each multiple of `stride` below `depth * stride` on.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pack_pairs(values: &[f32], stride: usize, columns: usize, depth: usize, tile: &mut Tile) {
    const fn interleave() -> [u16; 32] {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 16 {
            order[2 * i] = i as u16;
            order[2 * i + 1] = i as u16 + 16;
            i += 1;
        }
        order
    }
    const ORDER: [u16; 32] = interleave();
    // SAFETY: the array has 64 bytes.
    let order = unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) };
    for pair in 0..depth.div_ceil(2) {
        let first = 2 * pair;
        // SAFETY: `columns` values of each of the `depth` rows are there.
        let (even, odd) = unsafe {
            let even = load(&values[first * stride..], columns);
            (even, if first + 1 < depth { load(&values[(first + 1) * stride..], columns) } else { _mm512_setzero_ps() })
        };
        let mixed = _mm512_permutexvar_epi16(order, round(even, odd));
        // SAFETY: a row of the tile has 64 bytes.
        unsafe { _mm512_storeu_si512(tile.0[pair * DEPTH..].as_mut_ptr().cast(), mixed) };
    }
}

/// Transposes a tile as 16 x 16 units of 32 bits.
#[target_feature(enable = "avx512f,avx512bw")]
fn transpose(tile: &mut Tile) {
    let mut a = [_mm512_set1_epi16(0); 16];
    for (row, a) in a.iter_mut().enumerate() {
        // SAFETY: a row of the tile has 64 bytes.
        *a = unsafe { _mm512_loadu_si512(tile.0[row * DEPTH..].as_ptr().cast()) };
    }
    let mut b = a;
    for i in 0..8 {
        b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    for i in 0..4 {
        let [w, x, y, z] = [b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]];
        a[4 * i] = _mm512_unpacklo_epi64(w, y);
        a[4 * i + 1] = _mm512_unpackhi_epi64(w, y);
        a[4 * i + 2] = _mm512_unpacklo_epi64(x, z);
        a[4 * i + 3] = _mm512_unpackhi_epi64(x, z);
    }
    // a[4 i + j] now holds, in 128-bit lane l, column 4 l + j of rows 4 i to 4 i + 3.
    for j in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x88>(a[j], a[4 + j]);
        let low_odd = _mm512_shuffle_i32x4::<0xdd>(a[j], a[4 + j]);
        let high = _mm512_shuffle_i32x4::<0x88>(a[8 + j], a[12 + j]);
        let high_odd = _mm512_shuffle_i32x4::<0xdd>(a[8 + j], a[12 + j]);
        b[j] = _mm512_shuffle_i32x4::<0x88>(low, high);
        b[8 + j] = _mm512_shuffle_i32x4::<0xdd>(low, high);
        b[4 + j] = _mm512_shuffle_i32x4::<0x88>(low_odd, high_odd);
        b[12 + j] = _mm512_shuffle_i32x4::<0xdd>(low_odd, high_odd);
    }
    for (row, b) in b.iter().enumerate() {
        // SAFETY: a row of the tile has 64 bytes.
        unsafe { _mm512_storeu_si512(tile.0[row * DEPTH..].as_mut_ptr().cast(), *b) };
    }
}

/// `c[m, n] = left · right`, or added to `c`.
pub(super) fn multiply(c: &mut [f32], n: usize, add: bool, left: &Packed, right: &Packed) {
    let unit = Unit::best().expect("operands are packed only where a unit is");
    // SAFETY: this process may use it.
    unsafe { multiply_with(unit, c, n, add, left, right) };
}

/// [`multiply`] on one unit.
///
/// # Safety
/// The unit is one of [`Unit::all`].
unsafe fn multiply_with(unit: Unit, c: &mut [f32], n: usize, add: bool, left: &Packed, right: &Packed) {
    assert_eq!(left.inner, right.inner, "the inner dimensions differ");
    assert!(n > 0 && c.len().is_multiple_of(n), "the destination is not a whole matrix");
    let (m, depth, pairs) = (c.len() / n, left.depth(), left.inner.div_ceil(2));
    assert!(left.tiles.len() >= m.div_ceil(ROWS) * depth && right.tiles.len() >= n.div_ceil(ROWS) * depth, "an operand is too small");
    if depth == 0 || m == 0 {
        return;
    }
    let mut edge = [0f32; SIDE * SIDE];
    // The tiles stay configured while this lives.
    // SAFETY: the caller vouches for the unit.
    let _tiles = (unit == Unit::Tiles).then(|| unsafe { amx::Configured::new() });
    // The first `height` rows of a block of sums; the tiles always make all 32.
    let block = |left, right, height, c, stride, add| match unit {
        // SAFETY: strips come in pairs, the callers below give blocks of 32 rows of 32 sums, and the caller vouches for the unit.
        Unit::Tiles => unsafe { amx::block(left, right, depth, c, stride, add) },
        // SAFETY: as before; the tiles of a strip hold all pairs of the inner dimension.
        Unit::Vectors => unsafe { avx512::block(left, right, pairs, height, c, stride, add) },
    };
    for column in (0..n).step_by(SIDE) {
        let right = [right.strip(column / ROWS), right.strip(column / ROWS + 1)];
        for row in (0..m).step_by(SIDE) {
            let left = [left.strip(row / ROWS), left.strip(row / ROWS + 1)];
            let at = row * n + column;
            if row + SIDE <= m && column + SIDE <= n {
                block(left, right, SIDE, c[at..].as_mut_ptr(), n, add);
                continue;
            }
            let (height, width) = (SIDE.min(m - row), SIDE.min(n - column));
            block(left, right, height, edge.as_mut_ptr(), SIDE, false);
            for (i, sums) in edge.chunks_exact(SIDE).enumerate().take(height) {
                let out = &mut c[at + i * n..at + i * n + width];
                for (o, s) in out.iter_mut().zip(sums) {
                    *o = if add { *o + s } else { *s };
                }
            }
        }
    }
}

thread_local! {
    /// Packed operands of the product under way, kept to save their allocation.
    static SCRATCH: RefCell<(Packed, Packed)> = RefCell::default();
}

/// Runs `f` with two operands whose memory is reused.
pub(super) fn with_scratch<T>(f: impl FnOnce(&mut Packed, &mut Packed) -> T) -> T {
    SCRATCH.with_borrow_mut(|(left, right)| f(left, right))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each unit that this processor has gives the plain sums of rounded values.
    #[test]
    fn every_unit_sums_the_rounded_products() {
        let (m, n, k) = (45, 70, 83);
        let value = |i: usize| ((i * 2_654_435_761) % 1_000) as f32 / 500.0 - 1.0;
        let (a, b): (Vec<f32>, Vec<f32>) = ((0..m * k).map(value).collect(), (0..k * n).map(|i| value(i + 7)).collect());
        let rounded = |v: f32| half::bf16::from_f32(v).to_f32();
        if !available() {
            println!("skipped: this processor has no bfloat16 products");
        }
        for unit in Unit::all() {
            let (mut left, mut right) = (Packed::default(), Packed::default());
            left.fill(&a, k, Layout::InnerLast, Side::Left);
            right.fill(&b, k, Layout::InnerFirst, Side::Right);
            let mut c = vec![0.5; m * n];
            // SAFETY: it is one of them.
            unsafe { multiply_with(unit, &mut c, n, true, &left, &right) };
            for (i, got) in c.iter().enumerate() {
                let want = 0.5 + (0..k).map(|t| rounded(a[i / n * k + t]) * rounded(b[t * n + i % n])).sum::<f32>();
                assert!((got - want).abs() < 1e-4, "{unit:?}, element {i}: {got}, not {want}");
            }
        }
    }
}
