//! AdamW on the device that holds the parameters: nothing of a step passes through main memory.
//!
//! The arithmetic is that of [`crate::kernels::adam`], over a whole group at once.

use candle_core::{Result, Tensor};

use super::{Moments, Settings};
use crate::backbone::parameters::{Entry, Group};
use crate::kernels::adam::{BETA1, BETA2, EPS, Rates};

/// Of each parameter its name, its mean gradient and its mean squared gradient.
type HostMoments<'a> = Vec<(&'a str, Vec<f32>, Vec<f32>)>;

/// The sum of the squares of each parameter's gradient, `[parameters]`: not finite where the gradient is not.
pub(super) fn sums_of_squares(group: &Group, gradient: &Tensor) -> Result<Tensor> {
    let squares = gradient.flatten_all()?.detach().sqr()?;
    let sums = group.entries().iter().map(|entry| squares.narrow(0, entry.offset, entry.len())?.sum_all()?.reshape(1));
    Tensor::cat(&sums.collect::<Result<Vec<_>>>()?, 0)
}

/// Moments of a group, and what tells its parameters apart.
#[derive(Debug)]
pub(super) struct DeviceMoments {
    entries: Vec<Entry>,
    first: Tensor,
    second: Tensor,
    /// Number of the parameter that each element belongs to.
    owners: Tensor,
    /// 1 for elements that decay, else 0.
    decays: Tensor,
}

impl DeviceMoments {
    /// Goes on from what is known of each parameter; moments that are not known are zero.
    pub(super) fn new(group: &Group, known: impl Fn(&Entry) -> Option<Moments>) -> Result<Self> {
        let (len, device) = (group.var().elem_count(), group.var().device());
        let (mut first, mut second) = (vec![0.0; len], vec![0.0; len]);
        let (mut owners, mut decays) = (Vec::with_capacity(len), Vec::with_capacity(len));
        for (number, entry) in group.entries().iter().enumerate() {
            owners.extend(std::iter::repeat_n(number as u32, entry.len()));
            decays.extend(std::iter::repeat_n(f32::from(u8::from(entry.decays())), entry.len()));
            let range = entry.offset..entry.offset + entry.len();
            if let Some(known) = known(entry).filter(|known| known.first.len() == entry.len() && known.second.len() == entry.len()) {
                first[range.clone()].copy_from_slice(&known.first);
                second[range].copy_from_slice(&known.second);
            }
        }
        Ok(Self {
            entries: group.entries().to_vec(),
            first: Tensor::from_vec(first, len, device)?,
            second: Tensor::from_vec(second, len, device)?,
            owners: Tensor::from_vec(owners, len, device)?,
            decays: Tensor::from_vec(decays, len, device)?,
        })
    }

    /// Moves the group's parameters; `steps` counts this one, and `squares` are the gradient's [`sums_of_squares`].
    pub(super) fn step(&mut self, group: &Group, gradient: &Tensor, squares: &Tensor, steps: u64, settings: &Settings) -> Result<()> {
        let gradient = gradient.flatten_all()?.detach();
        let gradient = if settings.clip > 0.0 {
            // clip / (norm + 1e-6), at most 1.
            let factors = ((squares.sqrt()? + 1e-6)?.recip()? * settings.clip)?.minimum(1.0)?;
            (gradient * factors.index_select(&self.owners, 0)?)?
        } else {
            gradient
        };
        self.first = ((&self.first * BETA1)? + (&gradient * (1.0 - BETA1))?)?;
        self.second = ((&self.second * BETA2)? + (gradient.sqr()? * (1.0 - BETA2))?)?;
        let rates = Rates::new(settings.lr, settings.weight_decay, 1.0, steps);
        let root = (self.second.sqrt()? * f64::from(rates.second_correction))?;
        let step = ((&self.first * f64::from(rates.step_size))? / (root + f64::from(EPS))?)?;
        let keep = ((&self.decays * (f64::from(rates.keep) - 1.0))? + 1.0)?;
        group.var().set(&((group.var().as_detached_tensor() * keep)? - step)?)
    }

    /// The moments of each parameter, without their steps.
    pub(super) fn to_host(&self) -> Result<HostMoments<'_>> {
        let (first, second) = (self.first.to_vec1::<f32>()?, self.second.to_vec1::<f32>()?);
        let part = |entry: &Entry, values: &[f32]| values[entry.offset..entry.offset + entry.len()].to_vec();
        Ok(self.entries.iter().map(|entry| (entry.name.as_str(), part(entry, &first), part(entry, &second))).collect())
    }
}
