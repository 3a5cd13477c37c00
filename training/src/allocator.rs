//! How the allocator treats the long buffers of training.

/// Keeps freed pages in the process, on large pages where the system has them: a step frees its tensors and allocates the same sizes again.
///
/// Without it one tenth of a small model's step goes to page faults. Settings given by the environment (`MIMALLOC_…`) are left alone.
/// Only for binaries whose global allocator is mimalloc; call it before the first long allocation.
pub fn keep_pages() {
    use libmimalloc_sys::{mi_option_large_os_pages, mi_option_set_default, mi_option_t};
    /// The crate has no name for it: `mi_option_purge_delay` of `mimalloc.h`.
    const PURGE_DELAY: mi_option_t = 15;
    // SAFETY: sets two numbers in the allocator's table of options.
    unsafe {
        mi_option_set_default(PURGE_DELAY, -1);
        mi_option_set_default(mi_option_large_os_pages, 1);
    }
}
