//! Files of the command line's bulk work: [`source`] is where pictures come from, [`table`] what `import` reads beside them, [`vectors`]
//! what `embed` writes and `import` takes up again, [`stream`] what it answers to record batches on stdin, [`shard`] the part of it that one of several jobs does. [`duplicates`] is the report
//! of near-copies.
//!
//! ```
//! use dino_server::files::{shard::Shard, vectors::{Format, Out}};
//!
//! // What `embed --out folder/vectors.npy --shard 0/4` makes of its flags.
//! let out: Out = "folder/vectors.npy".parse()?;
//! let part: Shard = "0/4".parse()?;
//! assert_eq!(out.target(part, Format::USUAL)?.name, "vectors.npy");
//! # Ok::<(), String>(())
//! ```

pub mod duplicates;
#[cfg(feature = "object-store")]
pub mod objects;
pub mod shard;
pub mod source;
pub mod storage;
#[cfg(feature = "parquet")]
pub mod stream;
pub mod table;
pub mod vectors;

/// What a build without the feature `parquet` answers to the name of a Parquet file.
#[cfg(not(feature = "parquet"))]
pub const NO_PARQUET: &str =
    "this program was built without its feature `parquet` (`make serve` leaves it out), which `cargo build --release` includes";

/// What a build without the feature `parquet` answers to streams of record batches.
#[cfg(not(feature = "parquet"))]
pub const NO_ARROW: &str = "this program was built without its feature `parquet`, which reads Arrow too (`make serve` leaves it out), and which `cargo build --release` \
     includes";

/// What a build without the feature `object-store` answers to addresses of an object storage.
#[cfg(not(feature = "object-store"))]
pub const NO_OBJECTS: &str =
    "this program was built without its feature `object-store` (`make serve` leaves it out), which `cargo build --release` includes";
