//! Max pooling over pictures whose channels lie last, `[pictures, height, width, channels]`: 3 x 3 windows at stride 2.
//!
//! ```
//! use candle_core::{Device, Tensor};
//!
//! let picture = Tensor::new(&[[1.0_f32, 2.0, 3.0, 9.0]], &Device::Cpu)?.reshape((1, 1, 4, 1))?;
//! let pooled = dino_train::ops::max_pool::max_pool(&picture)?;
//! assert_eq!((pooled.dims(), pooled.flatten_all()?.to_vec1::<f32>()?), ([1, 1, 2, 1].as_slice(), vec![2.0, 9.0]));
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::host::is_host;
use super::{slice, with_slice};
use crate::kernels::windows::Windows;

const SIDE: usize = 3;
const STRIDE: usize = 2;
const PADDING: usize = 1;

/// `[n, h, w, c]` to `[n, ⌈h/2⌉, ⌈w/2⌉, c]`. What lies outside of a picture does not count.
///
/// # Errors
/// When shapes do not fit, or the device fails.
pub fn max_pool(x: &Tensor) -> Result<Tensor> {
    windows(x.shape())?;
    if is_host(x.device()) { x.contiguous()?.apply_op1(Fused) } else { composed(x) }
}

/// The same out of candle's own operators. Of equal values each gets a share of the gradient.
///
/// # Errors
/// When shapes do not fit, or the device fails.
pub fn composed(x: &Tensor) -> Result<Tensor> {
    // A pixel repeated at the border changes no maximum: it is in the window already.
    let along = |x: &Tensor, axis: usize| -> Result<Tensor> {
        let length = x.dim(axis)?;
        let mut largest: Option<Tensor> = None;
        for tap in 0..SIDE {
            let places = (0..length.div_ceil(STRIDE)).map(|i| (i * STRIDE + tap).saturating_sub(PADDING).min(length - 1) as u32);
            let places = Tensor::from_iter(places, x.device())?;
            let taken = x.index_select(&places, axis)?;
            largest = Some(if let Some(largest) = largest { largest.maximum(&taken)? } else { taken });
        }
        Ok(largest.unwrap_or_else(|| x.clone()))
    };
    along(&along(x, 1)?, 2)
}

fn windows(x: &Shape) -> Result<Windows> {
    let (_, height, width, channels) = x.dims4()?;
    if height == 0 || width == 0 || channels == 0 {
        bail!("max pooling: pictures {:?} are empty", x.dims());
    }
    Ok(Windows { height, width, channels, side: SIDE, stride: STRIDE, padding: PADDING })
}

struct Fused;

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        "max-pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let windows = windows(layout.shape())?;
        let (pictures, ..) = layout.shape().dims4()?;
        let x = slice(x, layout)?;
        let (rows, columns) = windows.grid();
        let mut out = vec![0.0; pictures * rows * columns * windows.channels];
        out.par_chunks_exact_mut(rows * columns * windows.channels)
            .zip(x.par_chunks_exact(windows.picture_len()))
            .for_each(|(out, x)| windows.largest(x, 0..rows * columns, out));
        Ok((CpuStorage::F32(out), Shape::from((pictures, rows, columns, windows.channels))))
    }

    fn bwd(&self, x: &Tensor, out: &Tensor, dout: &Tensor) -> Result<Option<Tensor>> {
        let windows = windows(x.shape())?;
        let len = windows.per_picture() * windows.channels;
        let mut dx = vec![0.0; x.elem_count()];
        with_slice(x, |x| {
            with_slice(out, |out| {
                with_slice(dout, |dout| {
                    dx.par_chunks_exact_mut(windows.picture_len())
                        .zip(x.par_chunks_exact(windows.picture_len()))
                        .zip(out.par_chunks_exact(len).zip(dout.par_chunks_exact(len)))
                        .for_each(|((dx, x), (out, dout))| windows.largest_backward(x, 0..windows.per_picture(), out, dout, dx));
                    Ok(())
                })
            })
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape().clone(), x.device())?))
    }
}
