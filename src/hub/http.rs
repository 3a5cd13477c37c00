//! Requests to a hub, and to where it sends for the bytes of large files.
//!
//! Redirects are followed here and not by the HTTP library: the hub's own answer carries what it knows of a file, and the token goes
//! to the hub alone.

use std::io;

use serde_json::Value as Json;
use ureq::http::{HeaderMap, Method, Request, Response, StatusCode, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};
use url::Url;

use crate::retry::{Failure, asked_wait};
use crate::settings::Settings;
use crate::{Error, Name};

/// Redirects of one request.
const REDIRECTS: usize = 5;
/// Bytes of an answer that says what went wrong.
const MOST_COMPLAINT: u64 = 64 << 10;
/// Letters of what a hub says that a message repeats.
const MOST_WORDS: usize = 300;
/// What the hub says of a file's bytes, beside its usual headers.
const COMMIT: &str = "x-repo-commit";
const LINKED_ETAG: &str = "x-linked-etag";
const LINKED_SIZE: &str = "x-linked-size";

/// Asks a hub.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    settings: Settings,
}

/// An answer of the hub, or of where it sent.
#[derive(Debug)]
pub(crate) struct Answer {
    /// What the hub says of the file.
    pub(crate) metadata: FileMetadata,
    /// Who answered.
    pub(crate) host: String,
    /// Whether that is the hub itself, and not a store of bytes that it sends to.
    from_hub: bool,
    /// The answer.
    pub(crate) response: Response<Body>,
}

/// What the hub says of a file in the headers of its answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileMetadata {
    /// Commit that it belongs to.
    pub(crate) commit: Option<String>,
    /// Entity tag: a hash of the bytes.
    pub(crate) etag: Option<String>,
    /// Number of bytes.
    pub(crate) size: Option<u64>,
}

