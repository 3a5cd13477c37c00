//! Main memory: which tensors lie in it, and the one way in which a training step copies values there.

use candle_core::{Device, Result, Tensor};

/// Whether tensors of this device lie in main memory, where the fused kernels reach them.
pub(crate) fn is_host(device: &Device) -> bool {
    #[cfg(test)]
    if elsewhere::is_on() {
        return false;
    }
    device.is_cpu()
}

/// Whether tensors of this device lie on a GPU, where the kernels of [`crate::kernels::cuda`] reach them.
#[cfg(any(feature = "cuda", test))]
pub(crate) fn is_gpu(device: &Device) -> bool {
    #[cfg(test)]
    if device.is_cpu() {
        return elsewhere::is_on();
    }
    device.is_cuda()
}

/// The elements of a float32 tensor in main memory. Waits until another device has computed them.
///
/// # Errors
/// When the device fails.
pub(crate) fn to_host(tensor: &Tensor) -> Result<Vec<f32>> {
    #[cfg(test)]
    elsewhere::count();
    tensor.flatten_all()?.to_vec1()
}

/// For tests on machines without a GPU: the CPU in a GPU's place, with emulated kernels, and the copies that are made from it.
#[cfg(test)]
pub(crate) mod elsewhere {
    use std::cell::Cell;

    thread_local! {
        static ON: Cell<bool> = const { Cell::new(false) };
        static COPIES: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn is_on() -> bool {
        ON.get()
    }

    pub(super) fn count() {
        COPIES.set(COPIES.get() + 1);
    }

    /// Copies to main memory since [`run`] began.
    pub(crate) fn copies() -> usize {
        COPIES.get()
    }

    /// What `f` returns when the CPU is treated as a GPU.
    pub(crate) fn run<T>(f: impl FnOnce() -> T) -> T {
        ON.set(true);
        COPIES.set(0);
        let result = f();
        ON.set(false);
        result
    }
}
