//! Values of flags that both programs have.
//!
//! ```
//! use clap::{Arg, Command};
//! use dino_hub::Location;
//! use dino_program::flags::{location, share};
//!
//! let command = Command::new("example")
//!     .arg(Arg::new("model").long("model").value_parser(location()))
//!     .arg(Arg::new("threshold").long("threshold").value_parser(share::<f32>));
//! let matches = command.try_get_matches_from(["example", "--model", "models/demo", "--threshold", "0.6"])?;
//! assert!(matches!(matches.get_one("model"), Some(Location::Path(_))));
//! assert_eq!(matches.get_one("threshold"), Some(&0.6_f32));
//! assert!(share::<f32>("1.5").is_err());
//! # Ok::<(), clap::Error>(())
//! ```

use std::str::FromStr;

use clap::builder::{OsStringValueParser, RangedU64ValueParser, TypedValueParser};
use dino_hub::Location;

/// Where a model or a checkpoint is: a path, or a name on a model hub.
pub fn location() -> impl TypedValueParser<Value = Location> {
    OsStringValueParser::new().try_map(Location::of)
}

/// A whole number of at least 1.
pub fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// A whole number from 1 to `most`.
pub fn one_to(most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=most)
}

/// A whole number from 0 to `most`.
pub fn up_to(most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(0..=most)
}

/// A finite number of at least 0.
///
/// # Errors
/// For anything else, with what is expected.
pub fn from_zero<T: FromStr + Copy + Into<f64>>(text: &str) -> Result<T, String> {
    number(text, |value| value >= 0.0, "a number of at least 0")
}

/// A finite number above 0.
///
/// # Errors
/// For anything else, with what is expected.
pub fn above_zero<T: FromStr + Copy + Into<f64>>(text: &str) -> Result<T, String> {
    number(text, |value| value > 0.0, "a number above 0")
}

/// A finite number of at least 1.
///
/// # Errors
/// For anything else, with what is expected.
pub fn from_one<T: FromStr + Copy + Into<f64>>(text: &str) -> Result<T, String> {
    number(text, |value| value >= 1.0, "a number of at least 1")
}

/// A number from 0 to 1.
///
/// # Errors
/// For anything else, with what is expected.
pub fn share<T: FromStr + Copy + Into<f64>>(text: &str) -> Result<T, String> {
    number(text, |value| (0.0..=1.0).contains(&value), "a number from 0 to 1")
}

/// A number above 0 and at most 1.
///
/// # Errors
/// For anything else, with what is expected.
pub fn part<T: FromStr + Copy + Into<f64>>(text: &str) -> Result<T, String> {
    number(text, |value| value > 0.0 && value <= 1.0, "a number above 0 and at most 1")
}

/// A number from 0 up to, but not, 1.
///
/// # Errors
/// For anything else, with what is expected.
pub fn below_one<T: FromStr + Copy + Into<f64>>(text: &str) -> Result<T, String> {
    number(text, |value| (0.0..1.0).contains(&value), "a number from 0 up to, but not, 1")
}

/// A finite number that fits.
fn number<T: FromStr + Copy + Into<f64>>(text: &str, fits: impl Fn(f64) -> bool, wanted: &str) -> Result<T, String> {
    let value = text.parse().ok().filter(|&value: &T| value.into().is_finite() && fits(value.into()));
    value.ok_or_else(|| format!("expected {wanted}"))
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command};

    use super::*;

    #[test]
    fn counts_out_of_range_are_refused() {
        let takes = |flag: &str, value: &str| {
            let command = Command::new("example")
                .arg(Arg::new("one-to").long("one-to").value_parser(one_to(64)))
                .arg(Arg::new("up-to").long("up-to").value_parser(up_to(64)));
            command.try_get_matches_from(["example", flag, value]).is_ok()
        };
        assert!(takes("--one-to", "1") && takes("--one-to", "64") && takes("--up-to", "0") && takes("--up-to", "64"));
        for (flag, value) in [("--one-to", "0"), ("--one-to", "65"), ("--up-to", "65"), ("--up-to", "-1"), ("--up-to", "x")] {
            assert!(!takes(flag, value), "{flag} {value}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for text in ["nan", "inf", "-inf", "1e999", "-0.1", "", "x"] {
            assert!(from_zero::<f64>(text).is_err() && share::<f32>(text).is_err(), "{text}");
        }
        assert_eq!(from_zero::<f64>("0"), Ok(0.0));
        assert!(above_zero::<f64>("0").is_err() && part::<f64>("0").is_err());
        assert_eq!(part::<f32>("1"), Ok(1.0));
        assert!(below_one::<f64>("1").is_err() && share::<f64>("1.01").is_err());
    }
}
