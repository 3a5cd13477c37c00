//! Object storage: S3 and what is like it, Google Cloud Storage, Azure, and `WebDAV`, by the crate `object_store`.
//!
//! Credentials and endpoints come from the environment variables that the crate reads: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
//! `AWS_REGION`, `AWS_ENDPOINT`, `AWS_ALLOW_HTTP` and others beginning with `AWS_`, `GOOGLE_` or `AZURE_`. Each request is repeated by the
//! crate, for some seconds where the storage is not there; what fails even so is tried again here, for minutes.
//!
//! ```
//! use dino_server::files::objects::Place;
//!
//! let folder = Place::parse("s3://bucket/pictures/")?;
//! assert_eq!(folder.join("cats/1.jpg").url(), "s3://bucket/pictures/cats/1.jpg");
//! assert!(Place::is_url("gs://bucket/pictures") && !Place::is_url("https://example.org/pictures"));
//! # Ok::<(), String>(())
//! ```

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io::{self, ErrorKind, Write as _};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Future, TryStreamExt as _};
use object_store::path::Path;
use object_store::{Error, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt as _};
use parking_lot::Mutex;
use tempfile::{NamedTempFile, TempPath};
use tokio::runtime::{Builder, Runtime};
use url::Url;

use super::source::address::without_secrets;

/// Bytes that one request asks for.
const RANGE: u64 = 16 << 20;
/// Pause before an operation is tried again; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// Time after which nothing is tried again.
const PATIENCE: Duration = Duration::from_mins(4);
/// In the texts of errors that stay: where machines of a cloud ask for credentials, which does not answer elsewhere, and statuses that the crate
/// does not tell from others where it lists objects.
const PERMANENT: [&str; 4] = ["169.254.", BAD_REQUEST, "status code: 401", "status code: 403"];
const BAD_REQUEST: &str = "status code: 400";
/// In the texts of errors of storages that give an object, but no range of it: of an empty one there is none, and some know no ranges.
const GIVEN: [&str; 2] = ["status code: 416", "non-partial response"];
/// Most time for one request, a range's bytes included.
const TIMEOUT: &str = "60s";

/// Runs all requests. Callers wait for it on threads of their own.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    // It refuses a second provider, which would be the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Builder::new_multi_thread().worker_threads(2).thread_name("objects").enable_all().build().expect("threads can be started")
});
/// Stores by scheme and host, so that connections are shared.
static STORES: LazyLock<Mutex<HashMap<String, Arc<dyn ObjectStore>>>> = LazyLock::new(Mutex::default);

/// A place in an object storage: an object, or what the names of several begin with.
#[derive(Clone)]
pub struct Place {
    store: Arc<dyn ObjectStore>,
    path: Path,
    /// As it was given, without credentials, and without a `/` at its end.
    url: String,
    /// What is known of the object from a listing.
    version: Option<Version>,
}

#[derive(Clone, Debug)]
struct Version {
    size: u64,
    etag: Option<String>,
}

impl fmt::Debug for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.url)
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url
    }
}

impl Eq for Place {}

/// Runs requests to their end, again where that may help.
fn patiently<T, F: Future<Output = Result<T, Error>>>(run: impl Fn() -> F) -> io::Result<T> {
    let began = Instant::now();
    RUNTIME
        .block_on(async {
            let mut pause = FIRST_PAUSE;
            loop {
                match run().await {
                    Err(error @ (Error::Generic { .. } | Error::JoinError { .. }))
                        if began.elapsed() < PATIENCE && !PERMANENT.iter().any(|text| error.to_string().contains(text)) =>
                    {
                        tokio::time::sleep(pause).await;
                        pause = (2 * pause).min(LONGEST_PAUSE);
                    }
                    result => return result,
                }
            }
        })
        .map_err(|error| {
            let kind = match &error {
                Error::NotFound { .. } => ErrorKind::NotFound,
                // "Already exists" is a conflict, Azure's answer to reading what is archived.
                Error::PermissionDenied { .. } | Error::Unauthenticated { .. } | Error::AlreadyExists { .. } => ErrorKind::PermissionDenied,
                // S3's answer to reading what has a key of its own.
                Error::Generic { .. } if error.to_string().contains(BAD_REQUEST) => ErrorKind::PermissionDenied,
                Error::Precondition { .. } => ErrorKind::InvalidData,
                _ => ErrorKind::Other,
            };
            io::Error::new(kind, error)
        })
}

