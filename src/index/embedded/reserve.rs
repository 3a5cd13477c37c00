//! Room on the disk that is kept for deletes: they write before they free anything, which a full disk would refuse.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Name of the file that holds the room.
const FILE: &str = ".reserve";
/// What it holds, in bytes: several hundred pages of the database, while a delete of one item changes about ten.
const SIZE: u64 = 4 << 20;
/// Between two tries to get it back.
const PAUSE: Duration = Duration::from_secs(5);
/// Largest room that is tried out before writes go on.
const MOST_TRIED: u64 = 64 << 20;
/// Begins as scratch files do, which are deleted at the next start.
const TRIAL: &str = ".scratch-room";

/// A file of no use but its size.
pub(super) struct Reserve {
    folder: Option<PathBuf>,
    /// When it is missing: when to try again.
    missing: Mutex<Option<Instant>>,
}

impl Reserve {
    /// Makes it beside the database at `path`, where it is not there; without room it comes later.
    pub(super) fn beside(path: &Path) -> Self {
        let folder = path.parent().filter(|_| path.exists()).map(Path::to_owned);
        let reserve = Self { folder, missing: Mutex::new(Some(Instant::now())) };
        if !reserve.restore() {
            tracing::warn!("there is little room for the collections on the disk: {}", path.display());
        }
        reserve
    }

    /// Gets it back; whether it is there.
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
        *missing = Some(Instant::now() + PAUSE);
        false
    }

    /// Gets it back where it was given away some time ago.
    pub(super) fn restore_in_a_while(&self) {
        let is_due = self.missing.lock().is_some_and(|due| Instant::now() >= due);
        if is_due {
            self.restore();
        }
    }

    /// Gives it away; whether it was there.
    pub(super) fn release(&self) -> bool {
        let Some(folder) = &self.folder else { return false };
        let mut missing = self.missing.lock();
        if missing.is_some() {
            return false;
        }
        *missing = Some(Instant::now() + PAUSE);
        std::fs::remove_file(folder.join(FILE)).is_ok()
    }

    /// Whether so many bytes can be written.
    pub(super) fn has_room_for(&self, bytes: u64) -> bool {
        let Some(folder) = &self.folder else { return true };
        let path = folder.join(TRIAL);
        let has_room = fill(&path, bytes.min(MOST_TRIED)).is_ok();
        let _ = std::fs::remove_file(path);
        has_room
    }
}

/// Writes a file of so many bytes that no file system makes smaller; where that fails, none is left.
fn fill(path: &Path, bytes: u64) -> std::io::Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        let (mut block, mut left, mut state) = (vec![0_u8; 64 << 10], bytes, 0x9e37_79b9_7f4a_7c15_u64);
        while left > 0 {
            for word in block.chunks_exact_mut(8) {
                // xorshift: a compressing file system would store equal blocks in no room.
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
