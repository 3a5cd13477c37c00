//! What one step learns from: gradients and statistics, added up over micro-batches and then over processes.
//!
//! All micro-batches of a step see the same weights and the same centre, and everything here is a mean over the pictures, so N of them
//! over M processes give what one batch of all the pictures gives, up to rounding. (Sinkhorn-Knopp, KoLeo and `SIGReg` compare the pictures of
//! a micro-batch, of all processes.)
//!
//! ```
//! use dino_train::dino::accumulate::{Accumulated, Error};
//! use dino_train::exchange::Alone;
//!
//! // `Learner::add` adds micro-batches, `Learner::step` takes the means: there are none of nothing.
//! let means = Accumulated::default().average(&[], &Alone, false);
//! assert!(matches!(means, Err(Error::Empty)));
//! ```

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor};

use crate::backbone::parameters::Group;
use crate::dino::optimizer::Squares;
use crate::exchange::{self, Exchange};
use crate::kernels::reduce::{add, add_column_sums};
use crate::ops::host::is_host;
use crate::ops::with_slice;

/// Means of a step or of a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Means<T = f64> {
    /// DINO's cross-entropy between teacher and student, in nats; `LeJEPA`'s whole loss.
    pub loss: T,
    /// Entropy of the teacher's distributions, in nats; 0 without a teacher.
    pub teacher_entropy: T,
    /// KoLeo's part of the loss, with its weight.
    pub koleo: T,
    /// iBOT's part of the loss, with its weight.
    pub ibot: T,
    /// Gram anchoring's part of the loss, with its weight.
    pub gram: T,
    /// The prediction term of `LeJEPA`, without its weight.
    pub prediction: T,
    /// `SIGReg` of `LeJEPA`, without its weight.
    pub sigreg: T,
}

/// Scalars of [`Means`].
const MEANS: usize = 7;

impl<T> Means<T> {
    fn into_array(self) -> [T; MEANS] {
        [self.loss, self.teacher_entropy, self.koleo, self.ibot, self.gram, self.prediction, self.sigreg]
    }
}

impl<T> From<[T; MEANS]> for Means<T> {
    fn from([loss, teacher_entropy, koleo, ibot, gram, prediction, sigreg]: [T; MEANS]) -> Self {
        Self { loss, teacher_entropy, koleo, ibot, gram, prediction, sigreg }
    }
}

/// What one micro-batch adds.
pub struct Share {
    /// Scalars.
    pub means: Means<Tensor>,
    /// Of the whole loss.
    pub gradients: GradStore,
    /// What the teacher says of the pictures, where there is one.
    pub outputs: Option<Outputs>,
    /// Whether the step wants its logits afterwards.
    pub keep_logits: bool,
    /// The teacher's logits of masked patches `[masked, k]`, where there are such.
    pub patch_logits: Option<Tensor>,
    /// CLS features of the global views `[rows, dim]`: the teacher's, or without one the student's.
    pub features: Tensor,
}

/// The teacher's side of a batch.
pub struct Outputs {
    /// Its logits `[rows, k]`.
    pub logits: Tensor,
    /// Its distributions `[rows, k]`.
    pub targets: Tensor,
}

/// Sums over micro-batches.
#[derive(Default)]
pub struct Accumulated {
    gradients: Option<GradStore>,
    batches: usize,
    rows: usize,
    scalars: [f32; MEANS],
    kept: Vec<Tensor>,
    logits: Vec<f32>,
    targets: Vec<f32>,
    features: Vec<f32>,
    squares: Vec<f32>,
    patches: Vec<f32>,
    /// Masked patches.
    patch_rows: f32,
    /// Sums of micro-batches that are still on another device: the scalars and the column sums, one after another.
    pending: Vec<Tensor>,
}

