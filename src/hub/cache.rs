//! The cache on disk, in the layout that Hugging Face's libraries share:
//!
//! ```text
//! .locks/models--OWNER--NAME/ETAG.lock
//! models--OWNER--NAME/
//!   blobs/ETAG                    a file's bytes, by its SHA-256 or the hash that git has of it
//!   refs/REVISION                 the commit that a branch or tag was at
//!   snapshots/COMMIT/PATH         links into blobs
//!   .no_exist/COMMIT/PATH         empty: this commit has no such file
//!   .dino/licence                 the licence that was shown, our own
//!   .dino/files/COMMIT            names of all files of a commit, fetched or not, one a line; our own
//! ```

use std::collections::BTreeSet;
use std::fs::{File, Permissions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use fs_err as fs;
use tempfile::Builder;
use walkdir::WalkDir;

use crate::Name;
use crate::name::{is_commit, is_safe_path};

/// Bytes of a file in `refs`; real ones have forty.
const MOST_REF: u64 = 1024;

/// Bytes of a list of files in `.dino`.
const MOST_LIST: u64 = 8 << 20;

/// One repository in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Repository {
    root: PathBuf,
    locks: PathBuf,
}

impl Repository {
    /// Of this model, whether it is there or not.
    pub(crate) fn of(cache: &Path, name: &Name) -> Self {
        Self { root: cache.join(name.folder()), locks: cache.join(".locks").join(name.folder()) }
    }

    /// The commit that this revision was at when it was last looked up.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let path = self.root.join("refs").join(revision);
        let short = fs::metadata(&path).is_ok_and(|file| file.len() <= MOST_REF);
        let commit = short.then(|| fs::read_to_string(&path).ok())??.trim().to_owned();
        is_commit(&commit).then_some(commit)
    }

    /// Folder of a commit's files.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// A file's bytes.
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// The files of a commit that are here, by their paths in the repository.
    pub(crate) fn files(&self, commit: &str) -> BTreeSet<String> {
        let snapshot = self.snapshot(commit);
        let inside = |entry: walkdir::DirEntry| {
            // A link to bytes that are gone is no file.
            let is_file = entry.path().metadata().is_ok_and(|file| file.is_file());
            let path = entry.path().strip_prefix(&snapshot).ok()?.to_str()?.to_owned();
            (is_file && is_safe_path(&path)).then_some(path)
        };
        WalkDir::new(&snapshot).into_iter().filter_map(Result::ok).filter_map(inside).collect()
    }

    /// Whether a commit's file is here, as long as the hub says.
    pub(crate) fn has(&self, commit: &str, file: &str, size: Option<u64>) -> bool {
        let found = fs::metadata(self.snapshot(commit).join(file));
        found.is_ok_and(|found| found.is_file() && size.is_none_or(|size| size == found.len()))
    }

    /// Gives the file of a commit its name.
    pub(crate) fn link(&self, etag: &str, commit: &str, file: &str) -> io::Result<()> {
        let pointer = self.snapshot(commit).join(file);
        let blob = self.blob(etag);
        if fs::canonicalize(&pointer).is_ok_and(|path| fs::canonicalize(&blob).is_ok_and(|blob| blob == path)) {
            return Ok(());
        }
        let folder = pointer.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder)?;
        // Relative, so that the cache can be moved: out of the file's folders, COMMIT and snapshots.
        let up = "../".repeat(2 + file.matches('/').count());
        let target = format!("{up}blobs/{etag}");
        let new = Builder::new().prefix(".new-").make_in(folder, |path| match fs_err::os::unix::fs::symlink(&target, path) {
            // Some file systems have no links.
            Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported) => {
                fs::copy(&blob, path).map(drop)
            }
            outcome => outcome,
        })?;
        new.into_temp_path().persist(&pointer).map_err(|error| error.error)
    }

    /// All files of a commit, as the hub listed them when one of them was fetched.
    pub(crate) fn listed(&self, commit: &str) -> Option<BTreeSet<String>> {
        let path = self.list(commit);
        let short = fs::metadata(&path).is_ok_and(|file| file.len() <= MOST_LIST);
        let text = short.then(|| fs::read_to_string(&path).ok())??;
        Some(text.lines().filter(|file| is_safe_path(file)).map(str::to_owned).collect())
    }

    /// Keeps the list of a commit's files.
    pub(crate) fn keep_list(&self, commit: &str, files: &BTreeSet<String>) -> io::Result<()> {
        let path = self.list(commit);
        // The files of a commit stay what they are. A name with a line break in it is no file that is ever chosen.
        if path.exists() {
            return Ok(());
        }
        let lines: Vec<&str> = files.iter().map(String::as_str).filter(|file| !file.contains(['\n', '\r'])).collect();
        write(&path, &lines.join("\n"))
    }

    fn list(&self, commit: &str) -> PathBuf {
        self.root.join(".dino").join("files").join(commit)
    }

    /// Notes the commit that a branch or tag is at.
    pub(crate) fn remember(&self, revision: &str, commit: &str) -> io::Result<()> {
        if revision == commit || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        write(&self.root.join("refs").join(revision), commit)
    }

    /// Notes that a commit has no such file, so that Hugging Face's own library need not ask for it.
    pub(crate) fn mark_absent(&self, commit: &str, file: &str) -> io::Result<()> {
        let path = self.root.join(".no_exist").join(commit).join(file);
        if path.exists() { Ok(()) } else { write(&path, "") }
    }

    /// Whether this licence was shown already; notes that it is now.
    pub(crate) fn licence_was_shown(&self, licence: &str) -> bool {
        let path = self.root.join(".dino").join("licence");
        if fs::read_to_string(&path).is_ok_and(|shown| shown == licence) {
            return true;
        }
        if let Err(error) = write(&path, licence) {
            tracing::debug!("the licence is shown again at the next start: {error}");
        }
        false
    }

    /// Keeps other processes, those of Hugging Face's own library among them, from fetching the same file until the lock is dropped.
    pub(crate) fn lock(&self, etag: &str, file: &str) -> io::Result<Lock> {
        fs::create_dir_all(&self.locks)?;
        let path = self.locks.join(format!("{etag}.lock"));
        let lock = File::options().create(true).append(true).open(&path).map_err(|error| with_path(error, &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                tracing::info!("another process fetches {file}: waiting for it");
                lock.lock().map_err(|error| with_path(error, &path))?;
            }
            // Two processes may fetch the same file then. What they write is checked before it gets its name.
            Err(TryLockError::Error(error)) => tracing::debug!("{} cannot be locked: {error}", path.display()),
        }
        Ok(Lock { _file: lock })
    }
}

