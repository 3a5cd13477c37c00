//! AdamW, SGD and LARS with the public code's two parameter groups and per-parameter clipping, and the teacher's moving average.
//!
//! Candle's optimisers have one weight decay for all variables and keep their moments to themselves, so they can neither leave
//! biases alone nor be resumed.

mod device;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, bail};
use clap::ValueEnum;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use self::device::DeviceMoments;
use crate::backbone::parameters::{Entry, Group};
use crate::kernels::{adam, momentum};
use crate::ops::{slice, with_slice};

const CHUNK: usize = 1 << 14;

/// What one step of the optimiser is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay of those parameters that decay.
    pub weight_decay: f64,
    /// Largest L2 norm of each parameter's gradient; 0 for none.
    pub clip: f64,
    /// Leave the head's last layer as it is.
    pub freeze_last_layer: bool,
}

/// What the optimiser remembers of one parameter, and the steps it has taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// Steps taken; a parameter that was frozen has taken fewer.
    pub steps: u64,
    /// Mean gradient (AdamW), or the direction of the last step (SGD, LARS).
    pub first: Vec<f32>,
    /// Mean squared gradient (AdamW), else empty.
    pub second: Vec<f32>,
}

/// How gradients become steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// Adam with decoupled weight decay (betas 0.9 and 0.999, eps 1e-8): the one for ViTs
    #[default]
    Adamw,
    /// gradient descent with momentum 0.9: for residual networks
    Sgd,
    /// SGD whose steps are in proportion to each parameter's norm (You et al. 2017): for residual networks and batches of thousands
    Lars,
}

/// An optimiser and its moments.
#[derive(Debug, Default)]
pub struct Optimizer {
    algorithm: Algorithm,
    /// By parameter name. Those of parameters on another device have their steps alone here.
    moments: HashMap<String, Moments>,
    /// Of groups on another device, by the name of their first parameter.
    on_device: HashMap<String, DeviceMoments>,
}

impl Optimizer {
    /// Without moments yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self { algorithm, ..Self::default() }
    }

    /// How it steps.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Steps taken, by parameter name.
    pub fn steps(&self) -> impl Iterator<Item = (&String, u64)> {
        self.moments.iter().map(|(name, moments)| (name, moments.steps))
    }

    /// Moments by parameter name, to be stored; those on another device are copied from there.
    ///
    /// # Errors
    /// When the device fails.
    pub fn moments(&self) -> Result<Vec<(&str, Cow<'_, Moments>)>> {
        let mut all: HashMap<&str, Cow<'_, Moments>> =
            self.moments.iter().map(|(name, moments)| (name.as_str(), Cow::Borrowed(moments))).collect();
        for group in self.on_device.values() {
            for (name, first, second) in group.to_host()? {
                let steps = self.moments.get(name).map_or(0, |moments| moments.steps);
                all.insert(name, Cow::Owned(Moments { steps, first, second }));
            }
        }
        Ok(all.into_iter().collect())
    }

    /// Restores what was stored for one parameter.
    pub fn set_moments(&mut self, name: &str, moments: Moments) {
        self.on_device.clear();
        self.moments.insert(name.to_owned(), moments);
    }

    /// One step over all parameters that have a gradient.
    ///
    /// # Errors
    /// When the device fails.
    pub fn step(&mut self, groups: &[&Group], gradients: &GradStore, settings: &Settings) -> Result<()> {
        let mut squares = Vec::new();
        for group in groups {
            let Some(gradient) = gradients.get(group.var()) else { continue };
            if self.algorithm == Algorithm::Adamw && !group.var().device().is_cpu() {
                squares.extend(self.step_on_device(group, gradient, settings)?);
                continue;
            }
            for entry in group.entries() {
                if settings.freeze_last_layer && entry.name.contains("last_layer") {
                    continue;
                }
                let moments = self.moments.entry(entry.name.clone()).or_default();
                update(self.algorithm, group, entry, gradient, moments, settings)?;
            }
        }
        // The one time that a step on another device is waited for.
        if !squares.is_empty() && !Tensor::cat(&squares, 0)?.sum_all()?.to_scalar::<f32>()?.is_finite() {
            bail!("a gradient is not finite: lower the learning rate");
        }
        Ok(())
    }

    fn step_on_device(&mut self, group: &Group, gradient: &Tensor, settings: &Settings) -> Result<Option<Tensor>> {
        let entries = group.entries();
        let Some(first) = entries.first() else { return Ok(None) };
        // The parameters of the last layer have groups of their own.
        if settings.freeze_last_layer && first.name.contains("last_layer") {
            return Ok(None);
        }
        if !self.on_device.contains_key(&first.name) {
            let moments = DeviceMoments::new(group, |entry| self.moments.get(&entry.name).cloned())?;
            self.on_device.insert(first.name.clone(), moments);
        }
        let mut steps = 0;
        for entry in entries {
            let moments = self.moments.entry(entry.name.clone()).or_default();
            moments.steps += 1;
            steps = moments.steps;
            // They are on the device from now on.
            (moments.first, moments.second) = (Vec::new(), Vec::new());
        }
        let Some(moments) = self.on_device.get_mut(&first.name) else { return Ok(None) };
        moments.step(group, gradient, steps, settings).map(Some)
    }
}

