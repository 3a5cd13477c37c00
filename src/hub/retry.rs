//! Which failed requests are tried again, and when.

use std::thread;
use std::time::{Duration, SystemTime};

use ureq::http::HeaderMap;

use crate::Error;
use crate::settings::RetryPolicy;

/// How one attempt failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The next attempt may succeed.
    Passing {
        /// Host that failed.
        host: String,
        /// How.
        reason: String,
        /// The status of its answer, where there was one.
        status: Option<u16>,
        /// How long it asks to wait.
        wait: Option<Duration>,
    },
    /// The next attempt would fail as well.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Final(error.into())
    }
}

/// The attempts of one request.
#[derive(Debug)]
pub(crate) struct Attempts<'a> {
    policy: &'a RetryPolicy,
    /// In words, what is requested.
    what: String,
    most: u32,
    made: u32,
}

impl<'a> Attempts<'a> {
    /// Of what `what` says, at most `most` without progress.
    pub(crate) fn new(policy: &'a RetryPolicy, what: String, most: u32) -> Self {
        Self { policy, what, most, made: 0 }
    }

    /// The last attempt brought more of a file: as many are left as at first.
    pub(crate) fn progress(&mut self) {
        self.made = 0;
    }

    /// Waits for the next attempt, or says why there is none.
    pub(crate) fn wait(&mut self, failure: Failure, with_token: bool) -> Result<(), Error> {
        let (host, reason, status, asked) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Passing { host, reason, status, wait } => (host, reason, status, wait),
        };
        self.made += 1;
        let longest = self.policy.max_backoff;
        let may_wait = asked.is_none_or(|asked| asked <= longest);
        if self.made >= self.most || !may_wait {
            return Err(match status {
                None => Error::Unreachable { host, reason, name: self.what.clone() },
                Some(status) => {
                    let asked = asked.map(|asked| format!(" (it asks to wait {} s)", asked.as_secs())).unwrap_or_default();
                    let hint = if status == 429 && !with_token { ", or set HF_TOKEN: who is logged in may ask for more" } else { "" };
                    Error::Busy { host, status, asked, hint }
                }
            });
        }
        let pause = self.policy.backoff.saturating_mul(1 << (self.made - 1).min(16)).max(asked.unwrap_or_default()).min(longest);
        tracing::warn!("{host}: {reason}; {} is tried again in {:.1} s", self.what, pause.as_secs_f32());
        thread::sleep(pause);
        Ok(())
    }
}

/// How long an answer asks to wait: `Retry-After` in seconds or as a date, or the end of the window in the hub's `RateLimit`.
pub(crate) fn asked_wait(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    if let Some(after) = text("retry-after") {
        let date = || httpdate::parse_http_date(after).ok()?.duration_since(SystemTime::now()).ok();
        return after.trim().parse().ok().map(Duration::from_secs).or_else(date);
    }
    // "api";r=0;t=55: nothing is left for 55 seconds.
    let limit = text("ratelimit")?;
    let field = |name: &str| limit.split(';').find_map(|field| field.trim().strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok());
    (field("r")? == 0).then(|| field("t").map(Duration::from_secs))?
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use ureq::http::HeaderMap;

    use super::{Attempts, Failure, asked_wait};
    use crate::Error;
    use crate::settings::RetryPolicy;

    #[test]
    fn answers_say_how_long_to_wait() {
        let wait = |name: &'static str, value: &str| asked_wait(&HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]));
        assert_eq!(wait("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"), None);
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(2000));
        assert!(wait("retry-after", &later) > Some(Duration::from_secs(1000)));
        assert_eq!(wait("ratelimit", "\"api\";r=0;t=55"), Some(Duration::from_secs(55)));
        assert_eq!(wait("ratelimit", "\"api\";r=3;t=55"), None);
        assert_eq!(wait("retry-after", "soon"), None);
        assert_eq!(asked_wait(&HeaderMap::new()), None);
    }

    #[test]
    fn attempts_end_without_progress() {
        let policy = RetryPolicy { backoff: Duration::ZERO, ..RetryPolicy::default() };
        let failure = |status, wait| Failure::Passing { host: "h".into(), reason: "r".into(), status, wait };
        let mut attempts = Attempts::new(&policy, "w".into(), 3);
        attempts.wait(failure(None, None), false).unwrap();
        attempts.wait(failure(None, None), false).unwrap();
        attempts.progress();
        attempts.wait(failure(None, None), false).unwrap();
        attempts.wait(failure(None, None), false).unwrap();
        assert!(matches!(attempts.wait(failure(None, None), false), Err(Error::Unreachable { .. })));
        let long = Attempts::new(&policy, "w".into(), 3).wait(failure(Some(429), Some(Duration::from_hours(1))), false);
        let text = long.unwrap_err().to_string();
        assert!(text.contains("429") && text.contains("wait 3600 s") && text.contains("HF_TOKEN"), "{text}");
    }
}
