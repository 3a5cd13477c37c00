//! A linear head in training: batch norm where the public head has it, and a 1x1 convolution, trained by `AdamW`.
//!
//! ```
//! use dino_train::evaluate::dense::{Probe, Statistics};
//! use ndarray::{Array1, array};
//!
//! let features = array![[1.0_f32, 10.0], [3.0, 30.0]];
//! let normalised = Statistics::of(&[features.view()]).normalise(features.view());
//! assert!(normalised.iter().all(|value| (value.abs() - 1.0).abs() < 1e-3));
//!
//! // A norm that has seen nothing changes next to nothing.
//! let norm = (Array1::ones(2), Array1::zeros(2));
//! let probe = Probe::from_weights(array![[2.0, 0.0]], array![0.5], Some(norm), 1e-3, 0.0);
//! let (weight, bias) = probe.served();
//! assert!((weight[[0, 0]] - 2.0).abs() < 1e-3 && (bias[0] - 0.5).abs() < 1e-3);
//! ```

use std::iter::zip;

use ndarray::{Array1, Array2, ArrayView2, Axis};
use rayon::prelude::*;

use crate::backbone::parameters::Random;

/// What keeps the division by a deviation finite (`BatchNorm2d`'s default).
const EPSILON: f32 = 1e-5;
/// Share of a batch in the running statistics (`BatchNorm2d`'s default).
const MOMENTUM: f32 = 0.1;
/// Of `AdamW`: decay of its two means, and what keeps its division finite.
const BETAS: (f64, f64) = (0.9, 0.999);
const ADAM_EPSILON: f64 = 1e-8;

/// Batch norm.
#[derive(Clone, Debug)]
pub struct Norm {
    /// `[F]`.
    pub weight: Array1<f32>,
    /// `[F]`.
    pub bias: Array1<f32>,
    /// Running mean `[F]`.
    pub mean: Array1<f32>,
    /// Running variance `[F]`.
    pub variance: Array1<f32>,
}

/// Mean and variance of the features of a batch.
#[derive(Clone, Debug)]
pub struct Statistics {
    mean: Array1<f32>,
    /// Divided by the number of rows.
    variance: Array1<f32>,
    rows: usize,
}

impl Statistics {
    /// Over all patches of pictures, `[patches, F]` each.
    pub fn of(pictures: &[ArrayView2<'_, f32>]) -> Self {
        let rows: usize = pictures.iter().map(ndarray::ArrayBase::nrows).sum();
        let total = |of: &(dyn Fn(ArrayView2<'_, f32>) -> Array1<f64> + Sync)| {
            let sums: Vec<Array1<f64>> = pictures.par_iter().map(|picture| of(*picture)).collect();
            let width = pictures.first().map_or(0, ndarray::ArrayBase::ncols);
            sums.into_iter().fold(Array1::zeros(width), |sum, part| sum + part) / rows.max(1) as f64
        };
        let mean = total(&|picture| {
            picture.rows().into_iter().fold(Array1::zeros(picture.ncols()), |mut sum, row| {
                sum.zip_mut_with(&row, |sum, value| *sum += f64::from(*value));
                sum
            })
        });
        let variance = total(&|picture| {
            picture.rows().into_iter().fold(Array1::zeros(picture.ncols()), |mut sum: Array1<f64>, row| {
                ndarray::Zip::from(&mut sum)
                    .and(&row)
                    .and(&mean)
                    .for_each(|sum, value, mean: &f64| *sum += (f64::from(*value) - *mean).powi(2));
                sum
            })
        });
        Self { mean: mean.mapv(|value| value as f32), variance: variance.mapv(|value| value as f32), rows }
    }

    /// Features with mean 0 and variance 1.
    pub fn normalise(&self, features: ArrayView2<'_, f32>) -> Array2<f32> {
        let scale = self.variance.mapv(|variance| (variance + EPSILON).sqrt().recip());
        (&features - &self.mean) * &scale
    }
}

/// Where `AdamW` is with one parameter.
#[derive(Clone, Debug, Default)]
struct Moments {
    first: Vec<f64>,
    second: Vec<f64>,
}

impl Moments {
    /// Step `number`, from 1.
    fn update(&mut self, values: &mut [f32], gradient: &[f32], number: i32, lr: f64, decay: f64) {
        self.first.resize(values.len(), 0.0);
        self.second.resize(values.len(), 0.0);
        let corrections = (1.0 - BETAS.0.powi(number), 1.0 - BETAS.1.powi(number));
        for ((value, gradient), (first, second)) in zip(zip(values, gradient), zip(&mut self.first, &mut self.second)) {
            let gradient = f64::from(*gradient);
            *first = BETAS.0 * *first + (1.0 - BETAS.0) * gradient;
            *second = BETAS.1 * *second + (1.0 - BETAS.1) * gradient * gradient;
            let move_by = (*first / corrections.0) / ((*second / corrections.1).sqrt() + ADAM_EPSILON);
            *value = (f64::from(*value) * (1.0 - lr * decay) - lr * move_by) as f32;
        }
    }
}

/// A head in training.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Highest learning rate.
    pub lr: f64,
    /// Weight decay of all parameters.
    pub decay: f64,
    /// `[channels, F]`.
    pub weight: Array2<f32>,
    /// `[channels]`.
    pub bias: Array1<f32>,
    /// Before the convolution.
    pub norm: Option<Norm>,
    steps: i32,
    moments: [Moments; 4],
}

impl Probe {
    /// A head with these first values; batch norm, where `norm` has its weight and bias, has seen nothing.
    pub fn from_weights(weight: Array2<f32>, bias: Array1<f32>, norm: Option<(Array1<f32>, Array1<f32>)>, lr: f64, decay: f64) -> Self {
        let norm = norm.map(|(weight, bias)| {
            let (mean, variance) = (Array1::zeros(weight.len()), Array1::ones(weight.len()));
            Norm { weight, bias, mean, variance }
        });
        Self { lr, decay, weight, bias, norm, steps: 0, moments: Default::default() }
    }

