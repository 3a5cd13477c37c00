//! Files of embeddings: what `embed` writes, and `import --table` takes up again.
//!
//! While pictures are embedded, finished ones are kept in [`parts`]; only a complete file ever stands under its name.
//! The file is Parquet or `.npy`, chosen by its ending, and carries a [`Header`]: in Parquet the entry `dino` of its
//! metadata, beside `FILE.npy` the object `dino` of `FILE.npy.json`.

mod npy;
#[cfg(feature = "parquet")]
mod parquet;
pub mod parts;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use ndarray::Array3;
use serde::{Deserialize, Serialize};

use super::replace;
use super::shard::Shard;
use crate::encoding::{Dtype, Encoded};
use dino_vision::embedding::{Pooling, normalise};
use parts::Parts;

#[cfg(feature = "parquet")]
pub use parquet::header_of;

/// Column of the paths below the folder.
pub const PATH: &str = "path";
/// Column of the classes.
pub const LABEL: &str = "label";
/// Column of the files' SHA-256, in hex.
pub const SHA256: &str = "sha256";
/// Column of the vectors: lists of one fixed length; the rows of a picture with several follow each other.
pub const EMBEDDING: &str = "embedding";

/// Version of [`Header`] and of the columns.
const FORMAT: u32 = 1;
/// Name of the header in a file's metadata.
const HEADER: &str = "dino";

/// Where embeddings go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A Parquet file.
    #[cfg(feature = "parquet")]
    Parquet(PathBuf),
    /// A NumPy array, with its rows' paths in a JSON file beside it.
    Npy(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        match path.extension().and_then(|ending| ending.to_str()) {
            #[cfg(feature = "parquet")]
            Some("parquet") => Ok(Self::Parquet(path)),
            #[cfg(not(feature = "parquet"))]
            Some("parquet") => Err(super::NO_PARQUET.to_owned()),
            Some("npy") => Ok(Self::Npy(path)),
            _ => Err("the name has to end in .parquet or .npy".to_owned()),
        }
    }
}

/// What the embeddings of a file are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Version of this header, now 1.
    pub format: u32,
    /// Program and version that wrote the file.
    pub made_by: String,
    /// Architecture of the model.
    pub architecture: String,
    /// SHA-256 of the weights' source.
    pub weights: String,
    /// What vectors must share to be compared; see [`Model::fingerprint`](dino_vision::model::Model::fingerprint).
    pub fingerprint: String,
    /// Which tokens became the embedding.
    pub pooling: Pooling,
    /// Precision that the model ran in.
    pub precision: String,
    /// How numbers are stored.
    pub dtype: Dtype,
    /// Whether each row was scaled to length 1.
    pub normalize: bool,
    /// Length of a row.
    pub dim: usize,
    /// Rows of one picture: 1, or its patches.
    pub rows: usize,
    /// Which part of the folder this is.
    pub shard: Shard,
    /// Files that are not in here because they could not be read.
    pub skipped: usize,
    /// Hash over the settings and the files that went in: an equal one means that nothing has changed.
    pub inputs: String,
}

impl Header {
    /// The version that is written.
    pub const FORMAT: u32 = FORMAT;
}

/// Why a file of embeddings cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The file is not of its format.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file's header is of another version.
    #[error("{} has format {found}, this program reads {FORMAT}: use a newer one", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

impl Error {
    fn format(path: &Path, reason: impl ToString) -> Self {
        Self::Format { path: path.to_owned(), reason: reason.to_string() }
    }
}

impl Target {
    /// The file of the embeddings.
    pub fn path(&self) -> &Path {
        match self {
            #[cfg(feature = "parquet")]
            Self::Parquet(path) => path,
            Self::Npy(path) => path,
        }
    }

    /// The header of the file that stands there; `None` where none does.
    ///
    /// # Errors
    /// [`Error::Format`] where it is a file of something else.
    pub fn header(&self) -> Result<Option<Header>, Error> {
        if !self.path().try_exists()? {
            return Ok(None);
        }
        let header = match self {
            #[cfg(feature = "parquet")]
            Self::Parquet(path) => header_of(path)?,
            Self::Npy(path) => npy::header_of(path)?,
        };
        header.map(Some).ok_or_else(|| Error::format(self.path(), "it was not written by embed"))
    }

    /// Writes all parts, in their order, as one file that is complete or not there.
    ///
    /// # Errors
    /// Those of reading the parts and writing.
    pub fn write(&self, header: &Header, parts: &Parts) -> Result<(), Error> {
        match self {
            #[cfg(feature = "parquet")]
            Self::Parquet(path) => replace(path, |out| parquet::write(path, header, parts, out)),
            Self::Npy(path) => npy::write(path, header, parts),
        }
    }
}

/// Vectors as they are written, `[pictures, rows, dim]`.
fn encoded(header: &Header, pictures: usize, vectors: Vec<f32>) -> Result<Encoded, String> {
    let mut vectors = Array3::from_shape_vec((pictures, header.rows, header.dim), vectors).map_err(|error| error.to_string())?;
    if header.normalize {
        normalise(&mut vectors);
    }
    Ok(Encoded::new(vectors.view(), header.dtype))
}

/// Reads a header that was found in a file's metadata.
fn parse_header(path: &Path, json: &str) -> Result<Header, Error> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let malformed = |error: serde_json::Error| Error::format(path, format!("its entry `{HEADER}` cannot be read: {error}"));
    match serde_json::from_str::<Version>(json).map_err(malformed)?.format {
        FORMAT => serde_json::from_str(json).map_err(malformed),
        found => Err(Error::Version { path: path.to_owned(), found }),
    }
}
