//! The cross-entropy between teacher and student, as one operator: over all pairs of different views, or row by row.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use dino_train::ops::loss::cross_entropy;
//!
//! // A student that does not know, of four outputs, in two views of one picture: ln 4 to any target.
//! let student = Tensor::zeros((2, 4), DType::F32, &Device::Cpu)?;
//! let targets = Tensor::new(&[[1.0_f32, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], &Device::Cpu)?;
//! let loss = cross_entropy(&student, &targets, 2, 0.1)?.to_scalar::<f32>()?;
//! assert!((loss - 4_f32.ln()).abs() < 1e-6);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::host::is_host;
use super::{slice, with_slice};
use crate::kernels::softmax::{dot, log_sum_exp, scaled_softmax, subtract};

/// Mean over pairs (teacher view, other student view) and pictures of `-Σ targets · log softmax(student / temperature)`.
///
/// `student` `[views * pictures, k]`, view by view, the teacher's views first; `targets` `[teacher views * pictures, k]`, rows summing to 1.
///
/// # Errors
/// When shapes do not fit, or the device fails.
pub fn cross_entropy(student: &Tensor, targets: &Tensor, teacher_views: usize, temperature: f64) -> Result<Tensor> {
    let ((rows, k), (target_rows, target_k)) = (student.dims2()?, targets.dims2()?);
    let pictures = target_rows / teacher_views.max(1);
    if k != target_k || pictures == 0 || rows % pictures != 0 || rows / pictures < 2 {
        bail!("loss: student {:?} and teacher {:?} do not fit {teacher_views} teacher views", student.dims(), targets.dims());
    }
    if !is_host(student.device()) {
        return composed(student, targets, teacher_views, temperature);
    }
    let weight = 1.0 / (pairs(rows / pictures, teacher_views) * pictures) as f64;
    let others = |row: usize| (0..teacher_views).filter(move |t| *t != row / pictures).map(move |t| t * pictures + row % pictures);
    let held_against = (0..rows).map(|row| others(row).collect()).collect();
    let fused = Fused { targets: targets.detach(), held_against, weights: vec![weight; rows], scale: (1.0 / temperature) as f32 };
    student.contiguous()?.apply_op1(fused)?.squeeze(0)
}

/// Sum over rows of weight times `-Σ targets · log softmax(student / temperature)`, for `student` and `targets` `[rows, k]`.
///
/// # Errors
/// When shapes do not fit, or the device fails.
pub fn row_cross_entropy(student: &Tensor, targets: &Tensor, weights: &[f32], temperature: f64) -> Result<Tensor> {
    let (rows, _) = student.dims2()?;
    if student.dims() != targets.dims() || rows != weights.len() {
        bail!("loss: student {:?}, targets {:?} and {} weights do not fit", student.dims(), targets.dims(), weights.len());
    }
    if rows == 0 {
        return Tensor::zeros((), student.dtype(), student.device());
    }
    if !is_host(student.device()) {
        return row_composed(student, targets, weights, temperature);
    }
    let held_against = (0..rows).map(|row| vec![row]).collect();
    let weights = weights.iter().copied().map(f64::from).collect();
    let fused = Fused { targets: targets.detach(), held_against, weights, scale: (1.0 / temperature) as f32 };
    student.contiguous()?.apply_op1(fused)?.squeeze(0)
}

/// [`row_cross_entropy`] out of candle's own operators.
///
/// # Errors
/// When the device fails.
pub fn row_composed(student: &Tensor, targets: &Tensor, weights: &[f32], temperature: f64) -> Result<Tensor> {
    let weights = Tensor::from_slice(weights, (weights.len(), 1), student.device())?;
    (log_softmax(student, temperature)? * targets)?.broadcast_mul(&weights)?.sum_all()?.neg()
}

fn log_softmax(student: &Tensor, temperature: f64) -> Result<Tensor> {
    let logits = (student / temperature)?;
    let logits = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
    logits.broadcast_sub(&logits.exp()?.sum_keepdim(1)?.log()?)
}

fn pairs(views: usize, teacher_views: usize) -> usize {
    teacher_views * (views - 1)
}

