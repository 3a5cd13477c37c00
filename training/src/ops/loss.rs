//! The cross-entropy between teacher and student, as one operator: over all pairs of different views, or row by row.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use dino_train::ops::loss::Held;
//!
//! // A student that does not know, of four outputs, in two views of one picture: ln 4 to any target.
//! let student = Tensor::zeros((2, 4), DType::F32, &Device::Cpu)?;
//! let targets = Tensor::new(&[[1.0_f32, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], &Device::Cpu)?;
//! let loss = Held::views(&targets, 2, 0.1).cross_entropy(&student)?.to_scalar::<f32>()?;
//! assert!((loss - 4_f32.ln()).abs() < 1e-6);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::host::is_host;
use super::{slice, with_slice};
use crate::kernels::softmax::{dot, log_sum_exp, scaled_softmax, subtract};

/// What rows of a student's logits are held against, and how much each of them counts.
#[derive(Clone, Debug)]
pub struct Held<'a> {
    targets: &'a Tensor,
    by: By<'a>,
    temperature: f64,
}

#[derive(Clone, Copy, Debug)]
enum By<'a> {
    /// Each view of a picture against all other views of a teacher that sees the first so many.
    Views(usize),
    /// Each row against its own target, with its weight.
    Rows(&'a [f32]),
}

impl<'a> Held<'a> {
    /// Each view of the student, one after another and the teacher's first, against the teacher's other views: the mean over pairs (teacher
    /// view, other student view) and pictures.
    /// `targets` `[teacher views * pictures, k]`, view by view, rows summing to 1.
    pub fn views(targets: &'a Tensor, teacher_views: usize, temperature: f64) -> Self {
        Self { targets, by: By::Views(teacher_views), temperature }
    }

    /// Each row against the target of the same number, with its weight.
    pub fn rows(targets: &'a Tensor, weights: &'a [f32], temperature: f64) -> Self {
        Self { targets, by: By::Rows(weights), temperature }
    }

    /// The sum of `-weight Σ targets · log softmax(student / temperature)` over the student's rows `[rows, k]`, a scalar.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn cross_entropy(self, student: &Tensor) -> Result<Tensor> {
        let rows = student.dim(0)?;
        cross_entropies(student, [(rows, self)])?.squeeze(0)
    }

    fn check(&self, rows: usize, k: usize) -> Result<()> {
        let (target_rows, target_k) = self.targets.dims2()?;
        let fits = match self.by {
            By::Views(views) => {
                let pictures = target_rows / views.max(1);
                pictures > 0 && target_rows.is_multiple_of(views) && rows.is_multiple_of(pictures) && rows / pictures >= views.max(2)
            }
            By::Rows(weights) => rows == target_rows && rows == weights.len(),
        };
        if !fits || k != target_k {
            bail!("loss: {rows} rows of {k} logits and targets {:?} do not fit {:?}", self.targets.dims(), self.by);
        }
        Ok(())
    }

    fn part(&self, rows: usize) -> Result<Part> {
        let (held_against, weights) = match self.by {
            By::Views(views) => {
                let pictures = self.targets.dim(0)? / views;
                let others = |row: usize| (0..views).filter(move |t| *t != row / pictures).map(move |t| t * pictures + row % pictures);
                let weight = 1.0 / (pairs(rows / pictures, views) * pictures) as f64;
                ((0..rows).map(|row| others(row).collect()).collect(), vec![weight; rows])
            }
            By::Rows(weights) => ((0..rows).map(|row| vec![row]).collect(), weights.iter().copied().map(f64::from).collect()),
        };
        Ok(Part { targets: self.targets.detach(), held_against, weights, scale: (1.0 / self.temperature) as f32 })
    }

    /// [`Held::cross_entropy`] out of candle's own operators.
    ///
    /// # Errors
    /// When the device fails.
    pub fn composed(&self, student: &Tensor) -> Result<Tensor> {
        let logs = log_softmax(student, self.temperature)?;
        match self.by {
            By::Views(teacher_views) => {
                let (rows, k) = student.dims2()?;
                let pictures = self.targets.dim(0)? / teacher_views;
                let views = rows / pictures;
                // What all teacher views say, and for each of these what the others say.
                let targets = self.targets.detach().reshape((teacher_views, pictures, k))?;
                let all = targets.sum_keepdim(0)?;
                let mut against = vec![all.broadcast_sub(&targets)?];
                if views > teacher_views {
                    against.push(all.broadcast_as((views - teacher_views, pictures, k))?.contiguous()?);
                }
                let against = Tensor::cat(&against, 0)?.reshape((rows, k))?;
                (against * logs)?.sum_all()? / -((pairs(views, teacher_views) * pictures) as f64)
            }
            By::Rows(weights) => {
                let weights = Tensor::from_slice(weights, (weights.len(), 1), student.device())?;
                (logs * self.targets.detach())?.broadcast_mul(&weights)?.sum_all()?.neg()
            }
        }
    }
}

