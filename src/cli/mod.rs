//! One file per verb.

pub(crate) mod serve;

/// Says on stderr, in one line, why the program ends.
#[expect(clippy::print_stderr, reason = "the log may not have been started, or not be meant for people")]
pub(crate) fn complain(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}