/// The same out of candle's own operators.
///
/// # Errors
/// When the device fails.
pub fn composed(student: &Tensor, targets: &Tensor, teacher_views: usize, temperature: f64) -> Result<Tensor> {
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

struct Fused {
    targets: Tensor,
    /// Rows of the targets that each student row is held against.
    held_against: Vec<Vec<usize>>,
    /// What each student row counts.
    weights: Vec<f64>,
    scale: f32,
}

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        "dino-cross-entropy"
    }

    fn cpu_fwd(&self, student: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let k = layout.shape().dims2()?.1;
        let student = slice(student, layout)?;
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
        Ok((CpuStorage::F32(vec![rows.iter().sum::<f64>() as f32]), Shape::from(1)))
    }

    fn bwd(&self, student: &Tensor, _loss: &Tensor, dloss: &Tensor) -> Result<Option<Tensor>> {
        let (_, k) = student.dims2()?;
        let all = dloss.to_vec1::<f32>()?[0] * self.scale;
        let mut gradient = vec![0.0; student.elem_count()];
        with_slice(student, |student| {
            with_slice(&self.targets, |targets| {
                gradient.par_chunks_exact_mut(k).zip(student.par_chunks_exact(k)).enumerate().for_each(|(row, (out, logits))| {
                    let (held_against, factor) = (&self.held_against[row], all * self.weights[row] as f32);
                    let count = held_against.len() as f32;
                    scaled_softmax(logits, self.scale, log_sum_exp(logits, self.scale), factor * count, out);
                    for t in held_against {
                        subtract(out, &targets[t * k..(t + 1) * k], factor);
                    }
                });
                Ok(())
            })
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

    #[test]
    fn the_fused_loss_and_its_gradient_equal_the_composed_one() {
        let (views, pictures, k) = (5, 3, 37);
        let student = Var::from_vec(values(views * pictures * k, 1), (views * pictures, k), &Device::Cpu).unwrap();
        let targets = Tensor::from_vec(values(2 * pictures * k, 2), (2 * pictures, k), &Device::Cpu).unwrap().exp().unwrap();
        let targets = targets.broadcast_div(&targets.sum_keepdim(1).unwrap()).unwrap();
        let run = |loss: Tensor| {
            let gradient = loss.backward().unwrap().get(&student).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            (loss.to_scalar::<f32>().unwrap(), gradient)
        };
        let (loss, gradient) = run(cross_entropy(&student, &targets, 2, 0.1).unwrap());
        let (want, want_gradient) = run(composed(&student, &targets, 2, 0.1).unwrap());
        assert!((loss - want).abs() < 1e-4 * want.abs(), "{loss}, not {want}");
        for (g, w) in gradient.iter().zip(&want_gradient) {
            assert!((g - w).abs() < 1e-5, "{g}, not {w}");
        }
    }

    #[test]
    fn rows_on_their_own_equal_the_composed_ones() {
        let (rows, k) = (6, 11);
        let student = Var::from_vec(values(rows * k, 3), (rows, k), &Device::Cpu).unwrap();
        let targets = Tensor::from_vec(values(rows * k, 4), (rows, k), &Device::Cpu).unwrap().exp().unwrap();
        let weights = [0.5, 0.0, 0.1, 0.2, 1.0, 0.3];
        let targets = targets.broadcast_div(&targets.sum_keepdim(1).unwrap()).unwrap();
        let run = |loss: Tensor| {
            let gradients = loss.backward().unwrap();
            let gradient = gradients.get(&student).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            std::iter::once(loss.to_scalar::<f32>().unwrap()).chain(gradient).collect::<Vec<_>>()
        };
        let got = run(row_cross_entropy(&student, &targets, &weights, 0.1).unwrap());
        let want = run(row_composed(&student, &targets, &weights, 0.1).unwrap());
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() < 1e-4 + 1e-4 * want.abs(), "{got}, not {want}");
        }
        assert!(row_cross_entropy(&student, &targets, &weights[1..], 0.1).is_err());
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let student = Tensor::zeros((5, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let targets = Tensor::zeros((4, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(cross_entropy(&student, &targets, 2, 0.1).is_err());
        assert!(cross_entropy(&student, &targets, 0, 0.1).is_err());
    }
}
