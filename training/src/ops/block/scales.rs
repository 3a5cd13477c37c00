//! Layer scale (Touvron et al. 2021): factors of the columns of each branch, multiplied into the layer in front of them, so that the block
//! itself has none.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::Block;
use crate::kernels::softmax::dot;
use crate::ops::host::is_host;
use crate::ops::{slice, with_slice};

impl Block {
    /// The flat parameters with `scales` `[2 dim]`, those of the attention and those of the MLP, multiplied into the last layer of each.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn scaled(&self, parameters: &Tensor, scales: &Tensor) -> Result<Tensor> {
        if parameters.dims() != [self.len()] || scales.dims() != [2 * self.dim] {
            bail!("block of dim {}: parameters {:?}, layer scales {:?}", self.dim, parameters.dims(), scales.dims());
        }
        let layers = self.scaled_layers();
        if is_host(parameters.device()) {
            return parameters.contiguous()?.apply_op2(&scales.contiguous()?, Fused { layers, dim: self.dim });
        }
        let (mut parts, mut at) = (Vec::new(), 0);
        for Layer { range, columns, branch } in layers {
            // A weight and its bias follow one another.
            if at < range.start {
                parts.push(parameters.narrow(0, at, range.start - at)?);
            }
            let layer = parameters.narrow(0, range.start, range.len())?.reshape((self.dim, columns))?;
            let factors = scales.narrow(0, branch * self.dim, self.dim)?.reshape((self.dim, 1))?;
            parts.push(layer.broadcast_mul(&factors)?.flatten_all()?);
            at = range.end;
        }
        Tensor::cat(&parts, 0)
    }

    /// The weights and biases that are scaled. Nothing follows the last of them.
    fn scaled_layers(&self) -> [Layer; 4] {
        let lengths = self.lengths();
        let range = |parameter: usize| {
            let start = lengths[..parameter].iter().sum::<usize>();
            start..start + lengths[parameter]
        };
        let layer = |parameter: usize, branch| Layer { range: range(parameter), columns: lengths[parameter] / self.dim, branch };
        [layer(4, 0), layer(5, 0), layer(10, 1), layer(11, 1)]
    }
}

/// A weight `[dim, columns]` or a bias `[dim, 1]` in the flat parameters.
struct Layer {
    range: Range<usize>,
    columns: usize,
    /// Whose scales it has: 0 for the attention, 1 for the MLP.
    branch: usize,
}

struct Fused {
    layers: [Layer; 4],
    dim: usize,
}

impl Fused {
    /// `from` into `to`, with all layers multiplied by their scales.
    fn multiply(&self, from: &[f32], scales: &[f32], to: &mut [f32]) {
        /// Elements that a core copies at once.
        const CHUNK: usize = 1 << 14;
        let mut at = 0;
        for Layer { range, columns, branch } in &self.layers {
            to[at..range.start]
                .par_chunks_mut(CHUNK)
                .zip(from[at..range.start].par_chunks(CHUNK))
                .for_each(|(to, from)| to.copy_from_slice(from));
            let scales = &scales[branch * self.dim..][..self.dim];
            to[range.clone()]
                .par_chunks_mut(*columns)
                .zip(from[range.clone()].par_chunks(*columns))
                .zip(scales)
                .for_each(|((to, from), scale)| to.iter_mut().zip(from).for_each(|(to, from)| *to = scale * from));
            at = range.end;
        }
    }
}

impl CustomOp2 for Fused {
    fn name(&self) -> &'static str {
        "layer-scale"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, scales: &CpuStorage, scales_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, scales) = (slice(x, x_layout)?, slice(scales, scales_layout)?);
        let mut out = vec![0.0; x.len()];
        self.multiply(x, scales, &mut out);
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, scales: &Tensor, _out: &Tensor, dout: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut dx, mut dscales) = (vec![0.0; x.elem_count()], vec![0.0; scales.elem_count()]);
        with_slice(scales, |scales| {
            with_slice(dout, |dout| {
                self.multiply(dout, scales, &mut dx);
                Ok(())
            })
        })?;
        with_slice(x, |x| {
            with_slice(dout, |dout| {
                for Layer { range, columns, branch } in &self.layers {
                    let rows = x[range.clone()].par_chunks(*columns).zip(dout[range.clone()].par_chunks(*columns));
                    dscales[branch * self.dim..][..self.dim].par_iter_mut().zip(rows).for_each(|(scale, (x, dout))| *scale += dot(x, dout));
                }
                Ok(())
            })
        })?;
        Ok((
            x.track_op().then(|| Tensor::from_vec(dx, x.shape().clone(), x.device())).transpose()?,
            scales.track_op().then(|| Tensor::from_vec(dscales, scales.shape().clone(), scales.device())).transpose()?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::kernels::matmul::Precision;
    use crate::ops::host::elsewhere;

    #[test]
    fn both_forms_and_their_gradients_are_the_same() {
        for gated in [false, true] {
            let block = Block { dim: 6, heads: 2, hidden: 10, gated, eps: 1e-6, precision: Precision::F32, recompute: false };
            let values =
                |n: usize, seed: usize| (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1000) as f32 / 500.0 - 1.0).collect::<Vec<_>>();
            let of = |n, seed| Tensor::from_vec(values(n, seed), n, &Device::Cpu).unwrap();
            let (parameters, scales) = (Var::from_tensor(&of(block.len(), 1)).unwrap(), Var::from_tensor(&of(12, 2)).unwrap());
            let weights = of(block.len(), 3);
            let run = || {
                let out = block.scaled(&parameters, &scales).unwrap();
                let gradients = (&out * &weights).unwrap().sum_all().unwrap().backward().unwrap();
                [&out, gradients.get(&parameters).unwrap(), gradients.get(&scales).unwrap()].map(|t| t.to_vec1::<f32>().unwrap())
            };
            let (got, want) = (run(), elsewhere::run(run));
            for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
                assert!((got - want).abs() < 1e-5, "{got}, not {want}");
            }
            // The attention's scales are in the projection, and nowhere before it.
            let before = block.lengths()[..4].iter().sum::<usize>();
            let (out, plain, scale) = (&got[0], parameters.to_vec1::<f32>().unwrap(), scales.to_vec1::<f32>().unwrap());
            assert_eq!(out[..before], plain[..before]);
            assert!((out[before + 6] - plain[before + 6] * scale[1]).abs() < 1e-6);
        }
    }
}
