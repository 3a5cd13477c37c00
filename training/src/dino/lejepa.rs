//! `LeJEPA` (Balestriero and `LeCun` 2025): embeddings of a picture's views that agree, and that are spread like an isotropic Gaussian.
//!
//! There is no teacher. A prediction term pulls the embedding of each view to the centre of its picture; `SIGReg` holds the embeddings of
//! each view, along random directions, against the standard normal distribution by the statistic of Epps and Pulley.
//!
//! The centre is the mean over the *global* views, as in the paper (algorithm 2): local views see too little to say what a picture is. The
//! public example (`MINIMAL.md`) takes the mean of all its views, which are of one kind; with global views alone both are the same.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use dino_train::{data::loader::generator, dino::lejepa::{Lejepa, directions}, exchange::alone};
//!
//! let (dim, slices) = (4, 16);
//! let directions = directions(dim, slices, &mut generator(0, 0, 0, 0), &Device::Cpu)?;
//! let lejepa = Lejepa { weight: 0.02, slices };
//! // Two views of each of 64 pictures, and of each picture the same.
//! let view = Tensor::randn(0.0_f32, 1.0, (64, dim), &Device::Cpu)?;
//! let value = lejepa.evaluate(&Tensor::cat(&[&view, &view], 0)?, 64, &directions, &alone())?;
//! assert_eq!(value.prediction.to_scalar::<f32>()?, 0.0);
//! // Where all pictures have one embedding, it is far from a Gaussian.
//! let collapsed = lejepa.evaluate(&Tensor::zeros_like(&view)?, 64, &directions, &alone())?;
//! assert!(collapsed.sigreg.to_scalar::<f32>()? > 10.0 * value.sigreg.to_scalar::<f32>()?);
//! # Ok::<(), candle_core::Error>(())
//! ```

use std::sync::Arc;

use candle_core::{D, Device, Result, Tensor};

use crate::backbone::parameters::Random;
use crate::dino::loss::TEACHER_VIEWS;
use crate::exchange::Exchange;
use crate::ops::across;

/// Points of the integral over the characteristic function, and where they end.
const KNOTS: usize = 17;
const LAST_KNOT: f64 = 3.0;

/// What the loss is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lejepa {
    /// Share of `SIGReg` in the loss, 0 to 1; the rest is that of the prediction.
    pub weight: f64,
    /// Random directions of a step.
    pub slices: usize,
}

/// One evaluation of the loss: scalars in the graph.
pub struct Value {
    /// The whole.
    pub loss: Tensor,
    /// Mean squared distance, over dimensions, between an embedding and its picture's centre.
    pub prediction: Tensor,
    /// The mean statistic, over views and directions.
    pub sigreg: Tensor,
}

impl Lejepa {
    /// Embeddings `[views * pictures, dim]`, view by view and the two global views first, and [`directions`] to the loss.
    ///
    /// # Errors
    /// When shapes do not fit, another process is lost, or the device fails.
    pub fn evaluate(&self, embeddings: &Tensor, pictures: usize, directions: &Tensor, exchange: &Arc<dyn Exchange>) -> Result<Value> {
        let views = embeddings.reshape(((), pictures, embeddings.dim(1)?))?;
        let prediction = prediction(&views, TEACHER_VIEWS.min(views.dim(0)?))?;
        let sigreg = sigreg(&views, directions, exchange)?;
        let loss = ((&sigreg * self.weight)? + (&prediction * (1.0 - self.weight))?)?;
        Ok(Value { loss, prediction, sigreg })
    }
}

/// Random unit vectors `[dim, slices]`, the same in all processes of a step.
///
/// # Errors
/// When the device fails.
pub fn directions(dim: usize, slices: usize, random: &mut dyn Random, device: &Device) -> Result<Tensor> {
    // Box and Muller: what a step's processes have in common is uniform.
    let mut normal = || {
        let radius = (-2.0 * ((1.0 - random.shared()) / 2.0).max(f32::MIN_POSITIVE).ln()).sqrt();
        radius * (std::f32::consts::PI * random.shared()).cos()
    };
    let values: Vec<f32> = std::iter::repeat_with(&mut normal).take(dim * slices).collect();
    let directions = Tensor::from_vec(values, (dim, slices), device)?;
    directions.broadcast_div(&directions.sqr()?.sum_keepdim(0)?.sqrt()?.maximum(1e-12)?)
}

/// Embeddings `[views, pictures, dim]` to the mean squared distance from the mean of each picture's first `global` views.
///
/// # Errors
/// When there are fewer views, or the device fails.
pub fn prediction(views: &Tensor, global: usize) -> Result<Tensor> {
    views.broadcast_sub(&views.narrow(0, 0, global)?.mean_keepdim(0)?)?.sqr()?.mean_all()
}

