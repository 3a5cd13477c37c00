//! `log.jsonl`: one line of JSON for each epoch of a run.
//!
//! ```
//! use dino_train::log::Log;
//!
//! let lines = Log::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo").as_ref()).lines()?;
//! assert_eq!(lines[0].epoch, 1);
//! // What is learnt from is the rest.
//! let teacher = lines[0].teacher.unwrap();
//! assert!((lines[0].loss - teacher.teacher_entropy - teacher.kl).abs() < 1e-6);
//! # Ok::<(), anyhow::Error>(())
//! ```

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::files::write_atomically;

/// k-NN figures in the log, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Knn {
    /// Number of neighbours.
    pub k: usize,
    /// Pictures whose class won the vote.
    pub top1: f64,
    /// Pictures whose class is among the five best.
    pub top5: f64,
    /// Top-1 averaged over classes.
    pub mean_class: f64,
    /// Pictures that were classified, 0 in logs of earlier versions.
    #[serde(default)]
    pub pictures: usize,
}

impl fmt::Display for Knn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "k-NN {:.1} % (mean over classes {:.1} %)", self.top1, self.mean_class)
    }
}

/// How often two crops of a picture find each other: what can be measured without classes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Pictures, each with two crops.
    pub pictures: usize,
    /// Share of the first crops whose nearest second crop is of the same picture, in percent.
    pub agreement: f64,
}

impl fmt::Display for Agreement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "crops of one picture that find each other {:.1} %", self.agreement)
    }
}

/// What the features of a backbone can do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Measured {
    /// Where there are classes.
    Knn(Knn),
    /// Where there are none.
    Agreement(Agreement),
}

impl Measured {
    /// The one figure that runs are compared by, in percent.
    pub fn figure(&self) -> f64 {
        match self {
            Self::Knn(knn) => knn.top1,
            Self::Agreement(agreement) => agreement.agreement,
        }
    }

    /// What the figure is of.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Knn(_) => "k-NN top-1",
            Self::Agreement(_) => "agreement of crops",
        }
    }

    /// Whether both were measured in the same way, on as many pictures: others say nothing of each other.
    pub fn is_comparable(&self, other: &Self) -> bool {
        self.name() == other.name() && self.pictures() == other.pictures()
    }

    /// Pictures that it was measured on.
    pub fn pictures(&self) -> usize {
        match self {
            Self::Knn(knn) => knn.pictures,
            Self::Agreement(agreement) => agreement.pictures,
        }
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Knn(knn) => knn.fmt(formatter),
            Self::Agreement(agreement) => agreement.fmt(formatter),
        }
    }
}

/// The teacher of an epoch: of runs that have one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Teacher {
    /// Logarithm of the output dimension: the highest entropy there can be.
    pub ln_k: f64,
    /// Its mean entropy, in nats: near 0 or near `ln_k` is a collapse.
    pub teacher_entropy: f64,
    /// Mean divergence between teacher and student: loss less entropy.
    pub kl: f64,
    /// Entropy of the mean of its distributions over the last pictures, in nats: near 0 one output takes all.
    #[serde(default)]
    pub mean_entropy: f64,
    /// Its momentum in the last step.
    pub momentum: f64,
    /// Its temperature.
    pub teacher_temp: f64,
}

/// One epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Number of the epoch, from 1.
    pub epoch: usize,
    /// Steps since the start of the run.
    pub step: usize,
    /// Mean loss: DINO's in nats, or `LeJEPA`'s.
    pub loss: f64,
    /// What is seen of the teacher, where there is one.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<Teacher>,
    /// The prediction term of `LeJEPA`, where that is the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction: Option<f64>,
    /// `SIGReg`, where `LeJEPA` is the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigreg: Option<f64>,
    /// Standard deviation of the L2-normalised CLS features, the teacher's where there is one, over the pictures of a step, averaged over
    /// dimensions.
    #[serde(default)]
    pub feature_std: f64,
    /// What `feature_std` is where features spread evenly: 1/√dim.
    #[serde(default)]
    pub feature_std_even: f64,
    /// KoLeo's part of the loss, with its weight, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub koleo: Option<f64>,
    /// iBOT's part of the loss, with its weight, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ibot: Option<f64>,
    /// Gram anchoring's part of the loss, with its weight, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gram: Option<f64>,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Weight decay of the last step.
    pub weight_decay: f64,
    /// Pictures per second of wall time.
    pub images_per_second: f64,
    /// Wall time of the epoch, of all its parts where it was interrupted.
    pub seconds: f64,
    /// Files that were found unreadable since the program started, by the first of several processes.
    pub broken_pictures: usize,
    /// k-NN figures of the teacher, where it was time for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub knn: Option<Knn>,
    /// Agreement of crops of the teacher, in place of k-NN where there are no classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// What the weights that the run began with could do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Measured>,
}

