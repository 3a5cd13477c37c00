//! Sums over the processes of a run that gradients flow through.
//!
//! ```
//! use dino_train::ops::across::lost_peer;
//!
//! // An operator that failed on this machine lost no process.
//! assert!(lost_peer(&candle_core::Error::Msg("no memory".into())).is_none());
//! ```

use std::sync::Arc;

use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Error, Layout, Result, Shape, Storage, Tensor, bail};

use super::slice;
use crate::exchange::{self, Exchange};

/// Replaces `values` by their sums over all processes.
///
/// # Errors
/// When another process is lost.
pub(crate) fn add_up(exchange: &dyn Exchange, values: &mut [f32]) -> Result<()> {
    exchange.sum(values).map_err(kept)
}

/// The variant that keeps the error itself, for [`lost_peer`].
fn kept(error: exchange::Error) -> Error {
    Error::WrappedContext { context: error.to_string(), wrapped: Box::new(error) }
}

/// What another process did, where that is why an operator failed.
pub fn lost_peer(error: &Error) -> Option<&exchange::Error> {
    match error {
        Error::WrappedContext { wrapped, .. } => wrapped.downcast_ref(),
        Error::Context { inner, .. } | Error::WithBacktrace { inner, .. } | Error::WithPath { inner, .. } => lost_peer(inner),
        _ => None,
    }
}

/// The sum of `values` over all processes, on their device. As each process goes on with all of it, the gradients of all of them add up too.
///
/// # Errors
/// When another process is lost, or the device fails.
pub(crate) fn sum(values: &Tensor, exchange: &Arc<dyn Exchange>) -> Result<Tensor> {
    if exchange.world() == 1 {
        return Ok(values.clone());
    }
    let values = values.contiguous()?;
    values.apply_op1(Sum { exchange: exchange.clone(), values: values.detach() })
}

/// The rows `[rows, columns]` of all processes, which have as many each, one process after another.
///
/// # Errors
/// When another process is lost, or the device fails.
pub(crate) fn gather(rows: &Tensor, exchange: &Arc<dyn Exchange>) -> Result<Tensor> {
    let (rank, world, count) = (exchange.rank(), exchange.world(), rows.dim(0)?);
    sum(&rows.pad_with_zeros(0, rank * count, (world - 1 - rank) * count)?, exchange)
}

struct Sum {
    exchange: Arc<dyn Exchange>,
    /// The argument as a tensor: candle hands an operator its storage only.
    values: Tensor,
}

impl CustomOp1 for Sum {
    fn name(&self) -> &'static str {
        "sum-over-processes"
    }

    fn cpu_fwd(&self, values: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut values = slice(values, layout)?.to_vec();
        add_up(&*self.exchange, &mut values)?;
        Ok((CpuStorage::F32(values), layout.shape().clone()))
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        // Sums over GPUs have no time limit of their own: a process that is lost is noticed ahead of them.
        self.exchange.barrier().map_err(kept)?;
        let sums = self.exchange.sum_tensor(&self.values).map_err(kept)?;
        let (storage, layout) = sums.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, sums.shape().clone())),
            _ => bail!("a tensor on a GPU is wanted"),
        }
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        sum(gradient, &self.exchange).map(Some)
    }
}
