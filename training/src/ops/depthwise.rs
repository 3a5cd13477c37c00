//! Depthwise convolution over pictures whose channels lie last, `[pictures, height, width, channels]`: each channel has a window of 7 x 7
//! and a bias of its own. The padding keeps the size. The cores share the pictures.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use dino_train::ops::depthwise::depthwise;
//!
//! // Sums of windows over a picture of ones, and one more.
//! let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu);
//! let y = depthwise(&ones(&[1, 8, 8, 2])?, &ones(&[2, 1, 7, 7])?, &ones(&[2])?)?;
//! assert_eq!(y.dims(), [1, 8, 8, 2]);
//! assert_eq!(y.flatten_all()?.to_vec1::<f32>()?[..2], [17.0, 17.0]);
//! # Ok::<(), candle_core::Error>(())
//! ```

use std::ops::Range;

use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use super::host::is_host;
use super::{even_ranges, slice, split_rows, sum_of_tasks, with_slice};
use crate::kernels::depthwise::{AREA, LANES, Lanes, SIDE, Size, blocked, convolve, unblocked, window_gradient};
use crate::kernels::reduce;

/// `x` `[n, h, w, c]`, `weight` `[c, 1, 7, 7]` and `bias` `[c]` to `[n, h, w, c]`.
///
/// # Errors
/// When shapes do not fit, or the device fails.
pub fn depthwise(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (_, height, width, channels) = x.dims4()?;
    let fits = weight.dims() == [channels, 1, SIDE, SIDE] && bias.dims() == [channels] && x.elem_count() > 0;
    if !fits {
        bail!("depthwise convolution: pictures {:?}, weight {:?} and bias {:?} do not fit", x.dims(), weight.dims(), bias.dims());
    }
    let (x, weight, bias) = (x.contiguous()?, weight.contiguous()?, bias.contiguous()?);
    if is_host(x.device()) {
        x.apply_op3(&weight, &bias, Fused(Size { height, width, channels }))
    } else {
        let shifted = Shifted { x: x.detach(), weight: weight.detach(), bias: bias.detach() };
        x.apply_op3(&weight, &bias, shifted)
    }
}

struct Fused(Size);

/// The values of a block of channels, zero beyond the last.
fn lanes(values: &[f32], block: usize) -> Lanes {
    let mut lanes = [0.0; LANES];
    for (lane, &value) in lanes.iter_mut().zip(&values[block * LANES..]) {
        *lane = value;
    }
    lanes
}

impl Fused {
    /// The gradients of windows and bias from some pictures, one after another; that of the pictures goes to `dx`.
    fn backward(&self, x: &[f32], turned: &[Lanes], dout: &[f32], dx: &mut [f32]) -> Vec<f32> {
        let size = self.0;
        let (mut plane, mut dplane) = (size.plane(), size.plane());
        let (mut dtaps, mut dbias) = (vec![[0.0; LANES]; size.blocks() * AREA], vec![0.0; size.channels]);
        let pictures = x.chunks_exact(size.len()).zip(dout.chunks_exact(size.len())).zip(dx.chunks_exact_mut(size.len()));
        for ((x, dout), dx) in pictures {
            for (block, (turned, dtaps)) in turned.chunks_exact(AREA).zip(dtaps.chunks_exact_mut(AREA)).enumerate() {
                size.fill(dout, block, &mut dplane);
                convolve(size, &dplane, turned, &[0.0; LANES], block, dx);
                size.fill(x, block, &mut plane);
                window_gradient(size, &plane, &dplane, dtaps);
            }
            reduce::add_column_sums(dout, &mut dbias);
        }
        let mut gradients = unblocked(&dtaps, size.channels);
        gradients.append(&mut dbias);
        gradients
    }
}

