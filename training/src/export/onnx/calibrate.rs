//! Fits a vision transformer to 8 bits, on what its layers read while it looks at pictures.
//!
//! A few channels of a trained transformer are a hundred times as strong as the others, and one step for all of them leaves nothing
//! of the weak ones. Strength moves from a channel into the weights that read it, by the factor |x|^α / |w|^(1-α) of `SmoothQuant`
//! (arXiv:2211.10438, equation 4), and a channel's middle moves into the next bias. What comes out of a norm, the values of the
//! attention and the value half of a gate take this in without a trace in the graph; behind GELU it costs a multiplication. α is
//! chosen for each layer by the error that it leaves.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::{Array1, Array2, ArrayD, ArrayView2, Axis};
use rayon::prelude::*;

use crate::weights::{Block, Linear, Mlp, Norm, Tensor, Vit};

use super::quantise::{self, Range};

/// Shares of a channel's strength that are tried; 0 leaves it where it is.
const ALPHAS: [f32; 6] = [0.0, 0.25, 0.4, 0.5, 0.6, 0.75];
/// A multiplication in the graph has to save this share of the error.
const WORTH_AN_OPERATOR: f64 = 0.2;

/// Rows that layers read, `[n, in]`, by the name of the layer, for example `blocks.3.attn.qkv`.
#[derive(Debug, Default)]
pub struct Rows(BTreeMap<String, Vec<Array2<f32>>>);

impl Rows {
    /// Takes up what the graph of [`super::taps`] gives for some pictures.
    pub fn add(&mut self, outputs: BTreeMap<String, ArrayD<f32>>) {
        for (name, rows) in outputs {
            let Some(name) = name.strip_prefix(super::TAP) else { continue };
            let width = rows.shape().last().copied().unwrap_or(0).max(1);
            // [B, tokens, in] to [B * tokens, in]
            let shape = (rows.len() / width, width);
            let rows = rows.into_shape_with_order(shape).expect("a graph's outputs are whole and in order");
            self.0.entry(name.to_owned()).or_default().push(rows);
        }
    }

    /// Whether they are all numbers.
    pub fn are_finite(&self) -> bool {
        self.0.values().flatten().all(|rows| rows.iter().all(|value| value.is_finite()))
    }

    fn of(&self, block: usize, layer: &str) -> Array2<f32> {
        let views: Vec<_> = self.0.get(&format!("blocks.{block}.{layer}")).into_iter().flatten().map(|rows| rows.view()).collect();
        ndarray::concatenate(Axis(0), &views).unwrap_or_default()
    }
}

/// How the layers of a transformer are written in 8 bits.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Factors of the channels that a layer divides by itself.
    factors: BTreeMap<String, Vec<f32>>,
    /// Layers that stay in float32.
    float: BTreeSet<String>,
    /// The error of each layer, as a share of what it tells apart.
    errors: BTreeMap<String, f64>,
}

impl Plan {
    /// Factors of the channels of a layer's input.
    pub(super) fn factors(&self, layer: &str) -> Option<&[f32]> {
        self.factors.get(layer).map(Vec::as_slice)
    }

    /// Whether a layer stays in float32.
    pub(super) fn is_float(&self, layer: &str) -> bool {
        self.float.contains(layer)
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.errors.len()
    }

    /// Number of layers that stay in float32.
    pub fn floats(&self) -> usize {
        self.float.len()
    }

    /// Keeps the `count` layers that lose most in float32.
    pub fn keep_float(&mut self, count: usize) {
        let mut worst: Vec<_> = self.errors.iter().collect();
        worst.sort_by(|a, b| b.1.total_cmp(a.1));
        self.float = worst.into_iter().take(count).map(|(layer, _)| layer.clone()).collect();
    }
}

/// Spreads the transformer's strength for 8 bits. Returns how its layers are to be written.
pub fn fit(vit: &mut Vit, rows: &Rows) -> Plan {
    let (dim, count) = (vit.dim, vit.blocks.len());
    let fitted: Vec<_> =
        vit.blocks.par_iter_mut().enumerate().map(|(index, block)| fit_block(block, dim, |layer| rows.of(index, layer))).collect();
    let mut plan = Plan::default();
    for (index, fitted) in (0..count).zip(fitted) {
        for (layer, error, factors) in fitted {
            let layer = format!("blocks.{index}.{layer}");
            if let Some(factors) = factors {
                plan.factors.insert(layer.clone(), factors);
            }
            plan.errors.insert(layer, error);
        }
    }
    plan
}

