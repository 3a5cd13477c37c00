//! How a run begins: all processes agree, and go on from the newest checkpoint.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;

use super::{BEST, Options, Run};
use crate::dino::network::Network;
use crate::exchange;
use crate::log::Measured;
use crate::run::observer;
use crate::run::recipe::{FIXED, Recipe};
use crate::run::state::{self, Description, Stored};

/// Whether the run measures its teacher against the weights that it begins, or began, with.
pub(super) fn compares(options: &Options) -> bool {
    let newest = state::newest_description(&options.out).ok().flatten();
    match newest.filter(|_| options.resume) {
        Some(description) => description.baseline.is_some(),
        None => options.init.is_some(),
    }
}

/// What the run shows. How often is as rank 0 has it: the others help with its k-NN figures.
pub(super) fn shown(options: &Options) -> Result<observer::Options> {
    let exchange = &*options.exchange;
    let own = observer::Options { compares: compares(options), ..options.shown.clone() };
    let when = serde_json::to_vec(&(own.knn_every, own.compares, own.pictures_every))?;
    let when = exchange::hand_out(exchange, if exchange.rank() == 0 { when } else { Vec::new() })?;
    let (knn_every, compares, pictures_every) = serde_json::from_slice(&when)?;
    Ok(observer::Options { knn_every, compares, pictures_every, ..own })
}

