//! The cross-entropy between teacher and student over all pairs of different views, as one operator.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

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
    if !student.device().is_cpu() {
        return composed(student, targets, teacher_views, temperature);
    }
    let pairs = pairs(rows / pictures, teacher_views);
    let fused = Fused { targets: targets.detach(), pictures, teacher_views, pairs, scale: (1.0 / temperature) as f32 };
    student.contiguous()?.apply_op1(fused)?.squeeze(0)
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
    let logits = (student / temperature)?;
    let logits = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
    let logs = logits.broadcast_sub(&logits.exp()?.sum_keepdim(1)?.log()?)?;
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
    pictures: usize,
    teacher_views: usize,
    pairs: usize,
    scale: f32,
}

impl Fused {
    /// Rows of the targets that student row `row` is held against.
    fn targets(&self, row: usize) -> impl Iterator<Item = usize> {
        let (view, picture, pictures) = (row / self.pictures, row % self.pictures, self.pictures);
        (0..self.teacher_views).filter(move |teacher| *teacher != view).map(move |teacher| teacher * pictures + picture)
    }
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
                    self.targets(row).map(|t| f64::from(log_sum - self.scale * dot(logits, &targets[t * k..(t + 1) * k]))).sum::<f64>()
                })
                .collect())
        })?;
        let loss = rows.iter().sum::<f64>() / (self.pairs * self.pictures) as f64;
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(1)))
    }

    fn bwd(&self, student: &Tensor, _loss: &Tensor, dloss: &Tensor) -> Result<Option<Tensor>> {
        let (_, k) = student.dims2()?;
        let factor = dloss.to_vec1::<f32>()?[0] * self.scale / (self.pairs * self.pictures) as f32;
        let mut gradient = vec![0.0; student.elem_count()];
        with_slice(student, |student| {
            with_slice(&self.targets, |targets| {
                gradient.par_chunks_exact_mut(k).zip(student.par_chunks_exact(k)).enumerate().for_each(|(row, (out, logits))| {
                    let count = self.targets(row).count() as f32;
                    scaled_softmax(logits, self.scale, log_sum_exp(logits, self.scale), factor * count, out);
                    for t in self.targets(row) {
                        subtract(out, &targets[t * k..(t + 1) * k], factor);
                    }
                });
                Ok(())
            })
        })?;
        Ok(Some(Tensor::from_vec(gradient, student.shape().clone(), student.device())?))
    }
}
