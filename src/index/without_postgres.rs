//! The flag `--index` of a build without the feature `postgres`.

use std::convert::Infallible;
use std::str::FromStr;

use super::Error;

/// The URL of a database, of which this build keeps nothing: it may hold a password.
#[derive(Clone, Debug)]
pub struct IndexUrl;

impl FromStr for IndexUrl {
    type Err = Infallible;

    /// Takes any string: clap would show an error here together with the string. [`IndexUrl::check`] refuses it.
    fn from_str(_: &str) -> Result<Self, Infallible> {
        Ok(Self)
    }
}

impl IndexUrl {
    /// Refuses it.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`], always.
    pub fn check(&self) -> Result<(), Error> {
        let reason = "--index (DINO_INDEX): this program was built without its feature `postgres` (`make serve` leaves it out), which \
             `cargo build --release` includes";
        Err(Error::InvalidParameter(reason.to_owned()))
    }
}
