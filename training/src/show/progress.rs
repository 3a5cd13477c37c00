//! What a person watches during a run: the bar on a terminal, and lines where there is none.
//!
//! ```
//! use dino_train::show::progress::{Figures, Parts, Progress};
//!
//! let mut progress = Progress::new(0, 100, 2, 64, false);
//! let parts = Parts::Teacher { entropy: 5.5, ln_k: 6.9, kl: 1.0 };
//! let figures = Figures { loss: 6.5, parts, spread: 0.9, lr: 5e-4, images_per_second: 20.0 };
//! progress.step(1, figures);
//! assert_eq!(progress.figures().lr, 5e-4);
//! ```

use std::fmt;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::log::Measured;

/// What is shown beside the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Parts {
    /// Of a run with a teacher, in nats.
    Teacher {
        /// Its entropy.
        entropy: f64,
        /// The highest entropy that there can be.
        ln_k: f64,
        /// Divergence of the student from it.
        kl: f64,
    },
    /// Of `LeJEPA`: the terms of its loss.
    Lejepa {
        /// Distance of the views from their picture's centre.
        prediction: f64,
        /// The statistic against the Gaussian.
        sigreg: f64,
    },
}

impl Default for Parts {
    fn default() -> Self {
        Self::Teacher { entropy: 0.0, ln_k: 0.0, kl: 0.0 }
    }
}

impl Parts {
    /// Moves towards `new`; a run has one kind.
    fn blend(self, new: Self, blend: impl Fn(f64, f64) -> f64) -> Self {
        match (self, new) {
            (Self::Teacher { entropy, kl, .. }, Self::Teacher { entropy: new_entropy, ln_k, kl: new_kl }) => {
                Self::Teacher { entropy: blend(entropy, new_entropy), ln_k, kl: blend(kl, new_kl) }
            }
            (Self::Lejepa { prediction, sigreg }, Self::Lejepa { prediction: new_prediction, sigreg: new_sigreg }) => {
                Self::Lejepa { prediction: blend(prediction, new_prediction), sigreg: blend(sigreg, new_sigreg) }
            }
            _ => new,
        }
    }
}

impl fmt::Display for Parts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Teacher { entropy, ln_k, kl } => write!(formatter, "teacher entropy {entropy:.2} of {ln_k:.2}, KL {kl:.2}"),
            Self::Lejepa { prediction, sigreg } => write!(formatter, "prediction {prediction:.3}, SIGReg {sigreg:.2}"),
        }
    }
}

/// Figures of some steps: of the last ones, smoothed, or of an epoch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Loss.
    pub loss: f64,
    /// What stands beside it.
    pub parts: Parts,
    /// Standard deviation of the features, in shares of what it is where they spread evenly.
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
            "loss {:.3}, {}, feature spread {:.2}, lr {:.1e}, {:.1} images/s",
            self.loss, self.parts, self.spread, self.lr, self.images_per_second
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
            parts: self.figures.parts.blend(new.parts, blend),
            spread: blend(self.figures.spread, new.spread),
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
