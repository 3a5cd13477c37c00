//! `y = x wᵀ`, the product of a linear layer.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use dino_train::{kernels::matmul::Precision, ops::linear::linear};
//!
//! let x = Tensor::new(&[[1.0_f32, 0.0], [0.0, 1.0]], &Device::Cpu)?;
//! let weight = Tensor::new(&[[1.0_f32, 2.0], [3.0, 4.0], [5.0, 6.0]], &Device::Cpu)?;
//! assert_eq!(linear(&x, &weight, Precision::F32)?.to_vec2::<f32>()?, [[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]]);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::host::is_host;
use super::{even_ranges, slice, split_rows, sum_of_tasks, with_slice};
use crate::kernels::matmul::{Accum, Precision, Weight, at_b, at_b_of};

/// `x` `[rows, k]` and `w` `[n, k]` to `[rows, n]`, without a bias.
///
/// # Errors
/// When shapes do not fit, or the device fails.
pub fn linear(x: &Tensor, w: &Tensor, precision: Precision) -> Result<Tensor> {
    if is_host(x.device()) { x.contiguous()?.apply_op2(&w.contiguous()?, Fused { precision }) } else { product(x, &w.t()?, precision) }
}

/// `a b` out of candle's own operators.
pub(crate) fn product(a: &Tensor, b: &Tensor, precision: Precision) -> Result<Tensor> {
    let round = |values: &Tensor| values.to_dtype(DType::BF16);
    match precision {
        Precision::F32 => a.matmul(b),
        // Candle multiplies bfloat16 on GPUs alone.
        Precision::Bf16 if a.device().is_cpu() => {
            round(&round(a)?.to_dtype(DType::F32)?.matmul(&round(b)?.to_dtype(DType::F32)?)?)?.to_dtype(DType::F32)
        }
        Precision::Bf16 => round(a)?.matmul(&round(b)?)?.to_dtype(DType::F32),
    }
}

struct Fused {
    precision: Precision,
}

impl Fused {
    /// `doutᵀ x` `[n, k]` from `x` `[rows, k]` and `dout` `[rows, n]`.
    fn weight_gradient(&self, x: &Tensor, dout: &Tensor, (rows, k, n): (usize, usize, usize)) -> Result<Tensor> {
        let dw = with_slice(x, |x| {
            with_slice(dout, |dout| {
                // Each core makes some rows of a tall gradient, or a part of a flat one out of some rows of the input.
                if n > rows {
                    let (ranges, mut dw) = (even_ranges(n), vec![0.0; n * k]);
                    split_rows(&mut dw, k, ranges.iter().map(ExactSizeIterator::len))
                        .into_par_iter()
                        .zip(ranges)
                        .for_each(|(dw, range)| at_b_of(self.precision, dw, Accum::Replace, dout, range, x, rows));
                    return Ok(dw);
                }
                let parts = even_ranges(rows).into_par_iter().map(|range| {
                    let mut dw = vec![0.0; n * k];
                    let (dout, x) = (&dout[range.start * n..range.end * n], &x[range.start * k..range.end * k]);
                    at_b(self.precision, &mut dw, Accum::Replace, dout, x, range.len());
                    dw
                });
                Ok(sum_of_tasks(parts.collect(), n * k))
            })
        })?;
        Tensor::from_vec(dw, (n, k), x.device())
    }
}

impl CustomOp2 for Fused {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, w: &CpuStorage, w_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((rows, k), (n, k_of_w)) = (x_layout.shape().dims2()?, w_layout.shape().dims2()?);
        if k != k_of_w {
            bail!("linear: input has {k} columns, weight {k_of_w}");
        }
        let (x, w) = (slice(x, x_layout)?, slice(w, w_layout)?);
        let mut out = vec![0.0; rows * n];
        let weight = Weight::transposed(w, k, self.precision);
        let ranges = even_ranges(rows);
        split_rows(&mut out, n, ranges.iter().map(ExactSizeIterator::len))
            .into_par_iter()
            .zip(&ranges)
            .for_each(|(out, range)| weight.multiply(out, Accum::Replace, &x[range.start * k..range.end * k]));
        Ok((CpuStorage::F32(out), Shape::from((rows, n))))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _out: &Tensor, dout: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((rows, k), n) = (x.dims2()?, w.dim(0)?);
        let ranges = even_ranges(rows);
        let dx = if x.track_op() {
            let mut dx = vec![0.0; rows * k];
            with_slice(w, |w| {
                let weight = Weight::plain(w, k, self.precision);
                with_slice(dout, |dout| {
                    split_rows(&mut dx, k, ranges.iter().map(ExactSizeIterator::len))
                        .into_par_iter()
                        .zip(&ranges)
                        .for_each(|(dx, range)| weight.multiply(dx, Accum::Replace, &dout[range.start * n..range.end * n]));
                    Ok(())
                })
            })?;
            Some(Tensor::from_vec(dx, (rows, k), x.device())?)
        } else {
            None
        };
        let dw = w.track_op().then(|| self.weight_gradient(x, dout, (rows, k, n))).transpose()?;
        Ok((dx, dw))
    }
}
