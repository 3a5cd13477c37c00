//! The tile unit (AMX) of Intel's server processors.
//!
//! `TDPBF16PS` multiplies a left tile with a right one into 16 x 16 float32 sums, which stay in tile registers over the whole inner
//! dimension. The instructions are written in assembly, since the compiler's own names for them are not stable.

use std::arch::asm;

use super::{ROWS, Tile};

/// True where the processor has the unit and the system lets this process use it.
pub(super) fn available() -> bool {
    // Leaf 7: bit 22 of EDX is AMX-BF16, bit 24 is AMX-TILE.
    let leaf = std::arch::x86_64::__cpuid_count(7, 0);
    leaf.edx & (1 << 22) != 0 && leaf.edx & (1 << 24) != 0 && permitted()
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

/// The tile registers, configured for as long as this lives.
pub(super) struct Configured;

impl Configured {
    /// Configures them.
    ///
    /// # Safety
    /// The unit is [`available`].
    pub(super) unsafe fn new() -> Self {
        // SAFETY: the configuration is a valid one, and the caller vouches for the unit.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack)) };
        Self
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: gives the registers back, so that switches of tasks need not save them.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// 32 x 32 sums from two left and two right strips, `[32, 32]` at `c` with rows `stride` floats apart; added to what is there if `add`.
///
/// # Safety
/// The tile unit is configured; `left` and `right` point at two strips of `depth` tiles each, `c` at 32 rows of 32 floats.
pub(super) unsafe fn block(left: [*const Tile; 2], right: [*const Tile; 2], depth: usize, c: *mut f32, stride: usize, add: bool) {
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