impl Line {
    /// What the teacher could do after this epoch, where it was measured.
    pub fn measured(&self) -> Option<Measured> {
        self.knn.map(Measured::Knn).or(self.agreement.map(Measured::Agreement))
    }
}

/// Sums over the part of an epoch that is done; kept in checkpoints, so that an interrupted epoch has one true line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// Steps.
    pub steps: usize,
    /// Sum of losses.
    pub loss: f64,
    /// Sum of the teacher's entropies.
    pub entropy: f64,
    /// Sum of the entropies of the mean distribution.
    #[serde(default)]
    pub mean_entropy: f64,
    /// Sum of the features' standard deviations.
    #[serde(default)]
    pub feature_std: f64,
    /// Sum of KoLeo's parts of the loss.
    #[serde(default)]
    pub koleo: f64,
    /// Sum of iBOT's parts of the loss.
    #[serde(default)]
    pub ibot: f64,
    /// Sum of Gram anchoring's parts of the loss.
    #[serde(default)]
    pub gram: f64,
    /// Sum of `LeJEPA`'s prediction terms.
    #[serde(default)]
    pub prediction: f64,
    /// Sum of its `SIGReg`.
    #[serde(default)]
    pub sigreg: f64,
    /// Wall time.
    pub seconds: f64,
}

/// The log of a run's folder.
#[derive(Clone, Debug)]
pub struct Log {
    path: PathBuf,
}

impl Log {
    /// Of a run's folder.
    pub fn new(run: &Path) -> Self {
        Self { path: run.join("log.jsonl") }
    }

    /// All whole lines; a line that was cut short by a full disk is left out.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn lines(&self) -> Result<Vec<Line>> {
        if !self.path.exists() {
            return Ok(Vec::new());
        }
        let text = fs_err::read_to_string(&self.path)?;
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Takes out what a checkpoint at `step` does not know of: those epochs are trained again.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn go_back_to(&self, step: usize) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        let mut text = String::new();
        for line in self.lines()?.iter().filter(|line| line.step <= step) {
            text.push_str(&serde_json::to_string(line)?);
            text.push('\n');
        }
        write_atomically(&self.path, text.as_bytes())
    }

    /// Keeps the lines up to an epoch, whatever they hold beside it: what comes later is trained again.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn keep_epochs(&self, epochs: usize) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        let text = fs_err::read_to_string(&self.path)?;
        let known = |line: &&str| {
            let epoch = serde_json::from_str::<serde_json::Value>(line).ok().and_then(|line| line["epoch"].as_u64());
            epoch.is_some_and(|epoch| epoch as usize <= epochs)
        };
        let kept: String = text.lines().filter(known).flat_map(|line| [line, "\n"]).collect();
        write_atomically(&self.path, kept.as_bytes())
    }

    /// Adds a line of any form.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append_json(&self, line: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(line)?;
        let mut file = fs_err::OpenOptions::new().create(true).append(true).open(&self.path)?;
        file.write_all(format!("{line}\n").as_bytes())?;
        Ok(())
    }

    /// Moves the lines of an earlier run that left no checkpoint to the end of another file, behind those of runs before it: a run that
    /// starts has a log of its own.
    ///
    /// # Errors
    /// When a file cannot be read, written or removed.
    pub fn set_aside(&self) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        let old = self.path.with_extension("old.jsonl");
        let mut lines = if old.exists() { fs_err::read(&old)? } else { Vec::new() };
        // A line that was cut short stays one of its own.
        if lines.last().is_some_and(|byte| *byte != b'\n') {
            lines.push(b'\n');
        }
        lines.extend(fs_err::read(&self.path)?);
        // Killed between the two, it has the lines twice, and never none.
        write_atomically(&old, &lines)?;
        fs_err::remove_file(&self.path)?;
        tracing::warn!("{} was of an earlier run without a checkpoint: its lines are now in {}", self.path.display(), old.display());
        Ok(())
    }

    /// Adds a line.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append(&self, line: &Line) -> Result<()> {
        let mut file = fs_err::OpenOptions::new().create(true).append(true).open(&self.path)?;
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        file.write_all(text.as_bytes())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_runs_that_left_no_checkpoint_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::new(folder.path());
        log.set_aside().unwrap();
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0);
        for lines in ["{\"epoch\":1}\n{\"epoch\":2}\n{\"epo", "{\"epoch\":1}\n", "{\"epoch\":7}\n"] {
            fs_err::write(folder.path().join("log.jsonl"), lines).unwrap();
            log.set_aside().unwrap();
            assert!(!folder.path().join("log.jsonl").exists());
        }
        let kept = fs_err::read_to_string(folder.path().join("log.old.jsonl")).unwrap();
        let wanted = ["{\"epoch\":1}", "{\"epoch\":2}", "{\"epo", "{\"epoch\":1}", "{\"epoch\":7}"];
        assert_eq!(kept.lines().collect::<Vec<_>>(), wanted);
    }
}
