//! Wrong usage that the parser of the command line cannot tell: the program ends with 2, as at a flag that does not exist.

/// Settings that do not go together, or that a file has out of their range.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
pub struct Usage(pub(super) anyhow::Error);