fn update(algorithm: Algorithm, group: &Group, entry: &Entry, gradient: &Tensor, moments: &mut Moments, settings: &Settings) -> Result<()> {
    let gradient = gradient.flatten_all()?.narrow(0, entry.offset, entry.len())?.contiguous()?.to_device(&candle_core::Device::Cpu)?;
    let clip = with_slice(&gradient, |g| {
        let squares: f64 = g.par_chunks(CHUNK).map(adam::sum_of_squares).collect::<Vec<_>>().into_iter().sum();
        if !squares.is_finite() {
            bail!("the gradient of {} is not finite: lower the learning rate", entry.name);
        }
        let factor = settings.clip / (squares.sqrt() + 1e-6);
        Ok(if settings.clip > 0.0 && factor < 1.0 { factor as f32 } else { 1.0 })
    })?;
    moments.steps += 1;
    moments.first.resize(entry.len(), 0.0);
    let decay = if entry.decays() { settings.weight_decay } else { 0.0 };
    let rates = match algorithm {
        Algorithm::Adamw => {
            moments.second.resize(entry.len(), 0.0);
            Rates::Adamw(adam::Rates::new(settings.lr, decay, clip, moments.steps))
        }
        Algorithm::Sgd | Algorithm::Lars => Rates::Momentum {
            rates: momentum::Rates { lr: settings.lr as f32, momentum: MOMENTUM, weight_decay: decay as f32, clip, trust: 1.0 },
            // One-dimensional parameters take plain steps.
            adapts: algorithm == Algorithm::Lars && entry.shape.len() > 1,
        },
    };
    let step = Step { offset: entry.offset, rates, gradient, moments: Mutex::new(moments) };
    let var = group.var();
    if var.device().is_cpu() {
        return var.inplace_op1(&step);
    }
    // Other devices: the update itself is computed on the CPU.
    let flat = var.to_device(&candle_core::Device::Cpu)?.copy()?;
    flat.inplace_op1(&step)?;
    var.set(&flat.to_device(var.device())?)
}

const MOMENTUM: f32 = 0.9;
/// LARS's trust coefficient, the public code's `eta`.
const TRUST: f64 = 0.001;

enum Rates {
    Adamw(adam::Rates),
    Momentum { rates: momentum::Rates, adapts: bool },
}

/// The parameter's norm by the update's, times the coefficient; 1 where either is zero.
fn trust(parameter: &[f32], gradient: &[f32], rates: &momentum::Rates) -> f32 {
    let parts: Vec<(f64, f64)> = parameter
        .par_chunks(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .map(|(p, g)| momentum::squares(p, g, rates.clip, rates.weight_decay))
        .collect();
    let (parameter, update) = parts.into_iter().fold((0.0, 0.0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
    if parameter > 0.0 && update > 0.0 { (TRUST * (parameter / update).sqrt()) as f32 } else { 1.0 }
}

struct Step<'a> {
    offset: usize,
    rates: Rates,
    gradient: Tensor,
    moments: Mutex<&'a mut Moments>,
}

/// The elements of a contiguous f32 destination.
fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let CpuStorage::F32(values) = storage else { bail!("a float32 variable is wanted") };
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&mut values[from..to]),
        None => bail!("a contiguous variable is wanted"),
    }
}

impl InplaceOp1 for Step<'_> {
    fn name(&self) -> &'static str {
        "optimizer-step"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let Moments { first, second, .. } = &mut **moments;
        let parameter = &mut slice_mut(storage, layout)?[self.offset..self.offset + first.len()];
        with_slice(&self.gradient, |gradient| {
            match self.rates {
                Rates::Adamw(rates) => parameter
                    .par_chunks_mut(CHUNK)
                    .zip(gradient.par_chunks(CHUNK))
                    .zip(first.par_chunks_mut(CHUNK))
                    .zip(second.par_chunks_mut(CHUNK))
                    .for_each(|(((p, g), m), v)| adam::step(p, g, m, v, &rates)),
                Rates::Momentum { rates, adapts } => {
                    let trust = if adapts { trust(parameter, gradient, &rates) } else { 1.0 };
                    let rates = momentum::Rates { trust, ..rates };
                    parameter
                        .par_chunks_mut(CHUNK)
                        .zip(gradient.par_chunks(CHUNK))
                        .zip(first.par_chunks_mut(CHUNK))
                        .for_each(|((p, g), m)| momentum::step(p, g, m, &rates));
                }
            }
            Ok(())
        })
    }
}

/// Moves the teacher: `teacher = momentum * teacher + (1 - momentum) * student`.
///
/// # Errors
/// When the device fails.
pub fn moving_average(teacher: &Group, student: &Group, momentum: f64) -> Result<()> {
    if teacher.var().device().is_cpu() {
        return teacher.var().inplace_op2(student.var(), &Average { momentum: momentum as f32 });
    }
    teacher.var().set(&((teacher.var().as_detached_tensor() * momentum)? + (student.var().as_detached_tensor() * (1.0 - momentum))?)?)
}

struct Average {
    momentum: f32,
}

impl InplaceOp2 for Average {
    fn name(&self) -> &'static str {
        "moving-average"
    }

    fn cpu_fwd(&self, teacher: &mut CpuStorage, teacher_layout: &Layout, student: &CpuStorage, student_layout: &Layout) -> Result<()> {
        let (teacher, student) = (slice_mut(teacher, teacher_layout)?, slice(student, student_layout)?);
        teacher.par_chunks_mut(CHUNK).zip(student.par_chunks(CHUNK)).for_each(|(t, s)| adam::average(t, s, self.momentum));
        Ok(())
    }
}
