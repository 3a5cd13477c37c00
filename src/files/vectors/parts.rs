//! Embeddings of an unfinished run: one small file for each batch of pictures, so that a run that was killed can be continued.
//!
//! A part is named by a hash over the settings and over the names, sizes and times of its files, and by its place among the parts of
//! the same unit of the source. Whatever changes makes another name, and is embedded anew. The folder of the parts is beside the file that they become, with a dot before
//! its name, and goes when that is complete.
//!
//! A part: length of the head (u64), head as JSON, then the vectors (f32), little-endian.
//!
//! ```
//! use std::sync::Arc;
//!
//! use dino_server::files::{storage::{Folder, Storage}, vectors::parts::{Part, Parts, Row}};
//!
//! let folder = tempfile::tempdir()?;
//! let storage: Arc<dyn Storage> = Arc::new(Folder::new(folder.path()));
//! let row = Row { path: "cat/1.jpg".into(), label: Some("cat".into()), sha256: "0".repeat(64) };
//! let part = Part { rows: vec![row], vectors: vec![0.6, 0.8], skipped: Vec::new(), is_last: true };
//! Parts::open(&storage, "vectors.npy")?.save("first", &part)?;
//!
//! // The next run takes up what this one has done.
//! let mut parts = Parts::open(&storage, "vectors.npy")?;
//! assert_eq!(parts.take("first")?, Some(part));
//! assert_eq!(parts.take("second")?, None);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Error;
use crate::files::source::Failure;
use crate::files::storage::{Lock, Storage};

/// Most bytes that the head of a part may have: those of a batch are far shorter, so a longer one is damage.
const MAX_HEAD: u64 = 64 << 20;

/// One embedded picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its path below the folder.
    pub path: String,
    /// Its class.
    pub label: Option<String>,
    /// SHA-256 of the file, in hex.
    pub sha256: String,
}

/// What became of a batch of files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Part {
    /// Pictures, in the order of the folder.
    pub rows: Vec<Row>,
    /// Their vectors `[pictures, numbers]`, as the model made them.
    pub vectors: Vec<f32>,
    /// Files that are none.
    pub skipped: Vec<Failure>,
    /// Whether no further part belongs to the same unit of the source.
    pub is_last: bool,
}

#[derive(Serialize, Deserialize)]
struct Head {
    rows: Vec<Row>,
    skipped: Vec<Failure>,
    is_last: bool,
    numbers: usize,
}

/// The parts of one file.
pub struct Parts {
    storage: Arc<dyn Storage>,
    folder: String,
    /// Those of the file, in their order.
    names: Vec<String>,
    /// Those that were made when this was opened.
    made: BTreeSet<String>,
    _lock: Option<Lock>,
}

impl Parts {
    /// The parts of the file `target`.
    ///
    /// # Errors
    /// Where another process is at work on the same file, and those of the storage.
    pub fn open(storage: &Arc<dyn Storage>, target: &str) -> io::Result<Self> {
        let (folder, file) = target.rsplit_once('/').map_or(("", target), |(folder, file)| (folder, file));
        let slash = if folder.is_empty() && !target.starts_with('/') { "" } else { "/" };
        let folder = format!("{folder}{slash}.{file}.parts");
        let lock = storage.lock(&folder).map_err(|error| match error.kind() {
            ErrorKind::ResourceBusy => {
                io::Error::new(error.kind(), format!("another process is writing {}: give each its own file", storage.shown(target)))
            }
            _ => error,
        })?;
        Ok(Self { storage: Arc::clone(storage), made: storage.names(&folder)?, folder, names: Vec::new(), _lock: lock })
    }

    /// Number of parts of the file.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether the file has none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Takes up a part that was made already behind the others, if it was.
    ///
    /// # Errors
    /// Those of [`Parts::load`].
    pub fn take(&mut self, name: &str) -> Result<Option<Part>, Error> {
        if !self.made.contains(name) {
            return Ok(None);
        }
        self.names.push(name.to_owned());
        self.load(self.names.len() - 1).map(Some)
    }

    /// Keeps a part behind the others. It is on durable storage under its name once this returns.
    ///
    /// # Errors
    /// Those of writing.
    pub fn save(&mut self, name: &str, part: &Part) -> io::Result<()> {
        let head = Head { rows: part.rows.clone(), skipped: part.skipped.clone(), is_last: part.is_last, numbers: part.vectors.len() };
        let head = serde_json::to_vec(&head).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(8 + head.len() + 4 * part.vectors.len());
        bytes.extend((head.len() as u64).to_le_bytes());
        bytes.extend(head);
        bytes.extend(part.vectors.iter().flat_map(|number| number.to_le_bytes()));
        self.names.push(name.to_owned());
        self.storage.write(&self.path(self.names.len() - 1), &bytes)
    }

    /// A part of the file.
    ///
    /// # Errors
    /// [`Error::Format`] where it is damaged or cut, [`Error::Io`] where it cannot be read.
    pub fn load(&self, index: usize) -> Result<Part, Error> {
        let path = self.path(index);
        let shown = self.storage.shown(&path);
        let damaged = || Error::format(&shown, "it is damaged: delete it, and this goes on without it");
        let bytes = self.storage.read(&path)?.ok_or_else(|| Error::format(&shown, "it was deleted meanwhile: start this again"))?;
        let (length, rest) = bytes.split_first_chunk().ok_or_else(damaged)?;
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEAD {
            return Err(damaged());
        }
        let (head, numbers) = rest.split_at_checked(length as usize).ok_or_else(damaged)?;
        let head: Head = serde_json::from_slice(head).map_err(|_| damaged())?;
        if head.numbers.checked_mul(4) != Some(numbers.len()) {
            return Err(damaged());
        }
        let vectors = numbers.as_chunks().0.iter().map(|&number| f32::from_le_bytes(number)).collect();
        Ok(Part { rows: head.rows, vectors, skipped: head.skipped, is_last: head.is_last })
    }

    /// Deletes all parts, also those of earlier settings.
    ///
    /// # Errors
    /// Those of the storage.
    pub fn remove(self) -> io::Result<()> {
        self.storage.remove(&self.folder)
    }

    fn path(&self, index: usize) -> String {
        format!("{}/{}", self.folder, self.names[index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::storage::Folder;

    #[test]
    fn parts_come_back_and_damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let storage: Arc<dyn Storage> = Arc::new(Folder::new(folder.path()));
        let open = || Parts::open(&storage, "v.parquet");
        let mut parts = open().unwrap();
        assert!(open().err().unwrap().to_string().contains("another process is writing"));
        let row = Row { path: "züg/1.png".into(), label: Some("züg".into()), sha256: "00".into() };
        let skipped = vec![Failure { id: "x".into(), path: "/x".into(), reason: "cut".into() }];
        let part = Part { rows: vec![row], vectors: vec![1.5, -0.0, f32::MIN_POSITIVE], skipped, is_last: true };
        parts.save("b", &part).unwrap();
        drop(parts);

        let mut parts = open().unwrap();
        assert_eq!(parts.take("a").unwrap(), None);
        assert_eq!(parts.take("b").unwrap(), Some(part));
        let file = folder.path().join(".v.parquet.parts/b");
        let whole = fs_err::read(&file).unwrap();
        // Of 4 bytes not even the length of the head is whole; with a head as long as the file says, the file ends in it.
        for end in [0, 4, 9, 60, whole.len() / 2, whole.len() - 1] {
            fs_err::write(&file, &whole[..end]).unwrap();
            assert!(matches!(parts.load(0), Err(Error::Format { .. })), "cut at {end}");
        }
        parts.remove().unwrap();
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0);
    }
}
