//! Pictures by their address: off unless hosts are named, and then no way into the network of the server.
//!
//! Every address that a host resolves to is checked, and the connection goes to one of those that were: a name cannot resolve to something
//! else in between. Each redirect is looked at as the first address was.
//!
//! ```
//! use dino_server::fetch::{FetchError, Fetcher, Options};
//!
//! let url_timeout = std::time::Duration::from_secs(10);
//! let options = Options { url_hosts: vec!["*.example.org".parse()?], url_private: false, url_ca: None, url_timeout };
//! let fetcher = Fetcher::new(&options, 32 << 20)?;
//! let refused = fetcher.fetch("https://intranet.example.com/cat.jpg", None, |_| true);
//! assert!(matches!(refused, Err(FetchError::NotAllowed(_))));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod address;

use std::{
    fmt,
    io::Read,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mime::Mime;
use ureq::{
    Agent, ResponseExt as _,
    config::Config,
    http::{Uri, header},
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::{DefaultConnector, NextTimeout},
    },
};

use crate::flags;
use address::is_public;
use dino_vision::cancel;

/// Redirects that are followed.
const REDIRECTS: usize = 3;
/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

/// Hosts that pictures may be fetched from: `example.org`, `*.example.org` for all below it, `*` for all, with `:PORT` for another port than 443.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    name: String,
    port: u16,
}

/// Flags of the fetching; each can also be set in the environment.
#[derive(clap::Args, Clone, Debug)]
#[group(skip)]
pub struct Options {
    /// A host that pictures in JSON bodies may be fetched from by https, as example.org, *.example.org or *, with :PORT where it is not
    /// 443; may be given several times. None by default: then no URL is fetched.
    #[arg(long = "url-hosts", env = "DINO_URL_HOSTS", value_name = "HOST", value_delimiter = ',', help_heading = "Pictures from URLs")]
    pub url_hosts: Vec<Host>,
    /// Also fetch from addresses of private networks, and of this machine. Every client of the server then reaches them too.
    #[arg(long, env = "DINO_URL_PRIVATE", help_heading = "Pictures from URLs")]
    pub url_private: bool,
    /// Certificates to trust for URLs in place of the public ones, a file in PEM form.
    #[arg(long, env = "DINO_URL_CA", value_name = "FILE", help_heading = "Pictures from URLs")]
    pub url_ca: Option<PathBuf>,
    /// Time for one picture to be fetched, redirects included.
    #[arg(long, env = "DINO_URL_TIMEOUT", default_value = "10", value_name = "SECONDS", value_parser = flags::seconds, help_heading = "Pictures from URLs")]
    pub url_timeout: Duration,
}

/// Why a picture was not fetched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No hosts are named.
    #[error("this server fetches no URLs: send the picture itself, in base64")]
    Off,
    /// The address is none, or none that is asked.
    #[error("{0}")]
    NotAllowed(String),
    /// The host did not give a picture.
    #[error("the picture was not fetched: {0}")]
    Failed(String),
    /// It is longer than pictures may be.
    #[error("the picture at that address is over this server's limit of {0} bytes (--max-body)")]
    TooLarge(usize),
    /// Other requests hold the memory.
    #[error("the bodies of other requests fill the memory that there is for them (--body-memory)")]
    NoRoom,
}

/// Fetches pictures.
#[derive(Clone, Debug)]
pub struct Fetcher {
    agent: Agent,
    hosts: Vec<Host>,
    timeout: Duration,
    bytes: usize,
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no host: give example.org, *.example.org or *, with :PORT where it is not 443");
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if !name.ends_with(':') && !port.contains(']') => (name, port.parse().map_err(|_| wrong())?),
            _ => (text, 443),
        };
        let rest = name.strip_prefix("*.").unwrap_or(name);
        let plain = rest == "*" && name == "*" || !rest.is_empty() && !rest.contains(['*', '/', '@', ' ', '?', '#']);
        if plain { Ok(Self { name: name.to_ascii_lowercase(), port }) } else { Err(wrong()) }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.port)
    }
}

impl Host {
    fn covers(&self, name: &str, port: u16) -> bool {
        // A dot at the end makes no other host.
        let name = name.strip_suffix('.').unwrap_or(name);
        let below = |domain: &str| name.len() > domain.len() && name.ends_with(domain) && name[..name.len() - domain.len()].ends_with('.');
        self.port == port && (self.name == "*" || self.name == name || self.name.strip_prefix("*.").is_some_and(below))
    }
}

/// The certificates in a PEM file.
///
/// # Errors
/// When it cannot be read, or holds none.
fn root_certificates(path: &Path) -> std::io::Result<Vec<Certificate<'static>>> {
    let text = fs_err::read(path)?;
    let items = parse_pem(&text).collect::<Result<Vec<_>, _>>().map_err(std::io::Error::other)?;
    let found: Vec<_> = items
        .into_iter()
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        return Err(std::io::Error::other(format!("{} holds no certificate in PEM form", path.display())));
    }
    Ok(found)
}

