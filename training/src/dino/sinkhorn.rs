//! Targets by the Sinkhorn-Knopp algorithm (Cuturi 2013; SwAV, Caron et al. 2020; DINOv2): all outputs are used equally over the pictures.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use dino_train::{dino::sinkhorn::{Queue, assign}, exchange::alone};
//!
//! // Both pictures are for the first output, the first picture more than the second: each output gets one of them.
//! let logits = Tensor::new(&[[6.0_f32, 0.0], [2.0, 0.0]], &Device::Cpu)?;
//! let targets = assign(&logits, &Queue::new(0), 1.0, &alone())?.to_vec2::<f32>()?;
//! assert!(targets[0][0] > 0.8 && targets[1][1] > 0.8);
//! # Ok::<(), candle_core::Error>(())
//! ```

use std::sync::Arc;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::exchange::Exchange;
use crate::kernels::reduce;
use crate::kernels::softmax::{dot, exponentials, largest, scale_columns, subtract};
use crate::ops::host::is_host;
use crate::ops::{across, with_slice};

/// Rounds of balancing outputs and pictures.
const ROUNDS: usize = 3;
/// Least sum that is divided by: an output that no picture is near to would be divided by 0.
const LEAST: f64 = 1e-30;

/// Earlier outputs of the teacher, which make up for a batch of fewer pictures than outputs. The same in all processes.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    /// Most outputs that are kept, 0 for none.
    capacity: usize,
    kept: Option<Tensor>,
}

impl Queue {
    /// Of at most `capacity` outputs.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, kept: None }
    }

    /// Whether outputs are to be kept at all.
    pub fn is_wanted(&self) -> bool {
        self.capacity > 0
    }

    /// What it holds, `[outputs, k]`, the oldest first.
    pub fn logits(&self) -> Option<&Tensor> {
        self.kept.as_ref()
    }

    /// Adds the teacher's logits `[rows, k]` of all processes behind those it holds, and drops the oldest beyond its capacity.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn push(&mut self, logits: &Tensor) -> Result<()> {
        let all = match &self.kept {
            Some(kept) => Tensor::cat(&[kept, logits], 0)?,
            None => logits.clone(),
        };
        let rows = all.dim(0)?;
        let kept = rows.min(self.capacity);
        self.kept = if kept > 0 { Some(all.narrow(0, rows - kept, kept)?.contiguous()?.detach()) } else { None };
        Ok(())
    }
}

/// The teacher's logits `[rows, k]` to distributions `[rows, k]`, balanced over the rows of all processes, which may have different numbers
/// of them or none, and of the queue.
///
/// # Errors
/// When another process is lost, or the device fails.
pub fn assign(logits: &Tensor, queue: &Queue, temperature: f64, exchange: &Arc<dyn Exchange>) -> Result<Tensor> {
    if is_host(logits.device()) {
        return fused(logits, queue, temperature, exchange);
    }
    composed(logits, queue, temperature, exchange)
}

/// In main memory: the exponentials stay as they are, and each row and each column has a factor that they count with.
fn fused(logits: &Tensor, queue: &Queue, temperature: f64, exchange: &Arc<dyn Exchange>) -> Result<Tensor> {
    let ((own_rows, k), scale) = (logits.dims2()?, (1.0 / temperature) as f32);
    let mut shares = with_slice(logits, |own| Ok(own.to_vec()))?;
    if let Some(earlier) = queue.logits() {
        with_slice(earlier, |earlier| {
            shares.extend_from_slice(earlier);
            Ok(())
        })?;
    }
    let mut tops = vec![0.0; exchange.world()];
    tops[exchange.rank()] = shares.par_chunks(k).map(largest).reduce(|| f32::MIN, f32::max);
    add_up_over_processes(&mut tops, exchange)?;
    let top = tops.into_iter().fold(f32::MIN, f32::max);
    shares.par_chunks_mut(k).for_each(|row| exponentials(row, top, scale));

    let (mut of_rows, mut of_columns) = (vec![1.0_f32; shares.len() / k.max(1)], vec![1.0_f32; k]);
    for _ in 0..ROUNDS {
        // How much of each output is used: by the rows of all processes, and of the queue, which all of them have.
        let mut used = column_sums(&shares[..own_rows * k], &of_rows[..own_rows], k);
        add_up_over_processes(&mut used, exchange)?;
        reduce::add(&mut used, &column_sums(&shares[own_rows * k..], &of_rows[own_rows..], k));
        for (factor, used) in of_columns.iter_mut().zip(used) {
            *factor = balanced(*factor, used) / k as f32;
        }
        of_rows.par_iter_mut().zip(shares.par_chunks(k)).for_each(|(factor, row)| {
            *factor = balanced(*factor, dot(row, &of_columns));
        });
    }
    shares.truncate(own_rows * k);
    shares.par_chunks_mut(k).zip(&of_rows).for_each(|(row, factor)| scale_columns(row, &of_columns, *factor));
    Tensor::from_vec(shares, (own_rows, k), logits.device())
}

/// The factor with which a sum that counted with another one is 1. What is far from everything has a sum of 0, and stays at it.
fn balanced(factor: f32, sum: f32) -> f32 {
    if sum == 0.0 { 0.0 } else { factor / (factor * sum).max(LEAST as f32) }
}

fn add_up_over_processes(values: &mut [f32], exchange: &Arc<dyn Exchange>) -> Result<()> {
    if exchange.world() == 1 { Ok(()) } else { across::add_up(&**exchange, values) }
}

