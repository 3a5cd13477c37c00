//! What the processes of a data-parallel run tell each other.
//!
//! [`Exchange`] is all that training knows of the other processes. [`Alone`] is a run of one process, [`tcp::Ring`] joins several
//! over TCP, on one machine or on several; with the feature `nccl` GPUs sum through NCCL.
//! [`launcher`] reads from the environment who takes part.
//!
//! ```
//! use dino_train::exchange::{alone, hand_out};
//!
//! let exchange = alone();
//! let mut gradients = [1.0, 2.0];
//! exchange.sum(&mut gradients)?;
//! assert_eq!((exchange.world(), gradients), (1, [1.0, 2.0]));
//! assert_eq!(hand_out(&*exchange, b"settings".to_vec())?, b"settings");
//! # Ok::<(), dino_train::exchange::Error>(())
//! ```

pub mod channel;
pub mod launcher;
mod meeting;
#[cfg(feature = "nccl")]
mod nccl;
pub mod tcp;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use candle_core::{Device, Tensor};
pub use meeting::{Machines, Place};

/// How long a process waits for another before the run ends with an error. Checkpoints on slow disks take minutes.
pub const TIMEOUT: Duration = Duration::from_mins(10);

/// Sums and copies over all processes of a run. All of them make the same calls in the same order.
pub trait Exchange: Debug + Send + Sync {
    /// Number of this process, from 0.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn world(&self) -> usize;

    /// Replaces `values` by their sums over all processes. Every process gets the same bits, and in each run the same ones.
    ///
    /// # Errors
    /// When another process is lost, or does not make the same call.
    fn sum(&self, values: &mut [f32]) -> Result<(), Error>;

    /// Replaces `bytes` by those of rank 0.
    ///
    /// # Errors
    /// When another process is lost, or does not make the same call.
    fn broadcast(&self, bytes: &mut [u8]) -> Result<(), Error>;

    /// The sums of a float32 tensor over all processes, on its device.
    ///
    /// # Errors
    /// When another process is lost, does not make the same call, or the device fails.
    fn sum_tensor(&self, values: &Tensor) -> Result<Tensor, Error> {
        let mut sums: Vec<f32> = values.flatten_all()?.to_vec1()?;
        self.sum(&mut sums)?;
        Ok(Tensor::from_vec(sums, values.shape(), values.device())?)
    }

    /// Returns when all processes have come here.
    ///
    /// # Errors
    /// When another process is lost, or does not make the same call.
    fn barrier(&self) -> Result<(), Error> {
        self.sum(&mut [0.0])
    }
}

/// A run of one process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Exchange for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn sum(&self, _: &mut [f32]) -> Result<(), Error> {
        Ok(())
    }

    fn broadcast(&self, _: &mut [u8]) -> Result<(), Error> {
        Ok(())
    }
}

/// A run of one process, where one of any number is wanted.
pub fn alone() -> Arc<dyn Exchange> {
    Arc::new(Alone)
}

/// Why processes cannot work together.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An environment variable is missing or makes no sense.
    #[error("the environment variable {name} is {value:?}: {wanted}")]
    Setting {
        /// Its name.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        wanted: String,
    },
    /// The processes are on several machines, and have no secret.
    #[error(
        "rank 0 is at {address}, on another machine or open to others: set {} to the same string of at least 16 characters for all \
         processes, for example of `openssl rand -hex 16`",
        channel::SECRET
    )]
    NoSecret {
        /// Of rank 0.
        address: String,
    },
    /// This process cannot listen, or not reach another.
    #[error("rank {rank} cannot {what}")]
    Network {
        /// This process.
        rank: usize,
        /// What it tried.
        what: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Rank 0 waited for the others in vain.
    #[error("of {world} processes, these ranks did not come to {address} within {seconds} s: {missing:?}")]
    Missing {
        /// Number of processes.
        world: usize,
        /// Where rank 0 listens.
        address: String,
        /// How long it waited.
        seconds: u64,
        /// The missing ranks.
        missing: Vec<usize>,
    },
    /// Rank 0 was started for another number of processes.
    #[error("rank {rank} was started with WORLD_SIZE={world}, but rank 0 with {other}: give all the same")]
    World {
        /// This process.
        rank: usize,
        /// Its number of processes.
        world: usize,
        /// That of rank 0.
        other: usize,
    },
    /// The connection to a neighbour broke: it has ended.
    #[error("rank {peer} has ended, so rank {rank} ends too (the messages of rank {peer} say why)")]
    Lost {
        /// This process.
        rank: usize,
        /// The process that is gone.
        peer: usize,
        /// What the system says.
        source: std::io::Error,
    },
    /// A neighbour says nothing.
    #[error("rank {rank} has heard nothing from rank {peer} for {seconds} s: it hangs, or its machine is gone")]
    Silent {
        /// This process.
        rank: usize,
        /// The process that is silent.
        peer: usize,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A neighbour is at another point of its program.
    #[error("rank {peer} is not in step with rank {rank}: start all processes with the same program, settings and pictures")]
    OutOfStep {
        /// This process.
        rank: usize,
        /// The other one.
        peer: usize,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] candle_core::Error),
}

/// The exchange that the environment asks for: that of the processes that a launcher started, else a run of one process. Processes that train on GPUs
/// sum there, where the program was built for it.
///
/// # Errors
/// When the variables make no sense, or not all processes come together within `timeout`.
pub fn from_environment(device: &Device, timeout: Duration) -> Result<Arc<dyn Exchange>, Error> {
    Ok(match launcher::Launched::from_environment()?.map(|launched| launched.place) {
        Some(place) if place.world > 1 => join(tcp::Ring::join(&place, channel::Secret::from_environment()?.as_ref(), timeout)?, device)?,
        _ => Arc::new(Alone),
    })
}

#[cfg(feature = "nccl")]
fn join(ring: tcp::Ring, device: &Device) -> Result<Arc<dyn Exchange>, Error> {
    match device {
        Device::Cuda(device) => Ok(Arc::new(nccl::Gpus::join(ring, device)?)),
        _ => Ok(Arc::new(ring)),
    }
}

#[cfg(not(feature = "nccl"))]
#[expect(clippy::unnecessary_wraps, reason = "it can fail with NCCL")]
fn join(ring: tcp::Ring, device: &Device) -> Result<Arc<dyn Exchange>, Error> {
    if !device.is_cpu() {
        tracing::warn!("sums over the GPUs go through main memory and TCP: build with `--features nccl` for NCCL");
    }
    Ok(Arc::new(ring))
}

/// What rank 0 holds, of whatever length: the others give nothing.
///
/// # Errors
/// When another process is lost, or does not make the same call.
pub fn hand_out(exchange: &dyn Exchange, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
    let mut length = (bytes.len() as u64).to_le_bytes();
    exchange.broadcast(&mut length)?;
    let mut bytes = bytes;
    bytes.resize(u64::from_le_bytes(length) as usize, 0);
    exchange.broadcast(&mut bytes)?;
    Ok(bytes)
}