/// Means over all pictures of a step, the same on all processes.
pub struct Averages {
    /// Of the mean loss.
    pub gradients: GradStore,
    /// Of these gradients.
    pub squares: Squares,
    /// Mean loss of this process alone, in nats.
    pub own_loss: f64,
    /// Parts of the loss, and the teacher's entropy.
    pub means: Means,
    /// Mean of the teacher's logits, one for each output; empty without a teacher.
    pub logits: Vec<f32>,
    /// Mean of the teacher's logits of masked patches, one for each output; empty without them.
    pub patch_logits: Vec<f32>,
    /// Mean of the teacher's distributions, one for each output; empty without a teacher.
    pub distribution: Vec<f32>,
    /// Standard deviation over the pictures of the L2-normalised features, averaged over their dimensions.
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
        self.rows += share.features.dim(0)?;
        let features = share.features.broadcast_div(&share.features.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(1e-12)?)?;
        let squares = features.sqr()?;
        // A process may have no masked patches in a step.
        let patches = match &share.patch_logits {
            Some(logits) => {
                self.patch_rows += logits.dim(0)? as f32;
                self.patches.resize(logits.dim(1)?, 0.0);
                Some(logits).filter(|logits| logits.elem_count() > 0)
            }
            None => None,
        };
        // In this order on another device too.
        let outputs = share.outputs.as_ref();
        let of_teacher = outputs.map(|Outputs { logits, targets }| [(logits, &mut self.logits), (targets, &mut self.targets)]);
        let matrices = of_teacher.into_iter().flatten().chain([(&features, &mut self.features), (&squares, &mut self.squares)]);
        for (matrix, sums) in matrices.chain(patches.map(|logits| (logits, &mut self.patches))) {
            sums.resize(matrix.dim(1)?, 0.0);
            if is_host(matrix.device()) {
                with_slice(matrix, |values| {
                    add_column_sums(values, sums);
                    Ok(())
                })?;
            }
        }
        if let Some(outputs) = outputs.filter(|_| share.keep_logits) {
            self.kept.push(outputs.logits.clone());
        }
        let scalars = share.means.into_array();
        if is_host(features.device()) {
            for (sum, scalar) in self.scalars.iter_mut().zip(&scalars) {
                *sum += scalar.to_scalar::<f32>()?;
            }
        } else {
            // Not waited for here: the device has the backward pass and the update yet to do.
            let of_teacher = outputs.map(|Outputs { logits, targets }| [logits, targets]);
            let matrices = of_teacher.into_iter().flatten().chain([&features, &squares]);
            let sums = matrices.chain(patches).map(|matrix| matrix.sum(0));
            let parts = scalars.iter().map(|scalar| scalar.reshape(1)).chain(sums).collect::<Result<Vec<_>>>()?;
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

    /// The teacher's logits of the micro-batches that were to be kept, `[batches, rows, k]`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn kept_logits(&self) -> Result<Option<Tensor>> {
        if self.kept.is_empty() { Ok(None) } else { Tensor::stack(&self.kept, 0).map(Some) }
    }

    /// Adds what is pending on another device, and fetches the gradients' squares with it.
    fn fetch(&mut self, squares: &mut Squares) -> Result<()> {
        for sums in squares.fetch(&std::mem::take(&mut self.pending))? {
            let (scalars, mut values) = sums.split_at(self.scalars.len());
            add(&mut self.scalars, scalars);
            for sums in [&mut self.logits, &mut self.targets, &mut self.features, &mut self.squares, &mut self.patches] {
                if values.is_empty() {
                    break;
                }
                let (columns, more) = values.split_at(sums.len());
                add(sums, columns);
                values = more;
            }
        }
        Ok(())
    }

