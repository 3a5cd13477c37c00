//! A GPU: its memory, and kernels that run on it in the order in which they are launched.

use std::sync::OnceLock;

use candle_core::cuda::cudarc::driver::{CudaFunction, CudaSlice, CudaView, CudaViewMut, LaunchConfig, PushKernelArg};
use candle_core::cuda::{WrapErr, cudarc};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Device, Result, Shape, Storage, Tensor, bail};

use super::launch::{Argument, Grid};

/// Memory that kernels fill.
pub(crate) type Buffer = CudaSlice<f32>;

/// What candle keeps of a tensor there.
pub(crate) type Stored = CudaStorage;

/// The GPU of a tensor.
pub(super) struct Gpu(CudaDevice);

/// An argument as the driver takes it.
enum Ready<'a> {
    In(CudaView<'a, f32>),
    Out(CudaViewMut<'a, f32>),
    Null(u64),
    Int(i32),
    Long(i64),
    Float(f32),
}

impl Gpu {
    pub(super) fn of(tensor: &Tensor) -> Result<Self> {
        match tensor.device() {
            Device::Cuda(device) => Ok(Self(device.clone())),
            _ => bail!("a tensor on a GPU is wanted"),
        }
    }

    /// Room for `len` elements that a kernel is about to fill.
    pub(super) fn room(&self, len: usize) -> Result<Buffer> {
        #[expect(unsafe_code, reason = "memory that a kernel fills is not filled twice")]
        // SAFETY: every caller launches a kernel that writes all elements before any other kernel of the stream reads them.
        unsafe {
            self.0.alloc::<f32>(len)
        }
    }

    pub(super) fn stored(&self, values: Buffer) -> Stored {
        CudaStorage::wrap_cuda_slice(values, self.0.clone())
    }

    pub(super) fn tensor(&self, values: Buffer, shape: impl Into<Shape>) -> Tensor {
        Tensor::from_storage(Storage::Cuda(self.stored(values)), shape, BackpropOp::none(), false)
    }

    pub(super) fn launch(&self, name: &str, grid: Grid, arguments: &mut [Argument<'_>]) -> Result<()> {
        if grid.is_empty() {
            return Ok(());
        }
        let read = arguments.iter().map(Argument::read).collect::<Result<Vec<_>>>()?;
        let held: Vec<_> = read.iter().map(|tensor| tensor.as_ref().map(Tensor::storage_and_layout)).collect();
        let mut ready = Vec::with_capacity(arguments.len());
        for (argument, held) in arguments.iter_mut().zip(&held) {
            ready.push(match (argument, held) {
                (_, Some((storage, layout))) => {
                    let Storage::Cuda(storage) = &**storage else { bail!("a tensor on a GPU is wanted") };
                    let first = layout.start_offset();
                    Ready::In(storage.as_cuda_slice::<f32>()?.slice(first..first + layout.shape().elem_count()))
                }
                (Argument::Out(buffer), None) => Ready::Out(buffer.as_view_mut()),
                (Argument::Part(buffer, part), None) => Ready::Out(buffer.slice_mut(part.clone())),
                (Argument::Int(number), None) => Ready::Int(*number),
                (Argument::Long(number), None) => Ready::Long(*number),
                (Argument::Float(number), None) => Ready::Float(*number),
                (Argument::In(_) | Argument::Maybe(_), None) => Ready::Null(0),
            });
        }
        let (function, stream) = (function(&self.0, name)?, self.0.cuda_stream());
        let mut launch = stream.launch_builder(&function);
        for argument in &mut ready {
            match argument {
                Ready::In(view) => launch.arg(&*view),
                Ready::Out(view) => launch.arg(view),
                Ready::Null(null) => launch.arg(&*null),
                Ready::Int(number) => launch.arg(&*number),
                Ready::Long(number) => launch.arg(&*number),
                Ready::Float(number) => launch.arg(&*number),
            };
        }
        let Grid { blocks, threads } = grid;
        let config = LaunchConfig { grid_dim: (blocks[0], blocks[1], 1), block_dim: (threads[0], threads[1], 1), shared_mem_bytes: 0 };
        #[expect(unsafe_code, reason = "the only way to launch a kernel")]
        // SAFETY: the callers check how long their arguments are. Tests run the same launches on a CPU, where arguments that are not those of
        // the kernel are an error, and so are writes beyond buffers.
        unsafe { launch.launch(config) }.w()?;
        Ok(())
    }
}

fn function(device: &CudaDevice, name: &str) -> Result<CudaFunction> {
    static PTX: OnceLock<std::result::Result<String, String>> = OnceLock::new();
    let compile = || cudarc::nvrtc::compile_ptx(super::SOURCE).map(|ptx| ptx.to_src()).map_err(|error| format!("{error:?}"));
    match PTX.get_or_init(compile) {
        Ok(ptx) => Ok(device.get_or_load_custom_func(name, "dino-block", ptx)?.into_cuda_function()),
        Err(error) => bail!("the CUDA kernels do not compile: {error}"),
    }
}
