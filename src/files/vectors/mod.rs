//! Files of embeddings: what `embed` writes, and `import --table` takes up again.
//!
//! While pictures are embedded, finished ones are kept in [`parts`]; only a complete file ever stands under its name.
//! The file is Parquet or `.npy`, chosen by its ending, and carries a [`Header`]: in Parquet the entry `dino` of its
//! metadata, beside `FILE.npy` the object `dino` of `FILE.npy.json`.
//!
//! ```
//! use std::sync::Arc;
//!
//! use dino_server::files::{storage::{Folder, Storage as _}, vectors::{Error, Format, Target}};
//!
//! let folder = tempfile::tempdir()?;
//! let storage = Arc::new(Folder::new(folder.path()));
//! let target = Target { storage: storage.clone(), name: "vectors.npy".into(), format: Format::of("vectors.npy").unwrap() };
//! assert_eq!(target.header()?, None, "nothing was embedded yet");
//!
//! storage.write("vectors.npy", b"an array of another program")?;
//! assert!(matches!(target.header(), Err(Error::Format { .. })), "it is not replaced");
//! # Ok::<(), Error>(())
//! ```

mod npy;
#[cfg(feature = "parquet")]
mod parquet;
pub mod parts;

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use ndarray::Array3;
use serde::{Deserialize, Serialize};

use super::shard::Shard;
use super::storage::{Folder, Storage};
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
/// Bytes from the end of a file that are read for its header; more where they are not enough.
const TAIL: u64 = 64 << 10;
/// Name of the header in a file's metadata.
const HEADER: &str = "dino";

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A Parquet file.
    #[cfg(feature = "parquet")]
    Parquet,
    /// A NumPy array, with its rows' paths in a JSON file beside it.
    Npy,
}

/// A file of embeddings, which is there or is to be written.
pub struct Target {
    /// The folder that it is in.
    pub storage: Arc<dyn Storage>,
    /// Its name there.
    pub name: String,
    /// What it is.
    pub format: Format,
}

/// Where a command writes embeddings, as its caller gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Out {
    folder: String,
    name: String,
    format: Format,
}

impl FromStr for Out {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let format = Format::of(text)?;
        let at = text.rfind('/').map_or(0, |slash| slash + 1);
        Ok(Self { folder: text[..at].to_owned(), name: text[at..].to_owned(), format })
    }
}

impl Out {
    /// The file.
    pub fn target(&self) -> Target {
        Target { storage: Arc::new(Folder::new(Path::new(&self.folder))), name: self.name.clone(), format: self.format }
    }
}

impl Format {
    /// What the name of a file says.
    ///
    /// # Errors
    /// Where it says nothing, or this build does not write such files.
    pub fn of(name: &str) -> Result<Self, String> {
        match Path::new(name).extension().and_then(|ending| ending.to_str()) {
            #[cfg(feature = "parquet")]
            Some("parquet") => Ok(Self::Parquet),
            #[cfg(not(feature = "parquet"))]
            Some("parquet") => Err(super::NO_PARQUET.to_owned()),
            Some("npy") => Ok(Self::Npy),
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
    #[error("{shown}: {reason}")]
    Format {
        /// The file.
        shown: String,
        /// What is wrong.
        reason: String,
    },
    /// The file's header is of another version.
    #[error("{shown} has format {found}, this program reads {FORMAT}: use a newer one")]
    Version {
        /// The file.
        shown: String,
        /// Its version.
        found: u32,
    },
}

impl Error {
    fn format(shown: &str, reason: impl ToString) -> Self {
        Self::Format { shown: shown.to_owned(), reason: reason.to_string() }
    }
}

impl Target {
    /// Its address, for messages.
    pub fn shown(&self) -> String {
        self.storage.shown(&self.name)
    }

    /// The header of the file that stands there; `None` where none does.
    ///
    /// # Errors
    /// [`Error::Format`] where it is a file of something else.
    pub fn header(&self) -> Result<Option<Header>, Error> {
        let Some((tail, size)) = self.storage.tail(&self.name, TAIL)? else { return Ok(None) };
        let header = match self.format {
            #[cfg(feature = "parquet")]
            Format::Parquet => parquet::header_at_end(self, tail, size)?,
            Format::Npy => npy::header_beside(self)?,
        };
        header.map(Some).ok_or_else(|| Error::format(&self.shown(), "it was not written by embed"))
    }

    /// Writes all parts, in their order, as one file that is complete or not there.
    ///
    /// # Errors
    /// Those of reading the parts and writing.
    pub fn write(&self, header: &Header, parts: &Parts) -> Result<(), Error> {
        match self.format {
            #[cfg(feature = "parquet")]
            Format::Parquet => parquet::write(self, header, parts),
            Format::Npy => npy::write(self, header, parts),
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
fn parse_header(shown: &str, json: &str) -> Result<Header, Error> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let malformed = |error: serde_json::Error| Error::format(shown, format!("its entry `{HEADER}` cannot be read: {error}"));
    match serde_json::from_str::<Version>(json).map_err(malformed)?.format {
        FORMAT => serde_json::from_str(json).map_err(malformed),
        found => Err(Error::Version { shown: shown.to_owned(), found }),
    }
}
