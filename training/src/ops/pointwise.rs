//! What follows the depthwise convolution in a block of a `ConvNeXt`, as one operator: x + γ · mlp(norm(y)), position by position.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use dino_train::{kernels::matmul::Precision, ops::pointwise::Pointwise};
//!
//! let branch = Pointwise { dim: 8, hidden: 32, scaled: true, eps: 1e-6, precision: Precision::F32 };
//! let rows = Tensor::randn(0.0_f32, 1.0, (6, 8), &Device::Cpu)?;
//! // Weights of zero add nothing to the residual stream.
//! let weights = Tensor::zeros(branch.len(), DType::F32, &Device::Cpu)?;
//! assert_eq!(branch.forward(&rows, &rows, &weights, None)?.to_vec2::<f32>()?, rows.to_vec2::<f32>()?);
//! # Ok::<(), candle_core::Error>(())
//! ```

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::host::is_host;
use super::linear::product;
use super::{even_ranges, pool, slice, split_rows, sum_of_tasks, with_slice};
use crate::kernels::matmul::{Accum, Precision, Weight, at_b};
use crate::kernels::{activation, layer_norm, reduce, sized};

/// Rows that are computed at once: the widest hidden layer of a `ConvNeXt`-B then fits a 2 MB cache.
const CHUNK_ROWS: usize = 128;

/// Sizes of the branch; its parameters follow one another in the order of [`Pointwise::parameters`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pointwise {
    /// Columns of the residual stream.
    pub dim: usize,
    /// Columns of the hidden layer.
    pub hidden: usize,
    /// Whether each column of the branch has a factor (layer scale).
    pub scaled: bool,
    /// Added to variances in the layer norm.
    pub eps: f32,
    /// Arithmetic of the two linear layers.
    pub precision: Precision,
}

impl Pointwise {
    /// Names and shapes of the parameters, in the order in which they are stored.
    pub fn parameters(&self) -> Vec<(&'static str, Vec<usize>)> {
        let Self { dim, hidden, .. } = *self;
        let mut all = vec![
            ("norm.weight", vec![dim]),
            ("norm.bias", vec![dim]),
            ("pwconv1.weight", vec![hidden, dim]),
            ("pwconv1.bias", vec![hidden]),
            ("pwconv2.weight", vec![dim, hidden]),
            ("pwconv2.bias", vec![dim]),
        ];
        if self.scaled {
            all.push(("gamma", vec![dim]));
        }
        all
    }

    fn lengths(&self) -> [usize; 7] {
        let Self { dim, hidden, .. } = *self;
        [dim, dim, hidden * dim, hidden, dim * hidden, dim, if self.scaled { dim } else { 0 }]
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.lengths().iter().sum()
    }

    /// True for a branch without parameters.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `x` `[rows, dim]`, plus the branch of `y` `[rows, dim]`. `factors` are those of stochastic depth: each of as many rows as the others.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn forward(&self, x: &Tensor, y: &Tensor, parameters: &Tensor, factors: Option<&[f32]>) -> Result<Tensor> {
        let (rows, dim) = x.dims2()?;
        let shared = factors.is_none_or(|factors| !factors.is_empty() && rows.is_multiple_of(factors.len()));
        if dim != self.dim || y.dims() != x.dims() || parameters.dims() != [self.len()] || !shared {
            bail!("branch of dim {}: rows {:?} and {:?}, parameters {:?}", self.dim, x.dims(), y.dims(), parameters.dims());
        }
        if !is_host(x.device()) {
            return self.composed(x, y, parameters, factors);
        }
        let keep = x.track_op() || y.track_op() || parameters.track_op();
        let fused = Fused { branch: *self, factors: factors.map(<[f32]>::to_vec), keep, hidden: Mutex::default() };
        let (x, y, parameters) = (x.contiguous()?, y.contiguous()?, parameters.contiguous()?);
        if keep { x.apply_op3(&y, &parameters, fused) } else { x.apply_op3_no_bwd(&y, &parameters, &fused) }
    }

    /// The same out of candle's own operators, for devices without the fused one and as its reference in tests.
    ///
    /// # Errors
    /// When the device fails.
    pub fn composed(&self, x: &Tensor, y: &Tensor, parameters: &Tensor, factors: Option<&[f32]>) -> Result<Tensor> {
        let (mut offset, mut weights) = (0, Vec::with_capacity(7));
        for (_, shape) in self.parameters() {
            let len = shape.iter().product::<usize>();
            weights.push(parameters.narrow(0, offset, len)?.reshape(shape)?);
            offset += len;
        }
        let [norm_w, norm_b, input_w, input_b, output_w, output_b, scale @ ..] = &weights[..] else {
            bail!("a branch has six parameters or more")
        };
        let normed = super::layer_norm::composed(y, norm_w, norm_b, self.eps)?;
        let hidden = product(&normed, &input_w.t()?, self.precision)?.broadcast_add(input_b)?.gelu_erf()?;
        let mut branch = product(&hidden, &output_w.t()?, self.precision)?.broadcast_add(output_b)?;
        if let [gamma] = scale {
            branch = branch.broadcast_mul(gamma)?;
        }
        if let Some(factors) = factors {
            let factors = Tensor::new(factors, x.device())?.reshape((factors.len(), 1, 1))?;
            branch = branch.reshape((factors.dim(0)?, (), self.dim))?.broadcast_mul(&factors)?.reshape(x.shape())?;
        }
        x + branch
    }
}