impl Fetcher {
    /// Sets up, without a request. `bytes` is the most that one picture may have.
    ///
    /// # Errors
    /// When the certificates cannot be read.
    pub fn new(options: &Options, bytes: usize) -> std::io::Result<Self> {
        let roots = match &options.url_ca {
            Some(path) => RootCerts::new_with_certs(&root_certificates(path)?),
            None => RootCerts::WebPki,
        };
        let config = Config::builder()
            .https_only(true)
            .http_status_as_error(false)
            // A proxy would resolve names by itself, and redirects are followed here.
            .proxy(None)
            .max_redirects(0)
            .max_response_header_size(32 << 10)
            .max_idle_connections(0)
            .user_agent(concat!("dino-server/", env!("CARGO_PKG_VERSION")))
            .accept("image/*")
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .build();
        let agent = Agent::with_parts(
            config,
            DefaultConnector::default(),
            PublicResolver { private: options.url_private, resolver: DefaultResolver::default() },
        );
        Ok(Self { agent, hosts: options.url_hosts.clone(), timeout: options.url_timeout, bytes })
    }

    /// The picture at `url`, within the time for one picture and before `until`. `take` is asked for the memory of each part
    /// before the part is kept.
    ///
    /// It waits for the network: call it on a thread of its own.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub fn fetch(&self, url: &str, until: Option<Instant>, mut take: impl FnMut(usize) -> bool) -> Result<Bytes, FetchError> {
        let mut uri = self.allowed(url)?;
        let deadline = Instant::now() + self.timeout;
        let deadline = until.map_or(deadline, |until| deadline.min(until));
        for _ in 0..=REDIRECTS {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let mut response = self.agent.get(&uri).config().timeout_global(Some(left)).build().call().map_err(|error| failed(&error))?;
            let status = response.status();
            if status.is_redirection() {
                let target = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
                let target = target.ok_or_else(|| FetchError::Failed(format!("{status} without a target")))?;
                uri = self.allowed(&joined(response.get_uri(), target))?;
                continue;
            }
            if !status.is_success() {
                return Err(FetchError::Failed(format!("its host answered {status}")));
            }
            let kind = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let parsed: Option<Mime> = kind.parse().ok();
            if !parsed.is_some_and(|kind| kind.type_() == mime::IMAGE || kind.subtype() == mime::OCTET_STREAM) {
                return Err(FetchError::Failed(format!("its host says that it is {kind:?}, not a picture")));
            }
            if response.body().content_length().is_some_and(|length| length > self.bytes as u64) {
                return Err(FetchError::TooLarge(self.bytes));
            }
            return self.read(response.body_mut().as_reader(), &mut take);
        }
        Err(FetchError::Failed(format!("it was redirected more than {REDIRECTS} times")))
    }

    fn read(&self, mut body: impl Read, take: &mut impl FnMut(usize) -> bool) -> Result<Bytes, FetchError> {
        let (mut picture, mut chunk) = (Vec::new(), vec![0; CHUNK]);
        loop {
            cancel::check().map_err(|error| FetchError::Failed(error.to_string()))?;
            let count = body.read(&mut chunk).map_err(|error| failed(&error.into()))?;
            if count == 0 {
                // A vector reserves more than it holds; the picture is kept without that.
                return Ok(picture.into_boxed_slice().into());
            }
            if picture.len() + count > self.bytes {
                return Err(FetchError::TooLarge(self.bytes));
            }
            if !take(count) {
                return Err(FetchError::NoRoom);
            }
            picture.extend_from_slice(&chunk[..count]);
        }
    }

    /// The address, where its form and its host are allowed.
    fn allowed(&self, url: &str) -> Result<Uri, FetchError> {
        if self.hosts.is_empty() {
            return Err(FetchError::Off);
        }
        let refused = |why: &str| FetchError::NotAllowed(format!("that URL is not fetched: {why}"));
        // A fragment is for browsers.
        let uri: Uri = url.split('#').next().unwrap_or(url).parse().map_err(|_| refused("it is malformed"))?;
        if uri.scheme_str() != Some("https") {
            return Err(refused("only https is"));
        }
        let authority = uri.authority().ok_or_else(|| refused("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(refused("it holds a name or password"));
        }
        let name = authority.host().to_ascii_lowercase();
        if !self.hosts.iter().any(|host| host.covers(&name, authority.port_u16().unwrap_or(443))) {
            return Err(refused("this server does not ask its host (--url-hosts)"));
        }
        Ok(uri)
    }
}

/// The target of a redirect, which may be relative.
fn joined(base: &Uri, target: &str) -> String {
    let path = target.split(['?', '#']).next().unwrap_or(target);
    if path.contains("://") {
        return target.to_owned();
    }
    let authority = base.authority().map_or("", |authority| authority.as_str());
    if let Some(rest) = target.strip_prefix("//") {
        return format!("https://{rest}");
    }
    if target.starts_with('/') {
        return format!("https://{authority}{target}");
    }
    if path.is_empty() {
        return format!("https://{authority}{}{target}", base.path());
    }
    let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    format!("https://{authority}{folder}/{target}")
}

