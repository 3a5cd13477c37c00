//! Where models are fetched from and kept: the environment variables of Hugging Face's own library, with their meaning there.

use std::env;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs_err as fs;
use url::Url;

use crate::Error;

/// The hub that is asked where `HF_ENDPOINT` names no other.
pub const ENDPOINT: &str = "https://huggingface.co";
/// Seconds without a byte after which an attempt fails, where `HF_HUB_DOWNLOAD_TIMEOUT` says nothing.
const READ_TIMEOUT: u64 = 10;
/// Bytes of a token's file; real ones have about forty.
const MOST_TOKEN: usize = 4096;

/// Where models are fetched from and kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The hub: `HF_ENDPOINT`. Its path has no slash at the end.
    pub endpoint: Url,
    /// What the hub knows the user by: `HF_TOKEN`, else the file that `hf auth login` writes.
    pub token: Option<Token>,
    /// Folder of the cache: `HF_HUB_CACHE`, else `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// Whether nothing is asked, and the cache alone is looked into: `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// Whether bars on a terminal show how far a file is: not with `HF_HUB_DISABLE_PROGRESS_BARS`.
    pub bars: bool,
    /// Timeouts and retries.
    pub retry: RetryPolicy,
}

/// Timeouts of one attempt, and when a request is tried again.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for the next bytes of an answer: `HF_HUB_DOWNLOAD_TIMEOUT`.
    pub read_timeout: Duration,
    /// Attempts of one request. Those that brought more of a file are not counted.
    pub attempts: u32,
    /// Pause before the second attempt; twice as long before each further one.
    pub backoff: Duration,
    /// Longest pause before an attempt, whatever the hub asks for.
    pub max_backoff: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(READ_TIMEOUT),
            attempts: 5,
            backoff: Duration::from_secs(1),
            max_backoff: Duration::from_mins(1),
        }
    }
}

/// A secret, which no message shows.
#[derive(Clone)]
pub struct Token {
    secret: String,
    origin: String,
}

impl Token {
    /// The secret itself.
    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    /// Where it was found.
    pub fn origin(&self) -> &str {
        &self.origin
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(from {})", self.origin)
    }
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`Error::Setting`] names the variable with a value that cannot be.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_vars(|name| env::var(name).ok())
    }

    /// Reads variables that `var` has.
    ///
    /// # Errors
    /// See [`Self::from_env`].
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        // A variable that is set to nothing is one that is not set, as in a compose file.
        let var = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let is_set = |name: &str| var(name).is_some_and(|value| is_true(&value));
        let path = |name: &str| var(name).map(|value| PathBuf::from(expand(&value, &var)));
        let home = path("HF_HOME").unwrap_or_else(|| {
            let caches = path("XDG_CACHE_HOME").unwrap_or_else(|| PathBuf::from(expand("~/.cache", &var)));
            caches.join("huggingface")
        });
        let mut retry = RetryPolicy::default();
        if let Some(seconds) = var("HF_HUB_DOWNLOAD_TIMEOUT") {
            let seconds = seconds.trim().parse().ok().filter(|seconds| (1..=3600).contains(seconds));
            let wrong = || setting("HF_HUB_DOWNLOAD_TIMEOUT", "is no whole number of seconds from 1 to 3600");
            retry.read_timeout = Duration::from_secs(seconds.ok_or_else(wrong)?);
        }
        Ok(Self {
            endpoint: endpoint(&var("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()))?,
            token: if is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") { None } else { token(&var, path("HF_TOKEN_PATH"), &home)? },
            cache: path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub")),
            offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
            bars: !is_set("HF_HUB_DISABLE_PROGRESS_BARS"),
            retry,
        })
    }
}

fn setting(variable: &'static str, reason: &str) -> Error {
    Error::Setting { variable, reason: reason.to_owned() }
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.trim().to_ascii_uppercase().as_str())
}

/// The hub at this address.
fn endpoint(text: &str) -> Result<Url, Error> {
    // A user, a password or a query may be a secret, and is not repeated.
    let shown = if text.contains(['@', '?', '#']) { "has".to_owned() } else { format!("is {text:?} and has") };
    let wrong = |reason: &str| Error::Setting { variable: "HF_ENDPOINT", reason: format!("{shown} {reason}; write https://HOST") };
    if !text.contains("://") {
        return Err(wrong("no https://"));
    }
    let mut url = Url::parse(text.trim().trim_end_matches('/')).map_err(|_| wrong("no address of a web server"))?;
    if !["https", "http"].contains(&url.scheme()) || url.host().is_none() {
        return Err(wrong("no address of a web server"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("more than a host and a path; a token belongs into HF_TOKEN"));
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

fn token(var: &impl Fn(&str) -> Option<String>, file: Option<PathBuf>, home: &Path) -> Result<Option<Token>, Error> {
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        if let Some(secret) = var(name) {
            return clean(&secret, name.to_owned());
        }
    }
    let file = file.unwrap_or_else(|| home.join("token"));
    match fs::read_to_string(&file) {
        Ok(secret) => clean(&secret, file.display().to_string()),
        // There is none, or it is not this user's.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => {
            Err(Error::Setting { variable: "HF_TOKEN_PATH", reason: format!("or the usual file of the token cannot be read: {error}") })
        }
    }
}

fn clean(secret: &str, origin: String) -> Result<Option<Token>, Error> {
    let secret = secret.trim();
    if secret.len() > MOST_TOKEN || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::Setting {
            variable: "HF_TOKEN",
            reason: format!("(from {origin}) is no token: those begin with hf_ and are one word"),
        });
    }
    Ok((!secret.is_empty()).then(|| Token { secret: secret.to_owned(), origin }))
}

