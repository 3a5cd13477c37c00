//! How rates, decays, momenta and temperatures change over a run.

use super::Recipe;
use crate::dino::layer_decay::LayerDecay;
use crate::dino::learner::Step;
use crate::dino::optimizer::Settings;
use crate::dino::schedule::{Cosine, TeacherTemperature};

/// All schedules of a run.
#[derive(Clone, Copy, Debug)]
pub struct Schedules {
    lr: Cosine,
    weight_decay: Cosine,
    momentum: Cosine,
    temperature: TeacherTemperature,
    clip: f64,
    frozen_epochs: usize,
    steps_per_epoch: usize,
    layer_decay: LayerDecay,
    /// Steps in which the backbone is not trained, and those of its warm-up behind them.
    backbone: (usize, usize),
}

impl Schedules {
    /// Whether the backbone stays as it is in a step.
    pub fn freezes_backbone(&self, step: usize) -> bool {
        step < self.backbone.0
    }

    /// Learning rates by layer in a step: behind its frozen epochs the backbone has a warm-up of its own.
    pub fn layer_decay(&self, step: usize) -> LayerDecay {
        let (frozen, warmup) = self.backbone;
        let share = (step + 1).saturating_sub(frozen) as f64 / warmup.max(1) as f64;
        LayerDecay { backbone: if frozen > 0 { share.min(1.0) } else { 1.0 }, ..self.layer_decay }
    }

    /// What they say of a step, counted from the start of the run.
    pub fn at(&self, step: usize) -> Step {
        let epoch = step / self.steps_per_epoch.max(1);
        Step {
            optimizer: Settings {
                lr: self.lr.at(step),
                weight_decay: self.weight_decay.at(step),
                clip: self.clip,
                freeze_last_layer: epoch < self.frozen_epochs,
            },
            momentum: self.momentum.at(step),
            teacher_temp: self.temperature.at(epoch),
        }
    }
}

impl Recipe {
    /// Pictures of one step over all processes.
    pub fn pictures_per_step(&self, processes: usize) -> usize {
        self.batch_size_per_gpu.saturating_mul(self.accumulate).saturating_mul(processes)
    }

    /// Schedules over the run.
    pub fn schedules(&self, steps_per_epoch: usize, processes: usize) -> Schedules {
        let steps = self.epochs * steps_per_epoch;
        let cosine = |base, last, warmup| Cosine { start: 0.0, base, last, warmup, steps };
        Schedules {
            lr: cosine(self.lr * self.pictures_per_step(processes) as f64 / 256.0, self.min_lr, self.warmup_epochs * steps_per_epoch),
            weight_decay: cosine(self.weight_decay, self.weight_decay_end, 0),
            momentum: cosine(self.momentum_teacher, 1.0, 0),
            temperature: TeacherTemperature {
                start: self.warmup_teacher_temp,
                base: self.teacher_temp,
                warmup: self.warmup_teacher_temp_epochs,
            },
            clip: self.clip_grad,
            frozen_epochs: self.freeze_last_layer,
            steps_per_epoch,
            layer_decay: LayerDecay {
                rate: self.layer_decay,
                depth: self.backbone().depth(),
                patch_embed: self.patch_embed_lr_mult,
                backbone: 1.0,
            },
            backbone: (self.freeze_backbone_epochs * steps_per_epoch, self.warmup_epochs * steps_per_epoch),
        }
    }
}
