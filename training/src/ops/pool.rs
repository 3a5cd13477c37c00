//! Long buffers that are handed from one training step to the next.
//!
//! What the backward pass needs is written anew in each step at the same sizes: a fresh zeroed buffer each time would cost a pass
//! over memory for the zeros alone.

use std::sync::{Mutex, PoisonError};

static BUFFERS: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// A buffer of `len` elements with any values.
pub(super) fn take(len: usize) -> Vec<f32> {
    let mut buffers = BUFFERS.lock().unwrap_or_else(PoisonError::into_inner);
    match buffers.iter().position(|buffer| buffer.len() == len) {
        Some(found) => buffers.swap_remove(found),
        None => vec![0.0; len],
    }
}

/// Keeps a buffer for the next step. Where so many are kept that shapes must have changed again and again, all are dropped first.
pub(super) fn give_back(buffer: Vec<f32>) {
    /// More than the blocks of any network keep at once.
    const MOST: usize = 1024;
    let mut buffers = BUFFERS.lock().unwrap_or_else(PoisonError::into_inner);
    if buffers.len() >= MOST {
        buffers.clear();
    }
    if !buffer.is_empty() {
        buffers.push(buffer);
    }
}

/// Buffers of `len` elements that wait for the next step.
#[cfg(test)]
pub(crate) fn waiting(len: usize) -> usize {
    BUFFERS.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|buffer| buffer.len() == len).count()
}
