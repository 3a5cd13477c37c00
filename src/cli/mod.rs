//! One file per verb.

pub(crate) mod duplicates;
pub(crate) mod embed;
pub(crate) mod healthcheck;
mod images;
pub(crate) mod import;
pub(crate) mod memory;
pub(crate) mod reembed;
pub(crate) mod restore;
pub(crate) mod schema;
pub(crate) mod serve;
pub(crate) mod snapshot;
mod store;

use std::io::{IsTerminal as _, stderr};

use dino_hub::{Location, Want};
use dino_vision::model::{Model, Precision};
use indicatif::{ProgressBar, ProgressStyle};

/// Opens a model, which is fetched first if a hub has it; what was found out about a plain ONNX file goes to stderr.
#[expect(clippy::print_stderr, reason = "commands keep no log")]
pub(crate) fn open_model(location: &Location, precision: Precision) -> anyhow::Result<Model> {
    let want = Want::Graph { precision: precision.to_string() };
    // What there is to say of a download, and nothing else.
    let lines = tracing_subscriber::fmt().with_env_filter("dino_hub=info").with_writer(stderr).with_target(false).with_level(false);
    let log = lines.without_time().with_ansi(stderr().is_terminal()).finish();
    let path = tracing::subscriber::with_default(log, || location.fetch(&want))?.path;
    let model = Model::open(&path)?;
    if let Some(summary) = model.summary() {
        eprintln!("{summary}");
    }
    Ok(model)
}

/// A bar for so many pictures to embed.
pub(crate) fn progress(count: usize) -> ProgressBar {
    bar("embedding", count)
}

/// A bar for so many steps of something.
pub(crate) fn bar(what: &'static str, count: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {per_sec} {eta}").expect("a fixed template");
    ProgressBar::new(count as u64).with_style(style).with_message(what)
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
