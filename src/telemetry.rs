//! The log: lines on stderr, for people or as JSON.

use std::{backtrace::Backtrace, io::stderr};

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::config::LogFormat;

/// Starts the log. `RUST_LOG` chooses what is written; the default is `info`.
///
/// Panics become log lines too: one that was caught costs one request, and must not look like the end of the server.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .from_env_lossy();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr);
    match format {
        LogFormat::Human => lines.with_target(false).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let backtrace = Backtrace::capture();
        tracing::error!(thread = thread.name().unwrap_or("-"), %backtrace, "{panic}");
    }));
}
