//! Fetches models by name from a hub that speaks Hugging Face's protocol, into Hugging Face's own cache.
//!
//! ```no_run
//! # fn main() -> Result<(), dino_hub::Error> {
//! use dino_hub::{Hub, Settings, Want};
//!
//! let hub = Hub::new(Settings::from_env()?)?;
//! let model = hub.fetch(&"hf://facebook/dinov2-small".parse()?, &Want::Weights)?;
//! println!("{} is at {}", model.name, model.path.display());
//! # Ok(())
//! # }
//! ```
//!
//! Environment variables, token and cache are those of the Python library `huggingface_hub`, so that both share what was fetched. Beyond
//! what that library does, bytes are checked against the hub's hash before they get their name, and the token goes to the hub alone.

mod api;
mod cache;
mod choose;
mod download;
mod error;
mod hash;
mod http;
mod location;
mod name;
mod progress;
mod retry;
mod settings;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fs_err as fs;

pub use choose::Want;
pub use error::Error;
pub use location::{Found, Location};
pub use name::{Name, SCHEME};
pub use settings::{ENDPOINT, RetryPolicy, Settings, Token};

use api::{Info, Remote};
use cache::Repository;
use choose::Plan;
use download::Download;
use hash::Hash;
use http::Client;

/// Bytes of an index or a manifest.
const MOST_INDEX: u64 = 32 << 20;

/// A hub, and the cache of what came from it.
#[derive(Debug)]
pub struct Hub {
    client: Client,
}

/// A model that is in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// What to open: a folder, or a file.
    pub path: PathBuf,
    /// Its name at the commit that was fetched, which always means the same bytes.
    pub name: Name,
    /// Its licence, to be shown: `None` where the card names none, or it was shown at an earlier start.
    pub licence: Option<String>,
}

impl Hub {
    /// Sets up, without a request.
    ///
    /// # Errors
    /// [`Error::Setting`] where the certificates that the environment names cannot be read.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        Ok(Self { client: Client::new(settings)? })
    }

    /// Brings what is wanted of a model into the cache, where it is not there already, and says where it is.
    ///
    /// A name that ends in a commit is looked for in the cache first; for a branch or a tag the hub is asked what it is at. Where the hub
    /// cannot be reached, or does not let in, what the cache has is taken, with a warning. Blocks until all is there.
    ///
    /// # Errors
    /// [`Error`] says what to do.
    pub fn fetch(&self, name: &Name, want: &Want) -> Result<Fetched, Error> {
        let settings = self.client.settings();
        let repository = Repository::of(&settings.cache, name);
        let held = held(&repository, name, want);
        if settings.offline {
            let offline = |reason| Error::Offline { name: name.to_string(), cache: settings.cache.clone(), reason };
            return held.map_err(offline);
        }
        // What a commit has is known where its list of files was kept: then the choice is that of a first fetch.
        if let Ok(held) = &held
            && name.is_pinned()
            && repository.listed(name.revision()).is_some()
        {
            return Ok(held.clone());
        }
        // Where the cache has a copy, a hub that does not answer is asked once.
        let attempts = if held.is_ok() { 1 } else { settings.retry.attempts };
        let fetched = self.client.info(name, attempts).and_then(|info| self.bring(&repository, name, want, &info));
        match (fetched, held) {
            (Err(error), Ok(held)) if error.leaves_the_cache() => {
                tracing::warn!("{error}. {} is taken from the cache, as it was fetched earlier", held.name);
                Ok(held)
            }
            (fetched, _) => fetched,
        }
    }

    /// Brings the files of a commit.
    fn bring(&self, repository: &Repository, name: &Name, want: &Want, info: &Info) -> Result<Fetched, Error> {
        let at = name.at(&info.commit);
        let listed = info.files.keys().cloned().collect();
        let Plan { files, index, open, absent } = choose::plan(name, want, &listed)?;
        for file in &files {
            self.bring_file(repository, &at, file, info)?;
        }
        let snapshot = repository.snapshot(&info.commit);
        if let Some(index) = index {
            for file in named_by(&snapshot, &index, want).map_err(|reason| unreadable(&at, &index, reason, &listed))? {
                self.bring_file(repository, &at, &file, info)?;
            }
        }
        // Last, so that a revision leads to a commit whose files are here. A cache that may only be read serves without these notes.
        let mut noted = repository.keep_list(&info.commit, &listed).and_then(|()| repository.remember(name.revision(), &info.commit));
        for file in absent {
            noted = noted.and_then(|()| repository.mark_absent(&info.commit, &file));
        }
        if let Err(error) = noted {
            tracing::debug!("the hub is asked again at the next start: {error}");
        }
        let licence = info.licence.clone().filter(|licence| !repository.licence_was_shown(licence));
        Ok(Fetched { path: join(snapshot, &open), name: at, licence })
    }

    fn bring_file(&self, repository: &Repository, at: &Name, file: &str, info: &Info) -> Result<(), Error> {
        let Some(remote) = info.files.get(file) else {
            return Err(Error::NoFile { name: format!("{at}/{file}"), held: info.files.keys().cloned().collect() });
        };
        if repository.has(&info.commit, file, remote.size) {
            return Ok(());
        }
        let remote = self.complete(at, file, remote)?;
        let etag = remote.hash.as_ref().map(Hash::digits).or(remote.etag.as_deref()).unwrap_or_default().to_owned();
        Download { client: &self.client, repository, name: at, file, remote: &remote }.run(&etag)?;
        Ok(repository.link(&etag, &info.commit, file)?)
    }

    /// Asks for the file's hash where the list of files does not say it, as those of some mirrors.
    fn complete(&self, at: &Name, file: &str, remote: &Remote) -> Result<Remote, Error> {
        if remote.hash.is_some() {
            return Ok(remote.clone());
        }
        let nonsense = |reason: &str| Error::Protocol { url: format!("{at}/{file}"), reason: reason.to_owned() };
        let metadata = self.client.metadata(at, file)?;
        if metadata.commit.is_some_and(|commit| commit != at.revision()) {
            return Err(nonsense("it answers with another commit"));
        }
        let etag = metadata.etag.ok_or_else(|| nonsense("it names no ETag"))?;
        let plain = |letter: u8| letter.is_ascii_alphanumeric() || b"-_.".contains(&letter);
        if etag.is_empty() || etag.len() > 128 || etag.starts_with('.') || !etag.bytes().all(plain) {
            return Err(nonsense("its ETag is no hash"));
        }
        Ok(Remote { size: remote.size.or(metadata.size), hash: Hash::of_etag(&etag), etag: Some(etag) })
    }
}

