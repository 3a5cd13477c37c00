//! One file per verb.

pub(crate) mod import;
pub(crate) mod restore;
pub(crate) mod snapshot;

/// Says on stderr, in one line, why the program ends.
#[expect(clippy::print_stderr, reason = "the log may not have been started, or not be meant for people")]
pub(crate) fn complain(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}
