//! The arithmetic of the CPU path, on plain slices: no shapes beyond rows and columns, no autograd, no allocation of activations.
//!
//! Stock element-wise CPU operators run on one core without wide vectors, and several lack a backward pass.
//! These run with the widest vectors that the machine has, and are called by [`crate::ops`] from one task per core.
//! All matrices are row-major and contiguous: `[rows, columns]`.
//!
//! ```
//! use dino_train::kernels::{matmul::{Accum, Precision, Weight}, reduce::add_bias};
//!
//! // A linear layer on two rows: x · wᵀ + b.
//! let weight = Weight::transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, Precision::F32);
//! let mut y = [0.0; 6];
//! weight.multiply(&mut y, Accum::Replace, &[1.0, 0.0, 0.0, 1.0]);
//! add_bias(&mut y, &[0.5, 0.0, 0.0]);
//! assert_eq!(y, [1.5, 3.0, 5.0, 2.5, 4.0, 6.0]);
//! ```

pub mod activation;
pub mod adam;
pub mod attention;
pub mod batch_norm;
#[cfg(target_arch = "x86_64")]
mod bf16;
#[cfg(any(feature = "cuda", test))]
pub(crate) mod cuda;
pub mod depthwise;
pub mod layer_norm;
pub mod matmul;
pub mod momentum;
pub mod reduce;
pub mod softmax;
mod vector;
pub mod windows;

/// The first `len` elements of a scratch buffer that grows on demand.
pub(crate) fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}
