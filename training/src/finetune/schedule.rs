//! Length and learning rates of a run that trains one transformer, by labels or after a teacher.

use serde::{Deserialize, Serialize};

use crate::dino::schedule::Cosine;

/// A warm-up and a cosine over epochs of batches.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Schedule {
    /// Epochs of the run.
    #[arg(long, value_parser = dino_program::flags::at_least_one(), default_value_t = 100)]
    pub epochs: usize,
    /// Pictures of a batch.
    #[arg(long, value_parser = dino_program::flags::at_least_one(), visible_alias = "batch-size-per-gpu", default_value_t = 64)]
    pub batch_size: usize,
    /// Highest learning rate for a batch of 256 pictures: it is scaled by batch / 256.
    #[arg(long, value_parser = dino_program::flags::from_zero::<f64>, default_value_t = 1e-3)]
    pub lr: f64,
    /// Learning rate at the end of the cosine, not scaled.
    #[arg(long, value_parser = dino_program::flags::from_zero::<f64>, default_value_t = 1e-6)]
    pub min_lr: f64,
    /// Epochs of linear warm-up.
    #[arg(long, default_value_t = 5)]
    pub warmup_epochs: usize,
}

impl Schedule {
    /// Checks what one setting alone cannot show.
    ///
    /// # Errors
    /// Names the setting, and what it should be.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.warmup_epochs <= self.epochs,
            "--warmup-epochs {} is more than --epochs {}: lower it",
            self.warmup_epochs,
            self.epochs
        );
        Ok(())
    }

    /// Learning rate at a step, without the factor of a layer.
    pub fn lr_at(&self, step: usize, steps_per_epoch: usize) -> f64 {
        let base = self.lr * self.batch_size as f64 / 256.0;
        let steps = self.epochs * steps_per_epoch;
        Cosine { start: self.min_lr.min(base), base, last: self.min_lr, warmup: self.warmup_epochs * steps_per_epoch, steps }.at(step)
    }
}
