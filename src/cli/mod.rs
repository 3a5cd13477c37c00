//! One file per verb.

pub(crate) mod import;
pub(crate) mod restore;
pub(crate) mod serve;
pub(crate) mod snapshot;

/// Says on stderr, in one line, why the program ends.
#[expect(clippy::print_stderr, reason = "the log may not have been started, or not be meant for people")]
pub(crate) fn complain(error: &anyhow::Error) {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        // Many errors repeat what they were caused by: once is enough.
        if !line.contains(&cause) {
            let colon = if line.is_empty() { "" } else { ": " };
            line = format!("{line}{colon}{cause}");
        }
    }
    eprintln!("error: {line}");
}
