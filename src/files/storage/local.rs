//! A folder of this machine.

use std::collections::BTreeSet;
use std::fs::TryLockError;
use std::io::{self, BufWriter, ErrorKind, Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fs_err::File;
use tempfile::NamedTempFile;

use super::{Lock, Output, Storage};

/// Name of the file that is locked.
const LOCK: &str = "lock";

/// A folder.
pub struct Folder(PathBuf);

impl Folder {
    /// The folder at `path`, which need not exist yet. An empty path is the working directory.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

/// A temporary file beside the one that it becomes.
fn unfinished(path: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(".unfinished-").tempfile_in(folder_of(path))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a file beside `path` and moves it there once it is complete and on the disk.
pub(in crate::files) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = unfinished(path)?;
    file.write_all(bytes)?;
    finish(file, path)
}

fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

impl Storage for Folder {
    fn shown(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn prepare(&self) -> io::Result<()> {
        fs_err::create_dir_all(&self.0)
    }

    fn names(&self, folder: &str) -> io::Result<BTreeSet<String>> {
        let entries = found(fs_err::read_dir(self.0.join(folder)))?;
        let names = entries.into_iter().flatten().map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        found(fs_err::read(self.0.join(name)))
    }

    fn tail(&self, name: &str, len: u64) -> io::Result<Option<(Vec<u8>, u64)>> {
        let Some(mut file) = found(File::open(self.0.join(name)))? else { return Ok(None) };
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(len)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some((bytes, size)))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        write_whole(&self.0.join(name), bytes)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Output>> {
        let path = self.0.join(name);
        Ok(Box::new(Unfinished { file: BufWriter::new(unfinished(&path)?), path }))
    }

    fn delete(&self, name: &str) -> io::Result<()> {
        found(fs_err::remove_file(self.0.join(name))).map(drop)
    }

    fn remove(&self, folder: &str) -> io::Result<()> {
        found(fs_err::remove_dir_all(self.0.join(folder))).map(drop)
    }

    fn lock(&self, folder: &str) -> io::Result<Option<Lock>> {
        let folder = self.0.join(folder);
        match fs_err::create_dir(&folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let file = File::create(folder.join(LOCK))?;
        // A file system without locks protects nothing from a second process, but is no reason not to work.
        match file.file().try_lock() {
            Err(TryLockError::WouldBlock) => Err(ErrorKind::ResourceBusy.into()),
            _ => Ok(Some(Lock { _file: file })),
        }
    }
}

struct Unfinished {
    file: BufWriter<NamedTempFile>,
    path: PathBuf,
}

impl Write for Unfinished {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Output for Unfinished {
    fn finish(self: Box<Self>) -> io::Result<()> {
        finish(self.file.into_inner().map_err(io::IntoInnerError::into_error)?, &self.path)
    }
}

fn finish(file: NamedTempFile, path: &Path) -> io::Result<()> {
    // Temporary files are private; this is an ordinary one.
    #[cfg(unix)]
    file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    // The name is durable with its folder.
    File::open(folder_of(path))?.sync_all()
}
