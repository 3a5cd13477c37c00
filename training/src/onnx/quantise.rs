//! Matrix products in 8 bits.
//!
//! Weights are signed, each output with the step of its own largest weight; activations are unsigned, each row (token)
//! with a step of its own, so that a token's result does not depend on the others. This is the pair of types that
//! processors multiply fastest. Two things are done for precision that cost nothing when the model runs: channels of
//! very different strength are evened out between a norm and the layer behind it, and the values behind GELU, of which
//! hardly any are negative, use the whole range.

use crate::checkpoint::{Linear, Norm};

use super::graph::{Attr, Graph, Type, Value};
use super::layers::transposed;

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

/// Moves strength of single channels from what a norm puts out into the weights that read it (as `SmoothQuant` does,
/// arXiv:2211.10438, equation 4 with α = 0.5). A channel's strength is taken from the norm itself: behind it, a channel
/// lies within its shift plus or minus three times its scale, whatever the pictures. The product of both stays what it is.
pub(super) fn even_out(norm: &mut Norm, layer: &mut Linear) {
    let channels = norm.weight.len();
    let strengths = norm.weight.iter().zip(&norm.bias).map(|(scale, shift)| (3.0 * scale).hypot(*shift));
    let mut largest = vec![0.0_f32; channels];
    for row in layer.weight.data.chunks_exact(channels) {
        for (largest, weight) in largest.iter_mut().zip(row) {
            *largest = largest.max(weight.abs());
        }
    }
    let usable = |number: f32| number.max(1e-5);
    let factors: Vec<f32> = strengths.zip(&largest).map(|(strength, largest)| (usable(strength) / usable(*largest)).sqrt()).collect();
    for (channel, factor) in factors.iter().enumerate() {
        norm.weight[channel] /= factor;
        norm.bias[channel] /= factor;
    }
    for row in layer.weight.data.chunks_exact_mut(channels) {
        for (weight, factor) in row.iter_mut().zip(&factors) {
            *weight *= factor;
        }
    }
}

/// `x · Wᵀ + b` of float32 `x`.
pub(super) fn linear(graph: &mut Graph, name: &str, x: Value, layer: &Linear, range: Range) -> Value {
    let (out, input) = (layer.weight.shape[0], layer.weight.shape[1]);
    let (integers, steps) = quantised(&layer.weight.data, input);
    let mut bias = layer.bias.clone();
    if range == Range::Gelu {
        // The floor is added to every activation below and taken from every product here.
        let rows = integers.chunks_exact(input).zip(&steps);
        let shifts = rows.map(|(row, step)| GELU_FLOOR * step * row.iter().map(|weight| f32::from(*weight)).sum::<f32>());
        bias = Some(bias.unwrap_or_else(|| vec![0.0; out]).iter().zip(shifts).map(|(bias, shift)| bias - shift).collect());
    }
    let integers = transposed(&integers, out, input).into_iter().map(i8::cast_unsigned).collect();
    let weight = graph.constant(&format!("{name}.weight"), Type::Int8, &[input, out], integers);
    let steps = graph.floats(&format!("{name}.steps"), &[out], &steps);

    let shape = graph.op("Shape", &[x], &[]);
    let rows = graph.reshape(x, &[-1, input as i64]);
    let (bytes, step, centre) = quantised_rows(graph, rows, range);
    let sums = graph.op("MatMulInteger", &[bytes, weight, centre], &[]);
    let sums = graph.cast(sums, Type::Float);
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
fn quantised_rows(graph: &mut Graph, rows: Value, range: Range) -> (Value, Value, Value) {
    let (rows, sizes, count, centre) = match range {
        Range::Any => (rows, graph.op("Abs", &[rows], &[]), 127.0, 128),
        Range::Gelu => {
            let floor = graph.scalar(GELU_FLOOR);
            let rows = graph.add(rows, floor);
            (rows, rows, 255.0, 0)
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Tensor;

    #[test]
    fn quantised_rows_are_within_half_a_step() {
        let data = [1.0, -0.3, 0.004, 0.0, 0.0, 0.0, -5.0, 2.0, 4.99];
        let (integers, steps) = quantised(&data, 3);
        for (index, (value, integer)) in data.iter().zip(integers).enumerate() {
            let step = steps[index / 3];
            assert!((value - f32::from(integer) * step).abs() <= step * 0.5001, "{value}");
        }
    }

    #[test]
    fn evening_out_keeps_the_product_and_shrinks_the_strong_channel() {
        let mut norm = Norm { weight: vec![1.0, 40.0], bias: vec![0.5, -1.0] };
        let weight = Tensor { shape: vec![2, 2], data: vec![0.3, 0.1, -0.2, 0.4] };
        let mut layer = Linear { weight, bias: None };
        let product = |norm: &Norm, layer: &Linear| {
            let x = [0.7 * norm.weight[0] + norm.bias[0], -0.3 * norm.weight[1] + norm.bias[1]];
            layer.weight.data.chunks(2).map(|row| row[0] * x[0] + row[1] * x[1]).collect::<Vec<_>>()
        };
        let before = product(&norm, &layer);
        even_out(&mut norm, &mut layer);
        assert!(norm.weight[1] / norm.weight[0] < 10.0);
        for (before, after) in before.iter().zip(product(&norm, &layer)) {
            assert!((before - after).abs() < 1e-5, "{before} {after}");
        }
    }
}
