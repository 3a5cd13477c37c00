//! The layers that graphs are made of.

use dino_server::model::Precision;
use half::f16;

use crate::checkpoint::{Activation, Conv, Linear, Norm};

use super::graph::{Attr, Graph, Type, Value};

/// Adds layers to a graph. What a precision means is decided here:
///
/// - `f16`: matrix products, convolutions and MLP activations in float16. Norms, softmax, positions and the residual
///   stream stay in float32.
/// - `int8`: matrix products with a weight in 8 bits, activations scaled row by row, so that a token's result does not
///   depend on the others. Everything else in float32.
pub(super) struct Layers {
    pub(super) graph: Graph,
    precision: Precision,
}

impl Layers {
    pub(super) fn new(precision: Precision) -> Self {
        Self {
            graph: Graph::default(),
            precision,
        }
    }

    /// From float32 to the type of matrix products.
    pub(super) fn narrow(&mut self, x: Value) -> Value {
        if self.precision == Precision::F16 {
            self.graph.cast(x, Type::Float16)
        } else {
            x
        }
    }

    /// From the type of matrix products to float32.
    pub(super) fn widen(&mut self, x: Value) -> Value {
        if self.precision == Precision::F16 {
            self.graph.cast(x, Type::Float)
        } else {
            x
        }
    }

    /// A number in the type of matrix products.
    fn number(&mut self, number: f32) -> Value {
        if self.precision == Precision::F16 {
            self.graph.half(number)
        } else {
            self.graph.scalar(number)
        }
    }

    /// A weight in the type of matrix products.
    fn weight(&mut self, name: &str, shape: &[usize], data: &[f32]) -> Value {
        if self.precision == Precision::F16 {
            let bytes = data
                .iter()
                .flat_map(|number| f16::from_f32(*number).to_le_bytes())
                .collect();
            self.graph.constant(name, Type::Float16, shape, bytes)
        } else {
            self.graph.floats(name, shape, data)
        }
    }

    /// `x · Wᵀ + b`, narrow in and out.
    pub(super) fn linear(&mut self, name: &str, x: Value, linear: &Linear) -> Value {
        let (out, input) = (linear.weight.shape[0], linear.weight.shape[1]);
        let product = if self.precision == Precision::Int8 {
            self.quantised_product(name, x, &linear.weight.data, out, input)
        } else {
            let transposed = transposed(&linear.weight.data, out, input);
            let weight = self.weight(&format!("{name}.weight"), &[input, out], &transposed);
            self.graph.matmul(x, weight)
        };
        match &linear.bias {
            Some(bias) => {
                let bias = self.weight(&format!("{name}.bias"), &[out], bias);
                self.graph.add(product, bias)
            }
            None => product,
        }
    }

    /// `x · Wᵀ` in 8 bits: rows of `x` (tokens) as unsigned around 128, outputs of W as signed, each with the scale of
    /// its own largest value. This is the pair of types that processors multiply fastest.
    fn quantised_product(
        &mut self,
        name: &str,
        x: Value,
        weight: &[f32],
        out: usize,
        input: usize,
    ) -> Value {
        let (weight, scales) = quantised(weight, input);
        let weight = transposed(&weight, out, input)
            .into_iter()
            .map(i8::cast_unsigned)
            .collect();
        let graph = &mut self.graph;
        let weight = graph.constant(&format!("{name}.weight"), Type::Int8, &[input, out], weight);
        let scales = graph.floats(&format!("{name}.scales"), &[out], &scales);
        let shape = graph.op("Shape", &[x], &[]);
        let rows = graph.reshape(x, &[-1, input as i64]);

        let sizes = graph.op("Abs", &[rows], &[]);
        let attributes = [("axes", Attr::Ints(vec![1])), ("keepdims", Attr::Int(1))];
        let largest = graph.op("ReduceMax", &[sizes], &attributes);
        let (steps, least) = (graph.scalar(1.0 / 127.0), graph.scalar(f32::MIN_POSITIVE));
        let scale = graph.mul(largest, steps);
        // A row of zeros has any scale but zero.
        let scale = graph.op("Max", &[scale, least], &[]);
        let quotients = graph.div(rows, scale);
        // Quantised with the scale 1, which needs no scale per row: not every runtime has that.
        let (one, centre) = (graph.scalar(1.0), graph.byte(128));
        let bytes = graph.op("QuantizeLinear", &[quotients, one, centre], &[]);

        let sums = graph.op("MatMulInteger", &[bytes, weight, centre], &[]);
        let sums = graph.cast(sums, Type::Float);
        let product = graph.mul(sums, scales);
        let product = graph.mul(product, scale);
        let head = graph.slice(shape, 0, 0, -1);
        let width = graph.integers(&[out as i64]);
        let shape = graph.concat(&[head, width], 0);
        graph.op("Reshape", &[product, shape], &[])
    }

