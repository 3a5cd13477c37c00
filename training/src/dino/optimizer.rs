//! AdamW, SGD and LARS with the public code's two parameter groups and per-parameter clipping, and the teacher's moving average.
//!
//! Candle's optimisers have one weight decay for all variables and keep their moments to themselves, so they can neither leave
//! biases alone nor be resumed.
//!
//! ```
//! use candle_core::Device;
//! use dino_train::backbone::parameters::{Group, Init};
//! use dino_train::{data::loader::generator, dino::optimizer::{Algorithm, Optimizer, Settings}};
//!
//! let weight = vec![("weight".to_owned(), vec![2, 2], Init::Constant(1.0))];
//! let group = Group::new(weight, &mut generator(0, 0, 0, 0), &Device::Cpu)?;
//! let loss = group.flat(true).sum_all()?;
//! let settings = Settings { lr: 0.25, weight_decay: 0.0, clip: 0.0, freeze_last_layer: false };
//! Optimizer::new(Algorithm::Sgd).step(&[&group], &loss.backward()?, &settings)?;
//! assert_eq!(group.flat(false).to_vec1::<f32>()?, [0.75; 4]);
//! # Ok::<(), candle_core::Error>(())
//! ```

mod device;
mod squares;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, bail};
use clap::ValueEnum;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use self::device::DeviceMoments;
pub use self::squares::Squares;
use crate::backbone::parameters::{Entry, Group};
use crate::dino::layer_decay::LayerDecay;
use crate::kernels::{adam, momentum};
use crate::ops::host::is_host;
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

impl Settings {
    fn freezes(&self, entry: &Entry) -> bool {
        self.freeze_last_layer && entry.name.contains("last_layer")
    }
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
    /// Learning rates by layer.
    pub layer_decay: LayerDecay,
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

