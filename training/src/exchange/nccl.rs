//! An exchange between GPUs: sums go through NCCL and stay on the devices, everything else over TCP.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{CudaDevice, CudaStorage};
use candle_core::{CpuStorage, CustomOp1, Error as DeviceError, Layout, Result as DeviceResult, Shape, Tensor, bail};
use cudarc::nccl::{Comm, Id, ReduceOp};

use super::tcp::Ring;
use super::{Error, Exchange};

/// Processes with a GPU each.
#[derive(Debug)]
pub(crate) struct Gpus {
    ring: Ring,
    communicator: Arc<Communicator>,
}

#[derive(Debug)]
struct Communicator(Mutex<Comm>);

#[expect(unsafe_code, reason = "the binding holds a pointer, which says nothing of threads")]
// SAFETY: NCCL lets any thread use a communicator, one at a time: the mutex sees to that.
unsafe impl Send for Communicator {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl Sync for Communicator {}

impl Gpus {
    /// Joins the GPUs of processes that have met in a ring.
    ///
    /// # Errors
    /// When a process is lost, or NCCL cannot reach the others.
    pub(crate) fn join(ring: Ring, device: &CudaDevice) -> Result<Self, Error> {
        let mut name = [0_u8; 128];
        if ring.rank() == 0 {
            name = bytemuck::cast(*Id::new().map_err(nccl)?.internal());
        }
        ring.broadcast(&mut name)?;
        let id = Id::uninit(bytemuck::cast(name));
        let communicator = Comm::from_rank(device.cuda_stream(), ring.rank(), ring.world(), id).map_err(nccl)?;
        Ok(Self { ring, communicator: Arc::new(Communicator(Mutex::new(communicator))) })
    }
}

fn nccl(error: cudarc::nccl::result::NcclError) -> Error {
    Error::Device(DeviceError::Msg(format!("NCCL: {:?} (NCCL_DEBUG=WARN says more)", error.0)))
}

impl Exchange for Gpus {
    fn rank(&self) -> usize {
        self.ring.rank()
    }

    fn world(&self) -> usize {
        self.ring.world()
    }

    fn sum(&self, values: &mut [f32]) -> Result<(), Error> {
        self.ring.sum(values)
    }

    fn broadcast(&self, bytes: &mut [u8]) -> Result<(), Error> {
        self.ring.broadcast(bytes)
    }

    fn sum_tensor(&self, values: &Tensor) -> Result<Tensor, Error> {
        Ok(values.contiguous()?.apply_op1_no_bwd(&Sum(self.communicator.clone()))?)
    }
}

struct Sum(Arc<Communicator>);

impl CustomOp1 for Sum {
    fn name(&self) -> &'static str {
        "sum-over-gpus"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> DeviceResult<(CpuStorage, Shape)> {
        bail!("NCCL sums tensors on GPUs")
    }

    fn cuda_fwd(&self, values: &CudaStorage, layout: &Layout) -> DeviceResult<(CudaStorage, Shape)> {
        let Some((from, to)) = layout.contiguous_offsets() else { bail!("a contiguous tensor is wanted") };
        let device = values.device().clone();
        let values = values.as_cuda_slice::<f32>()?.slice(from..to);
        let mut sums = device.alloc_zeros::<f32>(to - from)?;
        let communicator = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = communicator.all_reduce(&values, &mut sums, &ReduceOp::Sum);
        sum.map_err(|error| DeviceError::wrap(nccl(error)))?;
        Ok((CudaStorage::wrap_cuda_slice(sums, device), layout.shape().clone()))
    }
}
