//! Embeddings of an unfinished run: one small file for each batch of pictures, so that a run that was killed can be continued.
//!
//! A part is named by a hash over the settings and over the names, sizes and times of its files. Whatever changes makes
//! another name, and is embedded anew. The folder of the parts is beside the file that they become, with a dot before
//! its name, and goes when that is complete.
//!
//! A part: length of the head (u64), head as JSON, then the vectors (f32), little-endian.

use std::fs::TryLockError;
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use fs_err::File;
use serde::{Deserialize, Serialize};

use super::Error;

/// Most bytes that the head of a part may have: those of a batch are far shorter, so a longer one is damage.
const MAX_HEAD: u64 = 64 << 20;
/// Held by the process that is at work.
const LOCK: &str = "lock";

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
    /// Files that are none: path and reason.
    pub skipped: Vec<(PathBuf, String)>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    rows: Vec<Row>,
    skipped: Vec<(PathBuf, String)>,
    numbers: usize,
}

/// The parts of one file.
pub struct Parts {
    folder: PathBuf,
    names: Vec<String>,
    _lock: File,
}

impl Parts {
    /// The parts, named `names` in their order, of the file `target`.
    ///
    /// # Errors
    /// Where another process is at work on the same file, and those of the file system.
    pub fn open(target: &Path, names: Vec<String>) -> io::Result<Self> {
        let mut name = std::ffi::OsString::from(".");
        name.push(target.file_name().unwrap_or_default());
        name.push(".parts");
        let folder = target.with_file_name(name);
        match fs_err::create_dir(&folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let lock = File::create(folder.join(LOCK))?;
        // A file system without locks protects no part from a second process, but is no reason not to work.
        if let Err(TryLockError::WouldBlock) = lock.file().try_lock() {
            let reason = format!("another process is writing {}: give each its own file", target.display());
            return Err(io::Error::new(ErrorKind::ResourceBusy, reason));
        }
        Ok(Self { folder, names, _lock: lock })
    }

    /// Number of parts.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is none to make.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether this part was made already.
    pub fn has(&self, index: usize) -> bool {
        self.path(index).is_file()
    }

    /// Keeps a part. It is on the disk under its name once this returns.
    ///
    /// # Errors
    /// Those of writing.
    pub fn save(&self, index: usize, part: &Part) -> io::Result<()> {
        let head = Head { rows: part.rows.clone(), skipped: part.skipped.clone(), numbers: part.vectors.len() };
        let head = serde_json::to_vec(&head).map_err(io::Error::other)?;
        let mut file = tempfile::Builder::new().prefix(".part-").tempfile_in(&self.folder)?;
        file.write_all(&(head.len() as u64).to_le_bytes())?;
        file.write_all(&head)?;
        let bytes: Vec<u8> = part.vectors.iter().flat_map(|number| number.to_le_bytes()).collect();
        file.write_all(&bytes)?;
        file.as_file().sync_all()?;
        file.persist(self.path(index)).map_err(|error| error.error)?;
        File::open(&self.folder)?.sync_all()
    }

    /// A part that was made.
    ///
    /// # Errors
    /// [`Error::Format`] where it is damaged or cut, [`Error::Io`] where it cannot be read.
    pub fn load(&self, index: usize) -> Result<Part, Error> {
        let path = self.path(index);
        let mut file = File::open(&path)?;
        let damaged = || Error::format(&path, "it is damaged: delete it, and this goes on without it");
        let cut = |error: io::Error| if error.kind() == ErrorKind::UnexpectedEof { damaged() } else { error.into() };
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(cut)?;
        let (length, size) = (u64::from_le_bytes(length), file.metadata()?.len());
        if length > MAX_HEAD || length > size {
            return Err(damaged());
        }
        let mut head = vec![0; length as usize];
        file.read_exact(&mut head).map_err(cut)?;
        let head: Head = serde_json::from_slice(&head).map_err(|_| damaged())?;
        if (head.numbers as u64).checked_mul(4) != Some(size - 8 - length) {
            return Err(damaged());
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let vectors = bytes.as_chunks().0.iter().map(|&number| f32::from_le_bytes(number)).collect();
        Ok(Part { rows: head.rows, vectors, skipped: head.skipped })
    }

    /// Deletes all parts, also those of earlier settings.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove(self) -> io::Result<()> {
        fs_err::remove_dir_all(&self.folder)
    }

    fn path(&self, index: usize) -> PathBuf {
        self.folder.join(&self.names[index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back_and_damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("v.parquet");
        let open = || Parts::open(&target, vec!["a".into(), "b".into()]);
        let parts = open().unwrap();
        assert!(open().err().unwrap().to_string().contains("another process is writing"));
        let row = Row { path: "züg/1.png".into(), label: Some("züg".into()), sha256: "00".into() };
        let part = Part { rows: vec![row], vectors: vec![1.5, -0.0, f32::MIN_POSITIVE], skipped: vec![("x".into(), "cut".into())] };
        parts.save(1, &part).unwrap();
        drop(parts);

        let parts = open().unwrap();
        assert!(!parts.has(0) && parts.has(1));
        assert_eq!(parts.load(1).unwrap(), part);
        let file = folder.path().join(".v.parquet.parts/b");
        let whole = fs_err::read(&file).unwrap();
        // Of 4 bytes not even the length of the head is whole; with a head as long as the file says, the file ends in it.
        for end in [0, 4, 9, 60, whole.len() / 2, whole.len() - 1] {
            fs_err::write(&file, &whole[..end]).unwrap();
            assert!(matches!(parts.load(1), Err(Error::Format { .. })), "cut at {end}");
        }
        parts.remove().unwrap();
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0);
    }
}
