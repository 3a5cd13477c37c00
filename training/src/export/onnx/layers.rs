//! The layers that graphs are made of.

use std::borrow::Cow;

use half::f16;

use crate::weights::{Activation, Conv, Linear, Norm};

use super::graph::{Attr, Axis, Graph, Type, Value};
use super::quantise::{self, Range};
use super::{Format, TAP};

/// Adds layers to a graph. What a precision means is decided here:
///
/// - `f16`: matrix products, convolutions and MLP activations in float16. Norms, softmax, positions and the residual
///   stream stay in float32.
/// - `int8`: matrix products with a weight in 8 bits, see [`quantise`]. Everything else in float32.
pub(super) struct Layers<'a> {
    pub(super) graph: Graph<'a>,
    format: Format<'a>,
    /// Every how many tokens what a layer reads is given as an output of its own; 0 for none.
    taps: usize,
    /// See [`Layers::one`].
    one: Option<Value>,
}

/// A factor of the first outputs of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    pub(super) outputs: usize,
    pub(super) factor: f32,
}

impl Scale {
    /// Leaves all outputs as they are.
    pub(super) const NONE: Self = Self { outputs: 0, factor: 1.0 };

    /// Multiplies what belongs to these outputs, one number for each output.
    pub(super) fn apply(self, numbers: &mut [f32]) {
        numbers.iter_mut().take(self.outputs).for_each(|number| *number *= self.factor);
    }
}

impl<'a> Layers<'a> {
    pub(super) fn new(format: Format<'a>, taps: usize) -> Self {
        Self { graph: Graph::default(), format, taps, one: None }
    }

    fn is_half(&self) -> bool {
        matches!(self.format, Format::F16)
    }

    /// From float32 to the type of matrix products.
    pub(super) fn narrow(&mut self, x: Value) -> Value {
        if self.is_half() { self.graph.cast(x, Type::Float16) } else { x }
    }

    /// From the type of matrix products to float32.
    pub(super) fn widen(&mut self, x: Value) -> Value {
        if self.is_half() { self.graph.cast(x, Type::Float) } else { x }
    }

    /// A number in the type of matrix products.
    fn number(&mut self, number: f32) -> Value {
        if self.is_half() { self.graph.half(number) } else { self.graph.scalar(number) }
    }

    /// A one `[1]` that a runtime finds out only while it runs, the same for all layers, from any `x` that is not empty.
    fn one(&mut self, x: Value) -> Value {
        let graph = &mut self.graph;
        *self.one.get_or_insert_with(|| {
            let shape = graph.op("Shape", &[x], &[]);
            let batch = graph.slice(shape, 0, 0, 1);
            let batch = graph.cast(batch, Type::Float);
            graph.div(batch, batch)
        })
    }

    /// A weight in the type of matrix products.
    fn weight(&mut self, name: &str, shape: &[usize], data: &'a [f32]) -> Value {
        self.made_weight(name, shape, move || Cow::Borrowed(data))
    }

    /// A weight in the type of matrix products, whose numbers are made when it is written.
    fn made_weight(&mut self, name: &str, shape: &[usize], make: impl Fn() -> Cow<'a, [f32]> + 'a) -> Value {
        if self.is_half() {
            let half = move || make().iter().flat_map(|number| f16::from_f32(*number).to_le_bytes()).collect();
            self.graph.made(name, (Type::Float16, 2), shape, half)
        } else {
            let single = move || make().iter().flat_map(|number| number.to_le_bytes()).collect();
            self.graph.made(name, (Type::Float, 4), shape, single)
        }
    }

    /// `x · Wᵀ + b`, narrow in and out.
    pub(super) fn linear(&mut self, name: &str, x: Value, linear: &'a Linear, range: Range) -> Value {
        self.scaled_linear(name, x, linear, range, Scale::NONE)
    }

