//! Batch normalisation over all axes but the last, fused with the shortcut and the rectifier that follow it in a residual unit.
//!
//! The batch is that of all processes of a run: statistics, and the sums that gradients need, are exchanged.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use dino_train::{exchange::Alone, ops::batch_norm::Statistics};
//!
//! let x = Tensor::new(&[[1.0_f32, 5.0], [3.0, 5.0]], &Device::Cpu)?;
//! let statistics = Statistics::of(&x, &Alone)?;
//! assert_eq!((statistics.rows, statistics.mean, statistics.variance), (2, vec![2.0, 5.0], vec![1.0, 0.0]));
//! # Ok::<(), candle_core::Error>(())
//! ```

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::across::{add_up, sum};
use super::{slice, with_slice};
use crate::exchange::Exchange;
use crate::kernels::batch_norm::{self, Channels};

const CHUNK_ROWS: usize = 256;

/// Mean and variance of each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// Rows that they are over, in all processes.
    pub rows: usize,
    /// Means.
    pub mean: Vec<f32>,
    /// Mean squared deviations, without Bessel's correction.
    pub variance: Vec<f32>,
}

impl Statistics {
    /// Of a batch `[…, channels]` in main memory, of which each process holds a part.
    ///
    /// # Errors
    /// When there are fewer than two rows, as then nothing deviates, when another process is lost, or the device fails.
    pub fn of(x: &Tensor, exchange: &dyn Exchange) -> Result<Self> {
        let channels = x.dim(D::Minus1)?;
        let own = x.elem_count() / channels.max(1);
        let rows = if exchange.world() > 1 {
            // One row is not counted in float32 beyond 2^24, 4096 are up to 2^36.
            let mut count = [(own >> 12) as f32, (own & 0xfff) as f32];
            add_up(exchange, &mut count)?;
            ((count[0] as usize) << 12) + count[1] as usize
        } else {
            own
        };
        if rows < 2 {
            bail!("batch norm over {rows} values a channel: larger pictures or batches are needed");
        }
        let parts: Vec<(usize, Vec<f32>, Vec<f32>)> = with_slice(x, |x| {
            Ok(x.par_chunks(CHUNK_ROWS * channels)
                .map(|x| {
                    let (mut mean, mut deviations) = (vec![0.0; channels], vec![0.0; channels]);
                    batch_norm::moments(x, &mut mean, &mut deviations);
                    (x.len() / channels, mean, deviations)
                })
                .collect())
        })?;
        let share = |sum: f64| (sum / rows as f64) as f32;
        let own_mean = |c: usize| share(parts.iter().map(|(rows, mean, _)| *rows as f64 * f64::from(mean[c])).sum());
        let mut mean: Vec<f32> = (0..channels).map(own_mean).collect();
        add_up(exchange, &mut mean)?;
        // Squared deviations from the means of the parts, then of those from the whole mean.
        let own_variance = |c: usize| {
            let from_whole = |part: f32| (f64::from(part) - f64::from(mean[c])).powi(2);
            share(parts.iter().map(|(rows, part, deviations)| f64::from(deviations[c]) + *rows as f64 * from_whole(part[c])).sum())
        };
        let mut variance: Vec<f32> = (0..channels).map(own_variance).collect();
        add_up(exchange, &mut variance)?;
        Ok(Self { rows, mean, variance })
    }

    /// The means, then the variances with Bessel's correction, `[2 * channels]`: what running statistics follow.
    ///
    /// # Errors
    /// When the device fails.
    pub fn unbiased(&self, device: &Device) -> Result<Tensor> {
        let correction = self.rows as f32 / (self.rows as f32 - 1.0);
        let both = self.mean.iter().copied().chain(self.variance.iter().map(|variance| variance * correction));
        Tensor::from_vec(both.collect::<Vec<_>>(), 2 * self.mean.len(), device)
    }

    fn rstd(&self, eps: f32) -> Vec<f32> {
        self.variance.iter().map(|variance| 1.0 / (variance + eps).sqrt()).collect()
    }
}

