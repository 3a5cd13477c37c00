//! Files of the command line's bulk work: [`table`] is what `import` reads, [`vectors`] what `embed` writes and `import` takes up
//! again, [`shard`] the part of it that one of several jobs does.

pub mod shard;
pub mod table;
pub mod vectors;

/// What a build without the feature `parquet` answers to the name of a Parquet file.
#[cfg(not(feature = "parquet"))]
pub const NO_PARQUET: &str =
    "this program was built without its feature `parquet` (`make serve` leaves it out), which `cargo build --release` includes";
