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
//! let target = Target { storage: storage.clone(), name: "vectors.npy".into(), format: Format::of("vectors.npy").unwrap(), in_folder: None };
//! assert_eq!(target.header()?, None, "nothing was embedded yet");
//!
//! storage.write("vectors.npy", b"an array of another program")?;
//! assert!(matches!(target.header(), Err(Error::Format { .. })), "it is not replaced");
//! # Ok::<(), Error>(())
//! ```

#[cfg(feature = "parquet")]
pub(super) mod columns;
mod npy;
#[cfg(feature = "parquet")]
mod parquet;
pub mod parts;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use ndarray::Array3;
use serde::{Deserialize, Serialize};

use super::shard::Shard;
use super::source::Failure;
use super::storage::{self, Storage};
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
pub(super) const HEADER: &str = "dino";

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
    /// Where it is a part of a folder.
    pub in_folder: Option<InFolder>,
}

/// Where a command writes embeddings, as its caller gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Out {
    folder: String,
    /// Of a file. Without one, each part gets a name in the folder.
    file: Option<(String, Format)>,
}

/// A file of a folder whose files make a whole.
pub struct InFolder {
    /// The names of all parts, of which this file is one.
    parts: Vec<String>,
}

/// Name of what says that all parts of a folder are there.
pub const SUCCESS: &str = "_SUCCESS";

impl FromStr for Out {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        #[cfg(not(feature = "object-store"))]
        if storage::is_url(text) {
            return Err(super::NO_OBJECTS.to_owned());
        }
        #[cfg(feature = "object-store")]
        if storage::is_url(text) && !super::objects::Place::is_url(text) {
            return Err("it is written to folders, s3://, gs:// and az://".to_owned());
        }
        let at = text.rfind('/').map_or(0, |slash| slash + 1);
        let (folder, name) = text.split_at(at);
        let file = if name.is_empty() { None } else { Some((name.to_owned(), Format::of(name)?)) };
        Ok(Self { folder: folder.to_owned(), file })
    }
}

impl Out {
    /// The file of a part. In a folder it is called `part-00003-of-00016.parquet`, or by another ending for another format.
    ///
    /// # Errors
    /// What is wrong with the address of an object storage, or with its credentials; and where the folder holds parts of another number or
    /// format, which readers would take for parts of this run.
    pub fn target(&self, shard: Shard, format: Format) -> Result<Target, String> {
        let storage = storage::open(&self.folder)?;
        if let Some((name, format)) = &self.file {
            return Ok(Target { storage, name: name.clone(), format: *format, in_folder: None });
        }
        storage.prepare().map_err(|error| error.to_string())?;
        let name = |index: u32| format!("part-{index:05}-of-{:05}.{format}", shard.count());
        let parts: Vec<String> = (0..shard.count()).map(name).collect();
        let there = storage.names("").map_err(|error| error.to_string())?;
        if let Some(other) = there.iter().find(|name| is_part(name) && !parts.contains(name)) {
            let other = storage.shown(other);
            return Err(format!("{other} is a part of another run than {}: give this one another folder, or delete it", parts[0]));
        }
        Ok(Target { storage, name: name(shard.index()), format, in_folder: Some(InFolder { parts }) })
    }
}

/// Whether a file is called as those in a folder of parts are.
fn is_part(name: &str) -> bool {
    let Some((stem, "parquet" | "npy")) = name.rsplit_once('.') else { return false };
    let numbers = stem.strip_prefix("part-").and_then(|numbers| numbers.split_once("-of-"));
    numbers
        .is_some_and(|(index, count)| [index, count].iter().all(|text| text.len() >= 5 && text.bytes().all(|byte| byte.is_ascii_digit())))
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::of(&format!("x.{text}"))
    }
}

impl Format {
    /// What a folder gets where nothing else is said: Parquet in builds that write it.
    #[cfg(feature = "parquet")]
    pub const USUAL: Self = Self::Parquet;
    /// What a folder gets where nothing else is said: Parquet in builds that write it.
    #[cfg(not(feature = "parquet"))]
    pub const USUAL: Self = Self::Npy;

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
            _ => Err("the name has to end in .parquet or .npy, or, of a folder for the parts of several jobs, in /".to_owned()),
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
    /// Ids of those that a storage refused while it gave others. A later run asks for them again, though nothing has changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
    /// Hash over the settings and the files that went in: an equal one means that nothing has changed.
    pub inputs: String,
    /// Hash over the settings, the number of parts and the names of all pictures in all parts: files with the same belong together. Empty in files
    /// of versions that did not write it.
    #[serde(default)]
    pub run: String,
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

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            #[cfg(feature = "parquet")]
            Self::Parquet => "parquet",
            Self::Npy => "npy",
        })
    }
}

impl Target {
    /// Says that this file is going to be made anew, so that its folder is not whole.
    ///
    /// # Errors
    /// Those of the storage.
    pub fn begin(&self) -> std::io::Result<()> {
        if self.in_folder.is_some() { self.storage.delete(SUCCESS) } else { Ok(()) }
    }

    /// Writes the failures beside a file of a folder, one JSON object a line.
    ///
    /// # Errors
    /// Those of the storage.
    pub fn write_failures(&self, failures: &[Failure]) -> std::io::Result<()> {
        if self.in_folder.is_none() {
            return Ok(());
        }
        let mut lines = Vec::new();
        for failure in failures {
            serde_json::to_writer(&mut lines, failure)?;
            lines.push(b'\n');
        }
        let name = self.name.rsplit_once('.').map_or(self.name.as_str(), |(stem, _)| stem);
        self.storage.write(&format!("{name}.failures.jsonl"), &lines)
    }

    /// Marks a folder as whole where no part is missing, and all are of the run of `header`. The last of several jobs does that, or several of
    /// them, with the same content.
    ///
    /// # Errors
    /// Those of the storage, and of reading the headers of the other parts.
    pub fn end(&self, header: &Header) -> Result<(), Error> {
        let Some(InFolder { parts }) = &self.in_folder else { return Ok(()) };
        let there = self.storage.names("")?;
        if there.contains(SUCCESS) || !parts.iter().all(|part| there.contains(part)) {
            return Ok(());
        }
        for name in parts.iter().filter(|name| **name != self.name) {
            let part = Self { storage: Arc::clone(&self.storage), name: name.clone(), format: self.format, in_folder: None };
            // It is of an earlier run; the job that replaces it marks the folder.
            if part.header()?.is_none_or(|part| part.run != header.run) {
                return Ok(());
            }
        }
        Ok(self.storage.write(SUCCESS, format!("{{\"parts\": {}}}\n", parts.len()).as_bytes())?)
    }

    /// Whether the file that stands there is what a run with `header` would make.
    pub fn is_made(&self, standing: &Header, header: &Header) -> bool {
        standing.inputs == header.inputs && (self.in_folder.is_none() || standing.run == header.run)
    }

    /// Its address, for messages.
    pub fn shown(&self) -> String {
        self.storage.shown(&self.name)
    }

    /// The header of the file that stands there; `None` where none does.
    ///
    /// # Errors
    /// [`Error::Format`] where it is a file of something else.
    #[cfg_attr(not(feature = "parquet"), expect(unused_variables, reason = "only Parquet has its header at its end"))]
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
