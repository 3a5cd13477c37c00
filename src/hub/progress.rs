//! Progress bars of downloads, on a terminal.

use std::io::{IsTerminal as _, stderr};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Columns of a file's name.
const COLUMNS: usize = 32;

/// The progress of one file: a bar where stderr is a terminal, else a line in the log at its start.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Of a file, from `have` of `size` bytes.
    pub(crate) fn start(name: &str, have: u64, size: Option<u64>, bars: bool) -> Self {
        if !bars || !stderr().is_terminal() {
            let size = size.map(|size| format!(", {}", HumanBytes(size))).unwrap_or_default();
            let rest = if have == 0 { String::new() } else { format!(", continuing after {}", HumanBytes(have)) };
            tracing::info!("fetching {name}{size}{rest}");
            return Self { bar: ProgressBar::hidden() };
        }
        let form = match size {
            Some(_) => "{msg:32} {bar:30} {binary_bytes:>10} of {binary_total_bytes:10} {binary_bytes_per_sec:>12} {eta:>4}",
            None => "{msg:32} {spinner} {binary_bytes} {binary_bytes_per_sec}",
        };
        let style = ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::stderr()).with_style(style).with_position(have);
        let count = name.chars().count();
        bar.set_message(name.chars().skip(count.saturating_sub(COLUMNS)).collect::<String>());
        Self { bar }
    }

    /// The file has this many bytes now.
    pub(crate) fn at(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }

    /// The file is whole.
    pub(crate) fn finish(&self) {
        self.bar.finish();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // What went wrong stands below how far it came.
        if !self.bar.is_finished() {
            self.bar.abandon();
        }
    }
}