    /// The settings of a group, whose parameters are all of one layer.
    fn settings_of(&self, group: &Group, settings: &Settings) -> Settings {
        let multiplier = group.entries().first().map_or(1.0, |first| self.layer_decay.multiplier(&first.name));
        Settings { lr: settings.lr * multiplier, ..*settings }
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
    /// When the device fails, or a gradient is not finite: on another device nothing was changed then.
    pub fn step(&mut self, groups: &[&Group], gradients: &GradStore, settings: &Settings) -> Result<()> {
        let mut squares = Squares::of(groups, gradients)?;
        squares.fetch(&[])?;
        self.step_with(groups, gradients, &squares, settings)
    }

    /// [`Optimizer::step`] with sums of squares that have been fetched: it waits for nothing.
    ///
    /// # Errors
    /// As `step`.
    pub fn step_with(&mut self, groups: &[&Group], gradients: &GradStore, squares: &Squares, settings: &Settings) -> Result<()> {
        let trained = groups.iter().filter_map(|group| Some((*group, gradients.get(group.var())?)));
        let (here, on_device): (Vec<_>, Vec<_>) = trained.partition(|(group, _)| is_host(group.var().device()));
        self.step_on_device(&on_device, squares, settings)?;
        for (group, gradient) in here {
            let settings = &self.settings_of(group, settings);
            for entry in group.entries().iter().filter(|entry| !settings.freezes(entry)) {
                let moments = self.moments.entry(entry.name.clone()).or_default();
                update(self.algorithm, group, entry, gradient, moments, settings)?;
            }
        }
        Ok(())
    }

    /// The update where the parameters are. All gradients are known to be finite before anything changes.
    fn step_on_device(&mut self, groups: &[(&Group, &Tensor)], squares: &Squares, settings: &Settings) -> Result<()> {
        // The parameters of the last layer have groups of their own.
        let moving: Vec<_> = groups.iter().filter(|(group, _)| !group.entries().iter().any(|entry| settings.freezes(entry))).collect();
        moving.iter().try_for_each(|(group, _)| squares.check(group))?;
        for (group, gradient) in moving {
            let name = &group.entries()[0].name;
            if !self.on_device.contains_key(name) {
                let moments = DeviceMoments::new(self.algorithm, group, |entry| self.moments.get(&entry.name).cloned())?;
                self.on_device.insert(name.clone(), moments);
            }
            let mut steps = 0;
            for entry in group.entries() {
                let moments = self.moments.entry(entry.name.clone()).or_default();
                moments.steps += 1;
                steps = moments.steps;
                // They are on the device from now on.
                (moments.first, moments.second) = (Vec::new(), Vec::new());
            }
            let settings = self.settings_of(group, settings);
            if let Some(moments) = self.on_device.get_mut(name) {
                moments.step(group, gradient, squares.of_group(group)?, steps, &settings)?;
            }
        }
        Ok(())
    }
}

fn check_finite(entry: &Entry, squares: f64) -> Result<()> {
    if squares.is_finite() { Ok(()) } else { bail!("the gradient of {} is not finite: lower the learning rate", entry.name) }
}

fn update(algorithm: Algorithm, group: &Group, entry: &Entry, gradient: &Tensor, moments: &mut Moments, settings: &Settings) -> Result<()> {
    let gradient = gradient.flatten_all()?.narrow(0, entry.offset, entry.len())?.contiguous()?;
    let clip = with_slice(&gradient, |g| {
        let squares: f64 = g.par_chunks(CHUNK).map(adam::sum_of_squares).collect::<Vec<_>>().into_iter().sum();
        check_finite(entry, squares)?;
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
    group.var().inplace_op1(&Step { offset: entry.offset, rates, gradient, moments: Mutex::new(moments) })
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
pub fn moving_average(teacher: &Group, student: &Tensor, momentum: f64) -> Result<()> {
    if is_host(teacher.var().device()) {
        return teacher.var().inplace_op2(student, &Average { momentum: momentum as f32 });
    }
    teacher.var().set(&((teacher.var().as_detached_tensor() * momentum)? + (student * (1.0 - momentum))?)?)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::Device;

    use super::*;
    use crate::backbone::parameters::{Init, Random};
    use crate::ops::host::elsewhere;

    const SETTINGS: Settings = Settings { lr: 0.01, weight_decay: 0.1, clip: 0.5, freeze_last_layer: true };

    fn random() -> impl Random {
        crate::data::loader::generator(1, 2, 3, 4)
    }

    /// A block's parameters, some of which decay, and a last layer.
    fn groups() -> [Group; 2] {
        let parameter = |name: &str, shape: &[usize]| (name.to_owned(), shape.to_vec(), Init::Uniform(1.0));
        let group = |parameters| Group::new(parameters, &mut random(), &Device::Cpu).unwrap();
        [
            group(vec![parameter("norm.weight", &[7]), parameter("fc.weight", &[5, 3]), parameter("fc.bias", &[5])]),
            group(vec![parameter("last_layer.weight_v", &[4, 2])]),
        ]
    }

    /// Small for the first parameter of a group, which is not clipped, and large for the others.
    fn gradient(group: &Group, random: &mut impl Random) -> Tensor {
        let scales = group.entries().iter().zip([0.01, 3.0, 2.0]).flat_map(|(entry, scale)| std::iter::repeat_n(scale, entry.len()));
        Tensor::from_vec(scales.map(|scale: f32| scale * random.normal()).collect::<Vec<_>>(), group.var().elem_count(), &Device::Cpu)
            .unwrap()
    }

    fn values(groups: &[Group]) -> Vec<f32> {
        groups.iter().flat_map(|group| group.var().to_vec1::<f32>().unwrap()).collect()
    }

    fn moments(optimizer: &Optimizer) -> BTreeMap<String, Moments> {
        optimizer.moments().unwrap().into_iter().map(|(name, moments)| (name.to_owned(), moments.into_owned())).collect()
    }

    fn close(ours: &[f32], expected: &[f32]) {
        assert_eq!(ours.len(), expected.len());
        for (ours, expected) in ours.iter().zip(expected) {
            assert!((ours - expected).abs() <= 1e-6 + 1e-5 * expected.abs(), "{ours} instead of {expected}");
        }
    }

    fn store(groups: &[Group], gradients: &[Tensor]) -> GradStore {
        let mut store = groups[0].var().sum_all().unwrap().backward().unwrap();
        for (group, gradient) in groups.iter().zip(gradients) {
            store.insert(group.var(), gradient.clone());
        }
        store
    }

    #[test]
    fn on_another_device_whole_groups_step_as_parameters_one_by_one_do() {
        for algorithm in [Algorithm::Adamw, Algorithm::Sgd, Algorithm::Lars] {
            let (one_by_one, whole, start) = (groups(), groups(), values(&groups()));
            let (mut reference, mut optimizer) = (Optimizer::new(algorithm), Optimizer::new(algorithm));
            let mut random = random();
            // The last layer moves in the third step alone.
            for step in 0..3 {
                let settings = Settings { freeze_last_layer: step < 2, ..SETTINGS };
                let gradients: Vec<Tensor> = whole.iter().map(|group| gradient(group, &mut random)).collect();
                reference.step(&one_by_one.each_ref(), &store(&one_by_one, &gradients), &settings).unwrap();
                elsewhere::run(|| optimizer.step(&whole.each_ref(), &store(&whole, &gradients), &settings)).unwrap();
                assert_eq!(elsewhere::copies(), 1);
                let (ours, expected) = (values(&whole), values(&one_by_one));
                close(&ours, &expected);
                assert_eq!(ours[27..] == start[27..], step < 2, "the last layer in step {step}");
                assert!(ours[..27].iter().zip(&start).all(|(ours, start)| ours.to_bits() != start.to_bits()));
            }
            let (ours, expected) = (moments(&optimizer), moments(&reference));
            assert!(ours.keys().eq(expected.keys()));
            for (ours, expected) in ours.values().zip(expected.values()) {
                assert_eq!(ours.steps, expected.steps);
                close(&ours.first, &expected.first);
                close(&ours.second, &expected.second);
            }
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_named_and_changes_nothing() {
        let (groups, mut optimizer, mut random) = (groups(), Optimizer::new(Algorithm::Adamw), random());
        let settings = Settings { freeze_last_layer: false, ..SETTINGS };
        let mut gradients: Vec<Tensor> = groups.iter().map(|group| gradient(group, &mut random)).collect();
        let step = |optimizer: &mut Optimizer, gradients: &[Tensor]| {
            elsewhere::run(|| optimizer.step(&groups.each_ref(), &store(&groups, gradients), &settings))
        };
        step(&mut optimizer, &gradients).unwrap();
        let before = (values(&groups), moments(&optimizer));
        for (number, value) in [(1, f32::NAN), (1, f32::INFINITY)] {
            let whole = gradients[number].to_vec1::<f32>().unwrap();
            let broken = [&whole[..3], &[value], &whole[4..]].concat();
            let sound = std::mem::replace(&mut gradients[number], Tensor::new(broken, &Device::Cpu).unwrap());
            let error = step(&mut optimizer, &gradients).unwrap_err().to_string();
            assert!(error.contains("the gradient of last_layer.weight_v is not finite"), "{error}");
            assert_eq!(values(&groups), before.0);
            gradients[number] = sound;
        }
        assert_eq!(moments(&optimizer), before.1);
        step(&mut optimizer, &gradients).unwrap();
    }
}