    /// For segmentation: batch norm, then normal weights of deviation 0.01, as mmsegmentation starts them.
    pub fn with_norm(channels: usize, features: usize, lr: f64, decay: f64, random: &mut impl Random) -> Self {
        let weight = Array2::from_shape_simple_fn((channels, features), || 0.01 * random.normal());
        let norm = (Array1::ones(features), Array1::zeros(features));
        Self::from_weights(weight, Array1::zeros(channels), Some(norm), lr, decay)
    }

    /// For depth: no norm, and uniform weights, as PyTorch starts a convolution.
    pub fn without_norm(channels: usize, features: usize, lr: f64, decay: f64, random: &mut impl Random) -> Self {
        let bound = (features as f32).sqrt().recip();
        let weight = Array2::from_shape_simple_fn((channels, features), || bound * random.uniform());
        let bias = Array1::from_shape_simple_fn(channels, || bound * random.uniform());
        Self::from_weights(weight, bias, None, lr, decay)
    }

    /// Weight and bias on the features of a batch, which are normalised where there is a norm.
    pub fn in_training(&self) -> (Array2<f32>, Array1<f32>) {
        match &self.norm {
            None => (self.weight.clone(), self.bias.clone()),
            Some(norm) => (&self.weight * &norm.weight, self.weight.dot(&norm.bias) + &self.bias),
        }
    }

    /// Weight `[channels, F]` and bias `[channels]` on features as the backbone gives them, with the running statistics.
    pub fn served(&self) -> (Array2<f32>, Array1<f32>) {
        let Some(norm) = &self.norm else { return (self.weight.clone(), self.bias.clone()) };
        let scale = &norm.weight / &norm.variance.mapv(|variance| (variance + EPSILON).sqrt());
        let offset = &norm.bias - &(&norm.mean * &scale);
        (&self.weight * &scale, self.weight.dot(&offset) + &self.bias)
    }

    /// One step of `AdamW`, from the gradients in the logits of pictures whose features were `inputs`.
    pub(super) fn update(
        &mut self,
        inputs: &[ArrayView2<'_, f32>],
        gradients: &[Array2<f32>],
        statistics: Option<&Statistics>,
        share: f64,
    ) {
        let parts: Vec<(Array2<f32>, Array1<f32>)> =
            inputs.par_iter().zip(gradients).map(|(input, gradient)| (gradient.t().dot(input), gradient.sum_axis(Axis(0)))).collect();
        let (mut of_weight, mut of_bias) = (Array2::zeros(self.weight.dim()), Array1::zeros(self.bias.len()));
        for (weight, bias) in &parts {
            of_weight += weight;
            of_bias += bias;
        }
        self.steps += 1;
        let (number, lr, decay) = (self.steps, self.lr * share, self.decay);
        let [weight, bias, norm_weight, norm_bias] = &mut self.moments;
        if let Some(norm) = &mut self.norm {
            // The chain rule through weight * norm.weight and weight . norm.bias + bias.
            let of_norm_weight = (&self.weight * &of_weight).sum_axis(Axis(0));
            let of_norm_bias = of_bias.dot(&self.weight);
            of_weight = &of_weight * &norm.weight + of_bias.view().insert_axis(Axis(1)).dot(&norm.bias.view().insert_axis(Axis(0)));
            norm_weight.update(slice(&mut norm.weight), of_norm_weight.as_slice().unwrap_or_default(), number, lr, decay);
            norm_bias.update(slice(&mut norm.bias), of_norm_bias.as_slice().unwrap_or_default(), number, lr, decay);
            if let Some(Statistics { mean, variance, rows }) = statistics {
                let unbiased = *rows as f32 / (*rows as f32 - 1.0).max(1.0);
                norm.mean.zip_mut_with(mean, |running, mean| *running += MOMENTUM * (mean - *running));
                norm.variance.zip_mut_with(variance, |running, variance| *running += MOMENTUM * (variance * unbiased - *running));
            }
        }
        let of_weight = of_weight.as_standard_layout();
        weight.update(self.weight.as_slice_mut().unwrap_or_default(), of_weight.as_slice().unwrap_or_default(), number, lr, decay);
        bias.update(slice(&mut self.bias), of_bias.as_slice().unwrap_or_default(), number, lr, decay);
    }
}

fn slice(values: &mut Array1<f32>) -> &mut [f32] {
    values.as_slice_mut().unwrap_or_default()
}
