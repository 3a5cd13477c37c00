//! Convolution without a bias over pictures whose channels lie last, `[pictures, height, width, channels]`.
//!
//! Windows become rows of a matrix, a chunk at a time, so that the product is one of the linear layers'; a 1 x 1 convolution is
//! such a product already. The cores share the pictures.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use dino_train::{kernels::matmul::Precision, ops::conv::Convolution};
//!
//! // Sums of windows of 3 x 3 over a picture of ones.
//! let x = Tensor::ones((1, 4, 4, 1), DType::F32, &Device::Cpu)?;
//! let weight = Tensor::ones((1, 1, 3, 3), DType::F32, &Device::Cpu)?;
//! let y = Convolution { stride: 2, precision: Precision::F32 }.forward(&x, &weight)?;
//! assert_eq!(y.dims(), [1, 2, 2, 1]);
//! assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [4.0, 6.0, 6.0, 9.0]);
//! # Ok::<(), candle_core::Error>(())
//! ```

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::host::is_host;
use super::linear::product;
use super::{even_ranges, slice, split_rows, sum_of_tasks, with_slice};
use crate::kernels::matmul::{Accum, Precision, Weight, at_b};
use crate::kernels::windows::Windows;

/// Windows that are multiplied at once: enough that the weight's way into the cache pays off.
const CHUNK: usize = 256;

/// What sets one convolution apart from another, beside its weight. The padding keeps the size at stride 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Convolution {
    /// Distance of neighbouring windows along both axes.
    pub stride: usize,
    /// Arithmetic of the products.
    pub precision: Precision,
}

impl Convolution {
    /// `x` `[n, h, w, c]` and `weight` `[out, c, side, side]` to `[n, h', w', out]`.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn forward(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        self.windows(x.shape(), weight.shape())?;
        if is_host(x.device()) { x.contiguous()?.apply_op2(&weight.contiguous()?, *self) } else { self.composed(x, weight) }
    }

    /// The same out of candle's own operators: a product for each pixel of the window. (The gradients of candle's own convolution
    /// fail at stride 2.)
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn composed(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let windows = self.windows(x.shape(), weight.shape())?;
        let (n, (outputs, channels, ..), (rows, columns)) = (x.dim(0)?, weight.dims4()?, windows.grid());
        let padded = x.pad_with_zeros(1, windows.padding, windows.padding)?.pad_with_zeros(2, windows.padding, windows.padding)?;
        let places = |tap: usize, count: usize| Tensor::from_iter((0..count).map(|i| (i * self.stride + tap) as u32), x.device());
        let mut sum: Option<Tensor> = None;
        for (row, column) in (0..windows.side).flat_map(|row| (0..windows.side).map(move |column| (row, column))) {
            let pixels = padded.index_select(&places(row, rows)?, 1)?.index_select(&places(column, columns)?, 2)?;
            let weight = weight.narrow(2, row, 1)?.narrow(3, column, 1)?.reshape((outputs, channels))?;
            let product = product(&pixels.reshape((n * rows * columns, channels))?, &weight.t()?, self.precision)?;
            sum = Some(if let Some(sum) = sum { (sum + product)? } else { product });
        }
        let Some(sum) = sum else { bail!("convolution: the weight {:?} is empty", weight.dims()) };
        sum.reshape((n, rows, columns, outputs))
    }

    fn windows(&self, x: &Shape, weight: &Shape) -> Result<Windows> {
        let ((_, height, width, channels), (_, inputs, side, other)) = (x.dims4()?, weight.dims4()?);
        if inputs != channels || side != other || side % 2 == 0 || height == 0 || width == 0 || self.stride == 0 {
            bail!("convolution: pictures {:?} and weight {:?} at stride {} do not fit", x.dims(), weight.dims(), self.stride);
        }
        Ok(Windows { height, width, channels, side, stride: self.stride, padding: side / 2 })
    }
}

/// A weight `[out, channels, side, side]` in the order of gathered windows, `[out, side, side, channels]`; with `back` the other way.
fn reordered(weight: &[f32], channels: usize, area: usize, back: bool) -> Vec<f32> {
    let (rows, columns) = if back { (area, channels) } else { (channels, area) };
    let mut out = vec![0.0; weight.len()];
    let len = rows * columns;
    out.par_chunks_exact_mut(len).zip(weight.par_chunks_exact(len)).for_each(|(out, weight)| {
        for (i, row) in weight.chunks_exact(columns).enumerate() {
            for (j, &value) in row.iter().enumerate() {
                out[j * rows + i] = value;
            }
        }
    });
    out
}