    /// The same with some outputs multiplied by a factor.
    pub(super) fn scaled_linear(&mut self, name: &str, x: Value, linear: &'a Linear, range: Range, scale: Scale) -> Value {
        let (out, input) = (linear.weight.shape[0], linear.weight.shape[1]);
        let path = self.graph.path(name);
        if self.taps > 0 {
            let some = self.graph.every(x, 1, self.taps as i64);
            self.graph.output(some, &format!("{TAP}{path}"), &[Axis::Named("batch"), Axis::Named("some_tokens"), Axis::Fixed(input)]);
        }
        if let Format::Int8(plan) = self.format
            && !plan.is_float(&path)
        {
            let one = self.one(x);
            return quantise::linear(&mut self.graph, name, x, linear, scale, range, plan.factors(&path), one);
        }
        let transposed = move || {
            let mut columns = transposed(&linear.weight.data, out, input);
            for row in columns.chunks_exact_mut(out.max(1)) {
                scale.apply(row);
            }
            Cow::Owned(columns)
        };
        let weight = self.made_weight(&format!("{name}.weight"), &[input, out], transposed);
        let product = self.graph.matmul(x, weight);
        match &linear.bias {
            Some(bias) => {
                let scaled = move || {
                    let mut bias = bias.clone();
                    scale.apply(&mut bias);
                    Cow::Owned(bias)
                };
                let bias = self.made_weight(&format!("{name}.bias"), &[out], scaled);
                self.graph.add(product, bias)
            }
            None => product,
        }
    }

    /// Layer norm over the last axis, in float32.
    pub(super) fn norm(&mut self, name: &str, x: Value, norm: &'a Norm, eps: f32) -> Value {
        let graph = &mut self.graph;
        let weight = graph.floats(&format!("{name}.weight"), &[norm.weight.len()], &norm.weight);
        let bias = graph.floats(&format!("{name}.bias"), &[norm.bias.len()], &norm.bias);
        let attributes = [("axis", Attr::Int(-1)), ("epsilon", Attr::Float(eps))];
        self.graph.op("LayerNormalization", &[x, weight, bias], &attributes)
    }

    /// The convolution with kernel and stride `side`, wide in and out: `[B, 3, H, W]` → `[B, D, H / side, W / side]`.
    pub(super) fn patches(&mut self, pixels: Value, patch: &'a Linear, side: usize) -> Value {
        let pixels = self.narrow(pixels);
        let mut inputs = vec![pixels, self.weight("weight", &patch.weight.shape, &patch.weight.data)];
        if let Some(bias) = &patch.bias {
            inputs.push(self.weight("bias", &[bias.len()], bias));
        }
        let sides = Attr::Ints(vec![side as i64; 2]);
        let patches = self.graph.op("Conv", &inputs, &[("kernel_shape", sides.clone()), ("strides", sides)]);
        self.widen(patches)
    }

    /// A padded convolution, narrow in and out.
    pub(super) fn conv(&mut self, name: &str, x: Value, conv: &'a Conv) -> Value {
        let shape = &conv.kernel.weight.shape;
        let mut inputs = vec![x, self.weight(&format!("{name}.weight"), shape, &conv.kernel.weight.data)];
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
                let [root, one, half] = [std::f32::consts::SQRT_2, 1.0, 0.5].map(|number| self.number(number));
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
pub(super) fn transposed<T: Copy + Default>(data: &[T], rows: usize, columns: usize) -> Vec<T> {
    let mut result = vec![T::default(); data.len()];
    for (row, values) in data.chunks_exact(columns).enumerate() {
        for (column, value) in values.iter().enumerate() {
            result[column * rows + row] = *value;
        }
    }
    result
}

#[cfg(test)]
mod tests {
    #[test]
    fn transposed_matrices() {
        assert_eq!(super::transposed(&[1, 2, 3, 4, 5, 6], 2, 3), [1, 4, 2, 5, 3, 6]);
    }
}
