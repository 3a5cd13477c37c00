//! Differentiable operators: fused on the CPU (see [`crate::kernels`]), blocks and unit rows on a GPU too, composed of candle's own elsewhere.
//!
//! Candle's stock `layer_norm` and `softmax_last_dim` run fused kernels without a backward pass, so gradients
//! silently vanish behind them. Every operator here has one, and a test compares both forms.
//!
//! ```
//! use candle_core::{Device, Var};
//! use dino_train::{kernels::matmul::Precision, ops::linear::linear};
//!
//! let weight = Var::new(&[[1.0_f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
//! let x = candle_core::Tensor::new(&[[10.0_f32, 1.0]], &Device::Cpu)?;
//! let y = linear(&x, &weight, Precision::F32)?;
//! assert_eq!(y.to_vec2::<f32>()?, [[12.0, 34.0]]);
//! let gradients = y.sum_all()?.backward()?;
//! assert_eq!(gradients.get(&weight).unwrap().to_vec2::<f32>()?, [[10.0, 1.0], [10.0, 1.0]]);
//! # Ok::<(), candle_core::Error>(())
//! ```

pub mod across;
pub mod batch_norm;
pub mod block;
pub mod conv;
pub mod depthwise;
pub mod gelu;
pub(crate) mod host;
pub mod layer_norm;
pub mod linear;
pub mod loss;
pub mod max_pool;
#[cfg(any(feature = "cuda", test))]
pub(crate) mod on_gpu;
pub mod pointwise;
pub(crate) mod pool;
pub mod unit_rows;

use std::ops::Range;

use candle_core::{CpuStorage, Layout, Result, Tensor, bail};
use rayon::prelude::*;

use crate::kernels::reduce;

/// The elements of a contiguous f32 argument.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else { bail!("a float32 argument is wanted") };
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&values[from..to]),
        None => bail!("a contiguous argument is wanted"),
    }
}

/// Runs `f` over the elements of a contiguous CPU tensor.
pub(crate) fn with_slice<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(storage) => f(slice(storage, layout)?),
        _ => bail!("a tensor on the CPU is wanted"),
    }
}

/// Splits a row-major matrix at the given row counts, one part per task.
pub(crate) fn split_rows(mut values: &mut [f32], columns: usize, rows: impl Iterator<Item = usize>) -> Vec<&mut [f32]> {
    rows.map(|rows| {
        let (head, tail) = std::mem::take(&mut values).split_at_mut(rows * columns);
        values = tail;
        head
    })
    .collect()
}

/// Ranges that share `rows` evenly between the cores, one after another.
pub(crate) fn even_ranges(rows: usize) -> Vec<Range<usize>> {
    let tasks = rayon::current_num_threads().clamp(1, rows.max(1));
    (0..tasks).map(|i| rows * i / tasks..rows * (i + 1) / tasks).collect()
}

/// The sum of what each task found, `len` values each.
pub(crate) fn sum_of_tasks(parts: Vec<Vec<f32>>, len: usize) -> Vec<f32> {
    const CHUNK: usize = 1 << 14;
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_else(|| vec![0.0; len]);
    for part in parts {
        total.par_chunks_mut(CHUNK).zip(part.par_chunks(CHUNK)).for_each(|(a, b)| reduce::add(a, b));
    }
    total
}
