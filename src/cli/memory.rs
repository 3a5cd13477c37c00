//! What happens to memory that is no longer needed.

/// Blocks from this size on are asked of the system one by one, and go back to it when they are freed. A body, a large picture.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: libc::c_int = 2 << 20;

/// Has freed memory go back to the system.
///
/// Left to itself glibc raises the size of such blocks to the largest that was ever freed, up to 32 MB, and keeps what is smaller in
/// pools, one for several threads each: after a few large bodies a server holds many times as much as it uses. To be called before
/// there are other threads.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // A setting that is refused leaves things as they were.
        #[expect(unsafe_code, reason = "glibc has no other way to set this; both take two numbers, and no other thread allocates yet")]
        // SAFETY: the two calls only set options of the allocator.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
        }
    }
}
