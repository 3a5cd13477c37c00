//! Files of the command line's bulk work: [`source`] is where pictures come from, [`table`] what `import` reads beside them, [`vectors`]
//! what `embed` writes and `import` takes up again, [`shard`] the part of it that one of several jobs does. [`duplicates`] is the report
//! of near-copies.
//!
//! ```
//! use dino_server::files::{shard::Shard, vectors::Target};
//!
//! // What `embed --out vectors.npy --shard 0/4` makes of its flags.
//! let target: Target = "vectors.npy".parse()?;
//! let part: Shard = "0/4".parse()?;
//! assert_eq!(target.path(), std::path::Path::new("vectors.npy"));
//! assert_eq!(part.to_string(), "0/4");
//! # Ok::<(), String>(())
//! ```

pub mod duplicates;
pub mod shard;
pub mod source;
pub mod storage;
pub mod table;
pub mod vectors;

/// What a build without the feature `parquet` answers to the name of a Parquet file.
#[cfg(not(feature = "parquet"))]
pub const NO_PARQUET: &str =
    "this program was built without its feature `parquet` (`make serve` leaves it out), which `cargo build --release` includes";
