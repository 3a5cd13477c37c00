//! Collections as a whole: stored, searched, restarted, damaged.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod bytes;
mod common;
mod search;
mod snapshot;
mod store;