/// The parameters as slices, with the layer scale multiplied into the last layer.
struct Weights<'a> {
    norm_w: &'a [f32],
    norm_b: &'a [f32],
    input_w: &'a [f32],
    input_b: &'a [f32],
    output_w: Vec<f32>,
    output_b: Vec<f32>,
}

impl<'a> Weights<'a> {
    fn new(branch: &Pointwise, parameters: &'a [f32]) -> Self {
        let mut rest = parameters;
        let [norm_w, norm_b, input_w, input_b, output_w, output_b, gamma] = branch.lengths().map(|len| {
            let (head, tail) = rest.split_at(len);
            rest = tail;
            head
        });
        let (mut output_w, mut output_b) = (output_w.to_vec(), output_b.to_vec());
        scale_rows(&mut output_w, gamma);
        scale_rows(&mut output_b, gamma);
        Self { norm_w, norm_b, input_w, input_b, output_w, output_b }
    }
}

/// Multiplies each of the rows of a matrix by its factor, where there are factors.
fn scale_rows(matrix: &mut [f32], factors: &[f32]) {
    let columns = (matrix.len() / factors.len().max(1)).max(1);
    for (row, factor) in matrix.chunks_exact_mut(columns).zip(factors) {
        for value in row {
            *value *= factor;
        }
    }
}

struct Fused {
    branch: Pointwise,
    factors: Option<Vec<f32>>,
    keep: bool,
    /// The hidden layer before its activation. Filled by the forward pass, read by the backward pass: candle hands an operator its
    /// arguments and result only.
    hidden: Mutex<Vec<f32>>,
}

impl Drop for Fused {
    fn drop(&mut self) {
        pool::give_back(std::mem::take(self.hidden.get_mut().unwrap_or_else(PoisonError::into_inner)));
    }
}

/// Chunks of the rows of a task.
fn chunks(rows: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(CHUNK_ROWS).map(move |from| from..(from + CHUNK_ROWS).min(rows))
}

fn of(rows: &Range<usize>, columns: usize) -> Range<usize> {
    rows.start * columns..rows.end * columns
}

impl Fused {
    /// The factor of a row, of so many rows.
    fn factor(&self, row: usize, rows: usize) -> f32 {
        self.factors.as_ref().map_or(1.0, |factors| factors[row * factors.len() / rows])
    }

    /// The rows of a task that come out, of which the first is number `first` of `rows`.
    fn forward(&self, x: &[f32], y: &[f32], weights: &Weights<'_>, products: &[Weight<'_>; 2], rows: &mut Rows<'_>) {
        let Pointwise { dim, hidden, eps, .. } = self.branch;
        let (mut normed, mut active, mut spare) = (Vec::new(), Vec::new(), Vec::new());
        for chunk in chunks(y.len() / dim) {
            let n = chunk.len();
            let normed = sized(&mut normed, n * dim);
            layer_norm::forward(&y[of(&chunk, dim)], weights.norm_w, weights.norm_b, eps, normed);
            let values = if self.keep { &mut rows.hidden[of(&chunk, hidden)] } else { sized(&mut spare, n * hidden) };
            products[0].multiply(values, Accum::Replace, normed);
            let active = sized(&mut active, n * hidden);
            activation::bias_gelu(values, weights.input_b, active);
            let out = &mut rows.out[of(&chunk, dim)];
            products[1].multiply(out, Accum::Replace, active);
            for ((row, out), x) in chunk.clone().zip(out.chunks_exact_mut(dim)).zip(x[of(&chunk, dim)].chunks_exact(dim)) {
                reduce::add_residual(out, &weights.output_b, x, self.factor(rows.first + row, rows.all));
            }
        }
    }

    /// The gradients of the parameters from the rows of a task, but for that of the layer scale; that of `y` goes to `rows.out`.
    fn backward(&self, y: &[f32], dout: &[f32], weights: &Weights<'_>, products: &[Weight<'_>; 2], rows: &mut Rows<'_>) -> Vec<f32> {
        let Pointwise { dim, hidden, eps, precision, .. } = self.branch;
        let [mut norm_w, mut norm_b, mut input_w, mut input_b, mut output_w, mut output_b, _] = self.branch.lengths().map(|n| vec![0.0; n]);
        let (mut normed, mut dnormed, mut active, mut dhidden, mut dbranch) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for chunk in chunks(y.len() / dim) {
            let n = chunk.len();
            let (y, dout, values) = (&y[of(&chunk, dim)], &dout[of(&chunk, dim)], &rows.hidden[of(&chunk, hidden)]);
            let dbranch = sized(&mut dbranch, n * dim);
            for ((row, out), dout) in chunk.clone().zip(dbranch.chunks_exact_mut(dim)).zip(dout.chunks_exact(dim)) {
                reduce::scaled(dout, self.factor(rows.first + row, rows.all), out);
            }
            reduce::add_column_sums(dbranch, &mut output_b);
            let (dhidden, active) = (sized(&mut dhidden, n * hidden), sized(&mut active, n * hidden));
            products[1].multiply(dhidden, Accum::Replace, dbranch);
            activation::gelu_backward(values, dhidden, active);
            at_b(precision, &mut output_w, Accum::Add, dbranch, active, n);
            reduce::add_column_sums(dhidden, &mut input_b);
            let normed = sized(&mut normed, n * dim);
            layer_norm::forward(y, weights.norm_w, weights.norm_b, eps, normed);
            at_b(precision, &mut input_w, Accum::Add, dhidden, normed, n);
            let dnormed = sized(&mut dnormed, n * dim);
            products[0].multiply(dnormed, Accum::Replace, dhidden);
            layer_norm::backward(y, weights.norm_w, eps, dnormed, &mut rows.out[of(&chunk, dim)], &mut norm_w, &mut norm_b);
        }
        [norm_w, norm_b, input_w, input_b, output_w, output_b].concat()
    }

    /// Splits the gradient of the scaled last layer into those of the layer and of its scale.
    fn unscale(&self, parameters: &[f32], gradient: &mut Vec<f32>) {
        if !self.branch.scaled {
            return;
        }
        let Pointwise { dim, hidden, .. } = self.branch;
        let output = self.branch.lengths()[..4].iter().sum::<usize>();
        let (own, gamma) = parameters[output..].split_at(dim * (hidden + 1));
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let (dweight, dbias) = gradient[output..].split_at_mut(dim * hidden);
        let (weight, bias) = own.split_at(dim * hidden);
        let rows = dweight.chunks_exact(hidden).zip(weight.chunks_exact(hidden)).zip(dbias.iter().zip(bias));
        let dgamma: Vec<f32> = rows.map(|((dw, w), (db, b))| (dot(dw, w) + f64::from(db * b)) as f32).collect();
        scale_rows(dweight, gamma);
        scale_rows(dbias, gamma);
        gradient.extend(dgamma);
    }
}