impl Client {
    /// Sets up, without a request.
    ///
    /// # Errors
    /// [`Error::Setting`] where the certificates that the environment names cannot be read.
    pub(crate) fn new(settings: Settings) -> Result<Self, Error> {
        let retry = settings.retry;
        // What this machine trusts (SSL_CERT_FILE, SSL_CERT_DIR, its own store), or what Mozilla does where that is nothing.
        let found = rustls_native_certs::load_native_certs();
        let own = found.certs;
        // Certificates that are named are the only ones that are meant.
        let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let unreadable =
            |variable, reason: String| Error::Setting { variable, reason: format!("names certificates that cannot be read: {reason}") };
        if let Some(file) = named("SSL_CERT_FILE") {
            fs_err::File::open(file).map_err(|error| unreadable("SSL_CERT_FILE", error.to_string()))?;
        }
        let variable = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().find(|variable| named(variable).is_some());
        if let Some(variable) = variable.filter(|_| own.is_empty()) {
            let reason = found.errors.first().map_or_else(|| "there is none in it".to_owned(), ToString::to_string);
            return Err(unreadable(variable, reason));
        }
        let roots = if own.is_empty() {
            RootCerts::WebPki
        } else {
            let own: Vec<_> = own.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
            RootCerts::new_with_certs(&own)
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("dino/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_resolve(Some(retry.connect_timeout))
            .timeout_connect(Some(retry.connect_timeout))
            .timeout_send_request(Some(retry.read_timeout))
            .timeout_recv_response(Some(retry.read_timeout))
            .timeout_per_read(Some(retry.read_timeout))
            .build();
        Ok(Self { agent: config.new_agent(), settings })
    }

    /// How it was set up.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// An address of the hub; `path` is percent-encoded already.
    pub(crate) fn url(&self, path: &str, query: Option<&str>) -> Url {
        let mut url = self.settings.endpoint.clone();
        url.set_path(&format!("{}/{path}", url.path().trim_end_matches('/')));
        url.set_query(query);
        url
    }

    /// The page of a repository, for people.
    pub(crate) fn page(&self, name: &Name) -> String {
        format!("{}/{}", self.endpoint(), name.repository())
    }

    /// The hub, without a slash at its end.
    pub(crate) fn endpoint(&self) -> &str {
        self.settings.endpoint.as_str().trim_end_matches('/')
    }

    /// Asks once. The body begins at byte `from`, where the server supports ranges.
    pub(crate) fn ask(&self, method: &Method, url: &Url, from: u64) -> Result<Answer, Failure> {
        let mut url = url.clone();
        let mut metadata = FileMetadata::default();
        for _ in 0..=REDIRECTS {
            let response = self.ask_one(method, &url, from)?;
            let own = self.is_hub(&url);
            if own {
                metadata.take(&response);
            }
            let host = url.host_str().unwrap_or_default().to_owned();
            let Some(next) = redirect(&url, &response)? else { return Ok(Answer { metadata, host, from_hub: own, response }) };
            // Another host knows no more of the file; the hub's own answer has said it.
            if method == Method::HEAD && !self.is_hub(&next) {
                return Ok(Answer { metadata, host, from_hub: own, response });
            }
            if next.scheme() != "https" && self.settings.endpoint.scheme() == "https" {
                let reason = "the hub is asked by https, and that address is not";
                return Err(Error::Redirect { url: bare(&url), to: bare(&next), reason }.into());
            }
            url = next;
        }
        Err(Error::Redirect { url: bare(&url), to: bare(&url), reason: "there were too many redirects before it" }.into())
    }

    fn ask_one(&self, method: &Method, url: &Url, from: u64) -> Result<Response<Body>, Failure> {
        // Bytes as they are: what a hash is of, and what ranges count.
        let mut request = Request::builder().method(method).uri(url.as_str()).header(header::ACCEPT_ENCODING, "identity");
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        if let Some(token) = self.settings.token.as_ref().filter(|_| self.is_hub(url)) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.secret()));
        }
        let failed = |error: ureq::Error| self.failed(url, &error);
        let request = request.body(()).map_err(|error| failed(error.into()))?;
        self.agent.run(request).map_err(failed)
    }

    /// Whether an address is the hub's own.
    fn is_hub(&self, url: &Url) -> bool {
        url.origin() == self.settings.endpoint.origin()
    }

    fn failed(&self, url: &Url, error: &ureq::Error) -> Failure {
        let host = url.host_str().unwrap_or_default().to_owned();
        let seconds = self.settings.retry.read_timeout.as_secs();
        let reason = match error {
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) => return Error::Tls { host, reason: error.to_string() }.into(),
            ureq::Error::Io(io) if io.to_string().contains("certificate") => return Error::Tls { host, reason: io.to_string() }.into(),
            ureq::Error::InvalidProxyUrl | ureq::Error::BadUri(_) | ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => {
                return Error::Protocol { url: bare(url), reason: error.to_string() }.into();
            }
            ureq::Error::HostNotFound => "its name is not known".to_owned(),
            ureq::Error::Timeout(_) => format!("nothing came for {seconds} s"),
            other => other.to_string(),
        };
        Failure::Passing { host, reason, status: None, wait: None }
    }

    /// What an answer that is no success means; `file` is what was asked for of the repository.
    pub(crate) fn refusal(&self, answer: Answer, name: &Name, file: Option<&str>) -> Failure {
        let Answer { metadata: _, host, from_hub, response } = answer;
        let status = response.status();
        let headers = response.headers().clone();
        let passing =
            |reason: String| Failure::Passing { host: host.clone(), reason, status: Some(status.as_u16()), wait: asked_wait(&headers) };
        if status.is_server_error() || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status) {
            return passing(format!("it answers {}", status.as_u16()));
        }
        // Addresses for bytes are signed for a while; the next one is fresh. What a store says is nothing that the hub knows.
        if !from_hub && [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&status) {
            return passing(format!("it answers {}", status.as_u16()));
        }
        let code = text(&headers, "x-error-code").unwrap_or_default();
        let said = text(&headers, "x-error-message").or_else(|| said(response)).unwrap_or_default();
        let (repository, page, endpoint) = (name.repository(), self.page(name), self.endpoint().to_owned());
        let error = match (status.as_u16(), code.as_str()) {
            (_, "RevisionNotFound") => {
                Error::Revision { repository, revision: name.revision().to_owned(), page: format!("{page}/tree/main") }
            }
            (_, "GatedRepo") => Error::Gated { repository, page, token: self.token_for_gated() },
            (404, "EntryNotFound") => {
                let url = file.map_or_else(|| name.to_string(), |file| format!("{name}/{file}"));
                Error::Protocol { url, reason: "it lists this file and does not have it".to_owned() }
            }
            (401, _) if said.contains("Invalid credentials") && self.settings.token.is_some() => {
                let origin = self.settings.token.as_ref().map(|token| token.origin().to_owned()).unwrap_or_default();
                Error::Token { endpoint, origin }
            }
            // The hub does not tell apart what there is not and what is not shown.
            (_, "RepoNotFound") | (401 | 404, _) => Error::NotFound { endpoint, repository, token: self.token_for_private() },
            (status, _) => {
                let what = file.map_or_else(|| repository.clone(), |file| format!("{file} of {repository}"));
                let message = if said.is_empty() { "without a reason".to_owned() } else { said };
                Error::Refused { endpoint, what, status, message, token: self.token_for_private() }
            }
        };
        error.into()
    }

    fn token_for_gated(&self) -> String {
        match &self.settings.token {
            Some(token) => {
                format!("the account of the token from {} has no access yet, or the token may not read gated repositories", token.origin())
            }
            None => {
                format!(
                    "then log in with `hf auth login`, or set HF_TOKEN to a token of that account ({}/settings/tokens)",
                    self.endpoint()
                )
            }
        }
    }

    fn token_for_private(&self) -> String {
        match &self.settings.token {
            Some(token) => format!("the token from {} may not read it", token.origin()),
            None => "if the repository is private, log in with `hf auth login` or set HF_TOKEN".to_owned(),
        }
    }
}