/// Normalises by the statistics of the very batch: gradients flow through them.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    /// Of `x`.
    pub statistics: Statistics,
    /// Added to variances.
    pub eps: f32,
    /// Replace what is negative by 0 at the end.
    pub rectify: bool,
    /// The processes that the statistics are over.
    pub exchange: Arc<dyn Exchange>,
}

impl BatchNorm {
    /// `x` `[…, channels]`, `parameters` `[2 * channels]` (weights, then biases), and a shortcut of the shape of `x` that is added.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn forward(self, x: &Tensor, parameters: &Tensor, shortcut: Option<&Tensor>) -> Result<Tensor> {
        let channels = self.statistics.mean.len();
        if x.dim(D::Minus1)? != channels || parameters.dims() != [2 * channels] || shortcut.is_some_and(|s| s.dims() != x.dims()) {
            bail!("batch norm of {channels} channels: input {:?}, parameters {:?}", x.dims(), parameters.dims());
        }
        let (x, parameters) = (x.contiguous()?, parameters.contiguous()?);
        match shortcut {
            Some(shortcut) => x.apply_op3(&parameters, &shortcut.contiguous()?, self),
            None => x.apply_op2(&parameters, self),
        }
    }

    fn run(&self, x: &[f32], parameters: &[f32], shortcut: Option<&[f32]>) -> Vec<f32> {
        let (weight, bias) = parameters.split_at(parameters.len() / 2);
        let rstd = self.statistics.rstd(self.eps);
        let channels = Channels { mean: &self.statistics.mean, rstd: &rstd, weight, bias };
        let chunk = CHUNK_ROWS * weight.len();
        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).enumerate().for_each(|(i, (out, x))| {
            let shortcut = shortcut.map(|shortcut| &shortcut[i * chunk..i * chunk + x.len()]);
            batch_norm::forward(x, channels, shortcut, self.rectify, out);
        });
        out
    }

    /// Gradients of `x` and the parameters, and what flows on behind the rectifier.
    fn gradients(&self, x: &Tensor, parameters: &Tensor, out: &Tensor, dout: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let dout = if self.rectify { rectifier_gradient(out, dout)? } else { dout.contiguous()? };
        let rstd = self.statistics.rstd(self.eps);
        let mut dx = vec![0.0; x.elem_count()];
        let sums = with_slice(x, |x| {
            with_slice(parameters, |parameters| {
                with_slice(&dout, |dout| {
                    let (weight, bias) = parameters.split_at(parameters.len() / 2);
                    let channels = Channels { mean: &self.statistics.mean, rstd: &rstd, weight, bias };
                    let n = weight.len();
                    let chunk = CHUNK_ROWS * n;
                    let parts: Vec<Vec<f32>> = x
                        .par_chunks(chunk)
                        .zip(dout.par_chunks(chunk))
                        .map(|(x, dout)| {
                            let mut sums = vec![0.0; 2 * n];
                            let (dweight, dbias) = sums.split_at_mut(n);
                            batch_norm::backward_sums(x, channels, dout, dweight, dbias);
                            sums
                        })
                        .collect();
                    let sum = |i: usize| parts.iter().map(|part| f64::from(part[i])).sum::<f64>();
                    let sums: Vec<f64> = (0..2 * n).map(sum).collect();
                    let mut means: Vec<f32> = sums.iter().map(|sum| (sum / self.statistics.rows as f64) as f32).collect();
                    add_up(&*self.exchange, &mut means)?;
                    let (mean_gx, mean_g) = means.split_at(n);
                    dx.par_chunks_mut(chunk)
                        .zip(x.par_chunks(chunk))
                        .zip(dout.par_chunks(chunk))
                        .for_each(|((dx, x), dout)| batch_norm::backward(x, channels, dout, mean_gx, mean_g, dx));
                    Ok(sums)
                })
            })
        })?;
        let sums = sums.into_iter().map(|sum| sum as f32).collect::<Vec<_>>();
        Ok((Tensor::from_vec(dx, x.shape().clone(), x.device())?, Tensor::from_vec(sums, parameters.shape().clone(), x.device())?, dout))
    }
}

