//! Brings the bytes of one file into the cache: in pieces where the connection breaks off, and checked before they get their name.

use std::io::{self, Read as _, Write as _};
use std::path::Path;

use fs_err as fs;
use indicatif::HumanBytes;
use ureq::http::{HeaderMap, Method, StatusCode};

use crate::api::Remote;
use crate::cache::Repository;
use crate::http::{Answer, Client, broken, text};
use crate::progress::Progress;
use crate::retry::{Attempts, Failure};
use crate::{Error, Name};

/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;
/// New bytes from which on an attempt counts as progress.
const ENOUGH: u64 = 64 << 10;
/// Most bytes of a file whose length the server does not say.
const MOST_UNDECLARED: u64 = 64 << 20;
/// Bytes that stay free on the disk.
const SPARE: u64 = 16 << 20;

/// One file of a repository at one commit.
pub(crate) struct Download<'a> {
    pub(crate) client: &'a Client,
    pub(crate) repository: &'a Repository,
    /// The repository at the commit.
    pub(crate) name: &'a Name,
    pub(crate) file: &'a str,
    pub(crate) remote: &'a Remote,
}

impl Download<'_> {
    /// Brings the bytes to `blobs/ETAG`, unless they are there.
    pub(crate) fn run(&self, etag: &str) -> Result<(), Error> {
        let blob = self.repository.blob(etag);
        if self.is_whole(&blob) {
            return Ok(());
        }
        fs::create_dir_all(blob.parent().unwrap_or(Path::new(".")))?;
        let _lock = self.repository.lock(etag, self.file)?;
        // Another process may have brought it while this one waited.
        if self.is_whole(&blob) {
            return Ok(());
        }
        let partial = blob.with_file_name(format!("{etag}.incomplete"));
        // What is kept of an earlier run may be damaged: then all of it is fetched once more.
        let mut again = true;
        loop {
            self.fill(&partial)?;
            match self.check(&partial) {
                Ok(()) => break,
                Err(error @ Error::Hash { .. }) => {
                    fs::remove_file(&partial)?;
                    if !again {
                        return Err(error);
                    }
                    again = false;
                    tracing::warn!("{error}: it is fetched once more");
                }
                Err(error) => return Err(error),
            }
        }
        fs::File::open(&partial)?.sync_all()?;
        fs::rename(&partial, &blob)?;
        Ok(())
    }

    /// Whether the bytes are there: as many as the hub says.
    fn is_whole(&self, blob: &Path) -> bool {
        fs::metadata(blob).is_ok_and(|file| file.is_file() && self.remote.size.is_none_or(|size| size == file.len()))
    }

    fn check(&self, partial: &Path) -> Result<(), Error> {
        let Some(expected) = &self.remote.hash else {
            tracing::warn!("the hub names no hash of {}: it was not checked", self.file);
            return Ok(());
        };
        let found = expected.measure(partial)?;
        if found == *expected {
            return Ok(());
        }
        let (kind, expected, found) = (expected.kind(), expected.digits().to_owned(), found.digits().to_owned());
        Err(Error::Hash { name: self.whole_name(), kind, expected, found })
    }

    /// Fetches until the file at `partial` is as long as the hub says.
    fn fill(&self, partial: &Path) -> Result<(), Error> {
        let mut attempts = Attempts::new(&self.client.settings().retry, self.file.to_owned(), self.client.settings().retry.attempts);
        loop {
            let before = length(partial);
            match self.fill_once(partial) {
                Ok(()) => return Ok(()),
                Err(failure) => {
                    if length(partial) >= before.saturating_add(ENOUGH) {
                        attempts.progress();
                    }
                    attempts.wait(failure, self.client.settings().token.is_some())?;
                }
            }
        }
    }

    fn fill_once(&self, partial: &Path) -> Result<(), Failure> {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(partial)?;
        let mut have = file.metadata()?.len();
        if self.remote.size.is_some_and(|size| have > size) {
            file.set_len(0)?;
            have = 0;
        }
        if self.remote.size == Some(have) {
            return Ok(());
        }
        let answer = self.client.ask(&Method::GET, &self.client.file_url(self.name, self.file), have)?;
        let declared = match answer.response.status() {
            StatusCode::OK => {
                // The rest alone was asked for, and all of it comes.
                file.set_len(0)?;
                have = 0;
                text(answer.response.headers(), "content-length").and_then(|length| length.parse().ok())
            }
            StatusCode::PARTIAL_CONTENT => match content_range(answer.response.headers()) {
                Some((from, total)) if from == have => total,
                _ => {
                    file.set_len(0)?;
                    return Err(passing(&answer, "it answers with another part than was asked for"));
                }
            },
            StatusCode::RANGE_NOT_SATISFIABLE => {
                file.set_len(0)?;
                return Err(passing(&answer, "it has no such part of the file"));
            }
            _ => return Err(self.client.refusal(answer, self.name, Some(self.file))),
        };
        if let Some(coding) = text(answer.response.headers(), "content-encoding").filter(|coding| coding != "identity") {
            let reason = format!("it sends the bytes in the coding {coding}, which was not asked for");
            return Err(Error::Protocol { url: self.client.page(self.name), reason }.into());
        }
        let expected = self.remote.size.or(declared);
        if let (Some(declared), Some(expected)) = (declared, expected)
            && declared != expected
        {
            drop(file);
            fs::remove_file(partial)?;
            return Err(Error::Size { name: self.whole_name(), expected, found: declared }.into());
        }
        self.room(partial, expected.map_or(0, |size| size.saturating_sub(have)))?;
        self.copy(answer, &mut file, partial, have, expected)
    }

    /// Appends the body of an answer to `file`, which has `have` bytes of `expected`.
    fn copy(&self, answer: Answer, file: &mut fs::File, partial: &Path, mut have: u64, expected: Option<u64>) -> Result<(), Failure> {
        let progress = Progress::start(self.file, have, expected, self.client.settings().bars);
        let host = answer.host;
        let mut body = answer.response.into_body().into_reader();
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let of = expected.map(|expected| format!(" of {expected}")).unwrap_or_default();
                    let reason = format!("the answer breaks off after {have}{of} bytes: {}", broken(&error));
                    return Err(Failure::Passing { host, reason, status: None, wait: None });
                }
            };
            if have + count as u64 > expected.unwrap_or(MOST_UNDECLARED) {
                fs::remove_file(partial)?;
                let expected = expected.unwrap_or(MOST_UNDECLARED);
                return Err(Error::Size { name: self.whole_name(), expected, found: have + count as u64 }.into());
            }
            match file.write_all(&buffer[..count]) {
                Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                    let needed = expected.map_or(count as u64, |size| size - have);
                    return Err(self.no_room(partial, needed, "it is full".to_owned()).into());
                }
                outcome => outcome?,
            }
            have += count as u64;
            progress.at(have);
        }
        match expected {
            Some(expected) if have < expected => {
                let reason = format!("the answer breaks off after {have} of {expected} bytes");
                Err(Failure::Passing { host, reason, status: None, wait: None })
            }
            _ => {
                progress.finish();
                Ok(())
            }
        }
    }

    /// Says so where the disk has no room for `needed` more bytes.
    fn room(&self, partial: &Path, needed: u64) -> Result<(), Error> {
        let folder = partial.parent().unwrap_or(Path::new("."));
        // File systems that cannot say are believed to have room.
        let free = rustix::fs::statvfs(folder).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        if needed.saturating_add(SPARE) <= free {
            return Ok(());
        }
        Err(self.no_room(partial, needed, format!("{} are free, of which {} stay free for others", HumanBytes(free), HumanBytes(SPARE))))
    }

    fn no_room(&self, partial: &Path, needed: u64, free: String) -> Error {
        let folder = partial.parent().unwrap_or(Path::new(".")).to_owned();
        Error::Disk { name: self.whole_name(), needed: HumanBytes(needed).to_string(), free, folder }
    }

    fn whole_name(&self) -> String {
        format!("{} of {}", self.file, self.name)
    }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

fn passing(answer: &Answer, reason: &str) -> Failure {
    Failure::Passing { host: answer.host.clone(), reason: reason.to_owned(), status: None, wait: None }
}

/// First byte and, where it is said, number of all bytes: `bytes 5-9/10`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let range = text(headers, "content-range")?;
    let (range, total) = range.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}
