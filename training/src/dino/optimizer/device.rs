//! AdamW on the device that holds the parameters: nothing of a step passes through main memory.
//!
//! The arithmetic is that of [`crate::kernels::adam`], over a whole group at once.

use candle_core::{DType, Result, Tensor};

use super::{Moments, Settings};
use crate::backbone::parameters::{Entry, Group};
use crate::kernels::adam::{BETA1, BETA2, EPS};

/// Of each parameter its name, its mean gradient and its mean squared gradient.
type HostMoments<'a> = Vec<(&'a str, Vec<f32>, Vec<f32>)>;

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

    /// Moves the group's parameters; `steps` counts this one. Returns the sum of the gradient's squares, `[1]`, which is not finite
    /// where the gradient is not.
    pub(super) fn step(&mut self, group: &Group, gradient: &Tensor, steps: u64, settings: &Settings) -> Result<Tensor> {
        let gradient = gradient.flatten_all()?.detach();
        let squares = gradient.sqr()?;
        let sums = self.entries.iter().map(|entry| squares.narrow(0, entry.offset, entry.len())?.sum_all()?.reshape(1));
        let sums = Tensor::cat(&sums.collect::<Result<Vec<_>>>()?, 0)?;
        let gradient = if settings.clip > 0.0 {
            // clip / (norm + 1e-6), at most 1.
            let factors = ((sums.sqrt()? + 1e-6)?.recip()? * settings.clip)?.minimum(1.0)?;
            (gradient * factors.index_select(&self.owners, 0)?)?
        } else {
            gradient
        };
        self.first = ((&self.first * BETA1)? + (&gradient * (1.0 - BETA1))?)?;
        self.second = ((&self.second * BETA2)? + (gradient.sqr()? * (1.0 - BETA2))?)?;
        let steps = steps.min(i32::MAX as u64) as i32;
        let step_size = settings.lr / (1.0 - BETA1.powi(steps));
        let correction = 1.0 / (1.0 - BETA2.powi(steps)).sqrt();
        let step = ((&self.first * step_size)? / ((self.second.sqrt()? * correction)? + f64::from(EPS))?)?;
        let keep = ((&self.decays * (-settings.lr * settings.weight_decay))? + 1.0)?;
        group.var().set(&((group.var().as_detached_tensor() * keep)? - step)?)?;
        sums.sum_keepdim(0)?.to_dtype(DType::F32)
    }

    /// The moments of each parameter, without their steps.
    pub(super) fn to_host(&self) -> Result<HostMoments<'_>> {
        let (first, second) = (self.first.to_vec1::<f32>()?, self.second.to_vec1::<f32>()?);
        let part = |entry: &Entry, values: &[f32]| values[entry.offset..entry.offset + entry.len()].to_vec();
        Ok(self.entries.iter().map(|entry| (entry.name.as_str(), part(entry, &first), part(entry, &second))).collect())
    }
}
