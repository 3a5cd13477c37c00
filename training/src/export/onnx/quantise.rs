//! Matrix products in 8 bits.
//!
//! Weights are signed, each output with the step of its own largest weight; activations are unsigned, each row (token)
//! with a step of its own, so that a token's result does not depend on the others. This is the pair of types that
//! processors multiply fastest. The values behind GELU, of which hardly any are negative, use the whole range. Channels of very
//! different strength are evened out before, see [`calibrate`](super::calibrate).

use ndarray::{Array2, ArrayView2, Axis};

use crate::weights::Linear;

use super::graph::{Attr, Graph, Type, Value};
use super::layers::{Scale, transposed};

/// GELU is never less than -0.17 (its minimum is -0.16997, at -0.7518).
const GELU_FLOOR: f32 = 0.17;

/// What is known of the activations that a layer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Range {
    /// Nothing: they are taken to lie around zero.
    Any,
    /// They come from GELU.
    Gelu,
}

/// `x · Wᵀ + b` of float32 `x`, with outputs multiplied as `scale` says. Each channel of `x` is divided by its factor, and its weights are
/// multiplied by it. `one` is a one that is no constant.
#[expect(clippy::too_many_arguments, reason = "all that a layer is")]
pub(super) fn linear<'w>(
    graph: &mut Graph<'w>,
    name: &str,
    x: Value,
    layer: &'w Linear,
    scale: Scale,
    range: Range,
    factors: Option<&'w [f32]>,
    one: Value,
) -> Value {
    let (out, input) = (layer.weight.shape[0], layer.weight.shape[1]);
    let quantise = move || match factors {
        Some(factors) => quantised(&scaled_columns(&layer.weight.data, factors), input),
        None => quantised(&layer.weight.data, input),
    };
    let (integers, mut steps) = quantise();
    let mut bias = layer.bias.clone();
    if range == Range::Gelu {
        // The floor is added to every activation below and taken from every product here.
        let floor = |channel: usize| GELU_FLOOR / factors.map_or(1.0, |factors| factors[channel]);
        let sum = |row: &[i8]| row.iter().enumerate().map(|(channel, weight)| f32::from(*weight) * floor(channel)).sum::<f32>();
        let shifts = integers.chunks_exact(input).zip(&steps).map(|(row, step)| step * sum(row));
        bias = Some(bias.unwrap_or_else(|| vec![0.0; out]).iter().zip(shifts).map(|(bias, shift)| bias - shift).collect());
    }
    drop(integers);
    scale.apply(&mut steps);
    if let Some(bias) = &mut bias {
        scale.apply(bias);
    }
    let make = move || transposed(&quantise().0, out, input).into_iter().map(i8::cast_unsigned).collect();
    let weight = graph.made(&format!("{name}.weight"), (Type::Int8, 1), &[input, out], make);
    let steps = graph.floats(&format!("{name}.steps"), &[out], &steps);

    let shape = graph.op("Shape", &[x], &[]);
    let mut rows = graph.reshape(x, &[-1, input as i64]);
    if range == Range::Gelu {
        let floor = graph.scalar(GELU_FLOOR);
        rows = graph.add(rows, floor);
    }
    if let Some(factors) = factors {
        let parts: Vec<_> = factors.iter().map(|factor| factor.recip()).collect();
        let parts = graph.floats(&format!("{name}.factors"), &[input], &parts);
        rows = graph.mul(rows, parts);
    }
    let (bytes, step, centre) = quantised_rows(graph, rows, range);
    let sums = graph.op("MatMulInteger", &[bytes, weight, centre], &[]);
    let sums = graph.cast(sums, Type::Float);
    // ONNX Runtime scales products while it writes them where the factor is itself a product, of the steps of both sides. Each row has
    // a step of its own, which that operator does not take: it gets a one, and the rows are scaled behind it.
    let steps = graph.mul(one, steps);
    let product = graph.mul(sums, steps);
    let mut product = graph.mul(product, step);
    if let Some(bias) = bias {
        let bias = graph.floats(&format!("{name}.bias"), &[out], &bias);
        product = graph.add(product, bias);
    }
    let head = graph.slice(shape, 0, 0, -1);
    let width = graph.integers(&[out as i64]);
    let shape = graph.concat(&[head, width], 0);
    graph.op("Reshape", &[product, shape], &[])
}

