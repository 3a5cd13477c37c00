//! The optimiser on the device that holds the parameters: nothing of a step passes through main memory.
//!
//! The arithmetic is that of [`crate::kernels::adam`] and [`crate::kernels::momentum`], over a whole group at once.

use candle_core::{Result, Tensor};

use super::{Algorithm, MOMENTUM, Moments, Settings, TRUST};
use crate::backbone::parameters::{Entry, Group};
use crate::kernels::adam::{BETA1, BETA2, EPS, Rates};
use crate::ops::host::to_host;

/// Of each parameter its name, its mean gradient and its mean squared gradient.
type HostMoments<'a> = Vec<(&'a str, Vec<f32>, Vec<f32>)>;

/// Moments of a group, and what tells its parameters apart.
#[derive(Debug)]
pub(super) struct DeviceMoments {
    algorithm: Algorithm,
    entries: Vec<Entry>,
    /// Mean gradients (AdamW), or the last direction.
    first: Tensor,
    /// Mean squared gradients, of AdamW alone.
    second: Option<Tensor>,
    /// Number of the parameter that each element belongs to.
    owners: Tensor,
    /// 1 for elements that decay, else 0.
    decays: Tensor,
    /// 1 for parameters whose steps LARS puts in proportion to their norms, else 0.
    adapts: Tensor,
}

impl DeviceMoments {
    /// Goes on from what is known of each parameter; moments that are not known are zero.
    pub(super) fn new(algorithm: Algorithm, group: &Group, known: impl Fn(&Entry) -> Option<Moments>) -> Result<Self> {
        let (len, device) = (group.var().elem_count(), group.var().device());
        let (mut first, mut second) = (vec![0.0; len], vec![0.0; len]);
        let (mut owners, mut decays) = (Vec::with_capacity(len), Vec::with_capacity(len));
        for (number, entry) in group.entries().iter().enumerate() {
            owners.extend(std::iter::repeat_n(number as u32, entry.len()));
            decays.extend(std::iter::repeat_n(f32::from(u8::from(entry.decays())), entry.len()));
            let range = entry.offset..entry.offset + entry.len();
            if let Some(known) = known(entry).filter(|known| known.first.len() == entry.len()) {
                first[range.clone()].copy_from_slice(&known.first);
                if known.second.len() == entry.len() {
                    second[range].copy_from_slice(&known.second);
                }
            }
        }
        // One-dimensional parameters take plain steps.
        let adapts: Vec<u8> = group.entries().iter().map(|entry| u8::from(entry.shape.len() > 1)).collect();
        Ok(Self {
            algorithm,
            entries: group.entries().to_vec(),
            first: Tensor::from_vec(first, len, device)?,
            second: (algorithm == Algorithm::Adamw).then(|| Tensor::from_vec(second, len, device)).transpose()?,
            owners: Tensor::from_vec(owners, len, device)?,
            decays: Tensor::from_vec(decays, len, device)?,
            adapts: Tensor::new(adapts, device)?,
        })
    }

    /// Moves the group's parameters; `steps` counts this one, and `squares` `[parameters]` are the sums of the gradient's squares.
    pub(super) fn step(&mut self, group: &Group, gradient: &Tensor, squares: &Tensor, steps: u64, settings: &Settings) -> Result<()> {
        let gradient = gradient.flatten_all()?.detach();
        let gradient = if settings.clip > 0.0 {
            // clip / (norm + 1e-6), at most 1.
            let factors = ((squares.sqrt()? + 1e-6)?.recip()? * settings.clip)?.minimum(1.0)?;
            (gradient * factors.index_select(&self.owners, 0)?)?
        } else {
            gradient
        };
        let parameters = group.var().as_detached_tensor();
        let moved = match self.algorithm {
            Algorithm::Adamw => self.adamw(&parameters, &gradient, steps, settings)?,
            Algorithm::Sgd | Algorithm::Lars => self.momentum(&parameters, &gradient, settings)?,
        };
        group.var().set(&moved)
    }

    fn adamw(&mut self, parameters: &Tensor, gradient: &Tensor, steps: u64, settings: &Settings) -> Result<Tensor> {
        self.first = ((&self.first * BETA1)? + (gradient * (1.0 - BETA1))?)?;
        let mut second = (gradient.sqr()? * (1.0 - BETA2))?;
        if let Some(known) = &self.second {
            second = ((known * BETA2)? + second)?;
        }
        let rates = Rates::new(settings.lr, settings.weight_decay, 1.0, steps);
        let root = (second.sqrt()? * f64::from(rates.second_correction))?;
        self.second = Some(second);
        let step = ((&self.first * f64::from(rates.step_size))? / (root + f64::from(EPS))?)?;
        let keep = ((&self.decays * (f64::from(rates.keep) - 1.0))? + 1.0)?;
        (parameters * keep)? - step
    }

    fn momentum(&mut self, parameters: &Tensor, gradient: &Tensor, settings: &Settings) -> Result<Tensor> {
        let mut update = (gradient + (parameters * (&self.decays * settings.weight_decay)?)?)?;
        if self.algorithm == Algorithm::Lars {
            update = (&update * self.trust(parameters, &update)?.index_select(&self.owners, 0)?)?;
        }
        self.first = ((&self.first * f64::from(MOMENTUM))? + update)?;
        parameters - (&self.first * settings.lr)?
    }

    /// LARS's factor of each parameter: its norm by the update's, times the coefficient; 1 where either is zero, or it takes plain steps.
    fn trust(&self, parameters: &Tensor, update: &Tensor) -> Result<Tensor> {
        let sums = |values: &Tensor| {
            let squares = values.sqr()?;
            let sums = self.entries.iter().map(|entry| squares.narrow(0, entry.offset, entry.len())?.sum_all()?.reshape(1));
            Tensor::cat(&sums.collect::<Result<Vec<_>>>()?, 0)
        };
        let (parameters, update) = (sums(parameters)?, sums(update)?);
        let adapts = ((parameters.gt(0.0)? * update.gt(0.0)?)? * &self.adapts)?;
        adapts.where_cond(&((&parameters / update)?.sqrt()? * TRUST)?, &parameters.ones_like()?)
    }

    /// The moments of each parameter, without their steps.
    pub(super) fn to_host(&self) -> Result<HostMoments<'_>> {
        let first = to_host(&self.first)?;
        let second = self.second.as_ref().map(to_host).transpose()?;
        let part = |entry: &Entry, values: &[f32]| values[entry.offset..entry.offset + entry.len()].to_vec();
        let second = |entry: &Entry| second.as_deref().map_or_else(Vec::new, |second| part(entry, second));
        Ok(self.entries.iter().map(|entry| (entry.name.as_str(), part(entry, &first), second(entry))).collect())
    }
}
