//! What a kernel is launched with.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::device::Buffer;

/// Threads of a block in element-wise kernels.
const THREADS: u32 = 256;
/// Warps of a block in kernels that give each row a warp, and in sums of columns.
const WARPS: u32 = 8;

/// Blocks, and threads of each, along x and y.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub(super) blocks: [u32; 2],
    pub(super) threads: [u32; 2],
}

impl Grid {
    /// A thread for each element.
    pub(super) fn elements(count: usize) -> Self {
        Self { blocks: [count.div_ceil(THREADS as usize) as u32, 1], threads: [THREADS, 1] }
    }

    /// A warp for each row.
    pub(super) fn rows(rows: usize) -> Self {
        Self { blocks: [rows.div_ceil(WARPS as usize) as u32, 1], threads: [32, WARPS] }
    }

    /// Whether there is nothing to do: a GPU refuses to launch no blocks.
    pub(super) fn is_empty(&self) -> bool {
        self.blocks.contains(&0)
    }

    /// A block for 32 columns of each chunk of rows.
    pub(super) fn columns(columns: usize, chunks: usize) -> Self {
        Self { blocks: [columns.div_ceil(32) as u32, chunks as u32], threads: [32, WARPS] }
    }
}

/// One argument of a kernel.
pub(super) enum Argument<'a> {
    /// `const float *`: a tensor's elements, row by row.
    In(&'a Tensor),
    /// `const float *` that is null without a tensor.
    Maybe(Option<&'a Tensor>),
    /// `float *`: all of a buffer.
    Out(&'a mut Buffer),
    /// `float *`: some of it.
    Part(&'a mut Buffer, Range<usize>),
    /// `int`.
    Int(i32),
    /// `long long`.
    Long(i64),
    /// `float`.
    Float(f32),
}

impl Argument<'_> {
    /// The contiguous tensor that the kernel reads.
    pub(super) fn read(&self) -> Result<Option<Tensor>> {
        match self {
            Self::In(tensor) | Self::Maybe(Some(tensor)) => Ok(Some(tensor.contiguous()?)),
            _ => Ok(None),
        }
    }
}

/// A size as the `int` of kernels.
pub(super) fn int(size: usize) -> Result<Argument<'static>> {
    match i32::try_from(size) {
        Ok(size) => Ok(Argument::Int(size)),
        Err(_) => bail!("a kernel is asked for {size} rows or columns, more than it counts"),
    }
}

/// A number of elements as the `long long` of kernels.
pub(super) fn long(count: usize) -> Argument<'static> {
    Argument::Long(count as i64)
}
