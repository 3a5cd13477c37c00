//! What one step learns from: gradients and statistics, added up over micro-batches and then over processes.
//!
//! All micro-batches of a step see the same weights and the same centre, and everything here is a mean over the pictures, so N of them
//! over M processes give what one batch of all the pictures gives, up to rounding.

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor};

use crate::backbone::parameters::Group;
use crate::exchange::{self, Exchange};
use crate::kernels::reduce::{add, add_column_sums};
use crate::ops::with_slice;

/// What one micro-batch adds.
pub struct Share {
    /// Mean loss, a scalar.
    pub loss: Tensor,
    /// Mean entropy of the teacher's distributions, in nats, a scalar.
    pub teacher_entropy: Tensor,
    /// Of the mean loss.
    pub gradients: GradStore,
    /// The teacher's logits `[rows, k]`.
    pub logits: Tensor,
    /// The teacher's distributions `[rows, k]`.
    pub targets: Tensor,
    /// The teacher's CLS features `[rows, dim]`.
    pub features: Tensor,
}

/// Sums over micro-batches.
#[derive(Default)]
pub struct Accumulated {
    gradients: Option<GradStore>,
    batches: usize,
    rows: usize,
    loss: f32,
    entropy: f32,
    logits: Vec<f32>,
    targets: Vec<f32>,
    features: Vec<f32>,
    squares: Vec<f32>,
    /// Sums of micro-batches that are still on another device: loss, entropy and the four column sums, one after another.
    pending: Vec<Tensor>,
}

/// Means over all pictures of a step, the same on all processes.
pub struct Averages {
    /// Of the mean loss.
    pub gradients: GradStore,
    /// Mean loss.
    pub loss: f64,
    /// Mean entropy of the teacher's distributions, in nats.
    pub teacher_entropy: f64,
    /// Mean of the teacher's logits, one for each output.
    pub logits: Vec<f32>,
    /// Mean of the teacher's distributions, one for each output.
    pub distribution: Vec<f32>,
    /// Standard deviation over the pictures of the L2-normalised features of the teacher, averaged over their dimensions.
    pub feature_std: f64,
    /// Ranks whose loss was not finite.
    pub failed: Vec<usize>,
    /// Whether a process was told to stop.
    pub stop: bool,
}

/// Why a step's sums are not to be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process is lost.
    #[error(transparent)]
    Exchange(#[from] exchange::Error),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] candle_core::Error),
    /// Nothing was added.
    #[error("a step needs at least one batch")]
    Empty,
}

impl Accumulated {
    /// Adds a micro-batch; `groups` are the student's.
    ///
    /// # Errors
    /// When the device fails.
    pub fn add(&mut self, share: Share, groups: &[&Group]) -> Result<()> {
        self.batches += 1;
        self.rows += share.targets.dim(0)?;
        let features = share.features.broadcast_div(&share.features.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(1e-12)?)?;
        let squares = features.sqr()?;
        for (matrix, sums) in [
            (&share.logits, &mut self.logits),
            (&share.targets, &mut self.targets),
            (&features, &mut self.features),
            (&squares, &mut self.squares),
        ] {
            sums.resize(matrix.dim(1)?, 0.0);
            if matrix.device().is_cpu() {
                with_slice(matrix, |values| {
                    add_column_sums(values, sums);
                    Ok(())
                })?;
            }
        }
        if share.loss.device().is_cpu() {
            self.loss += share.loss.to_scalar::<f32>()?;
            self.entropy += share.teacher_entropy.to_scalar::<f32>()?;
        } else {
            // Not waited for here: the device has the backward pass and the update yet to do.
            let scalars = [share.loss.reshape(1)?, share.teacher_entropy.reshape(1)?];
            let sums = [&share.logits, &share.targets, &features, &squares].map(|matrix| matrix.sum(0));
            let parts = scalars.into_iter().map(Ok).chain(sums).collect::<Result<Vec<_>>>()?;
            self.pending.push(Tensor::cat(&parts, 0)?.detach());
        }
        let Some(sums) = &mut self.gradients else {
            self.gradients = Some(share.gradients);
            return Ok(());
        };
        for group in groups {
            if let (Some(sum), Some(new)) = (sums.get(group.var()), share.gradients.get(group.var())) {
                let sum = (sum + new)?;
                sums.insert(group.var(), sum);
            }
        }
        Ok(())
    }

