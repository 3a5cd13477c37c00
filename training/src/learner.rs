//! One step of DINO (paper, algorithm 1): both networks, the loss, the optimiser and the moving average.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};

use crate::backbone::Pass;
use crate::backbone::parameters::{Group, Random};
use crate::loss::{DinoLoss, Value};
use crate::network::Network;
use crate::optimizer::{Algorithm, Optimizer, Settings, moving_average};

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

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// Cross-entropy between teacher and student.
    pub loss: f64,
    /// Mean entropy of the teacher's distribution, in nats.
    pub teacher_entropy: f64,
}

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The loss is NaN or infinite; nothing was changed but the centre.
    #[error("the loss is {0}: nothing was learnt from this batch; lower the learning rate, or warm it up over more epochs")]
    NotFinite(f64),
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
}

impl Learner {
    /// A teacher that starts as a copy of the student.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(student: Network, algorithm: Algorithm) -> Result<Self> {
        let teacher = student.duplicate()?;
        let out = student.head.config().out;
        let device = student.groups().next().map_or(candle_core::Device::Cpu, |group| group.var().device().clone());
        Ok(Self { student, teacher, loss: DinoLoss::new(out, &device)?, optimizer: Optimizer::new(algorithm) })
    }

    /// Loss and gradients of one batch; moves the centre and nothing else.
    ///
    /// `global` holds the two global views one after the other, `[2 * pictures, 3, h, w]`; `local` the other views, if any.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn gradients(&mut self, global: &Tensor, local: Option<&Tensor>, teacher_temp: f64, random: &mut dyn Random) -> Result<Gradients> {
        let teacher = self.teacher.forward(std::slice::from_ref(global), &mut Pass::Teacher)?;
        let crops: Vec<Tensor> = std::iter::once(global).chain(local).cloned().collect();
        let student = self.student.forward(&crops, &mut Pass::Trained(random))?;
        let value = self.loss.evaluate(&student, &teacher, teacher_temp)?;
        let gradients = value.loss.backward()?;
        Ok(Gradients { value, gradients, student: student.detach(), teacher })
    }

    /// One training step.
    ///
    /// # Errors
    /// When the loss is not finite, shapes do not fit, or the device fails.
    pub fn step(
        &mut self,
        global: &Tensor,
        local: Option<&Tensor>,
        step: &Step,
        random: &mut dyn Random,
    ) -> std::result::Result<Report, Error> {
        let batch = self.gradients(global, local, step.teacher_temp, random)?;
        let loss = f64::from(batch.value.loss.to_scalar::<f32>()?);
        if !loss.is_finite() {
            return Err(Error::NotFinite(loss));
        }
        self.apply(&batch.gradients, step)?;
        Ok(Report { loss, teacher_entropy: batch.value.teacher_entropy })
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