type Layer = (&'static str, f64, Option<Vec<f32>>);

fn fit_block(block: &mut Block, dim: usize, rows: impl Fn(&str) -> Array2<f32>) -> [Layer; 4] {
    let qkv = choose(rows("attn.qkv").view(), &block.qkv, Range::Any, true);
    qkv.move_from_norm(&mut block.norm1, &mut block.qkv);

    // Attention weights sum to one, so that what is done to all values is done to every mixture of them.
    let proj = choose(rows("attn.proj").view(), &block.proj, Range::Any, true);
    proj.move_from_rows(&mut block.qkv, 2 * dim, &mut block.proj);

    let (Mlp::Plain { input, .. } | Mlp::Gated { input, .. }) = &mut block.mlp;
    let inner = choose(rows("mlp.input").view(), input, Range::Any, true);
    inner.move_from_norm(&mut block.norm2, input);

    let hidden = rows("mlp.output");
    let (error, factors) = match &mut block.mlp {
        Mlp::Plain { output, .. } => {
            let best = choose(hidden.view(), output, Range::Gelu, false);
            let plain = Choice::nothing(hidden.view(), output, Range::Gelu);
            if best.error < (1.0 - WORTH_AN_OPERATOR) * plain.error { (best.error, Some(best.factors)) } else { (plain.error, None) }
        }
        Mlp::Gated { input, output, .. } => {
            let best = choose(hidden.view(), output, Range::Any, false);
            best.move_from_rows(input, output.weight.shape[1], output);
            (best.error, None)
        }
    };
    [("attn.qkv", qkv.error, None), ("attn.proj", proj.error, None), ("mlp.input", inner.error, None), ("mlp.output", error, factors)]
}

/// What is done to the channels of a layer's input: x becomes (x - centre) / factor.
struct Choice {
    centre: Vec<f32>,
    factors: Vec<f32>,
    /// Squared error of the layer's output, as a share of the variance that it has between rows.
    error: f64,
}

impl Choice {
    /// Leaves the channels as they are.
    fn nothing(x: ArrayView2<'_, f32>, layer: &Linear, range: Range) -> Self {
        let channels = layer.weight.shape[1];
        let (centre, factors) = (vec![0.0; channels], vec![1.0; channels]);
        let error = error(x, layer, range, &factors);
        Self { centre, factors, error }
    }

    /// Behind a norm.
    fn move_from_norm(&self, norm: &mut Norm, layer: &mut Linear) {
        self.shift(layer);
        for (channel, factor) in self.factors.iter().enumerate() {
            norm.weight[channel] /= factor;
            norm.bias[channel] = (norm.bias[channel] - self.centre[channel]) / factor;
        }
        layer.weight.data = quantise::scaled_columns(&layer.weight.data, &self.factors);
    }

    /// Behind rows of another layer, from `first` on, that reach this one unmixed with other channels.
    fn move_from_rows(&self, producer: &mut Linear, first: usize, layer: &mut Linear) {
        self.shift(layer);
        let width = producer.weight.shape[1];
        let moves = self.centre.iter().any(|centre| *centre != 0.0);
        if moves && producer.bias.is_none() {
            producer.bias = Some(vec![0.0; producer.weight.shape[0]]);
        }
        for (channel, factor) in self.factors.iter().enumerate() {
            let row = first + channel;
            producer.weight.data[row * width..(row + 1) * width].iter_mut().for_each(|weight| *weight /= factor);
            if let Some(bias) = &mut producer.bias {
                bias[row] = (bias[row] - self.centre[channel]) / factor;
            }
        }
        layer.weight.data = quantise::scaled_columns(&layer.weight.data, &self.factors);
    }

    /// Gives the layer's bias what the middles of its channels contributed.
    fn shift(&self, layer: &mut Linear) {
        if self.centre.iter().all(|centre| *centre == 0.0) {
            return;
        }
        let shift = matrix(&layer.weight).dot(&Array1::from(self.centre.clone()));
        let bias = layer.bias.take().unwrap_or_else(|| vec![0.0; shift.len()]);
        layer.bias = Some(bias.iter().zip(&shift).map(|(bias, shift)| bias + shift).collect());
    }
}

/// The best of [`ALPHAS`] for a layer that reads rows like `x` `[n, in]`.
fn choose(x: ArrayView2<'_, f32>, layer: &Linear, range: Range, centred: bool) -> Choice {
    let extremes = |start: f32, pick: fn(f32, f32) -> f32| x.fold_axis(Axis(0), start, move |best, value| pick(*best, *value));
    let (lowest, highest) = (extremes(f32::INFINITY, f32::min), extremes(f32::NEG_INFINITY, f32::max));
    let centre: Vec<f32> = if centred && x.nrows() > 0 {
        lowest.iter().zip(&highest).map(|(low, high)| (low + high) / 2.0).collect()
    } else {
        vec![0.0; layer.weight.shape[1]]
    };
    let centred = &x - &Array1::from(centre.clone());
    let usable = |number: f32| number.max(1e-5);
    let strengths: Vec<f32> = lowest.iter().zip(&highest).zip(&centre).map(|((low, high), c)| usable((high - c).max(c - low))).collect();
    let weights = matrix(&layer.weight).fold_axis(Axis(0), 0.0_f32, |largest, weight| largest.max(weight.abs()));
    let factors = |alpha: f32| -> Vec<f32> {
        if alpha == 0.0 {
            return vec![1.0; strengths.len()];
        }
        strengths.iter().zip(&weights).map(|(strength, weight)| strength.powf(alpha) / usable(*weight).powf(1.0 - alpha)).collect()
    };
    let tried = ALPHAS.map(|alpha| {
        let factors = factors(alpha);
        (error(centred.view(), layer, range, &factors), factors)
    });
    let (error, factors) = tried.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).expect("several are tried");
    Choice { centre, factors, error }
}