impl FileMetadata {
    fn take(&mut self, response: &Response<Body>) {
        let headers = response.headers();
        if let Some(commit) = text(headers, COMMIT) {
            self.commit = Some(commit);
        }
        let sent_on = response.status().is_redirection();
        let own = |name: header::HeaderName| if sent_on { None } else { text(headers, name.as_str()) };
        let etag = text(headers, LINKED_ETAG).or_else(|| own(header::ETAG));
        if let Some(etag) = etag {
            self.etag = Some(etag.trim_start_matches("W/").trim_matches('"').to_owned());
        }
        let length = if response.status() == StatusCode::OK { own(header::CONTENT_LENGTH) } else { None };
        if let Some(size) = text(headers, LINKED_SIZE).or(length) {
            self.size = size.parse().ok();
        }
    }
}

/// Where an answer sends.
fn redirect(url: &Url, response: &Response<Body>) -> Result<Option<Url>, Failure> {
    if ![301, 302, 303, 307, 308].contains(&response.status().as_u16()) {
        return Ok(None);
    }
    let wrong = |reason: &str| Error::Protocol { url: bare(url), reason: reason.to_owned() };
    // As it is: signed addresses are longer than what a message repeats.
    let to = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
    let to = to.ok_or_else(|| wrong("it redirects without saying where to"))?;
    let to = url.join(to).map_err(|_| wrong("it redirects to what is no address"))?;
    if !["https", "http"].contains(&to.scheme()) {
        return Err(wrong("it redirects to what is no web server").into());
    }
    Ok(Some(to))
}

/// An address without what may be a secret in it: those for bytes are signed.
fn bare(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // They fail for addresses that can have none.
    let _ = (url.set_username(""), url.set_password(None));
    url.into()
}

/// A header's value, where it is one line of text.
pub(crate) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(|value| words(value.trim()))
}

/// What a hub says went wrong: `{"error": "…"}`.
fn said(response: Response<Body>) -> Option<String> {
    let body = response.into_body().with_config().limit(MOST_COMPLAINT).read_to_vec().ok()?;
    let json: Json = serde_json::from_slice(&body).ok()?;
    json.get("error")?.as_str().map(words)
}

/// What another machine wrote, fit for a terminal.
pub(crate) fn words(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(MOST_WORDS).collect()
}

/// Why reading a body ended.
pub(crate) fn broken(error: &io::Error) -> String {
    let slow = error.kind() == io::ErrorKind::TimedOut || error.to_string().contains("timeout");
    if slow { "nothing more came".to_owned() } else { format!("{error}") }
}