    /// Mean loss of this process, in nats. Waits for another device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn loss(&mut self) -> Result<f64> {
        self.fetch()?;
        Ok(f64::from(self.loss) / self.batches.max(1) as f64)
    }

    /// Adds what is pending on another device.
    fn fetch(&mut self) -> Result<()> {
        for sums in std::mem::take(&mut self.pending) {
            let sums = sums.to_vec1::<f32>()?;
            let (scalars, mut values) = sums.split_at(2);
            self.loss += scalars[0];
            self.entropy += scalars[1];
            for sums in [&mut self.logits, &mut self.targets, &mut self.features, &mut self.squares] {
                let (columns, more) = values.split_at(sums.len());
                add(sums, columns);
                values = more;
            }
        }
        Ok(())
    }

    /// Adds up over all processes, and takes means. `stop` tells the others that this process was told to stop.
    ///
    /// # Errors
    /// When another process is lost, or the device fails.
    pub fn average(mut self, groups: &[&Group], exchange: &dyn Exchange, stop: bool) -> std::result::Result<Averages, Error> {
        self.fetch()?;
        let world = exchange.world();
        let mut failed = vec![0.0; world];
        failed[exchange.rank()] = f32::from(u8::from(!self.loss.is_finite()));
        let mut scalars = vec![self.loss, self.entropy, f32::from(u8::from(stop))];
        let Some(mut gradients) = self.gradients.take() else { return Err(Error::Empty) };
        let share = 1.0 / (self.batches * world) as f64;
        if world > 1 {
            let mut parts = [&mut failed, &mut scalars, &mut self.logits, &mut self.targets, &mut self.features, &mut self.squares];
            exchange_all(&mut gradients, groups, &mut parts, share, exchange)?;
        } else if self.batches > 1 {
            for group in groups {
                if let Some(sum) = gradients.get(group.var()) {
                    let mean = (sum * share)?;
                    gradients.insert(group.var(), mean);
                }
            }
        }
        let rows = (self.rows * world) as f32;
        let mean = |sums: Vec<f32>| -> Vec<f32> { sums.into_iter().map(|sum| sum / rows).collect() };
        let (features, squares) = (mean(self.features), mean(self.squares));
        let deviations = features.iter().zip(&squares).map(|(mean, square)| f64::from(square - mean * mean).max(0.0).sqrt());
        Ok(Averages {
            gradients,
            loss: f64::from(scalars[0]) * share,
            teacher_entropy: f64::from(scalars[1]) * share,
            feature_std: deviations.sum::<f64>() / features.len().max(1) as f64,
            logits: mean(self.logits),
            distribution: mean(self.targets),
            failed: (0..world).filter(|rank| failed[*rank] > 0.0).collect(),
            stop: scalars[2] > 0.0,
        })
    }
}

/// One exchange for everything: `parts` become sums, gradients become sums times `share`.
fn exchange_all(
    gradients: &mut GradStore,
    groups: &[&Group],
    parts: &mut [&mut Vec<f32>],
    share: f64,
    exchange: &dyn Exchange,
) -> std::result::Result<(), Error> {
    let trained: Vec<&Group> = groups.iter().copied().filter(|group| gradients.get(group.var()).is_some()).collect();
    if trained.iter().any(|group| !group.var().device().is_cpu()) {
        return exchange_on_device(gradients, &trained, parts, share, exchange);
    }
    let mut flat = Vec::with_capacity(trained.iter().map(|group| group.var().elem_count()).sum::<usize>());
    for group in &trained {
        // It makes room for the flat copy as it goes.
        if let Some(gradient) = gradients.remove(group.var()) {
            with_slice(&gradient, |values| {
                flat.extend_from_slice(values);
                Ok(())
            })?;
        }
    }
    let count = flat.len();
    for part in parts.iter() {
        flat.extend_from_slice(part);
    }
    exchange.sum(&mut flat)?;
    hand_back(&flat[count..], parts);
    flat.truncate(count);
    for value in &mut flat {
        *value *= share as f32;
    }
    Ok(share_out(&Tensor::from_vec(flat, count, &Device::Cpu)?, &trained, gradients)?)
}

