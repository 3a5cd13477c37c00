//! API keys: who may ask, for what, and how much.
//!
//! Keys are written one a line, in a file or in the environment:
//!
//! ```text
//! # name  key                       may         at most, a minute
//! phone   3f0c…64 hex digits…       read-only   requests=600 pixels=500M
//! import  a1b2…64 hex digits…       full
//! ```
//!
//! The file is read again on SIGHUP, so that keys come and go without a restart.
//!
//! Only their hashes stay in memory. What a caller sends is hashed too, and compared with all of them in constant time.

use std::{
    fmt,
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use parking_lot::{Mutex, RwLock};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    App,
    problem::{Code, Problem},
    request_context,
};

/// Shortest key: what is shorter can be guessed.
const SHORTEST: usize = 16;
/// Separators of keys in the environment, where lines are awkward.
const SEPARATORS: [char; 2] = ['\n', ';'];
/// Routes that need no key: health, the API document, and pages without data.
const OPEN: [&str; 5] = ["/", "/healthz", "/readyz", "/metrics", "/openapi.json"];
const MINUTE: f64 = 60.0;
/// Largest limit, by the minute: far above what any machine can do, and a whole number in an f64.
const MOST: u64 = 1_000_000_000_000_000;
/// Longest wait that is answered, in seconds: one huge picture may overdraw a small budget for ages.
const LONGEST_WAIT: f64 = 366.0 * 86_400.0;

/// The keys of a server.
#[derive(Clone, Default)]
pub struct Keys(Vec<Arc<Key>>);

/// Where the keys of a server come from.
#[derive(Clone, Debug, Default)]
pub struct KeySource {
    /// Those of the flag or the environment, which stay.
    pub given: Keys,
    /// The file with the others.
    pub file: Option<PathBuf>,
}

/// The keys as they are now.
#[derive(Debug)]
pub struct KeyRing {
    source: KeySource,
    now: RwLock<Arc<Keys>>,
}

/// One key, with what is left of its limits.
pub struct Key {
    name: String,
    hash: [u8; 32],
    full: bool,
    requests: Option<Budget>,
    pixels: Option<Budget>,
}

impl fmt::Debug for Keys {
    /// Their number alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

impl FromStr for Keys {
    type Err = String;

    /// Reads all keys of a text. Errors name the line, and never what it holds.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut keys: Vec<Arc<Key>> = Vec::new();
        for (number, line) in (1..).zip(text.split(SEPARATORS)) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = Key::parse(line).map_err(|reason| format!("key {number}: {reason}"))?;
            if keys.iter().any(|other| other.name == key.name || other.hash == key.hash) {
                return Err(format!("key {number}: its name or the key itself is there already"));
            }
            keys.push(Arc::new(key));
        }
        Ok(Self(keys))
    }
}

impl Keys {
    /// Whether there are none, so that every request is allowed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys of both.
    ///
    /// # Errors
    /// Where a name or a key is in both.
    pub fn and(mut self, other: Self) -> Result<Self, String> {
        for key in other.0 {
            if self.0.iter().any(|known| known.name == key.name || known.hash == key.hash) {
                return Err(format!("the key called `{}` is given twice", key.name));
            }
            self.0.push(key);
        }
        Ok(self)
    }

    /// These keys, where those that were there before keep what is left of their limits.
    fn after(self, before: &Self) -> Self {
        let old = |key: &Arc<Key>| before.0.iter().find(|old| old.is_the_same_as(key)).map(Arc::clone);
        Self(self.0.into_iter().map(|key| old(&key).unwrap_or(key)).collect())
    }

    /// The key that was sent. All are compared, each in the same time.
    pub(super) fn find(&self, sent: &[u8]) -> Option<&Arc<Key>> {
        let hash: [u8; 32] = Sha256::digest(sent).into();
        let mut found = None;
        for key in &self.0 {
            if bool::from(key.hash.ct_eq(&hash)) {
                found = Some(key);
            }
        }
        found
    }
}

