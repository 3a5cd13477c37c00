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
//! Only their hashes stay in memory. What a caller sends is hashed too, and compared with all of them in constant time.

use std::{
    fmt,
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
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    App, call,
    problem::{Code, Problem},
};

/// Shortest key: what is shorter can be guessed.
const SHORTEST: usize = 16;
/// Separators of keys in the environment, where lines are awkward.
const SEPARATORS: [char; 2] = ['\n', ';'];
/// Routes that need no key: whether the server lives, what it can do, and pages that hold nothing of anyone.
const OPEN: [&str; 5] = ["/", "/healthz", "/readyz", "/metrics", "/openapi.json"];
const MINUTE: f64 = 60.0;

/// The keys of a server.
#[derive(Clone, Default)]
pub struct Keys(Vec<Arc<Key>>);

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
    /// Whether there are none, so that everybody may do everything.
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

impl Key {
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
            Some((at, 'k' | 'K')) => (&text[..at], 1e3),
            Some((at, 'm' | 'M')) => (&text[..at], 1e6),
            Some((at, 'g' | 'G')) => (&text[..at], 1e9),
            _ => (text, 1.0),
        };
        let number: f64 = digits.parse().map_err(|_| "a limit is a number, such as 600 or 500M")?;
        if !(number.is_finite() && number > 0.0) {
            return Err("a limit is above 0".into());
        }
        let per_minute = number * unit;
        Ok(Self { per_minute, left: Mutex::new((per_minute, Instant::now())) })
    }

    /// Takes `amount`, or says how long to wait.
    fn spend(&self, amount: f64, now: Instant) -> Result<(), Duration> {
        let mut left = self.left.lock();
        let gained = now.saturating_duration_since(left.1).as_secs_f64() * self.per_minute / MINUTE;
        *left = ((left.0 + gained).min(self.per_minute), now);
        if left.0 < amount.min(1.0) {
            return Err(Duration::from_secs_f64((-left.0 + 1.0) * MINUTE / self.per_minute));
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
                call::has_key(key);
            }
            next.run(request).await
        }
        Err(problem) => {
            let (parts, body) = request.into_parts();
            super::body::discard(&parts.headers, body).await;
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
    if app.keys.is_empty() || is_open(path) {
        return Ok(None);
    }
    let Some(sent) = sent_key(headers) else {
        return Err(Problem::new(Code::KeyMissing, "send an API key: `Authorization: Bearer …` or `X-Api-Key: …`"));
    };
    let Some(key) = app.keys.find(sent) else {
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
    let reads = ["/embed", "/classify", "/segment", "/similarity", "/v1/embeddings"];
    match *method {
        Method::GET | Method::HEAD | Method::OPTIONS => false,
        Method::POST => !(reads.contains(&path) || path.ends_with("/search") || path.ends_with("/snapshot")),
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
    fn whatever_is_not_known_to_read_is_a_write() {
        for (method, path, writes) in [
            (Method::GET, "/collections/{collection}/items", false),
            (Method::POST, "/embed", false),
            (Method::POST, "/collections/{collection}/search", false),
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
