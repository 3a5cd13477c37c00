//! Matrix products in bfloat16 with float32 sums, on the tile unit (AMX) of Intel's server processors.
//!
//! A tile is 16 rows of 64 bytes. `TDPBF16PS` multiplies a left tile, 16 rows of 32 values, with a right tile, 16 rows of 16 pairs
//! (value 2r and 2r + 1 of each of 16 columns), into 16 x 16 float32 sums. Operands are rounded to bfloat16 while they are packed into
//! tiles; the sums stay in tile registers over the whole inner dimension. The instructions are written in assembly, since the
//! compiler's own names for them are not stable.

use std::arch::asm;
use std::arch::x86_64::{
    __m512, __m512i, _mm512_cvtne2ps_pbh, _mm512_loadu_si512, _mm512_maskz_loadu_ps, _mm512_permutexvar_epi16, _mm512_set1_epi16,
    _mm512_setzero_ps, _mm512_shuffle_i32x4, _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};
use std::cell::RefCell;
use std::sync::OnceLock;

const ROWS: usize = 16;
/// Values of the inner dimension in one tile.
const DEPTH: usize = 32;

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
    /// Tiles of a strip.
    depth: usize,
}

/// True where the processor has the tile unit and the system lets this process use it.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        // Leaf 7: bit 22 of EDX is AMX-BF16, bit 24 is AMX-TILE.
        let leaf = std::arch::x86_64::__cpuid_count(7, 0);
        let tiles = leaf.edx & (1 << 22) != 0 && leaf.edx & (1 << 24) != 0;
        tiles
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16")
            && permitted()
    })
}

/// Linux saves the 8 KB of tile registers only for processes that ask.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: a system call without pointers.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
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
        assert!(available(), "the tile unit is not available");
        let outer = values.len() / inner;
        assert_eq!(values.len(), outer * inner, "the operand is not a whole matrix");
        self.depth = inner.div_ceil(DEPTH);
        let strips = outer.div_ceil(2 * ROWS) * 2;
        self.tiles.clear();
        self.tiles.resize(strips * self.depth, Tile::ZERO);
        for (strip, tiles) in self.tiles.chunks_exact_mut(self.depth).enumerate().take(outer.div_ceil(ROWS)) {
            for (step, tile) in tiles.iter_mut().enumerate() {
                let (from, width) = (strip * ROWS, ROWS.min(outer - strip * ROWS));
                let (at, depth) = (step * DEPTH, DEPTH.min(inner - step * DEPTH));
                // SAFETY: the features were checked by `available`, and the masks below keep all reads inside `values`.
                unsafe {
                    match layout {
                        Layout::InnerLast => pack_rows(&values[from * inner + at..], inner, width, depth, tile),
                        Layout::InnerFirst => pack_pairs(&values[at * outer + from..], outer, width, depth, tile),
                    }
                    // A tile packed by rows is a left tile, one packed by pairs a right tile; the other one is its transpose in units of pairs.
                    if (layout == Layout::InnerLast) != (side == Side::Left) {
                        transpose(tile);
                    }
                }
            }
        }
    }

    fn strip(&self, index: usize) -> *const Tile {
        self.tiles[index * self.depth..].as_ptr()
    }
}