    /// Layer norm over the last axis.
    pub(super) fn norm(&mut self, x: Value, norm: &Norm, eps: f32) -> Value {
        let weight = self
            .graph
            .floats("weight", &[norm.weight.len()], &norm.weight);
        let bias = self.graph.floats("bias", &[norm.bias.len()], &norm.bias);
        let attributes = [("axis", Attr::Int(-1)), ("epsilon", Attr::Float(eps))];
        self.graph
            .op("LayerNormalization", &[x, weight, bias], &attributes)
    }

    /// The convolution with kernel and stride `side`, wide in and out: `[B, 3, H, W]` → `[B, D, H / side, W / side]`.
    pub(super) fn patches(&mut self, pixels: Value, patch: &Linear, side: usize) -> Value {
        let pixels = self.narrow(pixels);
        let mut inputs = vec![
            pixels,
            self.weight("weight", &patch.weight.shape, &patch.weight.data),
        ];
        if let Some(bias) = &patch.bias {
            inputs.push(self.weight("bias", &[bias.len()], bias));
        }
        let sides = Attr::Ints(vec![side as i64; 2]);
        let patches = self.graph.op(
            "Conv",
            &inputs,
            &[("kernel_shape", sides.clone()), ("strides", sides)],
        );
        self.widen(patches)
    }

    /// A padded convolution, narrow in and out.
    pub(super) fn conv(&mut self, name: &str, x: Value, conv: &Conv) -> Value {
        let shape = &conv.kernel.weight.shape;
        let mut inputs = vec![
            x,
            self.weight(&format!("{name}.weight"), shape, &conv.kernel.weight.data),
        ];
        if let Some(bias) = &conv.kernel.bias {
            inputs.push(self.weight(&format!("{name}.bias"), &[bias.len()], bias));
        }
        let side = shape[2] as i64;
        let attributes = [
            ("kernel_shape", Attr::Ints(vec![side; 2])),
            ("strides", Attr::Ints(vec![conv.stride as i64; 2])),
            ("pads", Attr::Ints(vec![(side - 1) / 2; 4])),
            ("group", Attr::Int(conv.groups as i64)),
        ];
        self.graph.op("Conv", &inputs, &attributes)
    }

    /// An activation, narrow in and out. GELU is written in the form that runtimes fuse:
    /// `0.5 · (x · (erf(x / √2) + 1))`.
    pub(super) fn activation(&mut self, x: Value, activation: Activation) -> Value {
        match activation {
            Activation::Gelu => {
                let [root, one, half] =
                    [std::f32::consts::SQRT_2, 1.0, 0.5].map(|number| self.number(number));
                let graph = &mut self.graph;
                let scaled = graph.div(x, root);
                let erf = graph.op("Erf", &[scaled], &[]);
                let sum = graph.add(erf, one);
                let product = graph.mul(x, sum);
                graph.mul(product, half)
            }
            Activation::Silu => {
                let gate = self.graph.op("Sigmoid", &[x], &[]);
                self.graph.mul(x, gate)
            }
        }
    }
}

/// A row-major `[rows, columns]` matrix as `[columns, rows]`.
fn transposed<T: Copy + Default>(data: &[T], rows: usize, columns: usize) -> Vec<T> {
    let mut result = vec![T::default(); data.len()];
    for (row, values) in data.chunks_exact(columns).enumerate() {
        for (column, value) in values.iter().enumerate() {
            result[column * rows + row] = *value;
        }
    }
    result
}

/// Each row as integers of -127..=127, and the value of one step.
fn quantised(data: &[f32], columns: usize) -> (Vec<i8>, Vec<f32>) {
    let mut integers = Vec::with_capacity(data.len());
    let mut steps = Vec::new();
    for row in data.chunks_exact(columns) {
        let largest = row
            .iter()
            .fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let step = (largest / 127.0).max(f32::MIN_POSITIVE);
        integers.extend(row.iter().map(|value| (value / step).round() as i8));
        steps.push(step);
    }
    (integers, steps)
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
            assert!(
                (value - f32::from(integer) * step).abs() <= step * 0.5001,
                "{value}"
            );
        }
        assert_eq!(transposed(&[1, 2, 3, 4, 5, 6], 2, 3), [1, 4, 2, 5, 3, 6]);
    }
}
