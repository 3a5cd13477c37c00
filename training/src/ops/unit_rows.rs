//! Rows divided by their L2 norm: the head's bottleneck, and with a factor for each row its weight-normalised last layer.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use dino_train::ops::unit_rows::scaled_unit_rows;
//!
//! let x = Tensor::new(&[[3.0_f32, 4.0], [0.0, 2.0]], &Device::Cpu)?;
//! let factors = Tensor::new(&[[10.0_f32], [1.0]], &Device::Cpu)?;
//! let rows = scaled_unit_rows(&x, &factors, 1e-12)?.to_vec2::<f32>()?;
//! assert!((rows[0][0] - 6.0).abs() < 1e-5 && (rows[0][1] - 8.0).abs() < 1e-5 && (rows[1][1] - 1.0).abs() < 1e-6);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::host::is_host;
#[cfg(any(feature = "cuda", test))]
use super::on_gpu::{Kernels, OnGpu};
use super::{slice, with_slice};
#[cfg(any(feature = "cuda", test))]
use crate::kernels::cuda::{self, Stored};
use crate::kernels::softmax::dot;

const CHUNK_ROWS: usize = 64;

/// `x` `[rows, columns]`, each row divided by its norm, which counts as at least `floor`, and multiplied by its factor in `g` `[rows, 1]`.
///
/// # Errors
/// When shapes do not fit, or the device fails.
pub fn scaled_unit_rows(x: &Tensor, g: &Tensor, floor: f32) -> Result<Tensor> {
    if g.dims() != [x.dim(0)?, 1] {
        bail!("rows {:?} and factors {:?} do not fit each other", x.dims(), g.dims());
    }
    #[cfg(any(feature = "cuda", test))]
    if super::host::is_gpu(x.device()) {
        let (x, g) = (x.contiguous()?, g.contiguous()?);
        let tracks = [x.track_op(), g.track_op()];
        return x.apply_op2(&g, OnGpu(OnDevice { x: x.detach(), g: g.detach(), tracks, floor }));
    }
    if is_host(x.device()) { x.contiguous()?.apply_op2(&g.contiguous()?, Fused { floor }) } else { composed(x, g, floor) }
}

/// The same out of candle's own operators.
///
/// # Errors
/// When the device fails.
pub fn composed(x: &Tensor, g: &Tensor, floor: f32) -> Result<Tensor> {
    let norms = x.sqr()?.sum_keepdim(1)?.sqrt()?;
    let norms = if floor > 0.0 { norms.maximum(f64::from(floor))? } else { norms };
    x.broadcast_div(&norms)?.broadcast_mul(g)
}

struct Fused {
    floor: f32,
}