fn failed(error: &ureq::Error) -> FetchError {
    match error {
        ureq::Error::Other(error) if error.is::<NotPublic>() => FetchError::NotAllowed(error.to_string()),
        ureq::Error::Timeout(_) => FetchError::Failed("its host took too long (--url-timeout)".into()),
        error => FetchError::Failed(error.to_string()),
    }
}

/// Resolves names, and refuses addresses that are not public unless they are allowed.
#[derive(Debug)]
struct PublicResolver {
    private: bool,
    resolver: DefaultResolver,
}

/// It says nothing of the addresses, and not whether there are any: which names exist inside is not the client's business.
#[derive(Debug, thiserror::Error)]
#[error("that URL is not fetched: its host has no address, or one that is not in the public internet (--url-private)")]
struct NotPublic;

impl Resolver for PublicResolver {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let allowed = |address: &SocketAddr| self.private || is_public(address.ip());
        match self.resolver.resolve(uri, config, timeout) {
            Ok(found) if found.iter().all(allowed) => Ok(found),
            Err(error) => {
                tracing::debug!(host = uri.host(), %error, "a host of a URL has no address");
                Err(ureq::Error::Other(Box::new(NotPublic)))
            }
            Ok(_) => Err(ureq::Error::Other(Box::new(NotPublic))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetcher(hosts: &[&str]) -> Fetcher {
        let hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
        let options = Options { url_hosts: hosts, url_private: false, url_ca: None, url_timeout: Duration::from_secs(5) };
        Fetcher::new(&options, 1 << 20).unwrap()
    }

    fn refusal(fetcher: &Fetcher, url: &str) -> FetchError {
        fetcher.fetch(url, None, |_| true).unwrap_err()
    }

    #[test]
    fn nothing_is_fetched_unless_hosts_are_named() {
        assert_eq!(refusal(&fetcher(&[]), "https://example.org/a.jpg"), FetchError::Off);
    }

    #[test]
    fn only_https_of_named_hosts_is_asked() {
        let some = fetcher(&["example.org", "*.pictures.example", "other.example:8443"]);
        for url in [
            "http://example.org/a.jpg",
            "ftp://example.org/a.jpg",
            "file:///etc/passwd",
            "https://example.org:8443/a.jpg",
            "https://other.example/a.jpg",
            "https://pictures.example/a.jpg",
            "https://evilpictures.example/a.jpg",
            "https://example.org.evil.example/a.jpg",
            "https://example.org@evil.example/a.jpg",
            "https://user:secret@example.org/a.jpg",
            "https://evil.example/#example.org",
            "https://",
            "https:///a.jpg",
            "https://exa mple.org/",
        ] {
            assert!(matches!(refusal(&some, url), FetchError::NotAllowed(_)), "{url}");
        }
        for url in ["https://EXAMPLE.org/a", "https://example.org./a", "https://a.pictures.example/", "https://other.example:8443/#x"] {
            some.allowed(url).unwrap();
        }
    }

    #[test]
    fn no_spelling_of_an_inner_address_is_asked() {
        let all = fetcher(&["*", "*:8080"]);
        for host in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "0",
            "0.0.0.0",
            "169.254.169.254",
            "10.0.0.1",
            "192.168.0.1",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:a9fe:a9fe]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "[fd00:ec2::254]",
            "[fe80::1]",
            "localhost",
            "LOCALHOST",
        ] {
            for port in ["", ":8080"] {
                let url = format!("https://{host}{port}/latest/meta-data");
                let error = refusal(&all, &url);
                assert!(matches!(&error, FetchError::NotAllowed(_)), "{url}: {error:?}");
                assert!(!error.to_string().contains("127.0.0.1"), "{error}");
            }
        }
    }

    #[test]
    fn a_name_that_does_not_resolve_is_answered_as_an_inner_one() {
        let all = fetcher(&["*"]);
        let inner = refusal(&all, "https://localhost/a.jpg");
        for unknown in ["https://no-such-host.invalid/a.jpg", "https://a..b/a.jpg", "https://999.1.1.1/a.jpg"] {
            assert_eq!(refusal(&all, unknown), inner, "{unknown}");
        }
    }

    #[test]
    fn redirects_are_resolved_against_where_they_come_from() {
        let base: Uri = "https://example.org/a/b.jpg?x=1".parse().unwrap();
        for (target, want) in [
            ("https://other.example/c", "https://other.example/c"),
            ("http://other.example/c", "http://other.example/c"),
            ("//other.example/c", "https://other.example/c"),
            ("/c", "https://example.org/c"),
            ("c", "https://example.org/a/c"),
            ("/c?next=https://x", "https://example.org/c?next=https://x"),
            ("?x=2", "https://example.org/a/b.jpg?x=2"),
        ] {
            assert_eq!(joined(&base, target), want);
        }
    }

    #[test]
    fn hosts_are_read_or_refused() {
        for wrong in ["", "*.", "a/b", "https://a", "a b", "*a", "a*", "user@a", "a:b", "a:99999"] {
            assert!(wrong.parse::<Host>().is_err(), "{wrong:?}");
        }
        assert_eq!("Example.org:8443".parse::<Host>().unwrap().to_string(), "example.org:8443");
    }
}