/// Chunks of the windows of some pictures.
fn chunks(windows: &Windows, pictures: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let all = pictures * windows.per_picture();
    (0..all).step_by(CHUNK).map(move |from| from..(from + CHUNK).min(all))
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, w: &CpuStorage, w_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let windows = self.windows(x_layout.shape(), w_layout.shape())?;
        let (pictures, outputs) = (x_layout.shape().dims4()?.0, w_layout.shape().dims4()?.0);
        let (x, w) = (slice(x, x_layout)?, slice(w, w_layout)?);
        let ordered = reordered(w, windows.channels, windows.side * windows.side, false);
        let weight = Weight::transposed(&ordered, windows.len(), self.precision);
        let (rows, columns) = windows.grid();
        let mut out = vec![0.0; pictures * rows * columns * outputs];
        let tasks = even_ranges(pictures);
        split_rows(&mut out, windows.per_picture() * outputs, tasks.iter().map(Range::len)).into_par_iter().zip(&tasks).for_each(
            |(out, task)| {
                let x = &x[task.start * windows.picture_len()..task.end * windows.picture_len()];
                let mut gathered = vec![0.0; if windows.are_pixels() { 0 } else { CHUNK * windows.len() }];
                for chunk in chunks(&windows, task.len()) {
                    let out = &mut out[chunk.start * outputs..chunk.end * outputs];
                    weight.multiply(out, Accum::Replace, rows_of(&windows, x, &chunk, &mut gathered));
                }
            },
        );
        Ok((CpuStorage::F32(out), Shape::from((pictures, rows, columns, outputs))))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _out: &Tensor, dout: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let windows = self.windows(x.shape(), w.shape())?;
        let ((pictures, ..), outputs) = (x.dims4()?, w.dim(0)?);
        let area = windows.side * windows.side;
        let tasks = even_ranges(pictures);
        let mut dx = vec![0.0; if x.track_op() { x.elem_count() } else { 0 }];
        let dx_len = if x.track_op() { windows.picture_len() } else { 0 };
        let parts: Vec<Vec<f32>> = with_slice(x, |x| {
            with_slice(w, |w| {
                with_slice(dout, |dout| {
                    let ordered = reordered(w, windows.channels, area, false);
                    let weight = Weight::plain(&ordered, windows.len(), self.precision);
                    let backward = Backward { windows, weight: &weight, outputs, precision: self.precision };
                    Ok(split_rows(&mut dx, dx_len, tasks.iter().map(Range::len))
                        .into_par_iter()
                        .zip(&tasks)
                        .map(|(dx, task)| {
                            let x = &x[task.start * windows.picture_len()..task.end * windows.picture_len()];
                            let step = windows.per_picture() * outputs;
                            backward.pictures(task.len(), x, &dout[task.start * step..task.end * step], dx)
                        })
                        .collect())
                })
            })
        })?;
        let total = sum_of_tasks(parts, w.elem_count());
        let dw = reordered(&total, windows.channels, area, true);
        let dx = if x.track_op() { Some(Tensor::from_vec(dx, x.shape().clone(), x.device())?) } else { None };
        Ok((dx, Some(Tensor::from_vec(dw, w.shape().clone(), w.device())?)))
    }
}

/// The rows of a chunk: gathered, or the pixels as they lie.
fn rows_of<'a>(windows: &Windows, x: &'a [f32], chunk: &Range<usize>, gathered: &'a mut [f32]) -> &'a [f32] {
    if windows.are_pixels() {
        return &x[chunk.start * windows.channels..chunk.end * windows.channels];
    }
    let gathered = &mut gathered[..chunk.len() * windows.len()];
    windows.gather(x, chunk.clone(), gathered);
    gathered
}

/// The backward pass of one task.
struct Backward<'a> {
    windows: Windows,
    weight: &'a Weight<'a>,
    outputs: usize,
    precision: Precision,
}

impl Backward<'_> {
    /// The gradient of the weight from some pictures; that of the pictures goes to `dx`, unless it is empty.
    fn pictures(&self, pictures: usize, x: &[f32], dout: &[f32], dx: &mut [f32]) -> Vec<f32> {
        let windows = &self.windows;
        let len = CHUNK * windows.len();
        let mut gathered = vec![0.0; if windows.are_pixels() { 0 } else { len }];
        let mut dgathered = vec![0.0; if windows.are_pixels() || dx.is_empty() { 0 } else { len }];
        let mut dw = vec![0.0; self.outputs * windows.len()];
        for chunk in chunks(windows, pictures) {
            let dout = &dout[chunk.start * self.outputs..chunk.end * self.outputs];
            at_b(self.precision, &mut dw, Accum::Add, dout, rows_of(windows, x, &chunk, &mut gathered), chunk.len());
            if dx.is_empty() {
                continue;
            }
            if windows.are_pixels() {
                let dx = &mut dx[chunk.start * windows.channels..chunk.end * windows.channels];
                self.weight.multiply(dx, Accum::Replace, dout);
            } else {
                let dgathered = &mut dgathered[..chunk.len() * windows.len()];
                self.weight.multiply(dgathered, Accum::Replace, dout);
                windows.scatter(dgathered, chunk, dx);
            }
        }
        dw
    }
}