impl CustomOp3 for Fused {
    fn name(&self) -> &'static str {
        "depthwise-convolution"
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
        let size = self.0;
        let (x, bias) = (slice(x, x_layout)?, slice(b, b_layout)?);
        let taps = blocked(slice(w, w_layout)?, false);
        let mut out = vec![0.0; x.len()];
        let of_picture = |plane: &mut Vec<Lanes>, (out, x): (&mut [f32], &[f32])| {
            for (block, taps) in taps.chunks_exact(AREA).enumerate() {
                size.fill(x, block, plane);
                convolve(size, plane, taps, &lanes(bias, block), block, out);
            }
        };
        out.par_chunks_mut(size.len()).zip(x.par_chunks(size.len())).for_each_init(|| size.plane(), of_picture);
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
        let (size, tasks) = (self.0, even_ranges(x.dim(0)?));
        let turned = with_slice(w, |w| Ok(blocked(w, true)))?;
        let mut dx = vec![0.0; x.elem_count()];
        let parts = with_slice(x, |x| {
            with_slice(dout, |dout| {
                let one = |(dx, task): (&mut [f32], &Range<usize>)| {
                    let of = task.start * size.len()..task.end * size.len();
                    self.backward(&x[of.clone()], &turned, &dout[of], dx)
                };
                Ok(split_rows(&mut dx, size.len(), tasks.iter().map(Range::len)).into_par_iter().zip(&tasks).map(one).collect())
            })
        })?;
        let mut dw = sum_of_tasks(parts, size.channels * (AREA + 1));
        let db = dw.split_off(size.channels * AREA);
        Ok((
            Some(Tensor::from_vec(dx, x.shape().clone(), x.device())?),
            Some(Tensor::from_vec(dw, w.shape().clone(), w.device())?),
            Some(Tensor::from_vec(db, b.shape().clone(), b.device())?),
        ))
    }
}

/// The same out of candle's own operators, for devices without the fused one: a multiplication and an addition for each pixel of the
/// window. (Candle's own convolution takes one channel after another.) They are hidden from candle's graph, which would keep the
/// products of all of them.
struct Shifted {
    /// The arguments as tensors: candle hands an operator their storage only.
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
}

impl Shifted {
    /// Pixel number `tap` of each window over pictures that were [`padded`].
    fn pixels(&self, padded: &Tensor, tap: usize) -> Result<Tensor> {
        let (_, height, width, _) = self.x.dims4()?;
        padded.narrow(1, tap / SIDE, height)?.narrow(2, tap % SIDE, width)
    }

    /// The sums over all windows of `pictures`; with `turned` each window is turned by half a circle.
    fn convolved(&self, pictures: &Tensor, turned: bool) -> Result<Tensor> {
        let windows = self.weight.reshape(((), AREA))?.t()?.contiguous()?;
        let padded = padded(pictures)?;
        (0..AREA).try_fold(pictures.zeros_like()?, |sum, tap| {
            let weight = windows.get(if turned { AREA - 1 - tap } else { tap })?;
            sum + self.pixels(&padded, tap)?.broadcast_mul(&weight)?
        })
    }

    fn out(&self) -> Result<Tensor> {
        self.convolved(&self.x, false)?.broadcast_add(&self.bias)
    }
}

/// With as many zeros around pictures as windows reach out of them.
fn padded(pictures: &Tensor) -> Result<Tensor> {
    pictures.pad_with_zeros(1, SIDE / 2, SIDE / 2)?.pad_with_zeros(2, SIDE / 2, SIDE / 2)
}

impl CustomOp3 for Shifted {
    fn name(&self) -> &'static str {
        "shifted-depthwise-convolution"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = self.out()?;
        let (storage, layout) = out.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok((storage.try_clone(layout)?, out.shape().clone())),
            _ => bail!("a tensor on the CPU is wanted"),
        }
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let out = self.out()?;
        let (storage, layout) = out.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, out.shape().clone())),
            _ => bail!("a tensor on a GPU is wanted"),
        }
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dout = dout.contiguous()?.detach();
        let sums = |values: &Tensor| values.flatten(0, 2)?.sum(0);
        let padded = padded(&self.x)?;
        let dwindows = (0..AREA).map(|tap| sums(&(self.pixels(&padded, tap)? * &dout)?)).collect::<Result<Vec<Tensor>>>()?;
        let dweight = Tensor::stack(&dwindows, 1)?.reshape(self.weight.shape())?;
        Ok((Some(self.convolved(&dout, true)?), Some(dweight), Some(sums(&dout)?)))
    }
}
