//! GELU in its exact (erf) form.
//!
//! ```
//! use candle_core::{Device, Tensor};
//!
//! let y = dino_train::ops::gelu::gelu(&Tensor::new(&[0.0_f32, 1.0], &Device::Cpu)?)?.to_vec1::<f32>()?;
//! assert!(y[0] == 0.0 && (y[1] - 0.841_344_7).abs() < 1e-5);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::host::is_host;
use super::{slice, with_slice};
use crate::kernels::activation;

const CHUNK: usize = 1 << 14;

/// x·Φ(x), element by element.
///
/// # Errors
/// When the device fails.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if is_host(x.device()) { x.contiguous()?.apply_op1(Fused) } else { x.gelu_erf() }
}

struct Fused;

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        "gelu-erf"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, layout)?;
        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(out, x)| activation::gelu(x, out));
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _out: &Tensor, dout: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = with_slice(dout, |dout| Ok(dout.to_vec()))?;
        with_slice(x, |x| {
            dx.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(dx, x)| {
                activation::gelu_backward(x, dx, &mut vec![0.0; x.len()]);
            });
            Ok(())
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape().clone(), x.device())?))
    }
}
