//! Layer normalisation over the last axis.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use dino_train::ops::layer_norm::layer_norm;
//!
//! let of = |values: [f32; 2]| Tensor::new(&values, &Device::Cpu);
//! let y = layer_norm(&of([1.0, 3.0])?.unsqueeze(0)?, &of([1.0, 1.0])?, &of([0.0, 0.5])?, 0.0)?.to_vec2::<f32>()?;
//! assert!((y[0][0] + 1.0).abs() < 1e-6 && (y[0][1] - 1.5).abs() < 1e-6);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::host::is_host;
use super::{slice, with_slice};
use crate::kernels::{layer_norm, reduce};

const CHUNK_ROWS: usize = 256;

/// `[…, dim]` to the same shape.
///
/// # Errors
/// When shapes do not fit, or the device fails.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    if is_host(x.device()) {
        x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Fused { eps })
    } else {
        composed(x, weight, bias, eps)
    }
}

/// The same out of candle's own operators with a backward pass.
///
/// # Errors
/// When shapes do not fit, or the device fails.
pub fn composed(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?;
    centred.broadcast_div(&deviation)?.broadcast_mul(weight)?.broadcast_add(bias)
}

struct Fused {
    eps: f32,
}

impl CustomOp3 for Fused {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w, b) = (slice(x, x_layout)?, slice(w, w_layout)?, slice(b, b_layout)?);
        let mut out = vec![0.0; x.len()];
        let chunk = CHUNK_ROWS * w.len();
        out.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(out, x)| layer_norm::forward(x, w, b, self.eps, out));
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dim = w.elem_count();
        let mut dx = vec![0.0; x.elem_count()];
        let chunk = CHUNK_ROWS * dim;
        let parts: Vec<(Vec<f32>, Vec<f32>)> = with_slice(x, |x| {
            with_slice(w, |w| {
                with_slice(dout, |dout| {
                    Ok(dx
                        .par_chunks_mut(chunk)
                        .zip(x.par_chunks(chunk))
                        .zip(dout.par_chunks(chunk))
                        .map(|((dx, x), dout)| {
                            let (mut dw, mut db) = (vec![0.0; dim], vec![0.0; dim]);
                            layer_norm::backward(x, w, self.eps, dout, dx, &mut dw, &mut db);
                            (dw, db)
                        })
                        .collect())
                })
            })
        })?;
        let (mut dw, mut db) = (vec![0.0; dim], vec![0.0; dim]);
        for (w, b) in &parts {
            reduce::add(&mut dw, w);
            reduce::add(&mut db, b);
        }
        Ok((
            Some(Tensor::from_vec(dx, x.shape().clone(), x.device())?),
            Some(Tensor::from_vec(dw, w.shape().clone(), w.device())?),
            Some(Tensor::from_vec(db, b.shape().clone(), b.device())?),
        ))
    }
}
