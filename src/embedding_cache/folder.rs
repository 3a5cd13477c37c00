//! Entries as files: one for each, by its key in hex, in a folder for each first byte.
//!
//! A file appears whole or not at all, and holds its key and a hash of its bytes: one that was damaged, or belongs to another key, is
//! removed and counts as absent. Servers may share a folder. Nothing is flushed to the disk: what a crash loses is computed again.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use dino_vision::transform::PatchGrid;
use fs_err as fs;
use ndarray::Array3;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::Embedded;

/// What a file begins with; the digit is the version of its form.
const MAGIC: &[u8; 8] = b"DINOEMB1";
/// Magic, key, and four numbers: rows, length of each, rows and columns of the grid.
const HEAD: usize = MAGIC.len() + 32 + 4 * 4;
/// A hash of all before it.
const TAIL: usize = 32;
/// Ending of a file.
const ENDING: &str = "embedding";
/// Beginning of the name of a file that is being written.
const WRITING: &str = ".writing-";
/// Age in seconds after which such a file was left behind.
const LEFT_BEHIND: u64 = 3600;

/// A folder of entries, and how large it may get.
pub(super) struct Folder {
    path: PathBuf,
    most: u64,
    /// Bytes of its files. Those that other servers write are counted when room is made.
    bytes: AtomicU64,
    /// Held by the thread that makes room: one is enough, and the others do not wait for it.
    making_room: Mutex<()>,
}

/// A file of the folder.
struct File {
    path: PathBuf,
    bytes: u64,
    modified: SystemTime,
}

impl Folder {
    /// Opens a folder, which is made where it is missing and readable by this user alone.
    pub(super) fn open(path: &Path, most: u64) -> io::Result<Self> {
        if !path.is_dir() {
            fs::create_dir_all(path)?;
            #[cfg(unix)]
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        }
        // That it cannot be written should come out now.
        tempfile::Builder::new().prefix(WRITING).tempfile_in(path)?;
        let folder = Self { path: path.to_owned(), most, bytes: AtomicU64::new(0), making_room: Mutex::default() };
        folder.make_room();
        Ok(folder)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn file(&self, key: &[u8; 32]) -> PathBuf {
        use std::fmt::Write as _;
        let mut name = String::with_capacity(80);
        for byte in key {
            write!(name, "{byte:02x}").expect("a string takes every write");
        }
        self.path.join(&name[..2]).join(name).with_extension(ENDING)
    }

    /// The entry of a key, where its file is there and whole.
    pub(super) fn read(&self, key: &[u8; 32]) -> Option<Embedded> {
        let path = self.file(key);
        // Before memory is taken: what is larger was not written here.
        let length = std::fs::metadata(&path).ok()?.len();
        let decoded = if length > self.most {
            None
        } else {
            match fs::read(&path) {
                Ok(bytes) => decode(key, &bytes),
                Err(error) => {
                    // The entry may be whole, and read another time.
                    tracing::warn!(path = %path.display(), %error, "an entry of the cache of embeddings cannot be read");
                    return None;
                }
            }
        };
        if decoded.is_none() {
            tracing::warn!(path = %path.display(), "a damaged entry of the cache of embeddings is removed");
            self.remove(&File { path, bytes: length, modified: SystemTime::UNIX_EPOCH });
        }
        decoded
    }

    /// Keeps an entry. A disk that does not take it costs the entry, and a line in the log.
    pub(super) fn write(&self, key: &[u8; 32], embedded: &Embedded) {
        let size = (HEAD + TAIL) as u64 + embedded.bytes();
        // The place of half the folder would push out everything else.
        if size > self.most / 2 {
            return;
        }
        let path = self.file(key);
        if let Err(error) = self.place(&path, &encode(key, embedded)) {
            tracing::warn!(path = %path.display(), %error, "an embedding was not kept");
            return;
        }
        if self.bytes.fetch_add(size, Ordering::Relaxed) + size > self.most {
            self.make_room();
        }
    }

    fn place(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let folder = path.parent().unwrap_or(&self.path);
        fs::create_dir_all(folder)?;
        // In the same file system as its place, and readable by this user alone.
        let mut file = tempfile::Builder::new().prefix(WRITING).tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.persist(path)?;
        Ok(())
    }

    /// Removes the oldest files until nine tenths of what is allowed are left, and those that were left behind half written.
    fn make_room(&self) {
        let Some(_alone) = self.making_room.try_lock() else { return };
        let mut files = self.files();
        let mut bytes = files.iter().map(|file| file.bytes).sum::<u64>();
        if bytes > self.most {
            files.sort_by_key(|file| file.modified);
            for file in files {
                if bytes <= self.most / 10 * 9 {
                    break;
                }
                if fs::remove_file(&file.path).is_ok() {
                    bytes -= file.bytes;
                }
            }
        }
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// All entries. What cannot be looked at is not among them.
    fn files(&self) -> Vec<File> {
        let folders = fs::read_dir(&self.path).into_iter().flatten().filter_map(Result::ok);
        let entries = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().filter_map(Result::ok));
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.path();
            let Ok(data) = entry.metadata() else { continue };
            let modified = data.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if path.extension().is_some_and(|ending| ending == ENDING) {
                files.push(File { path, bytes: data.len(), modified });
            } else if entry.file_name().to_string_lossy().starts_with(WRITING)
                && modified.elapsed().is_ok_and(|age| age.as_secs() > LEFT_BEHIND)
            {
                let _ = fs::remove_file(path);
            }
        }
        files
    }