impl KeySource {
    /// Reads all keys.
    ///
    /// # Errors
    /// What is wrong with the file, without any key. A file that names no key is a mistake: it would leave the server open.
    pub fn read(&self) -> Result<Keys, String> {
        let Some(path) = &self.file else { return Ok(self.given.clone()) };
        let keys: Keys = fs_err::read_to_string(path).map_err(|error| error.to_string())?.parse()?;
        if keys.is_empty() { Err("it holds no key".into()) } else { keys.and(self.given.clone()) }
    }
}

impl KeyRing {
    /// Reads the keys of a source.
    ///
    /// # Errors
    /// Those of [`KeySource::read`].
    pub fn read(source: KeySource) -> Result<Self, String> {
        let now = RwLock::new(Arc::new(source.read()?));
        Ok(Self { source, now })
    }

    /// The keys as they are now.
    pub(super) fn now(&self) -> Arc<Keys> {
        Arc::clone(&self.now.read())
    }

    /// Whether there are none, which stays so.
    pub(super) fn is_empty(&self) -> bool {
        self.now.read().is_empty()
    }

    /// Whether keys can be read again.
    pub(super) fn has_file(&self) -> bool {
        self.source.file.is_some()
    }

    /// Reads the file again. Where it cannot be used, the keys stay as they are.
    pub(super) fn read_again(&self) {
        match self.source.read() {
            Ok(keys) => {
                let mut now = self.now.write();
                *now = Arc::new(keys.after(&now));
                tracing::info!("read again: {:?}", **now);
            }
            Err(error) => tracing::error!(error, "--api-keys-file was not read again, and the keys stay as they are"),
        }
    }
}

impl Key {
    fn is_the_same_as(&self, other: &Self) -> bool {
        let limits = |key: &Self| [&key.requests, &key.pixels].map(|budget| budget.as_ref().map(|budget| budget.per_minute));
        (&self.name, self.hash, self.full, limits(self)) == (&other.name, other.hash, other.full, limits(other))
    }

    fn parse(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let (Some(name), Some(secret)) = (words.next(), words.next()) else {
            return Err("expected a name and the key, then read-only or full".into());
        };
        if secret.len() < SHORTEST {
            return Err(format!("a key has at least {SHORTEST} characters"));
        }
        let full = match words.next() {
            Some("full") => true,
            Some("read-only") => false,
            _ => return Err("after the key comes read-only or full".into()),
        };
        let (mut requests, mut pixels) = (None, None);
        for word in words {
            match word.split_once('=') {
                Some(("requests", number)) if requests.is_none() => requests = Some(Budget::parse(number)?),
                Some(("pixels", number)) if pixels.is_none() => pixels = Some(Budget::parse(number)?),
                _ => return Err("limits are requests=N and pixels=N, each once (with k, M or G)".into()),
            }
        }
        Ok(Self { name: name.into(), hash: Sha256::digest(secret).into(), full, requests, pixels })
    }

    /// What the log calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether pixels are counted.
    pub(super) fn counts_pixels(&self) -> bool {
        self.pixels.is_some()
    }

    /// Takes pixels out of the budget.
    pub(super) fn spend_pixels(&self, pixels: u64) -> Result<(), Problem> {
        spend(self.pixels.as_ref(), pixels as f64, "pixels")
    }
}

fn spend(budget: Option<&Budget>, amount: f64, what: &str) -> Result<(), Problem> {
    let Some(budget) = budget else { return Ok(()) };
    budget.spend(amount, Instant::now()).map_err(|wait| {
        let (rate, seconds) = (budget.per_minute, wait.as_secs_f64().ceil());
        let mut problem = Problem::new(Code::RateLimited, format!("this key may use {rate} {what} a minute: try again in {seconds} s"));
        problem.retry_after = Some(Duration::from_secs_f64(seconds));
        problem
    })
}

/// An amount that fills up steadily, to what a minute gives. The last request may overdraw it, and the next ones wait
/// until that is paid back: so a picture larger than what is left is possible, and the mean rate holds all the same.
struct Budget {
    per_minute: f64,
    /// What is left, and when that was so.
    left: Mutex<(f64, Instant)>,
}

