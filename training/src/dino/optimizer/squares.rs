//! How large the gradients on another device are: clipping needs it there, and whether they are finite is asked here.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{Error, Result, Tensor};

use super::check_finite;
use crate::backbone::parameters::Group;
use crate::ops::host::{is_host, to_host};

/// Of each group on another device the sum of the squares of each parameter's gradient, by the name of the group's first parameter.
#[derive(Debug, Default)]
pub struct Squares {
    names: Vec<String>,
    /// `[parameters]` each, on the device. Not finite where the gradient is not.
    sums: HashMap<String, Tensor>,
    fetched: HashMap<String, Vec<f32>>,
}

impl Squares {
    /// Of all `groups` on another device that have a gradient. Computed there, and not waited for.
    ///
    /// # Errors
    /// When the device fails.
    pub fn of(groups: &[&Group], gradients: &GradStore) -> Result<Self> {
        let mut all = Self::default();
        for group in groups.iter().filter(|group| !is_host(group.var().device())) {
            let Some(gradient) = gradients.get(group.var()) else { continue };
            let squares = gradient.flatten_all()?.detach().sqr()?;
            let sums = group.entries().iter().map(|entry| squares.narrow(0, entry.offset, entry.len())?.sum_all()?.reshape(1));
            all.sums.insert(name(group).to_owned(), Tensor::cat(&sums.collect::<Result<Vec<_>>>()?, 0)?);
            all.names.push(name(group).to_owned());
        }
        Ok(all)
    }

    /// Copies the sums to main memory, and the elements of `others` with them: the one time that a training step waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn fetch(&mut self, others: &[Tensor]) -> Result<Vec<Vec<f32>>> {
        let others = others.iter().map(|tensor| tensor.detach().flatten_all());
        let sums = self.names.iter().filter_map(|name| self.sums.get(name)).cloned();
        let all = others.chain(sums.map(Ok)).collect::<Result<Vec<_>>>()?;
        if all.is_empty() {
            return Ok(Vec::new());
        }
        let values = to_host(&Tensor::cat(&all, 0)?)?;
        let mut rest = values.as_slice();
        let mut parts: Vec<Vec<f32>> = all
            .iter()
            .map(|tensor| {
                let (part, more) = rest.split_at(tensor.elem_count());
                rest = more;
                part.to_vec()
            })
            .collect();
        let sums = parts.split_off(parts.len() - self.names.len());
        self.fetched = self.names.iter().cloned().zip(sums).collect();
        Ok(parts)
    }

    /// The sums of one group's parameters, `[parameters]`, on the device.
    pub(super) fn of_group(&self, group: &Group) -> Result<&Tensor> {
        self.sums.get(name(group)).ok_or_else(|| Error::Msg(format!("the squares of {} were not summed up", name(group))))
    }

    /// Refuses a group with a gradient that is not finite.
    pub(super) fn check(&self, group: &Group) -> Result<()> {
        let sums = self.fetched.get(name(group)).ok_or_else(|| Error::Msg(format!("the squares of {} were not fetched", name(group))))?;
        group.entries().iter().zip(sums).try_for_each(|(entry, sum)| check_finite(entry, f64::from(*sum)))
    }
}

fn name(group: &Group) -> &str {
    group.entries().first().map_or("", |first| &first.name)
}