/// One task's rows.
struct Rows<'a> {
    /// Number of the first, and of the rows of all tasks.
    first: usize,
    all: usize,
    hidden: &'a mut [f32],
    out: &'a mut [f32],
}

impl CustomOp3 for Fused {
    fn name(&self) -> &'static str {
        "pointwise-branch"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
        p: &CpuStorage,
        p_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Pointwise { dim, hidden, precision, .. } = self.branch;
        let (x, y) = (slice(x, x_layout)?, slice(y, y_layout)?);
        let weights = Weights::new(&self.branch, slice(p, p_layout)?);
        let products = [Weight::transposed(weights.input_w, dim, precision), Weight::transposed(&weights.output_w, hidden, precision)];
        let all = x.len() / dim;
        let tasks = even_ranges(all);
        let mut out = vec![0.0; x.len()];
        let mut kept = pool::take(if self.keep { all * hidden } else { 0 });
        let columns_kept = if self.keep { hidden } else { 0 };
        split_rows(&mut out, dim, tasks.iter().map(Range::len))
            .into_par_iter()
            .zip(split_rows(&mut kept, columns_kept, tasks.iter().map(Range::len)))
            .zip(&tasks)
            .for_each(|((out, hidden), task)| {
                let mut rows = Rows { first: task.start, all, hidden, out };
                self.forward(&x[of(task, dim)], &y[of(task, dim)], &weights, &products, &mut rows);
            });
        *self.hidden.lock().unwrap_or_else(PoisonError::into_inner) = kept;
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        p: &Tensor,
        _out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Pointwise { dim, hidden, precision, .. } = self.branch;
        let all = x.dim(0)?;
        let tasks = even_ranges(all);
        let mut kept = self.hidden.lock().unwrap_or_else(PoisonError::into_inner);
        let mut dy = vec![0.0; all * dim];
        let dp = with_slice(y, |y| {
            with_slice(p, |p| {
                with_slice(dout, |dout| {
                    let weights = Weights::new(&self.branch, p);
                    let products = [Weight::plain(weights.input_w, dim, precision), Weight::plain(&weights.output_w, hidden, precision)];
                    let parts = split_rows(&mut dy, dim, tasks.iter().map(Range::len))
                        .into_par_iter()
                        .zip(split_rows(&mut kept, hidden, tasks.iter().map(Range::len)))
                        .zip(&tasks)
                        .map(|((out, hidden), task)| {
                            let mut rows = Rows { first: task.start, all, hidden, out };
                            self.backward(&y[of(task, dim)], &dout[of(task, dim)], &weights, &products, &mut rows)
                        })
                        .collect();
                    let mut gradient = sum_of_tasks(parts, self.branch.lengths()[..6].iter().sum());
                    self.unscale(p, &mut gradient);
                    Ok(gradient)
                })
            })
        })?;
        let dy = Tensor::from_vec(dy, y.shape().clone(), y.device())?;
        Ok((Some(dout.clone()), Some(dy), Some(Tensor::from_vec(dp, self.branch.len(), p.device())?)))
    }
}