/// `~`, `$NAME` and `${NAME}` in a path. Variables that are not set stay as they are written.
fn expand(path: &str, var: &impl Fn(&str) -> Option<String>) -> String {
    let mut rest = path;
    let mut whole = String::new();
    if let Some(below) = path.strip_prefix('~').filter(|below| below.is_empty() || below.starts_with('/')) {
        whole = var("HOME").or_else(|| env::home_dir().map(|home| home.display().to_string())).unwrap_or_else(|| "~".to_owned());
        rest = below;
    }
    while let Some(at) = rest.find('$') {
        whole.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let plain = || after.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(after.len());
        let braced = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let (name, end) = braced.map_or_else(|| (&after[..plain()], plain()), |(name, _)| (name, name.len() + 2));
        match var(name) {
            Some(value) => whole.push_str(&value),
            None => whole.push_str(&rest[at..=at + end]),
        }
        rest = &after[end..];
    }
    whole + rest
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::Settings;
    use crate::Error;

    fn of(vars: &[(&str, &str)]) -> Result<Settings, Error> {
        Settings::from_vars(|name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    fn cache(vars: &[(&str, &str)]) -> String {
        of(vars).unwrap().cache.display().to_string()
    }

    #[test]
    fn the_cache_is_where_the_library_has_it() {
        assert_eq!(cache(&[("HOME", "/h")]), "/h/.cache/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
        assert_eq!(cache(&[("HF_HOME", "/f"), ("XDG_CACHE_HOME", "/x")]), "/f/hub");
        assert_eq!(cache(&[("HF_HOME", "/f"), ("HUGGINGFACE_HUB_CACHE", "/old")]), "/old");
        assert_eq!(cache(&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")]), "/new");
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HUB_CACHE", "")]), "/h/.cache/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("D", "/d"), ("HF_HOME", "$D/${D}x/$MISSING")]), "/d//dx/$MISSING/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "~/f")]), "/h/f/hub");
    }

    #[test]
    fn switches_are_read_as_the_library_reads_them() {
        let home = ("HOME", "/h");
        for (value, offline) in [("1", true), ("true", true), ("YES", true), ("on", true), ("0", false), ("", false), ("no", false)] {
            assert_eq!(of(&[home, ("HF_HUB_OFFLINE", value)]).unwrap().offline, offline, "{value}");
        }
        assert!(of(&[home, ("TRANSFORMERS_OFFLINE", "1")]).unwrap().offline);
        assert!(!of(&[home, ("HF_HUB_DISABLE_PROGRESS_BARS", "1")]).unwrap().bars);
        assert_eq!(of(&[home, ("HF_HUB_DOWNLOAD_TIMEOUT", "3")]).unwrap().retry.read_timeout, Duration::from_secs(3));
        assert!(of(&[home, ("HF_HUB_DOWNLOAD_TIMEOUT", "soon")]).unwrap_err().to_string().contains("HF_HUB_DOWNLOAD_TIMEOUT"));
    }

    #[test]
    fn an_endpoint_is_an_address() {
        let endpoint = |text: &str| of(&[("HOME", "/h"), ("HF_ENDPOINT", text)]).map(|settings| settings.endpoint.to_string());
        assert_eq!(of(&[("HOME", "/h")]).unwrap().endpoint.as_str(), "https://huggingface.co/");
        assert_eq!(endpoint("http://127.0.0.1:8001/").unwrap(), "http://127.0.0.1:8001/");
        assert_eq!(endpoint("https://mirror.example/hf//").unwrap(), "https://mirror.example/hf");
        for bad in ["mirror.example", "ftp://x", "https://user:secret@x", "https://x?y", "https://"] {
            assert!(endpoint(bad).unwrap_err().to_string().contains("HF_ENDPOINT"), "{bad}");
        }
        for secret in ["https://user:geheim@x", "https://geheim@x", "https://x?token=geheim", "x y://user:geheim@", "https://x#geheim"] {
            let error = endpoint(secret).unwrap_err().to_string();
            assert!(error.contains("HF_TOKEN") != secret.starts_with("x y") && !error.contains("geheim"), "{error}");
        }
        assert!(endpoint("huggingface.co").unwrap_err().to_string().contains("has no https://"));
    }

    #[test]
    fn tokens_come_from_the_environment_or_the_file_and_are_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        let token = |vars: &[(&str, &str)]| of(vars).unwrap().token;
        assert!(token(&[("HF_HOME", home)]).is_none());
        fs_err::write(folder.path().join("token"), "hf_file\n").unwrap();
        let found = token(&[("HF_HOME", home)]).unwrap();
        assert_eq!((found.secret(), Path::new(found.origin())), ("hf_file", folder.path().join("token").as_path()));
        assert_eq!(token(&[("HF_HOME", home), ("HF_TOKEN", " hf_env\r\n")]).unwrap().secret(), "hf_env");
        assert!(token(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).is_none());
        assert!(!format!("{:?}", of(&[("HF_HOME", home)]).unwrap()).contains("hf_file"));
        let broken = of(&[("HF_HOME", home), ("HF_TOKEN", "a b")]).unwrap_err().to_string();
        assert!(broken.contains("HF_TOKEN") && !broken.contains("a b"), "{broken}");
    }
}
