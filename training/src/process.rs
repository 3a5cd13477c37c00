//! How a training process treats memory and threads.
//!
//! ```no_run
//! #[global_allocator]
//! static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
//!
//! fn main() {
//!     // SAFETY: this is the first statement of the program, and no other thread has been started.
//!     unsafe { dino_train::process::prepare() };
//!     assert!(std::env::var_os("ORT_DISABLE_TELEMETRY").is_some());
//! }
//! ```

/// Prepares the process. For binaries whose global allocator is mimalloc.
///
/// Settings that the environment gives (`MIMALLOC_…`, `CANDLE_NUM_THREADS`) are left alone.
///
/// # Safety
/// The process has one thread: it is the first thing that `main` calls. Others could read the environment while it changes.
#[expect(unsafe_code, reason = "other libraries read their settings from the environment, and only there")]
pub unsafe fn prepare() {
    // SAFETY: by the contract of this function no other thread exists.
    unsafe {
        dino_vision::model::runtime::disable_telemetry();
        leave_threads_to_rayon();
    }
    keep_pages();
}

/// The crate has no name for it: `mi_option_purge_delay` of `mimalloc.h`.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// A step frees its tensors and allocates the same sizes again: freed pages stay in the process, on large pages where the system has
/// them. Otherwise one tenth of a small model's step goes to page faults.
#[expect(unsafe_code, reason = "the allocator's options are set through its C interface")]
fn keep_pages() {
    use libmimalloc_sys::{mi_option_large_os_pages, mi_option_set_default};
    // SAFETY: sets two numbers in the allocator's table of options.
    unsafe {
        mi_option_set_default(PURGE_DELAY, -1);
        mi_option_set_default(mi_option_large_os_pages, 1);
    }
}

/// While this lives, freed memory goes back to the system at once: for work that needs much of it, once.
pub(crate) struct FreedPagesReturn {
    before: std::ffi::c_long,
}

impl FreedPagesReturn {
    /// From here on.
    #[expect(unsafe_code, reason = "the allocator's options are set through its C interface")]
    pub(crate) fn begin() -> Self {
        // SAFETY: reads and sets a number in the allocator's table of options.
        unsafe {
            let before = libmimalloc_sys::mi_option_get(PURGE_DELAY);
            libmimalloc_sys::mi_option_set(PURGE_DELAY, 0);
            Self { before }
        }
    }
}

impl Drop for FreedPagesReturn {
    #[expect(unsafe_code, reason = "the allocator's options are set through its C interface")]
    fn drop(&mut self) {
        // SAFETY: sets a number in the allocator's table of options.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, self.before) }
    }
}

/// What costs time runs in fused operators on rayon's threads. Candle spreads its own element-wise operators over workers that are pinned
/// to cores, and spins until they are done: on a machine that does anything else, one fifth of a step went to that waiting.
///
/// # Safety
/// The process has one thread.
#[expect(unsafe_code, reason = "candle reads this setting from the environment, and only there")]
unsafe fn leave_threads_to_rayon() {
    const THREADS: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(THREADS).is_none() {
        // SAFETY: by the contract of this function no other thread exists.
        unsafe { std::env::set_var(THREADS, "1") };
    }
}
