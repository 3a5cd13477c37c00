//! Collections as a whole: stored, searched, restarted, damaged.

mod common;
mod search;
mod store;
