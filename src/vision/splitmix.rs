//! `SplitMix64` (Steele, Lea and Flood 2014): numbers without a pattern that are the same each time.
//!
//! ```
//! use dino_vision::splitmix::splitmix64;
//!
//! assert_eq!(splitmix64(0), 0xE220_A839_7B1D_CDAF);
//! assert_ne!(splitmix64(1) % 30, splitmix64(2) % 30);
//! ```

/// What a generator's state grows by with each number.
pub const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// The number that a generator of this state gives; also a hash of numbers that follow each other.
pub fn splitmix64(state: u64) -> u64 {
    let mut z = state.wrapping_add(STEP);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