impl Run<'_> {
    /// Before the first step: what the weights that the run begins with can do.
    pub(super) fn measure_first_weights(&mut self) -> Result<()> {
        if self.step > 0 || !self.observer.compares() {
            return Ok(());
        }
        self.baseline = self.observer.measure(&self.learner.teacher.backbone, &self.options.device, &*self.options.exchange)?;
        if let Some(baseline) = self.baseline {
            tracing::info!("before the first step, on {} pictures: {baseline}", baseline.pictures());
        }
        Ok(())
    }

    /// Makes sure that all processes have the settings and the pictures of rank 0.
    pub(super) fn agree(&self) -> Result<()> {
        let measured = self.observer.fingerprint();
        let own = serde_json::to_vec(&(self.recipe, &self.fingerprint, &measured, &self.anchor))?;
        let first = exchange::hand_out(&*self.options.exchange, if self.leads() { own.clone() } else { Vec::new() })?;
        if first == own {
            return Ok(());
        }
        let (recipe, pictures, first_measured, anchor): (Recipe, String, Option<String>, Option<String>) = serde_json::from_slice(&first)?;
        let rank = self.plan.rank;
        if let Some((name, change)) = self.recipe.differences(&recipe).first() {
            bail!("rank {rank} has another --{name} than rank 0 ({change}): give all processes the same settings");
        }
        ensure!(pictures == self.fingerprint, "rank {rank} sees other pictures below {} than rank 0", self.options.data.display());
        ensure!(anchor == self.anchor, "rank {rank} has another file in --gram-anchor than rank 0: give all processes the same one");
        ensure!(measured == first_measured, "rank {rank} sees other pictures for --knn-every than rank 0 (--knn-train, --knn-val)");
        Ok(())
    }

    /// Goes on from the newest checkpoint that is whole, where that was asked for. Rank 0 reads it for all.
    pub(super) fn restore(&mut self) -> Result<()> {
        let exchange = &*self.options.exchange;
        let found = if self.leads() { self.newest()? } else { None };
        let (path, bytes) = found.map_or_else(Default::default, |(path, stored)| (path, stored.into_bytes()));
        let bytes = exchange::hand_out(exchange, bytes)?;
        if !bytes.is_empty() {
            return self.go_on_from(&path, &Stored::from_bytes(bytes, &path)?);
        }
        if self.plan.world > 1 {
            let all = |network: &Network| network.groups().chain(network.buffers()).cloned().collect::<Vec<_>>();
            for (student, teacher) in all(&self.learner.student).iter().zip(&all(&self.learner.teacher)) {
                let mut values: Vec<f32> = student.var().flatten_all()?.to_vec1()?;
                exchange.broadcast(bytemuck::cast_slice_mut(&mut values))?;
                let values = Tensor::from_slice(&values, values.len(), student.var().device())?;
                student.var().set(&values)?;
                teacher.var().set(&values)?;
            }
            for adapter in self.learner.student.backbone.adapters() {
                let mut values: Vec<f32> = adapter.var().flatten_all()?.to_vec1()?;
                exchange.broadcast(bytemuck::cast_slice_mut(&mut values))?;
                adapter.var().set(&Tensor::from_slice(&values, values.len(), adapter.var().device())?)?;
            }
        }
        Ok(())
    }

    /// The newest checkpoint that is whole, where the run is to go on and has one.
    fn newest(&self) -> Result<Option<(PathBuf, Stored)>> {
        let out = &self.options.out;
        let found = state::newest(out, self.options.resume, Stored::open)?;
        if found.is_none() {
            // The new run's would replace it.
            ensure!(
                !out.join(BEST).exists(),
                "{} holds {BEST} of a run, and no checkpoint to go on from: choose another --out, or move it away",
                out.display()
            );
            self.log.set_aside()?;
        }
        Ok(found)
    }

    fn go_on_from(&mut self, path: &Path, stored: &Stored) -> Result<()> {
        self.check_settings(&stored.description)?;
        self.check_anchor(stored)?;
        if self.recipe.gram_update_epochs > 0 && stored.has_anchor() {
            self.anchor_to_teacher()?;
        }
        stored.restore(&mut self.learner).with_context(|| path.display().to_string())?;
        self.step = stored.description.step;
        self.sums = stored.description.epoch_so_far;
        self.saved.1 = Some(self.step);
        self.baseline = self.baseline_of(&stored.description);
        if self.leads() {
            self.log.go_back_to(if self.is_unmeasured() { self.step - 1 } else { self.step })?;
            self.keep_newest_if_best()?;
        }
        tracing::info!("going on from {} (epoch {}, step {})", path.display(), self.step / self.steps_per_epoch, self.step);
        Ok(())
    }

    /// What the first weights of the run could do, where the run still measures on the pictures that they were measured on.
    fn baseline_of(&self, stored: &Description) -> Option<Measured> {
        let baseline = stored.baseline?;
        let now = self.observer.fingerprint();
        let changed = match baseline {
            // Checkpoints of earlier versions do not say which they were.
            Measured::Knn(_) => stored.measured.is_some() && stored.measured != now,
            Measured::Agreement(_) => now.is_some(),
        };
        if changed && self.leads() {
            tracing::warn!(
                "the run measures on other pictures than before (--knn-train, --knn-val, --knn-every): it is not compared with the weights \
                 that it began with"
            );
        }
        (!changed).then_some(baseline)
    }

    fn check_settings(&self, stored: &Description) -> Result<()> {
        for (name, change) in self.recipe.differences(&stored.recipe) {
            if FIXED.contains(&name.as_str()) {
                bail!("the run cannot go on with another --{name} ({change}): give the old one, or start anew in another --out");
            }
            tracing::warn!("--{name} has changed since the checkpoint: {change}");
        }
        let old = stored.recipe.pictures_per_step(stored.processes);
        ensure!(
            old == self.per_step,
            "a step of the run had {old} pictures, now it would have {} (--batch-size-per-gpu times --accumulate times processes): \
             the run cannot go on with another --batch-size-per-gpu unless the product stays the same",
            self.per_step
        );
        ensure!(
            stored.pictures.as_ref().is_none_or(|pictures| *pictures == self.fingerprint),
            "the pictures below {} are not those of the run (other names): give the old folder, or start anew in another --out",
            self.options.data.display()
        );
        ensure!(
            stored.steps_per_epoch == self.steps_per_epoch,
            "an epoch of the checkpoint had {} steps, one over {} has {}: the pictures are not those of the run",
            stored.steps_per_epoch,
            self.options.data.display(),
            self.steps_per_epoch
        );
        Ok(())
    }
}
