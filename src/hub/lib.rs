//! Fetches models by name from a hub that speaks Hugging Face's protocol, into Hugging Face's own cache.
//!
//! ```no_run
//! # fn main() -> Result<(), dino_hub::Error> {
//! use dino_hub::{Hub, Settings, Want};
//!
//! let hub = Hub::new(Settings::from_env()?);
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
use std::path::PathBuf;

use fs_err as fs;

pub use choose::Want;
pub use error::Error;
pub use location::{Found, Location};
pub use name::{Name, SCHEME};
pub use settings::{ENDPOINT, Patience, Settings, Token};

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
    pub fn new(settings: Settings) -> Self {
        Self { client: Client::new(settings) }
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
        if let Ok(held) = &held
            && name.is_pinned()
        {
            return Ok(held.clone());
        }
        // Nobody waits for a hub that is away when there is something to go on with.
        let tries = if held.is_ok() { 1 } else { settings.patience.tries };
        let info = match (self.client.info(name, tries), held) {
            (Ok(info), _) => info,
            (Err(error), Ok(held)) if error.leaves_the_cache() => {
                tracing::warn!("{error}. {} is taken from the cache, as it was fetched earlier", held.name);
                return Ok(held);
            }
            (Err(error), _) => return Err(error),
        };
        self.bring(&repository, name, want, &info)
    }

    /// Brings the files of a commit.
    fn bring(&self, repository: &Repository, name: &Name, want: &Want, info: &Info) -> Result<Fetched, Error> {
        let at = name.at(&info.commit);
        let Plan { files, index, open, absent } = choose::plan(name, want, &info.files.keys().cloned().collect())?;
        for file in &files {
            self.bring_file(repository, &at, file, info)?;
        }
        let snapshot = repository.snapshot(&info.commit);
        if let Some(index) = index {
            let nonsense = |reason| Error::Protocol { url: format!("{at}/{index}"), reason };
            let bytes = read_index(&snapshot.join(&index))?;
            for file in choose::named_in(&index, &bytes, want).map_err(nonsense)? {
                self.bring_file(repository, &at, &file, info)?;
            }
        }
        for file in absent {
            repository.mark_absent(&info.commit, &file)?;
        }
        // Last, so that a revision leads to a commit whose files are here.
        repository.remember(name.revision(), &info.commit)?;
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
        let facts = self.client.facts(at, file)?;
        if facts.commit.is_some_and(|commit| commit != at.revision()) {
            return Err(nonsense("it answers with another commit"));
        }
        let etag = facts.etag.ok_or_else(|| nonsense("it names no ETag"))?;
        let plain = |letter: u8| letter.is_ascii_alphanumeric() || b"-_.".contains(&letter);
        if etag.is_empty() || etag.len() > 128 || etag.starts_with('.') || !etag.bytes().all(plain) {
            return Err(nonsense("its ETag is no hash"));
        }
        Ok(Remote { size: remote.size.or(facts.size), hash: Hash::of_etag(&etag), etag: Some(etag) })
    }
}

/// What the cache alone has, or what is missing.
fn held(repository: &Repository, name: &Name, want: &Want) -> Result<Fetched, String> {
    let commit = repository.commit(name.revision()).ok_or("its revision was never fetched")?;
    let files = repository.files(&commit);
    if files.is_empty() {
        return Err("none of its files is there".to_owned());
    }
    let plan = choose::plan(name, want, &files).map_err(|error| error.to_string())?;
    let snapshot = repository.snapshot(&commit);
    if let Some(index) = &plan.index {
        let bytes = read_index(&snapshot.join(index)).map_err(|error| error.to_string())?;
        let named: BTreeSet<_> = choose::named_in(index, &bytes, want)?.into_iter().collect();
        if let Some(missing) = named.difference(&files).next() {
            return Err(format!("{missing} is missing"));
        }
    }
    Ok(Fetched { path: join(snapshot, &plan.open), name: name.at(&commit), licence: None })
}

fn read_index(path: &std::path::Path) -> Result<Vec<u8>, Error> {
    let length = fs::metadata(path)?.len();
    if length > MOST_INDEX {
        return Err(Error::Size { name: path.display().to_string(), expected: MOST_INDEX, found: length });
    }
    Ok(fs::read(path)?)
}

fn join(snapshot: PathBuf, open: &str) -> PathBuf {
    if open.is_empty() { snapshot } else { snapshot.join(open) }
}