impl Budget {
    /// Units are powers of 1000 here: pixels are no memory.
    fn parse(text: &str) -> Result<Self, String> {
        let (digits, unit) = match text.char_indices().last() {
            Some((at, 'k' | 'K')) => (&text[..at], 1_000),
            Some((at, 'm' | 'M')) => (&text[..at], 1_000_000),
            Some((at, 'g' | 'G')) => (&text[..at], 1_000_000_000),
            _ => (text, 1),
        };
        // Less than one a minute would let nothing through: a request takes one whole.
        let number: u64 = digits.parse().map_err(|_| "a limit is a whole number, such as 600 or 500M")?;
        let per_minute = number.checked_mul(unit).filter(|limit| (1..=MOST).contains(limit));
        let per_minute = per_minute.ok_or_else(|| format!("a limit lies between 1 and {}G", MOST / 1_000_000_000))? as f64;
        Ok(Self { per_minute, left: Mutex::new((per_minute, Instant::now())) })
    }

    /// Takes `amount`, or says how long to wait.
    fn spend(&self, amount: f64, now: Instant) -> Result<(), Duration> {
        let mut left = self.left.lock();
        let gained = now.saturating_duration_since(left.1).as_secs_f64() * self.per_minute / MINUTE;
        *left = ((left.0 + gained).min(self.per_minute), now);
        if left.0 < amount.min(1.0) {
            let wait = (1.0 - left.0) * MINUTE / self.per_minute;
            return Err(Duration::from_secs_f64(wait.min(LONGEST_WAIT)));
        }
        left.0 -= amount;
        Ok(())
    }
}

