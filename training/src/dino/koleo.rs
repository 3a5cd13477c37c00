//! The Kozachenko-Leonenko term (Sablayrolles et al. 2019; DINOv2): features keep away from their nearest neighbour in the batch.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use dino_train::{dino::koleo::koleo, exchange::alone};
//!
//! // One crop of two pictures, whose unit vectors are √2 apart.
//! let features = Tensor::new(&[[3.0_f32, 0.0], [0.0, 1.0]], &Device::Cpu)?;
//! let term = koleo(&features, 1, &alone())?.to_scalar::<f32>()?;
//! assert!((term + 2_f32.sqrt().ln()).abs() < 1e-4);
//! # Ok::<(), candle_core::Error>(())
//! ```

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::exchange::Exchange;
use crate::ops::across;
use crate::ops::unit_rows::scaled_unit_rows;

/// Added to differences, distances and norms, as in the public code.
const EPS: f64 = 1e-8;
/// Share of the mean distance to the nearest neighbour below which two features count as copies: 1/distance is the gradient, and two
/// equal pictures would drown all others. It is relative, since all features are close together when a network with small layer scales
/// starts, and where it collapses.
const COPIES: f64 = 0.05;
/// Bounds of the distance that this comes to.
const COPIES_BETWEEN: (f64, f64) = (1e-6, 1e-2);

/// Features `[crops * pictures, dim]`, crop by crop, to the sum over crops of the mean of -ln(distance to the nearest neighbour), of unit
/// vectors and over the pictures of all processes. Copies add a constant, and no gradient.
///
/// # Errors
/// When another process is lost, or the device fails.
pub fn koleo(features: &Tensor, crops: usize, exchange: &Arc<dyn Exchange>) -> Result<Tensor> {
    let (rows, _) = features.dims2()?;
    let pictures = rows / crops;
    let ones = Tensor::ones((rows, 1), features.dtype(), features.device())?;
    let unit = across::gather(&scaled_unit_rows(features, &ones, EPS as f32)?, exchange)?;
    let mut total = Tensor::zeros((), features.dtype(), features.device())?;
    for crop in 0..crops {
        // Each process gave all its crops, one after another.
        let parts = (0..exchange.world()).map(|process| unit.narrow(0, process * rows + crop * pictures, pictures));
        total = (total + nearest(&Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)?)?;
    }
    Ok(total)
}

/// The mean of -ln(distance to the nearest other row).
fn nearest(unit: &Tensor) -> Result<Tensor> {
    let own = unit.detach();
    // A row's product with itself is the largest that there is.
    let itself = (Tensor::eye(own.dim(0)?, own.dtype(), own.device())? * 3.0)?;
    let neighbours = (own.matmul(&own.t()?)? - itself)?.argmax(1)?;
    let differences = ((unit - unit.index_select(&neighbours, 0)?)? + EPS)?;
    let distances = differences.sqr()?.sum(1)?.sqrt()?;
    let copies = (distances.detach().mean_all()? * COPIES)?.clamp(COPIES_BETWEEN.0, COPIES_BETWEEN.1)?;
    let distances = distances.maximum(&copies.broadcast_as(distances.shape())?)?;
    (distances + EPS)?.log()?.mean_all()?.neg()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use candle_core::{Device, Var};

    use super::*;
    use crate::exchange::alone;
    use crate::exchange::tcp::Ring;

    fn features(rows: usize) -> Tensor {
        let values: Vec<f32> = (0..rows * 5).map(|i| ((i * 7919 % 1009) as f32) / 300.0 - 1.7).collect();
        Tensor::from_vec(values, (rows, 5), &Device::Cpu).unwrap()
    }

    /// The loss, and the gradients of the features.
    fn run(features: &Tensor, exchange: &Arc<dyn Exchange>) -> (f32, Vec<f32>) {
        let features = Var::from_tensor(features).unwrap();
        let loss = koleo(&features, 2, exchange).unwrap();
        let gradients = loss.backward().unwrap();
        let gradient = gradients.get(&features).unwrap().flatten_all().unwrap();
        (loss.to_scalar().unwrap(), gradient.to_vec1().unwrap())
    }

    #[test]
    fn two_equal_pictures_leave_the_gradients_small() {
        let rows = features(4);
        let (_, apart) = run(&Tensor::cat(&[&rows, &rows], 0).unwrap(), &alone());
        let copies = Tensor::cat(&[&rows.narrow(0, 0, 1).unwrap(), &rows.narrow(0, 0, 3).unwrap()], 0).unwrap();
        let (loss, gradient) = run(&Tensor::cat(&[&copies, &rows], 0).unwrap(), &alone());
        let largest = |gradient: &[f32]| gradient.iter().fold(0f32, |largest, g| largest.max(g.abs()));
        assert!(loss.is_finite() && largest(&gradient) <= 3.0 * largest(&apart), "{loss}: {gradient:?}");
        let (loss, gradient) = run(&rows.narrow(0, 0, 2).unwrap(), &alone());
        assert!(loss.is_finite() && gradient.iter().all(|g| *g == 0.0), "one picture has no neighbour: {gradient:?}");
    }

    #[test]
    fn features_that_are_all_close_together_are_driven_apart() {
        let rows = features(1).broadcast_as((8, 5)).unwrap();
        for scale in [1e-2, 1e-3, 1e-4] {
            let close = (&rows + (features(8) * scale).unwrap()).unwrap();
            let (loss, gradient) = run(&close, &alone());
            assert!(loss.is_finite() && gradient.chunks(5).all(|row| row.iter().any(|g| g.abs() > 0.1)), "{scale}: {loss}: {gradient:?}");
        }
    }

    #[test]
    fn neighbours_are_those_of_the_batch_of_all_processes() {
        // Crop 0 of 6 pictures, then crop 1; two processes have three pictures each.
        let all = features(12);
        let part = |crop: usize, process: usize| all.narrow(0, 6 * crop + 3 * process, 3).unwrap();
        let (loss, gradient) = run(&all, &alone());
        let parts = std::thread::scope(|scope| {
            let ring = Ring::between_threads(2, None, Duration::from_secs(20)).unwrap();
            let one = |exchange: Arc<dyn Exchange>| {
                let own = Tensor::cat(&[part(0, exchange.rank()), part(1, exchange.rank())], 0).unwrap();
                run(&own, &exchange)
            };
            let running: Vec<_> = ring.into_iter().map(|exchange| scope.spawn(move || one(exchange))).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        for (process, (own, gradients)) in parts.iter().enumerate() {
            assert!((own - loss).abs() < 1e-5, "{own}, not {loss}");
            for (i, own) in gradients.iter().enumerate() {
                let (row, column) = (i / 5, i % 5);
                let want = gradient[(6 * (row / 3) + 3 * process + row % 3) * 5 + column];
                // The mean over processes follows.
                assert!((own / 2.0 - want).abs() < 1e-5, "{own} / 2, not {want}");
            }
        }
    }
}
