//! What a hub says of a repository.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value as Json;
use ureq::http::Method;

use crate::hash::Hash;
use crate::http::{Client, FileMetadata, broken, words};
use crate::name::{is_commit, is_safe_path, segment, url_path};
use crate::retry::{Attempts, Failure};
use crate::{Error, Name};

/// Bytes of an answer about a repository: some 100,000 files.
const MOST_BYTES: u64 = 32 << 20;

/// A repository at one commit.
#[derive(Debug)]
pub(crate) struct Info {
    /// The commit.
    pub(crate) commit: String,
    /// Its files.
    pub(crate) files: BTreeMap<String, Remote>,
    /// Its licence in words, where its card names one.
    pub(crate) licence: Option<String>,
}

/// What the hub says of a file; not every hub says all of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remote {
    /// Number of bytes.
    pub(crate) size: Option<u64>,
    /// What its bytes are checked against.
    pub(crate) hash: Option<Hash>,
    /// Name of its blob in the cache, where that is no such hash.
    pub(crate) etag: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Model {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
    #[serde(default)]
    card_data: Json,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    #[serde(rename = "rfilename")]
    path: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl From<Sibling> for Remote {
    fn from(file: Sibling) -> Self {
        let Sibling { path: _, size, blob_id, lfs } = file;
        match lfs {
            Some(lfs) => Self { size: lfs.size.or(size), hash: lfs.sha256.and_then(|hash| Hash::of_etag(&hash)), etag: None },
            None => Self { size, hash: blob_id.and_then(|hash| Hash::of_etag(&hash)), etag: None },
        }
    }
}

impl Client {
    /// Asks for a repository at the name's revision, at most `attempts` times.
    pub(crate) fn info(&self, name: &Name, attempts: u32) -> Result<Info, Error> {
        let path = format!("api/models/{}/revision/{}", url_path(&name.repository()), segment(name.revision()));
        let url = self.url(&path, Some("blobs=true"));
        let mut attempts = Attempts::new(&self.settings().retry, name.to_string(), attempts);
        let body = loop {
            let outcome = self.ask(&Method::GET, &url, 0).and_then(|answer| {
                if answer.response.status() != 200 {
                    return Err(self.refusal(answer, name, None));
                }
                let body = answer.response.into_body().into_with_config().limit(MOST_BYTES).read_to_vec();
                body.map_err(|error| match error {
                    ureq::Error::BodyExceedsLimit(limit) => {
                        self.nonsense(name, &format!("its list of files has over {limit} bytes")).into()
                    }
                    other => {
                        let reason = format!("the answer breaks off: {}", broken(&other.into_io()));
                        Failure::Passing { host: answer.host, reason, status: None, wait: None }
                    }
                })
            });
            match outcome {
                Ok(body) => break body,
                Err(failure) => attempts.wait(failure, self.settings().token.is_some())?,
            }
        };
        let model: Model = serde_json::from_slice(&body).map_err(|error| self.nonsense(name, &words(&error.to_string())))?;
        let commit = model.sha.filter(|commit| is_commit(commit)).ok_or_else(|| self.nonsense(name, "it names no commit"))?;
        let licence = self.licence(name, &commit, &model.card_data);
        let (safe, unsafe_): (Vec<_>, Vec<_>) = model.siblings.into_iter().partition(|file| is_safe_path(&file.path));
        if let Some(file) = unsafe_.first() {
            tracing::warn!("{name} names a file {:?}, which has no place in a folder: it is passed over", words(&file.path));
        }
        let files = safe.into_iter().map(|file| (file.path.clone(), file.into())).collect();
        Ok(Info { commit, files, licence })
    }

    /// Asks for what the list of files did not say of one.
    pub(crate) fn metadata(&self, name: &Name, file: &str) -> Result<FileMetadata, Error> {
        let url = self.file_url(name, file);
        let mut attempts = Attempts::new(&self.settings().retry, file.to_owned(), self.settings().retry.attempts);
        loop {
            let outcome = self.ask(&Method::HEAD, &url, 0).and_then(|answer| {
                let status = answer.response.status();
                if status.is_success() || status.is_redirection() {
                    Ok(answer.metadata)
                } else {
                    Err(self.refusal(answer, name, Some(file)))
                }
            });
            match outcome {
                Ok(metadata) => return Ok(metadata),
                Err(failure) => attempts.wait(failure, self.settings().token.is_some())?,
            }
        }
    }

    /// Address of a file's bytes.
    pub(crate) fn file_url(&self, name: &Name, file: &str) -> url::Url {
        self.url(&format!("{}/resolve/{}/{}", url_path(&name.repository()), segment(name.revision()), url_path(file)), None)
    }

    fn nonsense(&self, name: &Name, reason: &str) -> Error {
        Error::Protocol { url: self.page(name), reason: reason.to_owned() }
    }

    /// The licence that a model's card names, with where to read it.
    fn licence(&self, name: &Name, commit: &str, card: &Json) -> Option<String> {
        let field = |key: &str| match card.get(key)? {
            Json::String(text) => Some(words(text)),
            Json::Array(several) => Some(words(&several.iter().filter_map(Json::as_str).collect::<Vec<_>>().join(", "))),
            _ => None,
        };
        let licence = field("license_name").or_else(|| field("license"))?;
        Some(match field("license_link") {
            Some(link) if link.starts_with("https://") || link.starts_with("http://") => format!("{licence}, {link}"),
            Some(file) if is_safe_path(&file) => format!("{licence}, {}/blob/{commit}/{}", self.page(name), url_path(&file)),
            _ => format!("{licence}, see {}", self.page(name)),
        })
    }
}
