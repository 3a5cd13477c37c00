//! What a run says before its first step of settings that seldom do well.

use super::Run;
use crate::dino::loss::{Centering, TEACHER_VIEWS};
use crate::run::recipe::Method;

/// Steps under which a run learns next to nothing.
const FEWEST_STEPS: usize = 3000;

/// Public runs have up to so many times as many outputs as pictures that Sinkhorn-Knopp balances them over.
const FEW: usize = 16;

impl Run<'_> {
    pub(super) fn advise(&self) {
        let steps = self.recipe.epochs * self.steps_per_epoch;
        // Weights that know something already need fewer.
        if steps < FEWEST_STEPS && self.baseline.is_none() {
            tracing::warn!(
                "{steps} steps are few: from scratch and with the default settings a run usually learns nothing in under {FEWEST_STEPS}. Raise \
                 --epochs to {}, take smaller steps with a lower --batch-size-per-gpu, or start from public weights \
                 (--init hf://facebook/dinov2-small --method dinov2)",
                FEWEST_STEPS.div_ceil(self.steps_per_epoch)
            );
        }
        self.advise_on_sinkhorn();
    }

    /// With fewer pictures than outputs, outputs cannot be used equally.
    fn advise_on_sinkhorn(&self) {
        // Each batch of a step is balanced by itself, over all processes.
        let crops = TEACHER_VIEWS * self.recipe.batch_size_per_gpu * self.plan.world;
        let advise = |k: usize, what: &str, flag: &str, seen: usize, how: &str| {
            if seen < k / FEW {
                tracing::warn!(
                    "--centering sinkhorn_knopp balances {k} outputs over the {seen} {what} of a batch: far fewer of these than outputs make \
                     targets noisy. Lower {flag}, raise --batch-size-per-gpu{how}"
                );
            }
        };
        if self.recipe.centering != Centering::SinkhornKnopp || self.recipe.method == Method::Lejepa {
            return;
        }
        if self.recipe.sinkhorn_queue == 0 {
            advise(self.recipe.out_dim, "global crops", "--out-dim", crops, ", or give --sinkhorn-queue");
        }
        if let (Some(_), Some(masking)) = (&self.learner.ibot, self.recipe.masking()) {
            let side = self.recipe.global_crops_size / self.recipe.patch_size;
            let share = masking.probability * (masking.low + masking.high) / 2.0;
            let seen = ((crops * side * side) as f64 * share) as usize;
            let (k, flag) = self.recipe.ibot_head().map_or((self.recipe.out_dim, "--out-dim"), |head| (head.columns(), "--ibot-out-dim"));
            advise(k, "hidden patches", flag, seen, "");
        }
    }
}