/// The same where gradients are not in main memory, and are not taken there.
fn exchange_on_device(
    gradients: &mut GradStore,
    trained: &[&Group],
    parts: &mut [&mut Vec<f32>],
    share: f64,
    exchange: &dyn Exchange,
) -> std::result::Result<(), Error> {
    let flat = trained.iter().filter_map(|group| gradients.remove(group.var())).map(|gradient| gradient.flatten_all());
    let sums = exchange.sum_tensor(&Tensor::cat(&flat.collect::<Result<Vec<_>>>()?, 0)?)?;
    let mut small: Vec<f32> = parts.iter().flat_map(|part| part.iter().copied()).collect();
    exchange.sum(&mut small)?;
    hand_back(&small, parts);
    Ok(share_out(&(sums * share)?, trained, gradients)?)
}

/// Cuts `values` into `parts`.
fn hand_back(mut values: &[f32], parts: &mut [&mut Vec<f32>]) {
    for part in parts {
        let (sums, more) = values.split_at(part.len());
        part.copy_from_slice(sums);
        values = more;
    }
}

/// Cuts `flat` into the gradients of `trained`.
fn share_out(flat: &Tensor, trained: &[&Group], gradients: &mut GradStore) -> Result<()> {
    let mut offset = 0;
    for group in trained {
        let len = group.var().elem_count();
        gradients.insert(group.var(), flat.narrow(0, offset, len)?);
        offset += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::backbone::parameters::Init;
    use crate::exchange::tcp::Ring;

    /// A share whose gradient is `value` everywhere.
    fn share(group: &Group, value: f64, loss: f64) -> Share {
        let gradients = (group.var().sum_all().unwrap() * value).unwrap().backward().unwrap();
        let rows = |columns: usize| Tensor::full(value as f32, (2, columns), &Device::Cpu).unwrap();
        let scalar = |value: f64| Tensor::new(value as f32, &Device::Cpu).unwrap();
        Share { loss: scalar(loss), teacher_entropy: scalar(1.0), gradients, logits: rows(3), targets: rows(3), features: rows(4) }
    }

    fn group() -> Group {
        let mut random = crate::data::loader::generator(0, 0, 0, 0);
        Group::new(vec![("w".to_owned(), vec![5], Init::Constant(1.0))], &mut random, &Device::Cpu).unwrap()
    }

    #[test]
    fn means_are_over_all_batches_of_all_processes() {
        let averages = std::thread::scope(|scope| {
            let running: Vec<_> = Ring::between_threads(2, Duration::from_secs(20))
                .unwrap()
                .into_iter()
                .map(|exchange| {
                    scope.spawn(move || {
                        let group = group();
                        let first = exchange.rank() as f64 * 10.0;
                        let mut accumulated = Accumulated::default();
                        accumulated.add(share(&group, first + 1.0, first), &[&group]).unwrap();
                        accumulated.add(share(&group, first + 3.0, first), &[&group]).unwrap();
                        let averages = accumulated.average(&[&group], &*exchange, exchange.rank() == 1).unwrap();
                        let gradient = averages.gradients.get(group.var()).unwrap().to_vec1::<f32>().unwrap();
                        (averages, gradient)
                    })
                })
                .collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        for (averages, gradient) in averages {
            assert_eq!(gradient, [7.0; 5], "the mean of 1, 3, 11 and 13");
            assert_eq!((averages.logits, averages.distribution), (vec![7.0; 3], vec![7.0; 3]));
            assert!((averages.loss - 5.0).abs() < 1e-6 && averages.stop && averages.failed.is_empty());
            assert!(averages.feature_std < 1e-3, "all features are the same: {}", averages.feature_std);
        }
    }

    #[test]
    fn a_loss_that_is_not_finite_is_known_to_all() {
        let failed = std::thread::scope(|scope| {
            let running: Vec<_> = Ring::between_threads(3, Duration::from_secs(20))
                .unwrap()
                .into_iter()
                .map(|exchange| {
                    scope.spawn(move || {
                        let group = group();
                        let mut accumulated = Accumulated::default();
                        let loss = if exchange.rank() == 1 { f64::NAN } else { 1.0 };
                        accumulated.add(share(&group, 1.0, loss), &[&group]).unwrap();
                        accumulated.average(&[&group], &*exchange, false).unwrap().failed
                    })
                })
                .collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(failed, vec![vec![1]; 3]);
    }
}
