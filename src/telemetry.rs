//! The log: lines on stderr, for people or as JSON.
//!
//! ```
//! use dino_server::telemetry::{LogFormat, panics, start};
//!
//! start(LogFormat::Json);
//! let worker = std::thread::spawn(|| panic!("a bug, which becomes a line of the log"));
//! assert!(worker.join().is_err());
//! assert_eq!(panics(), 1);
//! ```

use std::{
    backtrace::Backtrace,
    io::{IsTerminal, stderr},
    sync::atomic::{AtomicU64, Ordering},
};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::traces::Collector;

/// What is written unless `RUST_LOG` says otherwise. ONNX Runtime describes each step of loading a graph.
const DEFAULT_FILTER: &str = "info,ort=warn,hnsw_rs=warn";

/// Flags of the log and of traces; each can also be set in the environment.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub struct Options {
    /// How the log is written, to stderr.
    #[arg(long, env = "DINO_LOG_FORMAT", default_value = "human", value_name = "FORMAT", help_heading = "Log and traces")]
    pub log_format: LogFormat,
    /// Collector of OpenTelemetry traces, which takes OTLP over HTTP, as `http://localhost:4318` (/v1/traces is added where there is no
    /// path). None by default: then nothing is traced.
    #[arg(long, env = "DINO_OTLP", value_name = "URL", help_heading = "Log and traces")]
    pub otlp: Option<Collector>,
}

/// Form of the log's lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For a terminal.
    Human,
    /// One JSON object a line.
    Json,
}

/// Panics of this process since its log was started.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Number of panics since the log was started, caught or not.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Starts the log.
///
/// Panics become log lines too: one that was caught costs one request, and must not look like the end of the server.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    match format {
        LogFormat::Human => lines.with_target(false).with_ansi(stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    watch_panics();
}

/// Counts panics from now on, and logs each of them.
pub fn watch_panics() {
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::current();
        let backtrace = Backtrace::capture();
        tracing::error!(thread = thread.name().unwrap_or("-"), %backtrace, "{panic}");
    }));
}
