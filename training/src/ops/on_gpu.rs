//! Operators of two tensors whose forward and backward pass are kernels of a GPU.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use crate::kernels::cuda::Stored;

/// What an operator does. It holds its arguments as tensors: candle hands an operator their storage only.
pub(crate) trait Kernels: Send + Sync {
    fn name(&self) -> &'static str;

    /// The output.
    fn forward(&self) -> Result<(Stored, Shape)>;

    /// Gradients by the arguments, from that by the output, which is contiguous.
    fn backward(&self, dout: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)>;
}

/// The operator as candle takes it, on arguments on a GPU. In tests the CPU stands in a GPU's place.
pub(crate) struct OnGpu<K>(pub(crate) K);

impl<K: Kernels> CustomOp2 for OnGpu<K> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    #[cfg(test)]
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.0.forward()
    }

    #[cfg(not(test))]
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("{} is for GPUs in this form", self.0.name())
    }

    #[cfg(not(test))]
    fn cuda_fwd(&self, _: &Stored, _: &Layout, _: &Stored, _: &Layout) -> Result<(Stored, Shape)> {
        self.0.forward()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, dout: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.0.backward(&dout.contiguous()?.detach())
    }
}
