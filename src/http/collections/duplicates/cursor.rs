//! Cursors: which report a page is of, and where it ended.

use std::fmt;

use super::finder::Key;
use crate::index::{MAX_STRING, Version, checksum};

/// Digits of a report's name.
const DIGITS: usize = 16;

/// Names a report: what was compared, in which version. Servers that share a collection give it the same name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ReportId(String);

impl ReportId {
    pub(super) fn of(key: &Key, version: Version) -> Self {
        let mut hash = checksum::of_bytes(format!("{key:?}\0{version:?}").as_bytes());
        hash.truncate(DIGITS);
        Self(hash)
    }
}

/// Where a page begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) report: ReportId,
    /// Id of the first item of the last group before it.
    pub(super) after: String,
}

impl Cursor {
    /// Reads what was written; `None` for anything else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (report, after) = text.split_once('.')?;
        let is_name = report.len() == DIGITS && report.bytes().all(|byte| byte.is_ascii_hexdigit());
        (is_name && after.len() <= MAX_STRING).then(|| Self { report: ReportId(report.to_owned()), after: after.to_owned() })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.report.0, self.after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let cursor = Cursor { report: ReportId("0123456789abcdef".into()), after: "a.b/ü.jpg".into() };
        assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor));
        let long = format!("0123456789abcdef.{}", "x".repeat(MAX_STRING + 1));
        for other in ["", "a.b/ü.jpg", "0123456789abcdef", "0123456789abcdex.a", &long] {
            assert_eq!(Cursor::parse(other), None, "{other}");
        }
    }
}
