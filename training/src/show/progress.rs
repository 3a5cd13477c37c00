//! What a person watches during a run: the bar on a terminal, and lines where there is none.
//!
//! ```
//! use dino_train::show::progress::{Figures, Progress};
//!
//! let mut progress = Progress::new(0, 100, 2, 64, false);
//! let figures =
//!     Figures { loss: 6.5, teacher_entropy: 5.5, ln_k: 6.9, kl: 1.0, spread: 0.9, lr: 5e-4, images_per_second: 20.0 };
//! progress.step(1, figures);
//! assert_eq!(progress.figures().lr, 5e-4);
//! ```

use std::fmt;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::log::Measured;

/// Figures of some steps: of the last ones, smoothed, or of an epoch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Loss, in nats.
    pub loss: f64,
    /// Entropy of the teacher, in nats.
    pub teacher_entropy: f64,
    /// The highest entropy that there can be.
    pub ln_k: f64,
    /// Divergence between teacher and student, in nats.
    pub kl: f64,
    /// Standard deviation of the teacher's features, in shares of what it is where they spread evenly.
    pub spread: f64,
    /// Learning rate.
    pub lr: f64,
    /// Pictures per second of wall time.
    pub images_per_second: f64,
}

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "loss {:.3}, teacher entropy {:.2} of {:.2}, KL {:.2}, feature spread {:.2}, lr {:.1e}, {:.1} images/s",
            self.loss, self.teacher_entropy, self.ln_k, self.kl, self.spread, self.lr, self.images_per_second
        )
    }
}

/// A bar over the steps of the whole run.
pub struct Progress {
    bar: ProgressBar,
    steps_per_epoch: usize,
    epochs: usize,
    batch: usize,
    figures: Figures,
    started: Instant,
    done: usize,
    spoken: Instant,
    measured: Option<Measured>,
}

/// How often a line is written where no bar can be shown.
const EVERY: Duration = Duration::from_mins(1);

impl Progress {
    /// Starts at a step; `shown` is false in processes that leave the screen to another.
    pub fn new(step: usize, steps_per_epoch: usize, epochs: usize, batch: usize, shown: bool) -> Self {
        let target = if shown { ProgressDrawTarget::stderr_with_hz(4) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some((steps_per_epoch * epochs) as u64), target);
        let style = ProgressStyle::with_template("{bar:24} {percent:>3}% {msg}").map(|style| style.progress_chars("=> "));
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_position(step as u64);
        let now = Instant::now();
        Self { bar, steps_per_epoch, epochs, batch, figures: Figures::default(), started: now, done: 0, spoken: now, measured: None }
    }

    /// Shows a step that was taken.
    pub fn step(&mut self, step: usize, new: Figures) {
        self.done += 1;
        let weight = if self.done == 1 { 1.0 } else { 0.05 };
        let blend = |old: f64, new: f64| old + weight * (new - old);
        let pace = self.done as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        self.figures = Figures {
            loss: blend(self.figures.loss, new.loss),
            teacher_entropy: blend(self.figures.teacher_entropy, new.teacher_entropy),
            kl: blend(self.figures.kl, new.kl),
            spread: blend(self.figures.spread, new.spread),
            ln_k: new.ln_k,
            lr: new.lr,
            images_per_second: pace * self.batch as f64,
        };
        self.bar.set_position(step as u64 + 1);
        let left = (self.steps_per_epoch * self.epochs).saturating_sub(step + 1) as f64 / pace;
        let text = format!(
            "epoch {} of {}: {}{}, {} left",
            step / self.steps_per_epoch.max(1) + 1,
            self.epochs,
            self.figures,
            self.measured.map(|measured| format!(", {measured}")).unwrap_or_default(),
            indicatif::HumanDuration(Duration::from_secs_f64(left.min(1e9)))
        );
        if self.bar.is_hidden() && self.spoken.elapsed() > EVERY {
            self.spoken = Instant::now();
            tracing::info!("{text}");
        }
        self.bar.set_message(text);
    }

    /// Tells what an epoch came to, counted from 1. What was measured stays on the bar until there is something newer.
    pub fn epoch(&mut self, epoch: usize, figures: Figures, measured: Option<Measured>) {
        let text = measured.map(|measured| format!(", {measured}")).unwrap_or_default();
        self.say(&format!("epoch {epoch} of {}: {figures}{text}", self.epochs));
        self.measured = measured.or(self.measured);
        // The next line of this form is a minute away.
        self.spoken = Instant::now();
    }

    /// The smoothed figures.
    pub fn figures(&self) -> Figures {
        self.figures
    }

    /// Writes a line above the bar.
    pub fn say(&self, text: &str) {
        self.bar.suspend(|| tracing::info!("{text}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A plain bar over `count` things, for commands that are done in one go.
pub fn bar(count: usize, name: &str) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {per_sec} {eta}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(count as u64).with_style(style).with_prefix(name.to_owned())
}