/// The losses `[parts]` of a student's logits `[rows, k]`, whose parts, of so many rows one after another, are each held against something.
///
/// # Errors
/// When shapes do not fit, or the device fails.
pub fn cross_entropies<const PARTS: usize>(student: &Tensor, parts: [(usize, Held<'_>); PARTS]) -> Result<Tensor> {
    let (rows, k) = student.dims2()?;
    if parts.iter().map(|(rows, _)| rows).sum::<usize>() != rows {
        bail!("loss: {rows} rows of logits do not fit parts of {:?} rows", parts.map(|(rows, _)| rows));
    }
    for (rows, held) in &parts {
        held.check(*rows, k)?;
    }
    if !is_host(student.device()) {
        let mut first = 0;
        let composed = |(rows, held): &(usize, Held<'_>)| {
            let part = student.narrow(0, first, *rows)?;
            first += rows;
            if *rows == 0 { Tensor::zeros((), student.dtype(), student.device()) } else { held.composed(&part) }
        };
        return Tensor::stack(&parts.iter().map(composed).collect::<Result<Vec<_>>>()?, 0);
    }
    let parts = parts.iter().map(|(rows, held)| held.part(*rows)).collect::<Result<Vec<_>>>()?;
    student.contiguous()?.apply_op1(Fused { parts })
}

fn log_softmax(student: &Tensor, temperature: f64) -> Result<Tensor> {
    let logits = (student / temperature)?;
    let logits = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
    logits.broadcast_sub(&logits.exp()?.sum_keepdim(1)?.log()?)
}

/// Pairs of a teacher view and another student view.
fn pairs(views: usize, teacher_views: usize) -> usize {
    teacher_views * (views - 1)
}

struct Fused {
    parts: Vec<Part>,
}

struct Part {
    targets: Tensor,
    /// Rows of the targets that each student row is held against.
    held_against: Vec<Vec<usize>>,
    /// What each student row counts.
    weights: Vec<f64>,
    scale: f32,
}

impl Part {
    fn rows(&self) -> usize {
        self.weights.len()
    }

    fn loss(&self, student: &[f32], k: usize) -> Result<f32> {
        let rows: Vec<f64> = with_slice(&self.targets, |targets| {
            Ok(student
                .par_chunks_exact(k)
                .enumerate()
                .map(|(row, logits)| {
                    let log_sum = log_sum_exp(logits, self.scale);
                    let losses =
                        self.held_against[row].iter().map(|t| f64::from(log_sum - self.scale * dot(logits, &targets[t * k..(t + 1) * k])));
                    self.weights[row] * losses.sum::<f64>()
                })
                .collect())
        })?;
        // An empty sum of floats is -0.
        Ok(rows.iter().fold(0.0, |sum, row| sum + row) as f32)
    }

    fn gradient(&self, student: &[f32], k: usize, dloss: f32, gradient: &mut [f32]) -> Result<()> {
        with_slice(&self.targets, |targets| {
            gradient.par_chunks_exact_mut(k).zip(student.par_chunks_exact(k)).enumerate().for_each(|(row, (out, logits))| {
                let (held_against, factor) = (&self.held_against[row], dloss * self.scale * self.weights[row] as f32);
                let count = held_against.len() as f32;
                scaled_softmax(logits, self.scale, log_sum_exp(logits, self.scale), factor * count, out);
                for t in held_against {
                    subtract(out, &targets[t * k..(t + 1) * k], factor);
                }
            });
            Ok(())
        })
    }
}

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        "dino-cross-entropy"
    }

    fn cpu_fwd(&self, student: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let k = layout.shape().dims2()?.1;
        let mut student = slice(student, layout)?;
        let mut losses = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let (own, rest) = student.split_at(part.rows() * k);
            student = rest;
            losses.push(part.loss(own, k)?);
        }
        let shape = Shape::from(losses.len());
        Ok((CpuStorage::F32(losses), shape))
    }

    fn bwd(&self, student: &Tensor, _losses: &Tensor, dlosses: &Tensor) -> Result<Option<Tensor>> {
        let (_, k) = student.dims2()?;
        let dlosses = dlosses.to_vec1::<f32>()?;
        let mut gradient = vec![0.0; student.elem_count()];
        with_slice(student, |mut student| {
            let mut gradient = gradient.as_mut_slice();
            for (part, dloss) in self.parts.iter().zip(dlosses) {
                let (own, rest) = student.split_at(part.rows() * k);
                let (of_own, of_rest) = std::mem::take(&mut gradient).split_at_mut(part.rows() * k);
                (student, gradient) = (rest, of_rest);
                part.gradient(own, k, dloss, of_own)?;
            }
            Ok(())
        })?;
        Ok(Some(Tensor::from_vec(gradient, student.shape().clone(), student.device())?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i * 7919 + seed * 104_729) % 1000) as f32) / 250.0 - 2.0).collect()
    }

    fn logits(rows: usize, k: usize, seed: usize) -> Tensor {
        Tensor::from_vec(values(rows * k, seed), (rows, k), &Device::Cpu).unwrap()
    }

    fn distributions(rows: usize, k: usize, seed: usize) -> Tensor {
        let shares = logits(rows, k, seed).exp().unwrap();
        shares.broadcast_div(&shares.sum_keepdim(1).unwrap()).unwrap()
    }

    /// The loss, and its gradient by the student's logits.
    fn run(student: &Var, loss: impl Fn(&Tensor) -> Result<Tensor>) -> Vec<f32> {
        let loss = loss(student).unwrap();
        let gradient = loss.backward().unwrap().get(student).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        std::iter::once(loss.to_scalar::<f32>().unwrap()).chain(gradient).collect()
    }

    fn assert_close(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-5 + 1e-4 * want.abs(), "{got}, not {want}");
        }
    }

    /// The definition, pair by pair.
    fn pair_by_pair(student: &Tensor, targets: &Tensor, teacher_views: usize, temperature: f64) -> Result<Tensor> {
        let pictures = targets.dim(0)? / teacher_views;
        let views = student.dim(0)? / pictures;
        let logs = log_softmax(student, temperature)?;
        let mut total = Tensor::zeros((), student.dtype(), student.device())?;
        for teacher in 0..teacher_views {
            let target = targets.narrow(0, teacher * pictures, pictures)?;
            for view in (0..views).filter(|view| *view != teacher) {
                total = (total - (&target * logs.narrow(0, view * pictures, pictures)?)?.sum_all()?)?;
            }
        }
        total / (pairs(views, teacher_views) * pictures) as f64
    }

    #[test]
    fn the_loss_of_views_and_its_gradient_are_those_of_all_pairs() {
        for (views, pictures, k) in [(5, 3, 37), (2, 4, 9)] {
            let (student, targets) = (Var::from_tensor(&logits(views * pictures, k, 1)).unwrap(), distributions(2 * pictures, k, 2));
            let want = run(&student, |student| pair_by_pair(student, &targets, 2, 0.1));
            let held = Held::views(&targets, 2, 0.1);
            assert_close(&run(&student, |student| held.clone().cross_entropy(student)), &want);
            assert_close(&run(&student, |student| held.composed(student)), &want);
        }
    }

    #[test]
    fn rows_on_their_own_equal_the_composed_ones() {
        let (rows, k) = (6, 11);
        let (student, targets) = (Var::from_tensor(&logits(rows, k, 3)).unwrap(), distributions(rows, k, 4));
        let held = Held::rows(&targets, &[0.5, 0.0, 0.1, 0.2, 1.0, 0.3], 0.1);
        let got = run(&student, |student| held.clone().cross_entropy(student));
        assert_close(&got, &run(&student, |student| held.composed(student)));
    }

    #[test]
    fn parts_count_as_they_do_on_their_own() {
        let (crops, patches, k) = (6, 4, 13);
        let student = Var::from_tensor(&logits(crops + patches, k, 5)).unwrap();
        let (of_crops, of_patches, weights) = (distributions(4, k, 6), distributions(patches, k, 7), [0.1, 0.2, 0.3, 0.4]);
        let (views, rows) = (Held::views(&of_crops, 2, 0.1), Held::rows(&of_patches, &weights, 0.2));
        // The second counts three times.
        let sum = |first: Tensor, second: Tensor| first + (second * 3.0)?;
        let together = |student: &Tensor| {
            let losses = cross_entropies(student, [(crops, views.clone()), (patches, rows.clone())])?;
            sum(losses.get(0)?, losses.get(1)?)
        };
        let apart = |student: &Tensor| {
            let [first, second] = [student.narrow(0, 0, crops)?, student.narrow(0, crops, patches)?];
            sum(views.composed(&first)?, rows.composed(&second)?)
        };
        let want = run(&student, apart);
        assert_close(&run(&student, together), &want);
        assert_close(&crate::ops::host::elsewhere::run(|| run(&student, together)), &want);
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let (student, targets) = (logits(5, 4, 1), distributions(4, 4, 2));
        assert!(Held::views(&targets, 2, 0.1).cross_entropy(&student).is_err());
        assert!(Held::views(&targets, 0, 0.1).cross_entropy(&student).is_err());
        assert!(Held::rows(&targets, &[1.0; 4], 0.1).cross_entropy(&student).is_err());
        assert!(Held::rows(&targets, &[1.0; 3], 0.1).cross_entropy(&logits(4, 4, 1)).is_err());
        assert!(cross_entropies(&student, [(4, Held::rows(&targets, &[1.0; 4], 0.1))]).is_err());
    }
}
