//! The name of a collection.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Error;

/// A checked collection name: `[A-Za-z0-9][A-Za-z0-9_.-]{0,127}`.
///
/// The store keeps collections under numbers, so that a name never becomes a path; the check guards everything else
/// that names end up in (URLs, logs, file names that users choose).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(inline)]
pub struct CollectionName(String);

impl CollectionName {
    /// Longest name, in bytes.
    pub const MAX_LEN: usize = 128;

    /// The name as a string.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CollectionName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let starts_well = name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        if starts_well && name.len() <= Self::MAX_LEN && name.bytes().all(allowed) {
            Ok(Self(name.to_owned()))
        } else {
            // A long name is cut, so that an error never repeats megabytes of a request.
            Err(Error::InvalidName(name.chars().take(Self::MAX_LEN + 1).collect()))
        }
    }
}

impl TryFrom<String> for CollectionName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        name.parse()
    }
}

impl From<CollectionName> for String {
    fn from(name: CollectionName) -> Self {
        name.0
    }
}

impl fmt::Display for CollectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_paths_or_are_too_long_are_refused() {
        for name in ["a", "default", "A.b-c_9", "0", &"x".repeat(128)] {
            assert_eq!(name.parse::<CollectionName>().unwrap().as_str(), name);
        }
        for name in ["", " ", ".", "..", "../x", "a/b", "a\\b", "a\0", "-a", "_a", ".a", "ä", "a b", "a\n", &"x".repeat(129)] {
            assert!(matches!(name.parse::<CollectionName>(), Err(Error::InvalidName(_))), "{name:?} was accepted");
        }
    }
}
