//! Large pages for what is read at random places.
//!
//! A search in a graph jumps from vector to vector. With pages of 4 KB nearly every jump misses the processor's table of pages;
//! with pages of 2 MB searches are a fifth faster (BENCHMARKS.md).

/// Below this size a block would be few large pages, and smaller ones are shared with other blocks.
const LEAST_BYTES: usize = 8 << 20;

/// An empty list with room for `capacity` elements, in large pages where it is large and the system has them.
pub(super) fn with_capacity<T>(capacity: usize) -> Vec<T> {
    let list = Vec::with_capacity(capacity);
    advise(list.as_ptr(), capacity);
    list
}

/// `length` zeros, in large pages where that is much and the system has them.
pub(super) fn zeros(length: usize) -> Vec<f32> {
    let list = vec![0.0; length];
    advise(list.as_ptr(), length);
    list
}

/// Asks for large pages for a block of memory. To be called before the block is written to: pages that have memory stay as they are.
fn advise<T>(start: *const T, length: usize) {
    let bytes = length * size_of::<T>();
    if bytes < LEAST_BYTES {
        return;
    }
    #[cfg(target_os = "linux")]
    {
        #[expect(unsafe_code, reason = "no library asks this for memory of a Vec")]
        // SAFETY: both take numbers; the advice changes the size of pages, never what is in them, and whole pages inside the
        // block belong to it alone. A system that refuses leaves things as they were.
        unsafe {
            let page = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).unwrap_or(4096).max(1);
            let skipped = start.cast::<u8>().align_offset(page);
            let whole = bytes.saturating_sub(skipped) / page * page;
            libc::madvise(start.cast_mut().wrapping_byte_add(skipped).cast(), whole, libc::MADV_HUGEPAGE);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = start;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_blocks_hold_what_is_put_into_them() {
        let length = 2 * LEAST_BYTES / size_of::<u32>() + 3;
        let mut numbers = with_capacity(length);
        numbers.extend(0..length as u32);
        assert!(numbers.iter().enumerate().all(|(at, &number)| at == number as usize));
        assert!(zeros(length).iter().all(|&number| number == 0.0));
        assert_eq!(with_capacity::<u8>(0).capacity(), 0);
    }
}