/// Rows as unsigned bytes, the step of each row, and the byte that stands for zero.
fn quantised_rows(graph: &mut Graph<'_>, rows: Value, range: Range) -> (Value, Value, Value) {
    let (sizes, count, centre) = match range {
        Range::Any => (graph.op("Abs", &[rows], &[]), 127.0, 128),
        Range::Gelu => (rows, 255.0, 0),
    };
    let attributes = [("axes", Attr::Ints(vec![1])), ("keepdims", Attr::Int(1))];
    let largest = graph.op("ReduceMax", &[sizes], &attributes);
    let (part, least) = (graph.scalar(1.0 / count), graph.scalar(f32::MIN_POSITIVE));
    let step = graph.mul(largest, part);
    // A row of zeros has any step but zero.
    let step = graph.op("Max", &[step, least], &[]);
    let quotients = graph.div(rows, step);
    // The operator could take a step for each row, but not every runtime can.
    let (one, centre) = (graph.scalar(1.0), graph.byte(centre));
    (graph.op("QuantizeLinear", &[quotients, one, centre], &[]), step, centre)
}

/// Each row as integers of -127..=127, and the value of one step.
fn quantised(data: &[f32], columns: usize) -> (Vec<i8>, Vec<f32>) {
    let mut integers = Vec::with_capacity(data.len());
    let mut steps = Vec::new();
    for row in data.chunks_exact(columns) {
        let largest = row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let step = (largest / 127.0).max(f32::MIN_POSITIVE);
        integers.extend(row.iter().map(|value| (value / step).round() as i8));
        steps.push(step);
    }
    (integers, steps)
}

/// What [`linear`] makes of rows `x` `[n, in]`, without its bias: the product of the rounded rows and weights `[n, out]`.
pub(super) fn product(x: ArrayView2<'_, f32>, layer: &Linear, range: Range, factors: &[f32]) -> Array2<f32> {
    let (out, input) = (layer.weight.shape[0], layer.weight.shape[1]);
    let floor = if range == Range::Gelu { GELU_FLOOR } else { 0.0 };
    let mut rows = x.to_owned();
    for mut row in rows.axis_iter_mut(Axis(0)) {
        row.iter_mut().zip(factors).for_each(|(value, factor)| *value = (*value + floor) / factor);
        let largest = row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let step = (largest / if range == Range::Gelu { 255.0 } else { 127.0 }).max(f32::MIN_POSITIVE);
        row.iter_mut().zip(factors).for_each(|(value, factor)| *value = (*value / step).round_ties_even() * step - floor / factor);
    }
    let (integers, steps) = quantised(&scaled_columns(&layer.weight.data, factors), input);
    let weights = integers.chunks_exact(input).zip(&steps).flat_map(|(row, step)| row.iter().map(move |weight| f32::from(*weight) * step));
    let weights = Array2::from_shape_vec((out, input), weights.collect()).expect("a matrix has its own number of elements");
    rows.dot(&weights.t())
}

/// A row-major matrix with each column multiplied by its factor.
pub(super) fn scaled_columns(data: &[f32], factors: &[f32]) -> Vec<f32> {
    data.chunks_exact(factors.len()).flat_map(|row| row.iter().zip(factors).map(|(value, factor)| value * factor)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantised_rows_are_within_half_a_step() {
        let data = [1.0, -0.3, 0.004, 0.0, 0.0, 0.0, -5.0, 2.0, 4.99];
        let (integers, steps) = quantised(&data, 3);
        for (index, (value, integer)) in data.iter().zip(integers).enumerate() {
            let step = steps[index / 3];
            assert!((value - f32::from(integer) * step).abs() <= step * 0.5001, "{value}");
        }
    }
}
