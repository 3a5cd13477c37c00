//! One step of DINO (paper, algorithm 1) or DINOv2: both networks, the loss, the optimiser and the moving average.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use dino_train::dino::{head::HeadConfig, learner::{Learner, Views}, network::Network, optimizer::Algorithm};
//! use dino_train::{backbone::vit::VitConfig, data::loader::generator, exchange::alone, kernels::matmul::Precision};
//!
//! let vit = VitConfig { img_size: 32, patch_size: 16, dim: 16, depth: 1, heads: 2, ..VitConfig::default() };
//! let precision = Precision::F32;
//! let head = HeadConfig { dim: 16, hidden: 32, bottleneck: 8, out: Some(64), batch_norm: false, norm_last_layer: true, precision };
//! let mut random = generator(0, 0, 0, 0);
//! let learner = Learner::new(Network::new(vit, head, &mut random, &Device::Cpu)?, Algorithm::Adamw, alone())?;
//!
//! // Of one picture two global crops, which both networks see, and three local ones, which the student alone sees.
//! let global = Tensor::randn(0.0_f32, 1.0, (2, 3, 32, 32), &Device::Cpu)?;
//! let local = Tensor::randn(0.0_f32, 1.0, (3, 3, 16, 16), &Device::Cpu)?;
//! let batch = learner.gradients(Views { global: &global, local: Some(&local), anchored: None, masks: None }, 0.04, &mut random)?;
//! assert_eq!((batch.student.dims(), batch.teacher.dims()), ([5, 64].as_slice(), [2, 64].as_slice()));
//! # Ok::<(), candle_core::Error>(())
//! ```

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};

use crate::backbone::Pass;
use crate::backbone::parameters::{Group, Random};
use crate::dino::accumulate::{self, Accumulated, Averages, Means, Outputs, Share};
use crate::dino::gram::{Gram, gram, resampled};
use crate::dino::ibot::Ibot;
use crate::dino::koleo::koleo;
use crate::dino::lejepa::{self, Lejepa};
use crate::dino::loss::{DinoLoss, TEACHER_VIEWS, Value};
use crate::dino::masks::Masks;
use crate::dino::network::{Logits, Network};
use crate::dino::optimizer::{Algorithm, Optimizer, Settings, Squares, moving_average};
use crate::exchange::Exchange;
use crate::ops::{across, loss::cross_entropies};

/// Student, teacher and everything that changes from step to step.
#[derive(Debug)]
pub struct Learner {
    /// Sees all crops and is trained.
    pub student: Network,
    /// Sees the two global crops and follows the student. With `LeJEPA` it sees nothing, and is the student after each step: what is
    /// evaluated and exported.
    pub teacher: Network,
    /// Holds the centre.
    pub loss: DinoLoss,
    /// Weight of the term that keeps features apart, 0 for none.
    pub koleo_weight: f64,
    /// The loss of masked patches, where there is one.
    pub ibot: Option<Ibot>,
    /// The term that holds patches to an anchor, where there is one.
    pub gram: Option<Gram>,
    /// The loss in place of DINO's, where it is another.
    pub lejepa: Option<Lejepa>,
    /// Holds the moments.
    pub optimizer: Optimizer,
    /// Train the heads alone; the backbones stay as they are.
    pub freeze_backbone: bool,
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
    /// Parts of the loss, and the teacher's entropy.
    pub means: Means,
    /// Mean of the teacher's distributions, one share for each output; empty without a teacher.
    pub distribution: Vec<f32>,
    /// Standard deviation of the teacher's L2-normalised CLS features, without a teacher of the student's, over the pictures, averaged over
    /// dimensions: 1/√dim where they spread over the sphere, 0 where all are the same.
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

/// The crops of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Views<'a> {
    /// The two global views one after the other, `[2 * pictures, 3, h, w]`.
    pub global: &'a Tensor,
    /// The other views, if any.
    pub local: Option<&'a Tensor>,
    /// The global views as an anchor sees them, `[2 * pictures, 3, H, W]`, where it sees others.
    pub anchored: Option<&'a Tensor>,
    /// Patches of the global views that the student does not see.
    pub masks: Option<&'a Masks>,
}