/// Lets requests through that have a key for what they ask.
pub(super) async fn check(State(app): State<App>, path: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let path = path.as_ref().map_or("", MatchedPath::as_str);
    match admit(&app, path, request.method(), request.headers()) {
        Ok(key) => {
            if let Some(key) = key {
                tracing::Span::current().record("key", key.name());
                request_context::set_key(key);
            }
            next.run(request).await
        }
        Err(problem) => {
            let missing = problem.code.status() == axum::http::StatusCode::UNAUTHORIZED;
            let mut response = problem.into_response();
            if missing {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            response
        }
    }
}

/// Whether a route needs no key, wherever there are keys.
pub(super) fn is_open(path: &str) -> bool {
    OPEN.contains(&path) || path.starts_with("/docs") || path.starts_with("/page/")
}

fn admit(app: &App, path: &str, method: &Method, headers: &HeaderMap) -> Result<Option<Arc<Key>>, Problem> {
    let keys = app.keys.now();
    if keys.is_empty() || is_open(path) {
        return Ok(None);
    }
    let Some(sent) = sent_key(headers) else {
        return Err(Problem::new(Code::KeyMissing, "send an API key: `Authorization: Bearer …` or `X-Api-Key: …`"));
    };
    let Some(key) = keys.find(sent) else {
        return Err(Problem::new(Code::KeyUnknown, "this server does not know the API key"));
    };
    if changes_something(method, path) && !key.full {
        return Err(Problem::new(Code::KeyReadOnly, "this API key may read, not write"));
    }
    spend(key.requests.as_ref(), 1.0, "requests")?;
    Ok(Some(Arc::clone(key)))
}

fn sent_key(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(value) = headers.get("x-api-key") {
        return Some(value.as_bytes());
    }
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

/// Whatever is not known to read is taken to write.
fn changes_something(method: &Method, path: &str) -> bool {
    let reads = ["/embed", "/classify", "/segment", "/depth", "/similarity", "/match", "/v1/embeddings"];
    match *method {
        Method::GET | Method::HEAD | Method::OPTIONS => false,
        Method::POST => !(reads.contains(&path) || ["/search", "/anomaly", "/snapshot"].iter().any(|end| path.ends_with(end))),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef";

    #[test]
    fn keys_are_read_line_by_line_and_never_repeated() {
        let keys: Keys = format!("# ours\n\nphone {SECRET}-1 read-only requests=60 pixels=2M; import  {SECRET}-2 full").parse().unwrap();
        assert_eq!(format!("{keys:?}"), "2 keys");
        let phone = keys.find(format!("{SECRET}-1").as_bytes()).unwrap();
        assert_eq!((phone.name(), phone.full), ("phone", false));
        assert_eq!(phone.pixels.as_ref().map(|pixels| pixels.per_minute), Some(2e6));
        assert!(keys.find(format!("{SECRET}-2").as_bytes()).unwrap().full);
        assert!(keys.find(SECRET.as_bytes()).is_none() && keys.find(b"").is_none());
        for bad in [
            "name".to_owned(),
            "name short full".to_owned(),
            format!("name {SECRET}"),
            format!("name {SECRET} admin"),
            format!("name {SECRET} full requests=x"),
            format!("name {SECRET} full requests=0"),
            format!("name {SECRET} full requests=0.5"),
            format!("name {SECRET} full requests=1e-20"),
            format!("name {SECRET} full requests=1e400"),
            format!("name {SECRET} full pixels=-1"),
            format!("name {SECRET} full pixels=M"),
            format!("name {SECRET} full pixels=99999999999999999999"),
            format!("name {SECRET} full pixels=18446744073709551615G"),
            format!("name {SECRET} full speed=1"),
            format!("a {SECRET} full\nb {SECRET} full"),
            format!("a {SECRET} full\na {SECRET}x full"),
        ] {
            let error = bad.parse::<Keys>().unwrap_err();
            assert!(error.starts_with("key ") && !error.contains(SECRET), "{error}");
        }
    }

    #[test]
    fn a_budget_fills_up_again() {
        let budget = Budget::parse("60").unwrap();
        let start = Instant::now();
        for _ in 0..60 {
            assert!(budget.spend(1.0, start).is_ok());
        }
        let wait = budget.spend(1.0, start).unwrap_err();
        assert!((0.5..=1.5).contains(&wait.as_secs_f64()), "{wait:?}");
        assert!(budget.spend(1.0, start + Duration::from_secs(2)).is_ok());
        // Overdrawn once, then paid back.
        assert!(budget.spend(600.0, start + Duration::from_secs(10)).is_ok());
        assert!(budget.spend(1.0, start + Duration::from_mins(8)).is_err());
        assert!(budget.spend(1.0, start + Duration::from_mins(12)).is_ok());
    }

    #[test]
    fn an_overdrawn_budget_waits_a_time_that_can_be_told() {
        let budget = Budget::parse("1").unwrap();
        let start = Instant::now();
        budget.spend(u64::MAX as f64, start).unwrap();
        assert!(budget.spend(1.0, start).unwrap_err().as_secs_f64() <= LONGEST_WAIT);
    }

    #[test]
    fn keys_that_stay_keep_what_is_left_to_them() {
        let keys = |text: &str| text.replace('S', SECRET).parse::<Keys>().unwrap();
        let before = keys("a S1 full requests=1; b S2 full requests=1; c S3 full");
        let after = keys("b S2 full requests=1; c S3 read-only; d S4 full").after(&before);
        assert!(after.find(format!("{SECRET}1").as_bytes()).is_none());
        assert!(Arc::ptr_eq(&after.0[0], &before.0[1]));
        assert!(!after.0[1].full && after.find(format!("{SECRET}4").as_bytes()).is_some());
    }

    #[test]
    fn whatever_is_not_known_to_read_is_a_write() {
        for (method, path, writes) in [
            (Method::GET, "/collections/{collection}/items", false),
            (Method::POST, "/embed", false),
            (Method::POST, "/collections/{collection}/search", false),
            (Method::POST, "/collections/{collection}/anomaly", false),
            (Method::POST, "/collections/{collection}/items", true),
            (Method::POST, "/collections/{collection}/items/{id}", true),
            (Method::POST, "/collections/{collection}/restore", true),
            (Method::PUT, "/collections/{collection}", true),
            (Method::DELETE, "/collections/{collection}", true),
            (Method::POST, "/v1/models/{name}/reload", true),
            (Method::POST, "", true),
        ] {
            assert_eq!(changes_something(&method, path), writes, "{method} {path}");
        }
    }
}