impl CustomOp2 for Fused {
    fn name(&self) -> &'static str {
        "unit-rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, g: &CpuStorage, g_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, g, (_, columns)) = (slice(x, x_layout)?, slice(g, g_layout)?, x_layout.shape().dims2()?);
        let mut out = vec![0.0; x.len()];
        let chunk = CHUNK_ROWS * columns;
        out.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).zip(g.par_chunks(CHUNK_ROWS)).for_each(|((out, x), g)| {
            for ((out, x), g) in out.chunks_exact_mut(columns).zip(x.chunks_exact(columns)).zip(g) {
                let factor = g / dot(x, x).sqrt().max(self.floor);
                out.iter_mut().zip(x).for_each(|(out, x)| *out = factor * x);
            }
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    /// With n = |x| and y = g x / n: dx = g / n (dy - (y · dy) y / g²), dg = y · dy / g. A row whose norm is below the floor is divided by a constant.
    fn bwd(&self, x: &Tensor, g: &Tensor, _out: &Tensor, dout: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (rows, columns) = x.dims2()?;
        let (mut dx, mut dg) = (vec![0.0; rows * columns], vec![0.0; rows]);
        let chunk = CHUNK_ROWS * columns;
        with_slice(x, |x| {
            with_slice(g, |g| {
                with_slice(dout, |dout| {
                    dx.par_chunks_mut(chunk)
                        .zip(dg.par_chunks_mut(CHUNK_ROWS))
                        .zip(x.par_chunks(chunk))
                        .zip(g.par_chunks(CHUNK_ROWS))
                        .zip(dout.par_chunks(chunk))
                        .for_each(|((((dx, dg), x), g), dout)| {
                            let rows =
                                dx.chunks_exact_mut(columns).zip(dg).zip(x.chunks_exact(columns)).zip(g).zip(dout.chunks_exact(columns));
                            for ((((dx, dg), x), g), dout) in rows {
                                let length = dot(x, x).sqrt();
                                let norm = length.max(self.floor);
                                let along = dot(x, dout) / norm;
                                *dg = along;
                                let (factor, turn) = (g / norm, if length > self.floor { along / norm } else { 0.0 });
                                dx.iter_mut().zip(x).zip(dout).for_each(|((dx, x), dout)| *dx = factor * (dout - turn * x));
                            }
                        });
                    Ok(())
                })
            })
        })?;
        Ok((
            x.track_op().then(|| Tensor::from_vec(dx, (rows, columns), x.device())).transpose()?,
            g.track_op().then(|| Tensor::from_vec(dg, (rows, 1), g.device())).transpose()?,
        ))
    }
}

/// The same by kernels of a GPU.
#[cfg(any(feature = "cuda", test))]
struct OnDevice {
    x: Tensor,
    g: Tensor,
    /// Which of the two have gradients.
    tracks: [bool; 2],
    floor: f32,
}

#[cfg(any(feature = "cuda", test))]
impl Kernels for OnDevice {
    fn name(&self) -> &'static str {
        "unit-rows-cuda"
    }

    fn forward(&self) -> Result<(Stored, Shape)> {
        let out = cuda::unit_rows(&self.x, &self.g, self.floor)?;
        Ok((cuda::stored(out, &self.x)?, self.x.shape().clone()))
    }

    fn backward(&self, dout: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dg) = cuda::unit_rows_input(&self.x, &self.g, dout, self.floor)?;
        Ok((self.tracks[0].then_some(dx), self.tracks[1].then_some(dg)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::ops::host::elsewhere;

    #[test]
    fn the_fused_rows_and_their_gradients_equal_the_composed_ones() {
        let (rows, columns) = (150, 37);
        let values =
            |n: usize, seed: usize| (0..n).map(|i| (((i * 7919 + seed * 104_729) % 1000) as f32) / 250.0 - 2.0).collect::<Vec<_>>();
        let x = Var::from_vec(values(rows * columns, 1), (rows, columns), &Device::Cpu).unwrap();
        let g = Var::from_vec(values(rows, 2), (rows, 1), &Device::Cpu).unwrap();
        let weights = Tensor::from_vec(values(rows * columns, 3), (rows, columns), &Device::Cpu).unwrap();
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for floor in [0.0, 1e-12, 12.0] {
            let run = |out: Tensor| {
                let gradients = (&out * &weights).unwrap().sum_all().unwrap().backward().unwrap();
                [flat(&out), flat(gradients.get(&x).unwrap()), flat(gradients.get(&g).unwrap())]
            };
            let want = run(composed(&x, &g, floor).unwrap());
            let fused = scaled_unit_rows(&x, &g, floor).unwrap();
            let on_gpu = elsewhere::run(|| scaled_unit_rows(&x, &g, floor)).unwrap();
            for got in [run(fused), run(on_gpu)] {
                assert!(got.iter().map(Vec::len).eq(want.iter().map(Vec::len)));
                for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
                    assert!((got - want).abs() < 1e-5 + 1e-5 * want.abs(), "floor {floor}: {got}, not {want}");
                }
            }
        }
        assert!(scaled_unit_rows(&x, &g.t().unwrap(), 0.0).is_err());
    }
}