    /// Adds up over all processes, and takes means. `stop` tells the others that this process was told to stop.
    ///
    /// A run of one process waits once for another device.
    ///
    /// # Errors
    /// When another process is lost, or the device fails.
    pub fn average(mut self, groups: &[&Group], exchange: &dyn Exchange, stop: bool) -> std::result::Result<Averages, Error> {
        let world = exchange.world();
        let Some(mut gradients) = self.gradients.take() else { return Err(Error::Empty) };
        let share = 1.0 / (self.batches * world) as f64;
        let trained: Vec<&Group> = groups.iter().copied().filter(|group| gradients.get(group.var()).is_some()).collect();
        let on_device = trained.iter().any(|group| !is_host(group.var().device()));
        if on_device && world > 1 {
            // Sums over GPUs have no time limit of their own: a process that is lost is noticed here, before these are waited for.
            exchange.barrier()?;
            exchange_on_device(&mut gradients, &trained, share, exchange)?;
        } else if world == 1 && self.batches > 1 {
            for group in &trained {
                if let Some(sum) = gradients.get(group.var()) {
                    let mean = (sum * share)?;
                    gradients.insert(group.var(), mean);
                }
            }
        }
        let mut of_gradients = Squares::of(&trained, &gradients)?;
        self.fetch(&mut of_gradients)?;
        let Means { loss, koleo, ibot, gram, .. } = Means::from(self.scalars);
        let own_loss = f64::from(loss + koleo + ibot + gram) / self.batches as f64;
        let mut failed = vec![0.0; world];
        failed[exchange.rank()] = f32::from(u8::from(!self.scalars.iter().all(|sum| sum.is_finite())));
        let mut patch_rows = vec![self.patch_rows];
        let (mut scalars, mut stops) = (self.scalars.to_vec(), vec![f32::from(u8::from(stop))]);
        if world > 1 {
            let mut parts = [
                &mut failed,
                &mut stops,
                &mut scalars,
                &mut patch_rows,
                &mut self.patches,
                &mut self.logits,
                &mut self.targets,
                &mut self.features,
                &mut self.squares,
            ];
            if on_device {
                exchange_parts(&mut parts, exchange)?;
            } else {
                exchange_all(&mut gradients, &trained, &mut parts, share, exchange)?;
            }
        }
        let mut means = [0.0; MEANS];
        for (mean, sum) in means.iter_mut().zip(&scalars) {
            *mean = f64::from(*sum) * share;
        }
        let rows = (self.rows * world) as f32;
        let mean = |sums: Vec<f32>| -> Vec<f32> { sums.into_iter().map(|sum| sum / rows).collect() };
        let (features, squares) = (mean(self.features), mean(self.squares));
        let deviations = features.iter().zip(&squares).map(|(mean, square)| f64::from(square - mean * mean).max(0.0).sqrt());
        Ok(Averages {
            gradients,
            squares: of_gradients,
            own_loss,
            means: means.into(),
            feature_std: deviations.sum::<f64>() / features.len().max(1) as f64,
            logits: mean(self.logits),
            // None where nothing was masked: a centre does not move by that.
            patch_logits: self.patches.into_iter().filter(|_| patch_rows[0] > 0.0).map(|sum| sum / patch_rows[0]).collect(),
            distribution: mean(self.targets),
            failed: (0..world).filter(|rank| failed[*rank] > 0.0).collect(),
            stop: stops[0] > 0.0,
        })
    }
}

/// One exchange for everything: `parts` become sums, gradients become sums times `share`.
fn exchange_all(
    gradients: &mut GradStore,
    trained: &[&Group],
    parts: &mut [&mut Vec<f32>],
    share: f64,
    exchange: &dyn Exchange,
) -> std::result::Result<(), Error> {
    let mut flat = Vec::with_capacity(trained.iter().map(|group| group.var().elem_count()).sum::<usize>());
    for group in trained {
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
    Ok(share_out(&Tensor::from_vec(flat, count, &Device::Cpu)?, trained, gradients)?)
}

/// Gradients become sums times `share` where they are not in main memory, and are not taken there.
fn exchange_on_device(
    gradients: &mut GradStore,
    trained: &[&Group],
    share: f64,
    exchange: &dyn Exchange,
) -> std::result::Result<(), Error> {
    let flat = trained.iter().filter_map(|group| gradients.remove(group.var())).map(|gradient| gradient.flatten_all());
    let sums = exchange.sum_tensor(&Tensor::cat(&flat.collect::<Result<Vec<_>>>()?, 0)?)?;
    Ok(share_out(&(sums * share)?, trained, gradients)?)
}

/// `parts` become sums.
fn exchange_parts(parts: &mut [&mut Vec<f32>], exchange: &dyn Exchange) -> std::result::Result<(), Error> {
    let mut small: Vec<f32> = parts.iter().flat_map(|part| part.iter().copied()).collect();
    exchange.sum(&mut small)?;
    hand_back(&small, parts);
    Ok(())
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
        let means = Means::from([loss, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0].map(scalar));
        let outputs = Some(Outputs { logits: rows(3), targets: rows(3) });
        Share { means, gradients, outputs, keep_logits: false, patch_logits: None, features: rows(4) }
    }

    fn group() -> Group {
        let mut random = crate::data::loader::generator(0, 0, 0, 0);
        Group::new(vec![("w".to_owned(), vec![5], Init::Constant(1.0))], &mut random, &Device::Cpu).unwrap()
    }

    #[test]
    fn means_are_over_all_batches_of_all_processes() {
        let averages = std::thread::scope(|scope| {
            let running: Vec<_> = Ring::between_threads(2, None, Duration::from_secs(20))
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
            assert!((averages.means.loss - 5.0).abs() < 1e-6 && averages.stop && averages.failed.is_empty());
            assert!(averages.feature_std < 1e-3, "all features are the same: {}", averages.feature_std);
        }
    }

    #[test]
    fn a_loss_that_is_not_finite_is_known_to_all() {
        let failed = std::thread::scope(|scope| {
            let running: Vec<_> = Ring::between_threads(3, None, Duration::from_secs(20))
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
