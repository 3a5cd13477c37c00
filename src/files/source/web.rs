//! Files behind URLs. The command's caller chooses the addresses: unlike a server's, they may be anywhere.

use std::io::{self, Read, Seek as _, Write as _};
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use dino_vision::bulk::{self, MAX_FILE};
use tempfile::{NamedTempFile, TempPath};
use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body, config::Config};

use super::Error;
use super::address::without_secrets;

/// Requests for one file, with a pause between them that doubles.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Time that a server may take to answer, and to send each further piece.
const SILENCE: Duration = Duration::from_secs(30);
/// Most time for one picture.
const PICTURE: Duration = Duration::from_mins(2);

/// Connections are kept for the next picture of the same host.
static AGENT: LazyLock<Agent> = LazyLock::new(|| {
    Config::builder()
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(10)))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .max_idle_connections_per_host(32)
        .user_agent(concat!("dino-server/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent()
});

/// Why a request brought nothing.
enum Failed {
    /// Another one may bring it.
    Transient(String),
    /// Another one would be answered the same.
    Permanent(String),
}

impl From<ureq::Error> for Failed {
    fn from(error: ureq::Error) -> Self {
        match error {
            ureq::Error::BadUri(_) | ureq::Error::TooManyRedirects | ureq::Error::Tls(_) => Self::Permanent(error.to_string()),
            error => Self::Transient(error.to_string()),
        }
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Transient(error.to_string())
    }
}

/// Asks until there is an answer that another request would not change.
fn patiently<T>(mut ask: impl FnMut() -> Result<T, Failed>) -> Result<T, Failed> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..TRIES {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(failed @ Failed::Permanent(_)) => return Err(failed),
            Err(Failed::Transient(_)) => thread::sleep(pause),
        }
        pause *= 2;
    }
    ask()
}

/// What a status means; none where there is a body to read.
fn refused(status: StatusCode) -> Option<Failed> {
    let reason = format!("its server answered {status}");
    match status {
        status if status.is_success() => None,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Some(Failed::Transient(reason)),
        status if status.is_server_error() => Some(Failed::Transient(reason)),
        _ => Some(Failed::Permanent(reason)),
    }
}

/// The bytes of a picture.
pub(super) fn read(url: &str) -> Result<Vec<u8>, bulk::Error> {
    let mut too_large = None;
    let bytes = patiently(|| {
        let mut response = AGENT.get(url).config().timeout_global(Some(PICTURE)).build().call()?;
        if let Some(failed) = refused(response.status()) {
            return Err(failed);
        }
        let mut bytes = Vec::new();
        let declared = response.body().content_length().unwrap_or_default();
        if declared <= MAX_FILE {
            response.body_mut().as_reader().take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        }
        let size = declared.max(bytes.len() as u64);
        too_large = (size > MAX_FILE).then_some(size);
        Ok(bytes)
    });
    match (too_large, bytes) {
        (Some(size), _) => Err(bulk::Error::TooLarge { size }),
        (None, Ok(bytes)) => Ok(bytes),
        (None, Err(Failed::Permanent(reason))) => Err(bulk::Error::NotThere(reason)),
        (None, Err(Failed::Transient(reason))) => Err(bulk::Error::Unreachable(reason)),
    }
}

fn storage(url: &str, (Failed::Permanent(reason) | Failed::Transient(reason)): Failed) -> Error {
    Error::Storage(format!("{}: {reason}", without_secrets(url)))
}

/// What changes when a file does: its `ETag`, `Last-Modified` and length, as far as its server tells them. `None` where it tells neither of the first two, or does not
/// answer such questions, as with URLs that were signed for reading alone.
///
/// # Errors
/// [`Error::Storage`] where it does not answer at all.
pub(super) fn version(url: &str) -> Result<Option<String>, Error> {
    let asked = patiently(|| {
        let response = AGENT.head(url).call()?;
        refused(response.status()).map_or(Ok(response), Err)
    });
    let response = match asked {
        Ok(response) => response,
        Err(Failed::Permanent(_)) => return Ok(None),
        Err(failed) => return Err(storage(url, failed)),
    };
    let told = [header::ETAG, header::LAST_MODIFIED, header::CONTENT_LENGTH].map(|name| response.headers().get(name));
    // A length alone is that of another file as well.
    Ok(told[..2].iter().any(Option::is_some).then(|| format!("{told:?}")))
}

/// A file, as a temporary one. A transfer that breaks off goes on where it was, where the server can do that.
pub(super) fn fetch(url: &str) -> Result<TempPath, Error> {
    // Without room for it no other file can be fetched either.
    let temporary = NamedTempFile::with_prefix("dino-shard-");
    let mut file = temporary.map_err(|error| Error::Storage(format!("{}: no temporary file: {error}", without_secrets(url))))?;
    let mut version = None;
    patiently(|| {
        let have = file.as_file().metadata()?.len();
        let mut request = AGENT.get(url);
        if let Some(version) = version.as_ref().filter(|_| have > 0) {
            request = request.header(header::RANGE, format!("bytes={have}-")).header(header::IF_RANGE, version);
        }
        let mut response = request.call()?;
        if let Some(failed) = refused(response.status()) {
            return Err(failed);
        }
        let is_rest = response.status() == StatusCode::PARTIAL_CONTENT;
        if !is_rest {
            version = response.headers().get(header::ETAG).and_then(strong);
            file.as_file().set_len(0)?;
        }
        file.as_file_mut().seek(io::SeekFrom::End(0))?;
        copy(&mut response, file.as_file_mut())
    })
    .map_err(|failed| storage(url, failed))?;
    Ok(file.into_temp_path())
}

/// A validator that parts of a file can be asked by.
fn strong(etag: &header::HeaderValue) -> Option<String> {
    etag.to_str().ok().filter(|etag| !etag.starts_with("W/")).map(str::to_owned)
}

fn copy(response: &mut Response<Body>, file: &mut std::fs::File) -> Result<(), Failed> {
    let declared = response.body().content_length();
    let copied = io::copy(&mut response.body_mut().as_reader(), file)?;
    file.flush()?;
    match declared {
        Some(declared) if copied < declared => Err(Failed::Transient(format!("the connection ended after {copied} of {declared} bytes"))),
        _ => Ok(()),
    }
}