/// What the cache alone has, or what is missing.
fn held(repository: &Repository, name: &Name, want: &Want) -> Result<Fetched, String> {
    let commit = repository.commit(name.revision()).ok_or("its revision was never fetched")?;
    let files = repository.files(&commit);
    if files.is_empty() {
        return Err("none of its files is there".to_owned());
    }
    // Of all files of the commit, so that the choice does not depend on what was fetched earlier. Other programs keep no list.
    let plan = choose::plan(name, want, repository.listed(&commit).as_ref().unwrap_or(&files)).map_err(|error| error.to_string())?;
    let missing = |wanted: &[String]| wanted.iter().find(|file| !files.contains(*file)).map(|file| format!("{file} is missing"));
    let snapshot = repository.snapshot(&commit);
    if let Some(missing) = missing(&plan.files) {
        return Err(missing);
    }
    if let Some(index) = &plan.index
        && let Some(missing) = missing(&named_by(&snapshot, index, want)?)
    {
        return Err(missing);
    }
    Ok(Fetched { path: join(snapshot, &plan.open), name: name.at(&commit), licence: None })
}

/// The files that an index or a manifest in the cache names.
fn named_by(snapshot: &Path, index: &str, want: &Want) -> Result<Vec<String>, String> {
    let path = snapshot.join(index);
    let length = fs::metadata(&path).map_err(|error| error.to_string())?.len();
    if length > MOST_INDEX {
        return Err(format!("it has {length} bytes, at most {MOST_INDEX} are read"));
    }
    choose::named_in(index, &fs::read(&path).map_err(|error| error.to_string())?, want)
}

/// An index or a manifest that cannot be used.
fn unreadable(at: &Name, index: &str, reason: String, listed: &BTreeSet<String>) -> Error {
    Error::Unusable {
        name: at.to_string(),
        missing: format!("no {index} that can be used ({reason})"),
        held: listed.iter().cloned().collect(),
        way_out: format!("name the file that is meant: {at}/FILE"),
    }
}

fn join(snapshot: PathBuf, open: &str) -> PathBuf {
    if open.is_empty() { snapshot } else { snapshot.join(open) }
}