/// Embeddings `[views, pictures, dim]` to the statistic of Epps and Pulley over the pictures of all processes, along `directions`
/// `[dim, slices]`: mean over views and directions.
///
/// # Errors
/// When shapes do not fit, another process is lost, or the device fails.
pub fn sigreg(views: &Tensor, directions: &Tensor, exchange: &Arc<dyn Exchange>) -> Result<Tensor> {
    let (count, own, dim) = views.dims3()?;
    let pictures = own * exchange.world();
    // Each process gave all its views, one after another.
    let all = across::gather(&views.reshape((count * own, dim))?, exchange)?;
    let all = all.reshape((exchange.world(), count, own, dim))?.transpose(0, 1)?.contiguous()?;
    let along = all.reshape((count * pictures, dim))?.matmul(directions)?.reshape((count, pictures, ()))?;
    // Pictures last: a mean over them is one over neighbours in memory.
    let along = along.transpose(1, 2)?.contiguous()?.unsqueeze(2)?;
    let step = LAST_KNOT / (KNOTS - 1) as f64;
    let knots: Vec<f64> = (0..KNOTS).map(|knot| knot as f64 * step).collect();
    let normal = |t: &f64| (-t * t / 2.0).exp();
    let device = views.device();
    let column = |values: Vec<f64>| Tensor::from_vec(values.iter().map(|v| *v as f32).collect::<Vec<_>>(), (KNOTS, 1), device);
    // The trapezoidal rule over both halves of the axis, which are mirror images.
    let ends = |knot: usize| if knot == 0 || knot == KNOTS - 1 { step } else { 2.0 * step };
    let weights = knots.iter().enumerate().map(|(knot, t)| ends(knot) * normal(t)).collect();
    let wanted = column(knots.iter().map(normal).collect())?;
    let angles = along.broadcast_mul(&column(knots)?)?;
    let real = angles.cos()?.mean_keepdim(D::Minus1)?.broadcast_sub(&wanted)?.sqr()?;
    let error = (real + angles.sin()?.mean_keepdim(D::Minus1)?.sqr()?)?;
    let statistics = error.broadcast_mul(&column(weights)?)?.sum(2)?;
    statistics.mean_all()? * pictures as f64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use candle_core::Var;

    use super::*;
    use crate::data::loader::generator;
    use crate::exchange::alone;
    use crate::exchange::tcp::Ring;
    use crate::run::random::PerPicture;

    const DIM: usize = 5;

    fn embeddings(rows: usize) -> Tensor {
        let values: Vec<f32> = (0..rows * DIM).map(|i| ((i * 7919 % 1009) as f32) / 300.0 - 1.2).collect();
        Tensor::from_vec(values, (rows, DIM), &Device::Cpu).unwrap()
    }

    /// The loss, and the gradients of the embeddings.
    fn run(rows: &Tensor, pictures: usize, exchange: &Arc<dyn Exchange>) -> (f32, Vec<f32>) {
        let directions = directions(DIM, 32, &mut generator(1, 2, 3, 4), &Device::Cpu).unwrap();
        let rows = Var::from_tensor(rows).unwrap();
        let value = Lejepa { weight: 0.3, slices: 32 }.evaluate(&rows, pictures, &directions, exchange).unwrap();
        let gradients = value.loss.backward().unwrap();
        let gradient = gradients.get(&rows).unwrap().flatten_all().unwrap();
        (value.loss.to_scalar().unwrap(), gradient.to_vec1().unwrap())
    }

    #[test]
    fn directions_are_unit_vectors_of_the_step_and_not_of_its_pictures() {
        let batch =
            |pictures: std::ops::Range<u64>, step| PerPicture::new(pictures.map(|i| generator(1, 2, 3, i)), generator(1, 3, 3, step));
        let drawn = |mut random: PerPicture| directions(DIM, 400, &mut random, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        let (own, other, next) = (drawn(batch(0..2, 0)), drawn(batch(2..4, 0)), drawn(batch(0..2, 1)));
        assert_eq!(own, other, "of another process");
        assert_ne!(own, next, "of another step");
        for slice in 0..400 {
            let norm: f32 = own.iter().map(|row| row[slice] * row[slice]).sum();
            assert!((norm - 1.0).abs() < 1e-5, "{norm}");
        }
        for row in &own {
            let (mean, square) = (row.iter().sum::<f32>() / 400.0, row.iter().map(|v| v * v).sum::<f32>() / 400.0);
            assert!(mean.abs() < 0.1 && (square * DIM as f32 - 1.0).abs() < 0.2, "no direction is preferred: {mean}, {square}");
        }
    }

    #[test]
    fn two_processes_see_the_pictures_of_both() {
        // Three views of six pictures; each process has three of them.
        let all = embeddings(18);
        let part = |process: usize| {
            let views = (0..3).map(|view| all.narrow(0, 6 * view + 3 * process, 3).unwrap());
            Tensor::cat(&views.collect::<Vec<_>>(), 0).unwrap()
        };
        let (loss, gradient) = run(&all, 6, &alone());
        let parts = std::thread::scope(|scope| {
            let ring = Ring::between_threads(2, None, Duration::from_secs(20)).unwrap();
            let one = |exchange: Arc<dyn Exchange>| run(&part(exchange.rank()), 3, &exchange);
            let running: Vec<_> = ring.into_iter().map(|exchange| scope.spawn(move || one(exchange))).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        // The mean over processes follows.
        assert!((f32::midpoint(parts[0].0, parts[1].0) - loss).abs() < 1e-5, "{parts:?}, not {loss}");
        for (process, (_, gradients)) in parts.iter().enumerate() {
            for (i, own) in gradients.iter().enumerate() {
                let (row, column) = (i / DIM, i % DIM);
                let want = gradient[(6 * (row / 3) + 3 * process + row % 3) * DIM + column];
                assert!((own / 2.0 - want).abs() < 1e-5, "{own} / 2, not {want}");
            }
        }
    }
}