/// Sums of the columns of rows `[rows, k]` that count with factors.
fn column_sums(rows: &[f32], factors: &[f32], k: usize) -> Vec<f32> {
    /// Columns whose sums stay in the nearest cache.
    const COLUMNS: usize = 4096;
    let mut sums = vec![0.0; k];
    sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(block, sums)| {
        for (row, factor) in rows.chunks_exact(k).zip(factors) {
            subtract(sums, &row[block * COLUMNS..], -factor);
        }
    });
    sums
}

/// The same out of candle's own operators.
fn composed(logits: &Tensor, queue: &Queue, temperature: f64, exchange: &Arc<dyn Exchange>) -> Result<Tensor> {
    let logits = (logits.detach() / temperature)?;
    let earlier = queue.logits().map(|earlier| earlier / temperature).transpose()?;
    // One shift for all, so that no exponential overflows: a factor that the first round takes out.
    let (rows, k) = logits.dims2()?;
    let own = if rows > 0 { logits.max_all()?.reshape((1, 1))? } else { Tensor::full(f32::MIN, (1, 1), logits.device())? };
    let mut largest = across::gather(&own, exchange)?.max_all()?;
    if let Some(earlier) = &earlier {
        largest = largest.maximum(&earlier.max_all()?)?;
    }
    let shares = |logits: &Tensor| logits.broadcast_sub(&largest)?.exp();
    let (mut own, mut earlier) = (if rows > 0 { shares(&logits)? } else { logits.clone() }, earlier.as_ref().map(shares).transpose()?);
    for _ in 0..ROUNDS {
        let sums = if rows > 0 { own.sum_keepdim(0)? } else { Tensor::zeros((1, k), logits.dtype(), logits.device())? };
        let mut used = across::sum(&sums, exchange)?;
        if let Some(earlier) = &earlier {
            used = (used + earlier.sum_keepdim(0)?)?;
        }
        let used = (used.maximum(LEAST)? * k as f64)?;
        let balance = |shares: &Tensor| {
            let shares = shares.broadcast_div(&used)?;
            shares.broadcast_div(&shares.sum_keepdim(1)?.maximum(LEAST)?)
        };
        own = if rows > 0 { balance(&own)? } else { own };
        earlier = earlier.as_ref().map(balance).transpose()?;
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use candle_core::Device;

    use super::*;
    use crate::exchange::alone;
    use crate::exchange::tcp::Ring;

    const K: usize = 6;

    fn logits(rows: usize, seed: usize) -> Tensor {
        let values: Vec<f32> = (0..rows * K).map(|i| (((i * 7919 + seed * 104_729) % 1000) as f32) / 1000.0).collect();
        Tensor::from_vec(values, (rows, K), &Device::Cpu).unwrap()
    }

    fn assert_close(got: &Tensor, want: &Tensor) {
        let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (got, want) in flat(got).iter().zip(flat(want)) {
            assert!((got - want).abs() < 1e-5, "{got}, not {want}");
        }
    }

    #[test]
    fn outputs_are_used_alike_and_rows_sum_to_one() {
        let shares = assign(&logits(60, 1), &Queue::default(), 0.5, &alone()).unwrap();
        for used in shares.sum(0).unwrap().to_vec1::<f32>().unwrap() {
            assert!((used - 10.0).abs() < 0.5, "{used}");
        }
        for sum in shares.sum(1).unwrap().to_vec1::<f32>().unwrap() {
            assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        }
        let extreme = (logits(60, 1) * 1000.0).unwrap();
        let shares = assign(&extreme, &Queue::default(), 0.04, &alone()).unwrap();
        assert!(shares.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|share| share.is_finite()));
    }

    /// On the processor as on other devices.
    #[test]
    fn both_forms_give_the_same() {
        for (rows, earlier, spread) in [(1, 0, 1.0), (5, 7, 1.0), (60, 0, 1.0), (60, 3, 8.0)] {
            let mut queue = Queue::new(100);
            if earlier > 0 {
                queue.push(&logits(earlier, 9)).unwrap();
            }
            let logits = (logits(rows, 1) * spread).unwrap();
            let run = || assign(&logits, &queue, 0.1, &alone()).unwrap();
            assert_close(&run(), &crate::ops::host::elsewhere::run(run));
        }
    }

    #[test]
    fn a_queue_counts_like_rows_of_the_batch_and_forgets_the_oldest() {
        let (earlier, now) = (logits(7, 2), logits(5, 3));
        let mut queue = Queue::new(7);
        queue.push(&logits(4, 4)).unwrap();
        queue.push(&earlier).unwrap();
        let all = assign(&Tensor::cat(&[&earlier, &now], 0).unwrap(), &Queue::default(), 0.1, &alone()).unwrap();
        assert_close(&assign(&now, &queue, 0.1, &alone()).unwrap(), &all.narrow(0, 7, 5).unwrap());
    }

    #[test]
    fn two_processes_give_what_one_gives() {
        let (all, earlier) = (logits(8, 5), logits(6, 6));
        let mut queue = Queue::new(6);
        queue.push(&earlier).unwrap();
        let whole = assign(&all, &queue, 0.1, &alone()).unwrap();
        let parts = std::thread::scope(|scope| {
            let one = |exchange: Arc<dyn Exchange>| {
                let own = all.narrow(0, 3 * exchange.rank(), 3 + 2 * exchange.rank()).unwrap();
                assign(&own, &queue, 0.1, &exchange).unwrap()
            };
            let ring = Ring::between_threads(2, None, Duration::from_secs(20)).unwrap();
            let running: Vec<_> = ring.into_iter().map(|exchange| scope.spawn(move || one(exchange))).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_close(&Tensor::cat(&parts, 0).unwrap(), &whole);
    }
}
