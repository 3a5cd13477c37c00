//! How a training process treats memory and threads.

/// Prepares the process: the first thing that `main` calls, before there are other threads. For binaries whose global allocator is mimalloc.
///
/// Settings that the environment gives (`MIMALLOC_…`, `CANDLE_NUM_THREADS`) are left alone.
pub fn prepare() {
    dino_server::model::runtime::keep_quiet();
    keep_pages();
    leave_threads_to_rayon();
}

/// A step frees its tensors and allocates the same sizes again: freed pages stay in the process, on large pages where the system has
/// them. Otherwise one tenth of a small model's step goes to page faults.
fn keep_pages() {
    use libmimalloc_sys::{mi_option_large_os_pages, mi_option_set_default, mi_option_t};
    /// The crate has no name for it: `mi_option_purge_delay` of `mimalloc.h`.
    const PURGE_DELAY: mi_option_t = 15;
    // SAFETY: sets two numbers in the allocator's table of options.
    unsafe {
        mi_option_set_default(PURGE_DELAY, -1);
        mi_option_set_default(mi_option_large_os_pages, 1);
    }
}

/// What costs time runs in fused operators on rayon's threads. Candle spreads its own element-wise operators over workers that are pinned
/// to cores, and spins until they are done: on a machine that does anything else, one fifth of a step went to that waiting.
fn leave_threads_to_rayon() {
    const THREADS: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(THREADS).is_none() {
        // SAFETY: no other thread exists yet.
        unsafe { std::env::set_var(THREADS, "1") };
    }
}
