//! The graph of a residual network.

use crate::weights::{Resnet, Unit};

use super::graph::{Attr, Axis, Value};
use super::layers::Layers;

/// Builds the graph: `pixel_values` `[B, 3, H, W]` → `embedding` `[B, D]` and `feature_map` `[B, D, h, w]`.
pub(super) fn build<'w>(resnet: &'w Resnet, layers: &mut Layers<'w>, size: Option<(usize, usize)>) {
    let axes = ["batch", "rows", "columns"].map(Axis::Named);
    let pixels = layers.graph.input("pixel_values", &super::input_axes(size));
    layers.graph.enter("stem");
    let pixels = layers.narrow(pixels);
    let x = layers.conv("conv", pixels, &resnet.stem);
    let x = layers.graph.op("Relu", &[x], &[]);
    let attributes = [("kernel_shape", Attr::Ints(vec![3, 3])), ("strides", Attr::Ints(vec![2, 2])), ("pads", Attr::Ints(vec![1; 4]))];
    let mut x = layers.graph.op("MaxPool", &[x], &attributes);
    for (stage, units) in resnet.stages.iter().enumerate() {
        for (index, unit) in units.iter().enumerate() {
            layers.graph.enter(format!("layer{}.{index}", stage + 1));
            x = self::unit(layers, unit, x);
        }
    }
    layers.graph.enter("pool");
    let x = layers.widen(x);
    let graph = &mut layers.graph;
    let pooled = graph.op("GlobalAveragePool", &[x], &[]);
    let embedding = graph.reshape(pooled, &[0, -1]);
    graph.output(embedding, "embedding", &[axes[0], Axis::Fixed(resnet.dim)]);
    graph.output(x, "feature_map", &[axes[0], Axis::Fixed(resnet.dim), axes[1], axes[2]]);
}

fn unit<'w>(layers: &mut Layers<'w>, unit: &'w Unit, input: Value) -> Value {
    let mut x = input;
    for (index, conv) in unit.convs.iter().enumerate() {
        if index > 0 {
            x = layers.graph.op("Relu", &[x], &[]);
        }
        x = layers.conv(&format!("conv{}", index + 1), x, conv);
    }
    let shortcut = match &unit.shortcut {
        Some(conv) => layers.conv("downsample", input, conv),
        None => input,
    };
    let sum = layers.graph.add(x, shortcut);
    layers.graph.op("Relu", &[sum], &[])
}
