//! The processor that a run computes on.
//!
//! ```
//! assert!(dino_train::device::open("cpu")?.is_cpu());
//! assert!(dino_train::device::known("cuda:1").is_ok());
//! assert!(dino_train::device::open("tpu").unwrap_err().to_string().contains("cpu, cuda or cuda:N is wanted"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use anyhow::{Context, Result, ensure};
use candle_core::Device;

use crate::exchange::launcher::Launched;

/// What is said of other names.
const WANTED: &str = "cpu, cuda or cuda:N is wanted";

/// The name of a device that there can be, whether this program and this machine have it or not.
///
/// # Errors
/// For other names, with what is wanted.
pub fn known(name: &str) -> Result<String, String> {
    if matches!(name, "cpu" | "cuda") || gpu(name).is_some() { Ok(name.to_owned()) } else { Err(WANTED.to_owned()) }
}

/// The number behind `cuda:`.
fn gpu(name: &str) -> Option<usize> {
    name.strip_prefix("cuda:")?.parse().ok()
}

/// The device of this name: `cpu`, `cuda` (the first GPU, or the one of this process's number on its machine) or `cuda:N`.
///
/// # Errors
/// For other names, in a program that was built without CUDA, and where there is no such GPU.
pub fn open(name: &str) -> Result<Device> {
    let number = match name {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => Launched::from_environment()?.map_or(0, |launched| launched.local_rank),
        _ => gpu(name).with_context(|| format!("--device {name}: {WANTED}"))?,
    };
    ensure!(
        cfg!(feature = "cuda"),
        "--device {name}: this program was built without CUDA; build it with `cargo build --release --package dino-train --features cuda`, \
         or use --device cpu"
    );
    let device = Device::new_cuda(number).with_context(|| format!("--device {name}"))?;
    #[cfg(feature = "cuda")]
    cuda::keep_memory(number)?;
    Ok(device)
}

/// Whether float32 products may be rounded to `TensorFloat32` (10 bits of mantissa), which is several times faster on a GPU's tensor cores.
pub fn allow_tf32(allow: bool) {
    #[cfg(feature = "cuda")]
    candle_core::cuda::set_gemm_reduced_precision_f32(allow);
    #[cfg(not(feature = "cuda"))]
    let _ = allow;
}

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::cuda::cudarc::driver::{result, sys};

    /// Keeps memory that was freed for the next allocation: by default the driver gives it back whenever the device is waited for, and
    /// every step would ask for all of it anew.
    pub(super) fn keep_memory(number: usize) -> anyhow::Result<()> {
        let device = result::device::get(number as i32)?;
        let mut pool = std::ptr::null_mut();
        let mut all = u64::MAX;
        let threshold = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        #[expect(unsafe_code, reason = "the driver's bindings have no safe form of these")]
        // SAFETY: the device exists, the pool is its own and lives as long as it, and the attribute is an unsigned 64-bit number.
        unsafe {
            sys::cuDeviceGetDefaultMemPool(&raw mut pool, device).result()?;
            sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut all).cast()).result()?;
        }
        Ok(())
    }
}