/// Loss and gradients of one batch.
pub struct Gradients {
    /// DINO's loss, and the teacher's entropy.
    pub value: Value,
    /// KoLeo's part of the loss, a scalar.
    pub koleo: Option<Tensor>,
    /// iBOT's part of the loss, a scalar, where there is one.
    pub ibot: Option<PatchValue>,
    /// Gram anchoring's part of the loss, a scalar, where there is one.
    pub gram: Option<Tensor>,
    /// Of the student's variables.
    pub gradients: GradStore,
    /// The student's logits, crop by crop.
    pub student: Tensor,
    /// The teacher's logits, crop by crop.
    pub teacher: Tensor,
    /// The teacher's CLS features, crop by crop.
    pub features: Tensor,
    /// Whether the step wants the teacher's logits.
    pub keep_logits: bool,
}

/// iBOT's side of a batch.
pub struct PatchValue {
    /// Its part of the loss, a scalar.
    pub loss: Tensor,
    /// The teacher's logits of the masked patches, `[masked, k]`.
    pub teacher: Tensor,
    /// The teacher's distributions, `[masked, k]`.
    pub targets: Tensor,
}

impl Gradients {
    /// What it adds to a step.
    ///
    /// # Errors
    /// When the device fails.
    pub fn share(self) -> Result<Share> {
        let none = self.value.teacher_entropy.zeros_like()?;
        let koleo = self.koleo.map_or_else(|| none.clone(), |koleo| koleo.detach());
        let ibot = self.ibot.as_ref().map_or_else(|| none.clone(), |ibot| ibot.loss.detach());
        let gram = self.gram.map_or_else(|| none.clone(), |gram| gram.detach());
        let (loss, teacher_entropy) = (self.value.loss.detach(), self.value.teacher_entropy);
        Ok(Share {
            means: Means { loss, teacher_entropy, koleo, ibot, gram, prediction: none.clone(), sigreg: none },
            gradients: self.gradients,
            outputs: Some(Outputs { logits: self.teacher, targets: self.value.targets }),
            keep_logits: self.keep_logits,
            patch_logits: self.ibot.map(|ibot| ibot.teacher),
            features: self.features,
        })
    }
}