/// `None` for what does not exist.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// A store by the environment, without a request.
fn connect(base: &str) -> Result<Arc<dyn ObjectStore>, String> {
    let url = Url::parse(&format!("{base}/")).map_err(|error| error.to_string())?;
    let of_cloud = |name: &str| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|cloud| name.starts_with(cloud));
    let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut options: Vec<(String, String)> = variables.filter(|(name, _)| of_cloud(name)).collect();
    options.push(("timeout".to_owned(), TIMEOUT.to_owned()));
    if url.scheme() == "http" {
        options.push(("allow_http".to_owned(), "true".to_owned()));
    }
    // Clients are made with the runtime's TLS.
    LazyLock::force(&RUNTIME);
    let (store, _) = object_store::parse_url_opts(&url, options).map_err(|error| error.to_string())?;
    Ok(Arc::from(store))
}

impl Place {
    /// Reads `s3://BUCKET/KEY`, `gs://BUCKET/KEY`, `az://CONTAINER/KEY` and their like, or a URL of `WebDAV`, without a request.
    ///
    /// # Errors
    /// Says what is wrong with it, or with the environment.
    pub fn parse(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| format!("{url} is no URL"))?;
        let (host, key) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() {
            return Err(format!("{url} names no bucket: write {scheme}://BUCKET/KEY"));
        }
        let wrong = |reason: &dyn fmt::Display| format!("{}: {reason}", without_secrets(url));
        let base = format!("{scheme}://{host}");
        let path = Path::parse(key.trim_end_matches('/')).map_err(|error| wrong(&error))?;
        let known = STORES.lock().get(&base).cloned();
        let store = if let Some(store) = known {
            store
        } else {
            let store = connect(&base).map_err(|error| wrong(&error))?;
            Arc::clone(STORES.lock().entry(base).or_insert(store))
        };
        Ok(Self { store, path, url: without_secrets(url).trim_end_matches('/').to_owned(), version: None })
    }

    /// Whether a URL is one of an object storage.
    pub fn is_url(text: &str) -> bool {
        let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
        ["s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss"].contains(&scheme)
    }

    /// A place below this one.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        let path = name.split('/').filter(|part| !part.is_empty()).fold(self.path.clone(), Path::join);
        Self { store: Arc::clone(&self.store), path, url: format!("{}/{name}", self.url), version: None }
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether both are in one bucket.
    pub(super) fn is_beside(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.store, &other.store)
    }

    /// Its size in bytes, as it was listed.
    pub(super) fn size(&self) -> Option<u64> {
        self.version.as_ref().map(|version| version.size)
    }

    /// What changes when the object does; empty where there is none.
    ///
    /// # Errors
    /// Where the storage does not say.
    pub fn stamp(&self) -> io::Result<String> {
        let known = match &self.version {
            Some(version) => Some(version.clone()),
            None => found(self.head())?,
        };
        // What is missing is one failure among others, when it is read.
        let Some(version) = known else { return Ok(String::new()) };
        Ok(format!("{}\0{:?}", version.size, version.etag))
    }

    fn head(&self) -> io::Result<Version> {
        patiently(|| self.store.head(&self.path)).map(Version::from)
    }

    /// All bytes, unless there are more than `most`: then only their number.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where there is no such object, [`ErrorKind::PermissionDenied`] where the storage refuses it.
    pub fn read(&self, most: u64) -> io::Result<Result<Bytes, u64>> {
        patiently(|| async {
            let answer = self.store.get(&self.path).await?;
            if answer.meta.size > most { Ok(Err(answer.meta.size)) } else { answer.bytes().await.map(Ok) }
        })
    }

    /// Whether the storage gives it, and does not refuse it or say that there is no such object. Asks for its first byte: archived objects
    /// can be asked about, and not be read.
    ///
    /// # Errors
    /// Where the storage does not say.
    pub(super) fn is_given(&self) -> io::Result<bool> {
        let asked = patiently(|| async {
            match self.store.get_opts(&self.path, GetOptions::new().with_range(Some(0..1_u64))).await {
                Err(error) if GIVEN.iter().any(|text| error.to_string().contains(text)) => Ok(()),
                answer => answer.map(drop),
            }
        });
        match asked {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// At most `len` bytes from the end, and the size of all; `None` where there is no such object.
    ///
    /// # Errors
    /// Those of the storage.
    pub fn tail(&self, len: u64) -> io::Result<Option<(Bytes, u64)>> {
        let Some(version) = found(self.head())? else { return Ok(None) };
        let range = version.size.saturating_sub(len)..version.size;
        if range.is_empty() {
            return Ok(Some((Bytes::new(), version.size)));
        }
        let bytes = patiently(|| self.store.get_range(&self.path, range.clone()))?;
        Ok(Some((bytes, version.size)))
    }

    /// Copies the object into a temporary file, by ranges of one version of it.
    ///
    /// # Errors
    /// Those of the storage, and [`ErrorKind::InvalidData`] where the object is replaced meanwhile.
    pub fn fetch(&self) -> io::Result<TempPath> {
        let version = match &self.version {
            Some(version) => version.clone(),
            None => self.head()?,
        };
        // WebDAV servers list other ETags than they answer with.
        let etag = version.etag.filter(|_| !self.url.starts_with("http"));
        let mut file = NamedTempFile::with_prefix("dino-shard-")?;
        let mut start = 0;
        while start < version.size {
            let range = start..(start + RANGE).min(version.size);
            let bytes = patiently(|| async {
                let options = GetOptions::new().with_range(Some(range.clone())).with_if_match(etag.clone());
                self.store.get_opts(&self.path, options).await?.bytes().await
            })?;
            if bytes.len() as u64 != range.end - range.start {
                return Err(io::Error::new(
                    ErrorKind::UnexpectedEof,
                    format!("{} gave {} of {} bytes", self.url, bytes.len(), range.end - range.start),
                ));
            }
            file.write_all(&bytes)?;
            start = range.end;
        }
        file.flush()?;
        Ok(file.into_temp_path())
    }

    /// All objects below, by name, with their names from here on.
    ///
    /// # Errors
    /// Those of the storage.
    pub fn list(&self) -> io::Result<Vec<(String, Self)>> {
        let mut found: Vec<ObjectMeta> = patiently(|| self.store.list(Some(&self.path)).try_collect())?;
        found.sort_unstable_by(|a, b| a.location.cmp(&b.location));
        let named = |meta: ObjectMeta| {
            let name = meta.location.prefix_match(&self.path)?.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/");
            let place = Self {
                store: Arc::clone(&self.store),
                path: meta.location.clone(),
                url: format!("{}/{name}", self.url),
                version: Some(meta.into()),
            };
            (!name.is_empty()).then_some((name, place))
        };
        Ok(found.into_iter().filter_map(named).collect())
    }

    /// Names of the objects directly below, without those in folders.
    ///
    /// # Errors
    /// Those of the storage.
    pub fn names(&self) -> io::Result<BTreeSet<String>> {
        let listed = found(patiently(|| self.store.list_with_delimiter(Some(&self.path))))?;
        Ok(listed.into_iter().flat_map(|listed| listed.objects).filter_map(|meta| meta.location.filename().map(str::to_owned)).collect())
    }

    /// Writes an object.
    ///
    /// # Errors
    /// Those of the storage.
    pub fn write(&self, bytes: Bytes) -> io::Result<()> {
        patiently(|| self.store.put(&self.path, bytes.clone().into())).map(drop)
    }

    /// Deletes an object; one that is not there is none already.
    ///
    /// # Errors
    /// Those of the storage.
    pub fn delete(&self) -> io::Result<()> {
        found(patiently(|| self.store.delete(&self.path))).map(drop)
    }

    /// Begins an object that is written in pieces.
    ///
    /// # Errors
    /// Those of the storage.
    pub fn upload(&self) -> io::Result<Upload> {
        let upload = patiently(|| self.store.put_multipart(&self.path))?;
        Ok(Upload(Some(upload)))
    }
}

impl From<ObjectMeta> for Version {
    fn from(meta: ObjectMeta) -> Self {
        Self { size: meta.size, etag: meta.e_tag }
    }
}

/// An object that is written in pieces. It is there once [`Upload::complete`] returns; dropped before, its pieces are deleted.
pub struct Upload(Option<Box<dyn object_store::MultipartUpload>>);

impl Upload {
    /// Sends a piece, of at least 5 MB unless it is the last.
    ///
    /// # Errors
    /// Those of the storage.
    pub fn put(&mut self, piece: Bytes) -> io::Result<()> {
        let Some(upload) = &mut self.0 else { return Err(ErrorKind::BrokenPipe.into()) };
        RUNTIME.block_on(upload.put_part(piece.into())).map_err(io::Error::other)
    }

    /// Makes the object appear.
    ///
    /// # Errors
    /// Those of the storage.
    pub fn complete(mut self) -> io::Result<()> {
        let Some(upload) = &mut self.0 else { return Err(ErrorKind::BrokenPipe.into()) };
        RUNTIME.block_on(upload.complete()).map_err(io::Error::other)?;
        self.0 = None;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(mut upload) = self.0.take() {
            // Storages delete unfinished uploads by rules of their own, where this fails.
            let _ = RUNTIME.block_on(upload.abort());
        }
    }
}