    fn remove(&self, file: &File) {
        if fs::remove_file(&file.path).is_ok() {
            let _ = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bytes| Some(bytes.saturating_sub(file.bytes)));
        }
    }
}

fn encode(key: &[u8; 32], embedded: &Embedded) -> Vec<u8> {
    let Embedded { rows, grid } = embedded;
    let (_, count, dim) = rows.dim();
    let mut bytes = Vec::with_capacity(HEAD + 4 * rows.len() + TAIL);
    bytes.extend(MAGIC);
    bytes.extend(key);
    for number in [count, dim, grid.rows, grid.columns] {
        bytes.extend((number as u32).to_le_bytes());
    }
    bytes.extend(rows.iter().flat_map(|value| value.to_le_bytes()));
    let hash = Sha256::digest(&bytes);
    bytes.extend(hash);
    bytes
}

/// `None` for bytes that are not a whole entry of this key.
fn decode(key: &[u8; 32], bytes: &[u8]) -> Option<Embedded> {
    let (content, hash) = bytes.split_at_checked(bytes.len().checked_sub(TAIL)?)?;
    let head = content.get(..HEAD)?;
    if &head[..MAGIC.len()] != MAGIC || &head[MAGIC.len()..MAGIC.len() + 32] != key || Sha256::digest(content)[..] != *hash {
        return None;
    }
    let mut numbers = head[MAGIC.len() + 32..].chunks_exact(4).map(|bytes| bytes.try_into().map_or(0, u32::from_le_bytes) as usize);
    let (count, dim, grid_rows, columns) = (numbers.next()?, numbers.next()?, numbers.next()?, numbers.next()?);
    let values = content[HEAD..].chunks_exact(4).map(|bytes| bytes.try_into().map_or(f32::NAN, f32::from_le_bytes)).collect();
    let rows = Array3::from_shape_vec((1, count, dim), values).ok()?;
    Some(Embedded { rows, grid: PatchGrid { rows: grid_rows, columns } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(value: f32) -> Embedded {
        Embedded {
            rows: Array3::from_shape_fn((1, 6, 16), |(_, row, column)| value + (row * column) as f32),
            grid: PatchGrid { rows: 2, columns: 3 },
        }
    }

    #[test]
    fn what_is_written_is_read_and_only_under_its_key() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path(), 1 << 20).unwrap();
        folder.write(&[7; 32], &entry(0.5));
        assert_eq!(folder.read(&[7; 32]), Some(entry(0.5)));
        assert_eq!(folder.read(&[8; 32]), None);
        // A file under another's name.
        fs::create_dir_all(place.path().join("08")).unwrap();
        fs::rename(folder.file(&[7; 32]), folder.file(&[8; 32])).unwrap();
        assert_eq!(folder.read(&[8; 32]), None);
        assert!(!folder.file(&[8; 32]).exists());
    }

    #[test]
    fn damaged_files_are_left_out_and_removed() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path(), 1 << 20).unwrap();
        let path = folder.file(&[1; 32]);
        let whole = encode(&[1; 32], &entry(1.0));
        let mut flipped = whole.clone();
        flipped[HEAD + 5] ^= 1;
        let mut longer = whole.clone();
        longer.push(0);
        let cuts = [0, 1, TAIL, HEAD, whole.len() - 1].map(|length| whole[..length].to_vec());
        for damaged in cuts.into_iter().chain([flipped, longer, vec![0xff; 4096]]) {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, damaged).unwrap();
            assert_eq!(folder.read(&[1; 32]), None);
            assert!(!path.exists());
        }
        folder.write(&[1; 32], &entry(1.0));
        assert_eq!(folder.read(&[1; 32]), Some(entry(1.0)));
    }

    #[test]
    fn the_oldest_make_room_and_a_next_start_keeps_to_its_bound() {
        let place = tempfile::tempdir().unwrap();
        let size = encode(&[0; 32], &entry(0.0)).len() as u64;
        let folder = Folder::open(place.path(), 10 * size).unwrap();
        for number in 0..40 {
            folder.write(&[number; 32], &entry(0.0));
            let old = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 + u64::from(number));
            if let Ok(file) = std::fs::File::options().write(true).open(folder.file(&[number; 32])) {
                file.set_modified(old).unwrap();
            }
        }
        let kept = folder.files();
        assert!(kept.len() <= 10 && folder.bytes() <= 10 * size, "{} files", kept.len());
        assert!(folder.read(&[38; 32]).is_some() && folder.read(&[0; 32]).is_none());
        let left = place.path().join("05").join(".writing-x");
        fs::create_dir_all(left.parent().unwrap()).unwrap();
        fs::write(&left, "half").unwrap();
        std::fs::File::options().write(true).open(&left).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let smaller = Folder::open(place.path(), 5 * size).unwrap();
        assert!(smaller.files().len() <= 5 && !left.exists());
        // Larger than half of the folder.
        let large = Embedded { rows: Array3::zeros((1, 1, 1000)), ..entry(0.0) };
        smaller.write(&[200; 32], &large);
        assert_eq!(smaller.read(&[200; 32]), None);
    }
}
