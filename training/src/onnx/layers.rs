//! The layers that graphs are made of.

use crate::checkpoint::{Activation, Conv, Linear, Norm};

use super::graph::{Attr, Graph, Value};

/// Adds layers to a graph.
#[derive(Default)]
pub(super) struct Layers {
    pub(super) graph: Graph,
}

impl Layers {
    /// `x · Wᵀ + b`.
    pub(super) fn linear(&mut self, name: &str, x: Value, linear: &Linear) -> Value {
        let (out, input) = (linear.weight.shape[0], linear.weight.shape[1]);
        let transposed = transposed(&linear.weight.data, out, input);
        let weight = self.graph.floats(&format!("{name}.weight"), &[input, out], &transposed);
        let product = self.graph.matmul(x, weight);
        match &linear.bias {
            Some(bias) => {
                let bias = self.graph.floats(&format!("{name}.bias"), &[out], bias);
                self.graph.add(product, bias)
            }
            None => product,
        }
    }

    /// Layer norm over the last axis.
    pub(super) fn norm(&mut self, x: Value, norm: &Norm, eps: f32) -> Value {
        let weight = self.graph.floats("weight", &[norm.weight.len()], &norm.weight);
        let bias = self.graph.floats("bias", &[norm.bias.len()], &norm.bias);
        let attributes = [("axis", Attr::Int(-1)), ("epsilon", Attr::Float(eps))];
        self.graph.op("LayerNormalization", &[x, weight, bias], &attributes)
    }

    /// The convolution with kernel and stride `side`: `[B, 3, H, W]` → `[B, D, H / side, W / side]`.
    pub(super) fn patches(&mut self, pixels: Value, patch: &Linear, side: usize) -> Value {
        let weight = self.graph.floats("weight", &patch.weight.shape, &patch.weight.data);
        let sides = Attr::Ints(vec![side as i64; 2]);
        let attributes = [("kernel_shape", sides.clone()), ("strides", sides)];
        match &patch.bias {
            Some(bias) => {
                let bias = self.graph.floats("bias", &[bias.len()], bias);
                self.graph.op("Conv", &[pixels, weight, bias], &attributes)
            }
            None => self.graph.op("Conv", &[pixels, weight], &attributes),
        }
    }

    /// A padded convolution.
    pub(super) fn conv(&mut self, name: &str, x: Value, conv: &Conv) -> Value {
        let shape = &conv.kernel.weight.shape;
        let weight = self.graph.floats(&format!("{name}.weight"), shape, &conv.kernel.weight.data);
        let mut inputs = vec![x, weight];
        if let Some(bias) = &conv.kernel.bias {
            inputs.push(self.graph.floats(&format!("{name}.bias"), &[bias.len()], bias));
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

    /// GELU is written in the form that runtimes fuse: `0.5 · (x · (erf(x / √2) + 1))`.
    pub(super) fn activation(&mut self, x: Value, activation: Activation) -> Value {
        let graph = &mut self.graph;
        match activation {
            Activation::Gelu => {
                let [root, one, half] = [std::f32::consts::SQRT_2, 1.0, 0.5].map(|number| graph.scalar(number));
                let scaled = graph.div(x, root);
                let erf = graph.op("Erf", &[scaled], &[]);
                let sum = graph.add(erf, one);
                let product = graph.mul(x, sum);
                graph.mul(product, half)
            }
            Activation::Silu => {
                let gate = graph.op("Sigmoid", &[x], &[]);
                graph.mul(x, gate)
            }
        }
    }
}

/// A row-major `[rows, columns]` matrix as `[columns, rows]`.
fn transposed(data: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut result = vec![0.0; data.len()];
    for (row, values) in data.chunks_exact(columns).enumerate() {
        for (column, value) in values.iter().enumerate() {
            result[column * rows + row] = *value;
        }
    }
    result
}
