//! How many cores there are to work with.
//!
//! ```
//! let threads = dino_vision::cores::available();
//! assert!(threads >= 1);
//! ```

/// Cores that this process may use.
pub fn available() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
