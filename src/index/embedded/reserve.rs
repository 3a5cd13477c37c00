//! Disk space that is reserved for deletes: they write before they free anything, which a full disk would refuse.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Name of the file that takes up the space.
const FILE: &str = ".reserve";
/// Its size, in bytes: several hundred pages of the database, while a delete of one item changes about ten.
const SIZE: u64 = 4 << 20;
/// Between two attempts to write it again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Most bytes that are written to test whether a write would fit.
const MAX_TRIAL: u64 = 64 << 20;
/// Begins as scratch files do, which are deleted at the next start.
const TRIAL: &str = ".scratch-space";

/// A file whose only use is its size: deleting it frees space.
pub(super) struct Reserve {
    folder: Option<PathBuf>,
    /// While the file is missing: when to write it again.
    missing: Mutex<Option<Instant>>,
}

impl Reserve {
    /// Writes the file beside the database at `path` unless it exists. On a full disk it is written later.
    pub(super) fn beside(path: &Path) -> Self {
        let folder = path.parent().filter(|_| path.exists()).map(Path::to_owned);
        let reserve = Self { folder, missing: Mutex::new(Some(Instant::now())) };
        if !reserve.restore() {
            tracing::warn!("the disk of the collections is almost full: {}", path.display());
        }
        reserve
    }

    /// Writes the file unless it exists; returns whether it exists.
    pub(super) fn restore(&self) -> bool {
        let Some(folder) = &self.folder else { return true };
        let mut missing = self.missing.lock();
        if missing.is_none() {
            return true;
        }
        let path = folder.join(FILE);
        let is_whole = std::fs::metadata(&path).is_ok_and(|found| found.len() == SIZE && found.blocks() * 512 >= SIZE);
        if is_whole || fill(&path, SIZE).is_ok() {
            *missing = None;
            return true;
        }
        *missing = Some(Instant::now() + RETRY_INTERVAL);
        false
    }

    /// Writes the file again where the last attempt was some time ago.
    pub(super) fn restore_if_due(&self) {
        let is_due = self.missing.lock().is_some_and(|due| Instant::now() >= due);
        if is_due {
            self.restore();
        }
    }

    /// Deletes the file; returns whether it existed.
    pub(super) fn release(&self) -> bool {
        let Some(folder) = &self.folder else { return false };
        let mut missing = self.missing.lock();
        if missing.is_some() {
            return false;
        }
        *missing = Some(Instant::now() + RETRY_INTERVAL);
        std::fs::remove_file(folder.join(FILE)).is_ok()
    }

    /// Whether so many bytes can be written.
    pub(super) fn has_space_for(&self, bytes: u64) -> bool {
        let Some(folder) = &self.folder else { return true };
        let path = folder.join(TRIAL);
        let has_space = fill(&path, bytes.min(MAX_TRIAL)).is_ok();
        let _ = std::fs::remove_file(path);
        has_space
    }
}

/// Writes a file of so many bytes that no file system makes smaller; where that fails, none is left.
fn fill(path: &Path, bytes: u64) -> std::io::Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        let (mut block, mut left, mut state) = (vec![0_u8; 64 << 10], bytes, 0x9e37_79b9_7f4a_7c15_u64);
        while left > 0 {
            for word in block.chunks_exact_mut(8) {
                // xorshift: a compressing file system would store equal blocks in no space.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
            file.write_all(&block[..part])?;
            left -= part as u64;
        }
        Ok(())
    };
    write().inspect_err(|_| drop(std::fs::remove_file(path)))
}
