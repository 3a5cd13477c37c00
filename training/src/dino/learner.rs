//! One step of DINO (paper, algorithm 1): both networks, the loss, the optimiser and the moving average.

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};

use crate::backbone::Pass;
use crate::backbone::parameters::{Group, Random};
use crate::dino::accumulate::{self, Accumulated, Averages, Share};
use crate::dino::loss::{DinoLoss, Value};
use crate::dino::network::Network;
use crate::dino::optimizer::{Algorithm, Optimizer, Settings, moving_average};
use crate::exchange::Exchange;

/// Student, teacher and everything that changes from step to step.
#[derive(Debug)]
pub struct Learner {
    /// Sees all crops and is trained.
    pub student: Network,
    /// Sees the two global crops and follows the student.
    pub teacher: Network,
    /// Holds the centre.
    pub loss: DinoLoss,
    /// Holds the moments.
    pub optimizer: Optimizer,
    /// The processes that learn together.
    pub exchange: Arc<dyn Exchange>,
}

/// What the schedules say of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// For the optimiser.
    pub optimizer: Settings,
    /// Momentum of the teacher.
    pub momentum: f64,
    /// Temperature of the teacher's softmax.
    pub teacher_temp: f64,
}

/// What one step did, over all processes.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Cross-entropy between teacher and student.
    pub loss: f64,
    /// Mean entropy of the teacher's distribution, in nats.
    pub teacher_entropy: f64,
    /// Mean of the teacher's distributions, one share for each output.
    pub distribution: Vec<f32>,
    /// Standard deviation of the teacher's L2-normalised CLS features over the pictures, averaged over dimensions: 1/√dim where
    /// they spread over the sphere, 0 where all are the same.
    pub feature_std: f64,
    /// Whether a process was told to stop.
    pub stop: bool,
}

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The loss is NaN or infinite; nothing was changed.
    #[error("the loss is {0}: nothing was learnt from this batch; lower the learning rate, or warm it up over more epochs")]
    NotFinite(f64),
    /// The loss of other processes is NaN or infinite; nothing was changed.
    #[error("the loss of rank {0:?} is not finite: its messages name the pictures")]
    Elsewhere(Vec<usize>),
    /// Another process is lost, or the device failed.
    #[error(transparent)]
    Sums(#[from] accumulate::Error),
    /// The device failed, or shapes do not fit.
    #[error(transparent)]
    Device(#[from] candle_core::Error),
}

/// Loss and gradients of one batch.
pub struct Gradients {
    /// The loss, and the teacher's entropy.
    pub value: Value,
    /// Of the student's variables.
    pub gradients: GradStore,
    /// The student's logits, crop by crop.
    pub student: Tensor,
    /// The teacher's logits, crop by crop.
    pub teacher: Tensor,
    /// The teacher's CLS features, crop by crop.
    pub features: Tensor,
}

impl Gradients {
    /// What it adds to a step.
    pub fn share(self) -> Share {
        Share {
            loss: self.value.loss.detach(),
            teacher_entropy: self.value.teacher_entropy,
            gradients: self.gradients,
            logits: self.teacher,
            targets: self.value.targets,
            features: self.features,
        }
    }
}

impl Learner {
    /// A teacher that starts as a copy of the student, for processes that each hold the same.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(student: Network, algorithm: Algorithm, exchange: Arc<dyn Exchange>) -> Result<Self> {
        let teacher = student.duplicate()?;
        let out = student.head.config().out;
        let device = student.groups().next().map_or(candle_core::Device::Cpu, |group| group.var().device().clone());
        Ok(Self { student, teacher, loss: DinoLoss::new(out, &device)?, optimizer: Optimizer::new(algorithm), exchange })
    }

    /// Loss and gradients of one batch; changes nothing but the running statistics of batch norms.
    ///
    /// `global` holds the two global views one after the other, `[2 * pictures, 3, h, w]`; `local` the other views, if any.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn gradients(&self, global: &Tensor, local: Option<&Tensor>, teacher_temp: f64, random: &mut dyn Random) -> Result<Gradients> {
        let features = self.teacher.backbone.features(std::slice::from_ref(global), &mut Pass::Teacher(&self.exchange))?;
        let teacher = self.teacher.head.forward(&features, &Pass::Teacher(&self.exchange))?;
        let crops: Vec<Tensor> = std::iter::once(global).chain(local).cloned().collect();
        let student = self.student.forward(&crops, &mut Pass::Trained(random, &self.exchange))?;
        let value = self.loss.evaluate(&student, &teacher, teacher_temp)?;
        let gradients = value.loss.backward()?;
        Ok(Gradients { value, gradients, student: student.detach(), teacher, features })
    }

    /// Adds one micro-batch to what a step learns from; see [`Learner::gradients`].
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn add(
        &self,
        accumulated: &mut Accumulated,
        global: &Tensor,
        local: Option<&Tensor>,
        teacher_temp: f64,
        random: &mut dyn Random,
    ) -> Result<()> {
        let share = self.gradients(global, local, teacher_temp, random)?.share();
        accumulated.add(share, &self.student.groups().collect::<Vec<_>>())
    }

    /// One training step from all its micro-batches, together with the other processes: the student, the teacher, the centre.
    /// `stop` says whether this process was told to stop.
    ///
    /// # Errors
    /// When a loss is not finite, another process is lost, or the device fails; nothing was changed then.
    pub fn step(&mut self, mut accumulated: Accumulated, step: &Step, stop: bool) -> std::result::Result<Report, Error> {
        let own = accumulated.loss()?;
        let groups: Vec<&Group> = self.student.groups().collect();
        let averages = accumulated.average(&groups, &*self.exchange, stop)?;
        if !own.is_finite() {
            return Err(Error::NotFinite(own));
        }
        if !averages.failed.is_empty() {
            return Err(Error::Elsewhere(averages.failed));
        }
        // The centre last: a gradient that is not finite leaves it as it is.
        self.apply(&averages.gradients, step)?;
        self.loss.move_centre(&averages.logits)?;
        let Averages { loss, teacher_entropy, distribution, feature_std, stop, .. } = averages;
        Ok(Report { loss, teacher_entropy, distribution, feature_std, stop })
    }

    /// Moves the student by gradients, then the teacher after it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn apply(&mut self, gradients: &GradStore, step: &Step) -> Result<()> {
        let groups: Vec<&Group> = self.student.groups().collect();
        self.optimizer.step(&groups, gradients, &step.optimizer)?;
        for (teacher, student) in self.teacher.groups().zip(self.student.groups()) {
            moving_average(teacher, student, step.momentum)?;
        }
        Ok(())
    }
}