/// A lock that is held.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Writes a small file that others see whole or not at all.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    // Readable for all whom the umask lets, like every other file of the cache.
    let mode: Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let mut file = Builder::new().prefix(".new-").permissions(mode).tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

fn with_path(error: io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn repository(cache: &Path) -> Repository {
        Repository::of(cache, &"hf://o/n".parse().unwrap())
    }

    #[test]
    fn files_are_links_that_survive_a_move() {
        let cache = tempfile::tempdir().unwrap();
        let repository = repository(cache.path());
        fs::create_dir_all(repository.root.join("blobs")).unwrap();
        fs::write(repository.blob("abc"), "bytes").unwrap();
        for file in ["a.json", "x/y/b.json"] {
            repository.link("abc", COMMIT, file).unwrap();
            repository.link("abc", COMMIT, file).unwrap();
        }
        // What is left of a blob that was deleted is replaced.
        fs_err::os::unix::fs::symlink("../../blobs/gone", repository.snapshot(COMMIT).join("c.json")).unwrap();
        assert_eq!(repository.files(COMMIT), BTreeSet::from(["a.json".to_owned(), "x/y/b.json".to_owned()]));
        repository.link("abc", COMMIT, "c.json").unwrap();
        let moved = cache.path().join("elsewhere");
        fs::rename(&repository.root, &moved).unwrap();
        for file in ["a.json", "x/y/b.json", "c.json"] {
            let path = moved.join("snapshots").join(COMMIT).join(file);
            assert!(path.is_symlink());
            assert_eq!(fs::read_to_string(path).unwrap(), "bytes");
        }
        assert_eq!(fs::read_dir(moved.join("snapshots").join(COMMIT)).unwrap().count(), 3);
    }

    #[test]
    fn revisions_lead_to_commits() {
        let cache = tempfile::tempdir().unwrap();
        let repository = repository(cache.path());
        assert_eq!(repository.commit("main"), None);
        repository.remember("main", COMMIT).unwrap();
        repository.remember("refs/pr/1", COMMIT).unwrap();
        repository.remember(COMMIT, COMMIT).unwrap();
        assert_eq!(repository.commit("main").as_deref(), Some(COMMIT));
        assert_eq!(repository.commit("refs/pr/1").as_deref(), Some(COMMIT));
        assert_eq!(repository.commit(COMMIT).as_deref(), Some(COMMIT));
        assert!(!repository.root.join("refs").join(COMMIT).exists());
        for damaged in ["", "../../../etc", &"x".repeat(5000)] {
            fs::write(repository.root.join("refs/main"), damaged).unwrap();
            assert_eq!(repository.commit("main"), None);
        }
    }

    #[test]
    fn a_licence_is_new_once_and_when_it_changes() {
        let cache = tempfile::tempdir().unwrap();
        let repository = repository(cache.path());
        let shown: Vec<_> = ["mit", "mit", "other", "other"].into_iter().map(|licence| repository.licence_was_shown(licence)).collect();
        assert_eq!(shown, [false, true, false, true]);
    }
}
