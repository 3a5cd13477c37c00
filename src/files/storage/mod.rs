//! Where files are written: a folder of this machine, or a prefix of an object storage.
//!
//! ```
//! use dino_server::files::storage::{Folder, Storage as _};
//!
//! let folder = tempfile::tempdir()?;
//! let storage = Folder::new(folder.path());
//! let lock = storage.lock("parts")?; // makes the folder
//! storage.write("parts/1", b"vectors")?;
//! assert_eq!(storage.read("parts/1")?.as_deref(), Some(b"vectors".as_slice()));
//! assert_eq!(storage.tail("parts/1", 3)?, Some((b"ors".to_vec(), 7)));
//! assert_eq!(storage.read("parts/2")?, None);
//! # Ok::<(), std::io::Error>(())
//! ```

#[cfg(feature = "object-store")]
mod bucket;
mod local;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

#[cfg(feature = "object-store")]
use super::objects::Place;

#[cfg(feature = "object-store")]
pub use bucket::Bucket;
pub use local::Folder;
pub(super) use local::write_whole;

/// A folder, or what is like one. Names are paths in it, with `/` between their parts. Every file is there as a whole or not at all.
pub trait Storage: Send + Sync {
    /// The address of a file, for messages.
    fn shown(&self, name: &str) -> String;

    /// Makes it, where that is needed to write into it.
    ///
    /// # Errors
    /// Those of the storage.
    fn prepare(&self) -> io::Result<()>;

    /// Names of the files directly in a folder; none where it does not exist.
    ///
    /// # Errors
    /// Those of the storage.
    fn names(&self, folder: &str) -> io::Result<BTreeSet<String>>;

    /// All bytes of a file; `None` where it does not exist.
    ///
    /// # Errors
    /// Those of the storage.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// At most `len` bytes from the end of a file, and its size; `None` where it does not exist.
    ///
    /// # Errors
    /// Those of the storage.
    fn tail(&self, name: &str, len: u64) -> io::Result<Option<(Vec<u8>, u64)>>;

    /// Writes a small file, into a folder that [`lock`](Self::lock) has made. It is durable once this returns.
    ///
    /// # Errors
    /// Those of the storage.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Begins a file of any size, which is there once [`Output::finish`] returns.
    ///
    /// # Errors
    /// Those of the storage.
    fn create(&self, name: &str) -> io::Result<Box<dyn Output>>;

    /// Deletes a file, if it exists.
    ///
    /// # Errors
    /// Those of the storage.
    fn delete(&self, name: &str) -> io::Result<()>;

    /// Deletes a folder with its files.
    ///
    /// # Errors
    /// Those of the storage.
    fn remove(&self, folder: &str) -> io::Result<()>;

    /// Keeps other processes from working on a folder while the result lives, where the storage can do that. Makes the folder.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] where another process has it.
    fn lock(&self, folder: &str) -> io::Result<Option<Lock>>;
}

/// Whether this is the URL of an object storage, which may be one that is not read here.
pub(super) fn is_url(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// Opens a folder, or a prefix of an object storage.
///
/// # Errors
/// Says what is wrong with a URL, or with the environment that its credentials come from.
pub fn open(place: &str) -> Result<Arc<dyn Storage>, String> {
    if !is_url(place) {
        return Ok(Arc::new(Folder::new(Path::new(place))));
    }
    #[cfg(feature = "object-store")]
    return Ok(Arc::new(Bucket::new(Place::parse(place)?)));
    #[cfg(not(feature = "object-store"))]
    Err(format!("{place}: {}", super::NO_OBJECTS))
}

/// A folder that this process has for itself.
pub struct Lock {
    _file: fs_err::File,
}

/// A file that is being written. Dropped, it is as if it had never been begun.
pub trait Output: Write + Send {
    /// Makes the file appear, on durable storage.
    ///
    /// # Errors
    /// Those of the storage.
    fn finish(self: Box<Self>) -> io::Result<()>;
}