fn rectifier_gradient(out: &Tensor, dout: &Tensor) -> Result<Tensor> {
    let chunk = 1 << 14;
    let mut gradient = vec![0.0; out.elem_count()];
    with_slice(out, |out| {
        with_slice(dout, |dout| {
            gradient
                .par_chunks_mut(chunk)
                .zip(out.par_chunks(chunk).zip(dout.par_chunks(chunk)))
                .for_each(|(gradient, (out, dout))| batch_norm::rectifier_backward(out, dout, gradient));
            Ok(())
        })
    })?;
    Tensor::from_vec(gradient, out.shape().clone(), out.device())
}

/// The same out of candle's own operators, statistics included, on the device that holds `x`: the output, and of the batch what
/// [`Statistics::unbiased`] gives.
///
/// # Errors
/// When shapes do not fit, there are fewer than two rows, another process is lost, or the device fails.
pub fn composed(
    x: &Tensor,
    parameters: &Tensor,
    shortcut: Option<&Tensor>,
    (eps, rectify): (f32, bool),
    exchange: &Arc<dyn Exchange>,
) -> Result<(Tensor, Tensor)> {
    let channels = x.dim(D::Minus1)?;
    let rows = x.reshape(((), channels))?;
    let own = rows.dim(0)?;
    if own * exchange.world() < 2 {
        bail!("batch norm over {own} values a channel: larger pictures or batches are needed");
    }
    let count = sum(&Tensor::new(&[[own as f32]], x.device())?, exchange)?;
    let mean = |values: &Tensor| sum(&values.sum_keepdim(0)?, exchange)?.broadcast_div(&count);
    let means = mean(&rows)?;
    let centred = rows.broadcast_sub(&means)?;
    let variances = mean(&centred.sqr()?)?;
    let deviation = (&variances + f64::from(eps))?.sqrt()?;
    let (weight, bias) = (parameters.narrow(0, 0, channels)?, parameters.narrow(0, channels, channels)?);
    let mut out = centred.broadcast_div(&deviation)?.broadcast_mul(&weight)?.broadcast_add(&bias)?.reshape(x.shape())?;
    if let Some(shortcut) = shortcut {
        out = (out + shortcut)?;
    }
    let unbiased = variances.detach().broadcast_mul(&(&count / (&count - 1.0)?)?)?;
    let statistics = Tensor::cat(&[means.detach(), unbiased], 1)?.squeeze(0)?;
    Ok((if rectify { out.relu()? } else { out }, statistics))
}

/// Normalises by known statistics, for evaluation: no gradient flows.
///
/// # Errors
/// When shapes do not fit, or the device fails.
pub fn evaluated(
    x: &Tensor,
    parameters: &Tensor,
    shortcut: Option<&Tensor>,
    mean: &Tensor,
    variance: &Tensor,
    (eps, rectify): (f32, bool),
) -> Result<Tensor> {
    let channels = x.dim(D::Minus1)?;
    let factor = (parameters.narrow(0, 0, channels)? / (variance + f64::from(eps))?.sqrt()?)?;
    let mut out = x.broadcast_sub(mean)?.broadcast_mul(&factor)?.broadcast_add(&parameters.narrow(0, channels, channels)?)?;
    if let Some(shortcut) = shortcut {
        out = (out + shortcut)?;
    }
    if rectify { out.relu() } else { Ok(out) }
}

impl CustomOp2 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, p: &CpuStorage, p_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.run(slice(x, x_layout)?, slice(p, p_layout)?, None)), x_layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, p: &Tensor, out: &Tensor, dout: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dp, _) = self.gradients(x, p, out, dout)?;
        Ok((Some(dx), Some(dp)))
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch-norm-shortcut"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        p: &CpuStorage,
        p_layout: &Layout,
        shortcut: &CpuStorage,
        shortcut_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shortcut = slice(shortcut, shortcut_layout)?;
        Ok((CpuStorage::F32(self.run(slice(x, x_layout)?, slice(p, p_layout)?, Some(shortcut))), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        p: &Tensor,
        _shortcut: &Tensor,
        out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dp, flows_on) = self.gradients(x, p, out, dout)?;
        Ok((Some(dx), Some(dp), Some(flows_on)))
    }
}