/// `n` values from `values`, zeros behind them.
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
unsafe fn transpose(tile: &mut Tile) {
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

/// Shapes of the eight tile registers: 16 rows of 64 bytes each.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIGURATION: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// 32 x 32 sums from two left and two right strips, `[32, 32]` at `c` with rows `stride` floats apart; added to what is there if `add`.
///
/// # Safety
/// The tile unit is configured; `left` and `right` point at two strips of `depth` tiles each, `c` at 32 rows of 32 floats.
unsafe fn block(left: [*const Tile; 2], right: [*const Tile; 2], depth: usize, c: *mut f32, stride: usize, add: bool) {
    // SAFETY: the lower half lies inside the block.
    let bottom = unsafe { c.add(ROWS * stride) };
    /// One statement from the first to the last use of the registers, since none can be named as an operand.
    macro_rules! tiles {
        ($($begin:literal),*) => {
            asm!(
                $($begin,)*
                "2:",
                "tileloadd tmm4, [{l0} + {s}]",
                "tileloadd tmm6, [{r0} + {s}]",
                "tileloadd tmm7, [{r1} + {s}]",
                "tileloadd tmm5, [{l1} + {s}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {l0}, 1024",
                "add {l1}, 1024",
                "add {r0}, 1024",
                "add {r1}, 1024",
                "dec {n}",
                "jnz 2b",
                "tilestored [{top} + {row}], tmm0",
                "tilestored [{top} + {row} + 64], tmm1",
                "tilestored [{bottom} + {row}], tmm2",
                "tilestored [{bottom} + {row} + 64], tmm3",
                l0 = inout(reg) left[0] => _,
                l1 = inout(reg) left[1] => _,
                r0 = inout(reg) right[0] => _,
                r1 = inout(reg) right[1] => _,
                n = inout(reg) depth => _,
                s = in(reg) 64_usize,
                top = in(reg) c,
                bottom = in(reg) bottom,
                row = in(reg) 4 * stride,
                options(nostack)
            )
        };
    }
    // SAFETY: the caller keeps to the bounds.
    unsafe {
        if add {
            tiles!(
                "tileloadd tmm0, [{top} + {row}]",
                "tileloadd tmm1, [{top} + {row} + 64]",
                "tileloadd tmm2, [{bottom} + {row}]",
                "tileloadd tmm3, [{bottom} + {row} + 64]"
            );
        } else {
            tiles!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3");
        }
    }
}

/// `c[m, n] = left · right`, or added to `c`.
pub(super) fn multiply(c: &mut [f32], n: usize, add: bool, left: &Packed, right: &Packed) {
    const SIDE: usize = 2 * ROWS;
    assert_eq!(left.depth, right.depth, "the inner dimensions differ");
    assert!(n > 0 && c.len().is_multiple_of(n), "the destination is not a whole matrix");
    let (m, depth) = (c.len() / n, left.depth);
    assert!(left.tiles.len() >= m.div_ceil(ROWS) * depth && right.tiles.len() >= n.div_ceil(ROWS) * depth, "an operand is too small");
    if depth == 0 || m == 0 {
        return;
    }
    let mut edge = [0f32; SIDE * SIDE];
    // SAFETY: the configuration is a valid one, and a packed operand exists only where the unit is available.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack)) };
    for column in (0..n).step_by(SIDE) {
        let right = [right.strip(column / ROWS), right.strip(column / ROWS + 1)];
        for row in (0..m).step_by(SIDE) {
            let left = [left.strip(row / ROWS), left.strip(row / ROWS + 1)];
            let at = row * n + column;
            if row + SIDE <= m && column + SIDE <= n {
                // SAFETY: the whole block lies inside `c`, and strips come in pairs.
                unsafe { block(left, right, depth, c[at..].as_mut_ptr(), n, add) };
                continue;
            }
            // SAFETY: the block is `edge`.
            unsafe { block(left, right, depth, edge.as_mut_ptr(), SIDE, false) };
            let width = SIDE.min(n - column);
            for (i, sums) in edge.chunks_exact(SIDE).enumerate().take(m - row) {
                let out = &mut c[at + i * n..at + i * n + width];
                for (o, s) in out.iter_mut().zip(sums) {
                    *o = if add { *o + s } else { *s };
                }
            }
        }
    }
    // SAFETY: gives the registers back, so that switches of tasks need not save them.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

thread_local! {
    /// Packed operands of the product under way, kept to save their allocation.
    static SCRATCH: RefCell<(Packed, Packed)> = RefCell::default();
}

/// Runs `f` with two operands whose memory is reused.
pub(super) fn with_scratch<T>(f: impl FnOnce(&mut Packed, &mut Packed) -> T) -> T {
    SCRATCH.with_borrow_mut(|(left, right)| f(left, right))
}