/// See [`Choice::error`].
fn error(x: ArrayView2<'_, f32>, layer: &Linear, range: Range, factors: &[f32]) -> f64 {
    let exact = x.dot(&matrix(&layer.weight).t());
    let rounded = quantise::product(x, layer, range, factors);
    let squares = |array: &Array2<f32>| array.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
    let mean = exact.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(exact.ncols()));
    squares(&(&rounded - &exact)) / squares(&(&exact - &mean)).max(f64::MIN_POSITIVE)
}

fn matrix(weight: &Tensor) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((weight.shape[0], weight.shape[1]), &weight.data).expect("a tensor has its own number of elements")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(out: usize, input: usize, seed: usize) -> Linear {
        let data = (0..out * input).map(|index| ((index * 7919 + seed * 31) % 1009) as f32 / 1009.0 - 0.5).collect();
        Linear { weight: Tensor { shape: vec![out, input], data }, bias: None }
    }

    /// Rows of which channel 3 is a hundred times as strong as the others and lies around 50.
    fn rows() -> Array2<f32> {
        Array2::from_shape_fn((40, 16), |(row, channel)| {
            let value = ((row * 104_729 + channel * 7919) % 997) as f32 / 997.0 - 0.5;
            if channel == 3 { 100.0 * value + 50.0 } else { value }
        })
    }

    #[test]
    fn a_strong_channel_no_longer_drowns_the_others() {
        let (x, layer) = (rows(), layer(8, 16, 1));
        let before = Choice::nothing(x.view(), &layer, Range::Any).error;
        let after = choose(x.view(), &layer, Range::Any, true).error;
        assert!(after < before / 20.0, "{before} {after}");
    }

    #[test]
    fn what_moves_behind_a_norm_or_other_rows_leaves_the_result_alone() {
        let x = rows();
        let choice = choose(x.view(), &layer(8, 16, 1), Range::Any, true);
        let result =
            |x: &Array2<f32>, layer: &Linear| x.dot(&matrix(&layer.weight).t()) + &Array1::from(layer.bias.clone().unwrap_or(vec![0.0; 8]));

        let (mut norm, mut after_norm) = (Norm { weight: vec![2.0; 16], bias: vec![0.5; 16] }, layer(8, 16, 1));
        let normed = |norm: &Norm| &x * &Array1::from(norm.weight.clone()) + &Array1::from(norm.bias.clone());
        let before = result(&normed(&norm), &after_norm);
        choice.move_from_norm(&mut norm, &mut after_norm);
        assert_near(&result(&normed(&norm), &after_norm), &before);

        let (mut producer, mut after_rows) = (layer(20, 16, 2), layer(8, 16, 1));
        let produced = |producer: &Linear| {
            let all = x.dot(&matrix(&producer.weight).t()) + &Array1::from(producer.bias.clone().unwrap_or(vec![0.0; 20]));
            all.slice(ndarray::s![.., 4..]).to_owned()
        };
        let before = result(&produced(&producer), &after_rows);
        choice.move_from_rows(&mut producer, 4, &mut after_rows);
        assert_near(&result(&produced(&producer), &after_rows), &before);
    }

    fn assert_near(found: &Array2<f32>, expected: &Array2<f32>) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-3 * expected.abs().max(1.0), "{found} {expected}");
        }
    }

    #[test]
    fn the_worst_layers_stay_in_float() {
        let errors = [("a", 0.1), ("b", 0.5), ("c", 0.3)].map(|(name, error)| (name.to_owned(), error));
        let mut plan = Plan { errors: errors.into(), ..Plan::default() };
        plan.keep_float(2);
        assert!(plan.is_float("b") && plan.is_float("c") && !plan.is_float("a"));
        assert_eq!((plan.layers(), plan.floats()), (3, 2));
    }
}
