//! What Gram anchoring holds patches to in a run: a checkpoint, and the run's own teacher.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::{BEST, Options, Run};
use crate::dino::gram::Gram;
use crate::dino::learner::Learner;
use crate::run::recipe::Recipe;
use crate::run::state::Stored;
use crate::weights::init;

/// What a run begins to hold patches to: the weights of `--gram-anchor`.
pub(super) fn first(recipe: &Recipe, options: &Options, learner: &Learner) -> Result<Option<Gram>> {
    let Some((path, reading)) = &options.gram_anchor else { return Ok(None) };
    let is_own = |folder: Option<&Path>| {
        folder.and_then(|folder| folder.canonicalize().ok()).is_some_and(|folder| options.out.canonicalize().is_ok_and(|out| out == folder))
    };
    let changes = is_own(Some(path)) || (path.ends_with(BEST) && is_own(path.parent()));
    ensure!(
        !changes,
        "--gram-anchor {}: name one checkpoint of the run, for example checkpoint-00001000.safetensors: the newest and the best are others \
         each time that a run goes on",
        path.display()
    );
    let anchor = learner.teacher.backbone.duplicate()?;
    let notes = init::initialise(&anchor, path, reading, &recipe.transform(0));
    notes.with_context(|| format!("--gram-anchor {}", path.display()))?.iter().for_each(|note| tracing::info!("{note}"));
    Ok(Some(recipe.gram(anchor, false)))
}

impl Run<'_> {
    /// After every so many epochs the teacher becomes the anchor.
    pub(super) fn renew_anchor(&mut self, epoch: usize) -> Result<()> {
        let every = self.recipe.gram_update_epochs;
        if every > 0 && (epoch + 1).is_multiple_of(every) { self.anchor_to_teacher() } else { Ok(()) }
    }

    /// Makes an anchor of the teacher as it is.
    pub(super) fn anchor_to_teacher(&mut self) -> Result<()> {
        self.learner.gram = Some(self.recipe.gram(self.learner.teacher.backbone.duplicate()?, true));
        Ok(())
    }

    /// Which weights patches are held to: a run without them would go on with another loss.
    pub(super) fn check_anchor(&self, stored: &Stored) -> Result<()> {
        match (&stored.description.gram_anchor, &self.anchor) {
            (Some(_), None) if self.recipe.gram_loss_weight > 0.0 && !stored.has_anchor() => {
                bail!("the run has held patches to the weights of --gram-anchor: give it again")
            }
            (_, Some(_)) if self.recipe.gram_update_epochs > 0 && stored.has_anchor() => {
                tracing::warn!("the teacher that the run has made its anchor stays it: --gram-anchor was for the epochs before");
            }
            (Some(old), Some(new)) if old != new => tracing::warn!("--gram-anchor has other weights than before"),
            _ => {}
        }
        Ok(())
    }
}