impl Learner {
    /// A teacher that starts as a copy of the student, for processes that each hold the same.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(student: Network, algorithm: Algorithm, exchange: Arc<dyn Exchange>) -> Result<Self> {
        let mut teacher = student.duplicate()?;
        // It follows the student's merged weights.
        teacher.backbone = teacher.backbone.without_adapters();
        let out = student.head.config().columns();
        let device = student.groups().next().map_or(candle_core::Device::Cpu, |group| group.var().device().clone());
        let (loss, optimizer) = (DinoLoss::new(out, &device)?, Optimizer::new(algorithm));
        Ok(Self {
            student,
            teacher,
            loss,
            koleo_weight: 0.0,
            ibot: None,
            gram: None,
            lejepa: None,
            optimizer,
            freeze_backbone: false,
            exchange,
        })
    }

    /// Loss and gradients of one batch; changes nothing but the running statistics of batch norms.
    ///
    /// # Errors
    /// When shapes do not fit, another process is lost, or the device fails.
    pub fn gradients(&self, views: Views<'_>, teacher_temp: f64, random: &mut dyn Random) -> Result<Gradients> {
        let Views { global, local, anchored, masks } = views;
        let pass = &mut Pass::Teacher(&self.exchange);
        let places = masks.filter(|_| self.ibot.is_some()).map_or(&[][..], |masks| &masks.places);
        let (features, patches) = self.teacher.backbone.features_at(std::slice::from_ref(global), None, places, pass)?;
        let teacher = self.teacher.logits(&features, &patches, pass)?;

        let crops: Vec<Tensor> = std::iter::once(global).chain(local).cloned().collect();
        // Anchoring compares all patches of the global views.
        let all = if self.gram.is_some() { self.student.backbone.places(global)? } else { Vec::new() };
        let wanted = if all.is_empty() { places } else { &all };
        let masked = masks.map(|masks| &masks.tensor);
        let (seen, seen_patches) = self.see(&crops, masked, wanted, random)?;
        let pass = &mut Pass::Trained(random, &self.exchange);
        let patches = if all.is_empty() || places.is_empty() {
            seen_patches.narrow(0, 0, places.len())?
        } else {
            let per_crop = all.len() / global.dim(0)?;
            let rows = places.iter().map(|(crop, patch)| (crop * per_crop + patch) as u32).collect::<Vec<_>>();
            seen_patches.index_select(&Tensor::from_vec(rows, places.len(), seen_patches.device())?, 0)?
        };
        let student = self.student.logits(&seen, &patches, pass)?;
        let (value, ibot) = self.compare(&student, &teacher, masks, teacher_temp)?;
        let (mut whole, mut apart) = (value.loss.clone(), None);
        if let Some(ibot) = &ibot {
            whole = (whole + &ibot.loss)?;
        }
        if let Some(koleo) = self.kept_apart(&seen.narrow(0, 0, global.dim(0)?)?)? {
            whole = (whole + &koleo)?;
            apart = Some(koleo);
        }
        let gram = self.gram.as_ref().map(|of| Self::held_to_anchor(of, anchored.unwrap_or(global), &seen_patches)).transpose()?;
        if let Some(gram) = &gram {
            whole = (whole + gram)?;
        }
        let mut gradients = whole.backward()?;
        if ibot.is_some() {
            // All processes exchange the same gradients, those without a masked patch too.
            for group in self.student.patch_head().trained() {
                if gradients.get(group.var()).is_none() {
                    gradients.insert(group.var(), group.var().zeros_like()?);
                }
            }
        }
        let keep_logits = self.loss.queue.is_wanted();
        let (student, teacher) = (student.crops.detach(), teacher.crops);
        Ok(Gradients { value, koleo: apart, ibot, gram, gradients, student, teacher, features, keep_logits })
    }

    /// DINO's loss, and iBOT's where there is one.
    fn compare(&self, student: &Logits, teacher: &Logits, masks: Option<&Masks>, teacher_temp: f64) -> Result<(Value, Option<PatchValue>)> {
        let Some((ibot, masks)) = self.ibot.as_ref().zip(masks) else {
            return Ok((self.loss.evaluate(&student.crops, &teacher.crops, teacher_temp, &self.exchange)?, None));
        };
        let (targets, teacher_entropy) = self.loss.judged(&teacher.crops, teacher_temp, &self.exchange)?;
        let of_patches = ibot.targets(&teacher.patches, teacher_temp, &self.exchange)?;
        let (crops, patches) = (self.loss.held(&targets), ibot.held(&of_patches, masks));
        let (loss, loss_of_patches) = if let Some(both) = &student.both {
            let losses = cross_entropies(both, [(student.crops.dim(0)?, crops), (student.patches.dim(0)?, patches)])?;
            (losses.get(0)?, losses.get(1)?)
        } else {
            (crops.cross_entropy(&student.crops)?, patches.cross_entropy(&student.patches)?)
        };
        let value = Value { loss, teacher_entropy, targets };
        Ok((value, Some(PatchValue { loss: (loss_of_patches * ibot.weight)?, teacher: teacher.patches.clone(), targets: of_patches })))
    }

    /// The student's CLS features of all crops, and those of the patches at `places`.
    fn see(
        &self,
        crops: &[Tensor],
        masked: Option<&Tensor>,
        places: &[(usize, usize)],
        random: &mut dyn Random,
    ) -> Result<(Tensor, Tensor)> {
        let pass = &mut if self.freeze_backbone { Pass::Teacher(&self.exchange) } else { Pass::Trained(random, &self.exchange) };
        self.student.backbone.features_at(crops, masked, places, pass)
    }

    /// KoLeo's part of the loss, with its weight, where there is one: of the student's features of the global views.
    fn kept_apart(&self, features: &Tensor) -> Result<Option<Tensor>> {
        let term = || koleo(features, TEACHER_VIEWS, &self.exchange)? * self.koleo_weight;
        (self.koleo_weight > 0.0).then(term).transpose()
    }

    /// What one batch adds by `LeJEPA`'s loss, without a teacher.
    fn embed(&self, lejepa: &Lejepa, views: Views<'_>, random: &mut dyn Random) -> Result<Share> {
        let global = views.global.dim(0)?;
        let crops: Vec<Tensor> = std::iter::once(views.global).chain(views.local).cloned().collect();
        let (seen, _) = self.see(&crops, None, &[], random)?;
        let embeddings = self.student.head.forward(&seen, &Pass::Trained(random, &self.exchange))?;
        let directions = lejepa::directions(embeddings.dim(1)?, lejepa.slices, random, embeddings.device())?;
        let lejepa::Value { loss, prediction, sigreg } =
            lejepa.evaluate(&embeddings, global / TEACHER_VIEWS, &directions, &self.exchange)?;
        let features = seen.narrow(0, 0, global)?;
        let koleo = self.kept_apart(&features)?;
        let gradients = koleo.as_ref().map_or_else(|| Ok(loss.clone()), |koleo| &loss + koleo)?.backward()?;
        let none = loss.zeros_like()?.detach();
        let koleo = koleo.map_or_else(|| none.clone(), |koleo| koleo.detach());
        let (loss, prediction, sigreg) = (loss.detach(), prediction.detach(), sigreg.detach());
        let means = Means { loss, teacher_entropy: none.clone(), koleo, ibot: none.clone(), gram: none, prediction, sigreg };
        Ok(Share { means, gradients, outputs: None, keep_logits: false, patch_logits: None, features: features.detach() })
    }

    /// Gram anchoring's part of the loss, with its weight: all patches of the global views, by student and anchor.
    fn held_to_anchor(of: &Gram, views: &Tensor, patches: &Tensor) -> Result<Tensor> {
        let places = of.anchor.places(views)?;
        let (_, wanted) = of.anchor.features_at(std::slice::from_ref(views), None, &places, &mut Pass::Frozen)?;
        let pictures = |rows: &Tensor| rows.reshape((views.dim(0)?, (), rows.dim(1)?));
        let patches = pictures(patches)?;
        gram(&patches, &resampled(&pictures(&wanted)?, patches.dim(1)?)?, of.across, of.negatives)? * of.weight
    }

    /// Adds one micro-batch to what a step learns from; see [`Learner::gradients`].
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn add(&self, accumulated: &mut Accumulated, views: Views<'_>, teacher_temp: f64, random: &mut dyn Random) -> Result<()> {
        let share = match &self.lejepa {
            Some(lejepa) => self.embed(lejepa, views, random)?,
            None => self.gradients(views, teacher_temp, random)?.share()?,
        };
        accumulated.add(share, &self.student.trained().collect::<Vec<_>>())
    }

    /// One training step from all its micro-batches, together with the other processes: the student, the teacher, the centre.
    /// `stop` says whether this process was told to stop.
    ///
    /// # Errors
    /// When a loss is not finite, another process is lost, or the device fails; nothing was changed then.
    pub fn step(&mut self, accumulated: Accumulated, step: &Step, stop: bool) -> std::result::Result<Report, Error> {
        let logits = accumulated.kept_logits()?;
        let groups: Vec<&Group> = self.student.trained().collect();
        let averages = accumulated.average(&groups, &*self.exchange, stop)?;
        if !averages.own_loss.is_finite() {
            return Err(Error::NotFinite(averages.own_loss));
        }
        if !averages.failed.is_empty() {
            return Err(Error::Elsewhere(averages.failed));
        }
        // The centre and the queue last: a gradient that is not finite leaves them as they are.
        self.apply(&averages.gradients, &averages.squares, step)?;
        if self.lejepa.is_none() {
            self.loss.move_centre(&averages.logits)?;
        }
        if let Some(ibot) = self.ibot.as_mut().filter(|_| !averages.patch_logits.is_empty()) {
            ibot.patches.move_centre(&averages.patch_logits)?;
        }
        if let Some(logits) = logits {
            // As one process with one batch has them, view by view: which ones a queue drops does not depend on how a step is divided.
            let (batches, rows, k) = logits.dims3()?;
            let all = across::gather(&logits.flatten(0, 1)?, &self.exchange)?;
            let parts = (self.exchange.world(), batches, TEACHER_VIEWS, rows / TEACHER_VIEWS, k);
            let all = all.reshape(parts)?.permute((2, 1, 3, 0, 4))?.contiguous()?;
            self.loss.queue.push(&all.reshape(((), k))?)?;
        }
        let Averages { means, distribution, feature_std, stop, .. } = averages;
        Ok(Report { means, distribution, feature_std, stop })
    }

    /// Moves the student by gradients, then the teacher after it.
    ///
    /// # Errors
    /// When a gradient is not finite, or the device fails.
    fn apply(&mut self, gradients: &GradStore, squares: &Squares, step: &Step) -> Result<()> {
        let groups: Vec<&Group> = self.student.trained().collect();
        self.optimizer.step_with(&groups, gradients, squares, &step.optimizer)?;
        let frozen = if self.freeze_backbone { self.teacher.backbone.groups().len() } else { 0 };
        for (teacher, student) in self.teacher.groups().zip(self.student.moving()?).skip(frozen) {
            // The average of two equal numbers may be another by rounding.
            let Some(student) = student else { continue };
            if self.lejepa.is_some() {
                teacher.var().set(&student)?;
            } else {
                moving_average(teacher, &student, step.momentum)?;
            }
        }
        if self.lejepa.is_some() {
            // It saw no batch whose statistics it could have.
            for (teacher, student) in self.teacher.buffers().zip(self.student.buffers()) {
                teacher.var().set(&student.flat(false))?;
            }
        }
        Ok(())
    }
}
