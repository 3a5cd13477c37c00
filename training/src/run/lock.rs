//! One run at a time in a folder.
//!
//! ```
//! use dino_train::run::lock::{Error, Lock};
//!
//! let folder = tempfile::tempdir()?;
//! let lock = Lock::take(folder.path())?;
//! assert!(matches!(Lock::take(folder.path()), Err(Error::InUse { .. })));
//! drop(lock);
//! assert!(Lock::take(folder.path()).is_ok());
//! # Ok::<(), Error>(())
//! ```

use std::fs::TryLockError;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use fs_err::File;

/// Why a folder cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another run writes there.
    #[error("{} is in use by another run (process {process}): wait for its end, or choose another --out", .folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// Number of the process that has it.
        process: String,
    },
    /// The lock file cannot be written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// The right to write in a folder, until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Locks the folder; the error names the process that holds it.
    ///
    /// # Errors
    /// When another run has it, or the lock file cannot be written.
    pub fn take(folder: &Path) -> Result<Self, Error> {
        let mut file = File::options().create(true).truncate(false).read(true).write(true).open(folder.join(".lock"))?;
        match file.file().try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut process = String::new();
                // It is only for the message.
                let _ = file.read_to_string(&mut process);
                return Err(Error::InUse { folder: folder.to_owned(), process: process.trim().to_owned() });
            }
            // Some network file systems have no locks: a run need not fail for that.
            Err(TryLockError::Error(error)) => tracing::warn!("{} cannot be locked against a second run: {error}", folder.display()),
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_for_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::take(folder.path()).unwrap();
        let said = Lock::take(folder.path()).unwrap_err().to_string();
        assert!(said.contains(&format!("process {}", std::process::id())), "{said}");
        drop(lock);
        Lock::take(folder.path()).unwrap();
    }
}
