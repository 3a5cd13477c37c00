//! Values of flags that the programs' users write with units.
//!
//! ```
//! use dino_server::flags::{bytes, positive, seconds};
//!
//! assert_eq!(bytes("32M"), Ok(32 * 1024 * 1024));
//! assert_eq!(seconds("0.5"), Ok(std::time::Duration::from_millis(500)));
//! assert!(positive("0").is_err());
//! ```

use std::time::Duration;

/// A whole number from 1 on.
///
/// # Errors
/// What is wrong with it.
pub fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "expected a whole number, at least 1".into())
}

/// A number of bytes that fits into memory, written plain or with k, M or G (powers of 1024).
///
/// # Errors
/// What is wrong with it.
pub fn bytes(text: &str) -> Result<usize, String> {
    usize::try_from(bytes_u64(text)?).map_err(|_| TOO_LARGE.into())
}

/// A number of bytes of a file, written plain or with k, M or G (powers of 1024).
///
/// # Errors
/// What is wrong with it.
pub fn bytes_u64(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.chars().last() {
        Some('k' | 'K') => (&text[..text.len() - 1], 10),
        Some('m' | 'M') => (&text[..text.len() - 1], 20),
        Some('g' | 'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number of bytes, such as 33554432 or 32M")?;
    number.checked_mul(1 << shift).filter(|&bytes| bytes > 0).ok_or_else(|| TOO_LARGE.into())
}

const TOO_LARGE: &str = "must be at least 1 and fit the address space";

/// A time in seconds, with a fraction if need be.
///
/// # Errors
/// What is wrong with it.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds")?;
    if !(0.001..=86_400.0).contains(&seconds) {
        return Err("must lie between 0.001 and 86400".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// A time in seconds, or 0.
///
/// # Errors
/// What is wrong with it.
pub fn seconds_or_none(text: &str) -> Result<Duration, String> {
    if text.parse() == Ok(0.0) { Ok(Duration::ZERO) } else { seconds(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes("7"), Ok(7));
        assert_eq!(bytes("3k"), Ok(3072));
        assert_eq!(bytes("32M"), Ok(32 << 20));
        assert!(
            bytes("M").is_err() && bytes("-1").is_err() && bytes("1é").is_err() && bytes("99999999999G").is_err() && bytes("0").is_err()
        );
    }

    #[test]
    fn times_are_bounded() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(seconds("0").is_err() && seconds("NaN").is_err() && seconds("86401").is_err() && seconds("-1").is_err());
        assert_eq!(seconds_or_none("0"), Ok(Duration::ZERO));
        assert!(seconds_or_none("-0.1").is_err());
    }
}
