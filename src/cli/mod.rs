//! One file per verb.

pub(crate) mod embed;
pub(crate) mod healthcheck;
pub(crate) mod import;
pub(crate) mod memory;
pub(crate) mod reembed;
pub(crate) mod restore;
pub(crate) mod schema;
pub(crate) mod serve;
pub(crate) mod snapshot;
mod store;

use std::path::Path;

use dino_vision::model::{Model, ModelError};
use indicatif::{ProgressBar, ProgressStyle};

/// Opens a model; what was found out about a plain ONNX file goes to stderr.
#[expect(clippy::print_stderr, reason = "commands keep no log")]
pub(crate) fn open_model(path: &Path) -> Result<Model, ModelError> {
    let model = Model::open(path)?;
    if let Some(summary) = model.summary() {
        eprintln!("{summary}");
    }
    Ok(model)
}

/// A bar for so many pictures to embed.
pub(crate) fn progress(count: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("embedding [{bar:30}] {pos}/{len} {per_sec} {eta}").expect("a fixed template");
    ProgressBar::new(count as u64).with_style(style)
}

/// A whole number from 1 on, as a flag has it.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 0).ok_or_else(|| "a whole number from 1 on is wanted".to_owned())
}

/// Names a file or row that is left out.
#[expect(clippy::print_stderr, reason = "for the user of the command")]
pub(crate) fn skipped(what: &str, reason: &str) {
    eprintln!("skipped {what}: {reason}");
}

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
