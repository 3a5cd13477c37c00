//! The graph of a `ConvNeXt`.

use crate::weights::{Activation, Convnext, ConvnextBlock, Norm};

use super::graph::{Axis, Value};
use super::layers::Layers;
use super::quantise::Range;

/// Builds the graph: `pixel_values` `[B, 3, H, W]` → `embedding` `[B, D]`, the norm of the cells' mean, and `feature_map` `[B, D, h, w]`,
/// the norm of each cell. Those are the CLS token and the patch tokens of the release.
pub(super) fn build<'w>(convnext: &'w Convnext, layers: &mut Layers<'w>, size: Option<(usize, usize)>) {
    let axes = ["batch", "rows", "columns"].map(Axis::Named);
    let eps = convnext.eps;
    let mut x = layers.graph.input("pixel_values", &super::input_axes(size));
    for (index, stage) in convnext.stages.iter().enumerate() {
        layers.graph.enter(format!("stages.{index}.downsample"));
        let side = stage.downsample.weight.shape[2];
        if index > 0 {
            x = norm_of_cells(layers, x, &stage.norm, eps);
        }
        x = layers.patches(x, &stage.downsample, side);
        if index == 0 {
            x = norm_of_cells(layers, x, &stage.norm, eps);
        }
        for (number, block) in stage.blocks.iter().enumerate() {
            layers.graph.enter(format!("stages.{index}.{number}"));
            x = self::block(layers, block, x, eps);
        }
    }
    layers.graph.enter("");
    let dim = Axis::Fixed(convnext.dim());
    let pooled = layers.graph.op("GlobalAveragePool", &[x], &[]);
    let pooled = layers.graph.reshape(pooled, &[0, -1]);
    let embedding = layers.norm("norm", pooled, &convnext.norm, eps);
    layers.graph.output(embedding, "embedding", &[axes[0], dim]);
    let map = norm_of_cells(layers, x, &convnext.norm, eps);
    layers.graph.output(map, "feature_map", &[axes[0], dim, axes[1], axes[2]]);
}

/// The norm over the channels of `[B, C, h, w]`.
fn norm_of_cells<'w>(layers: &mut Layers<'w>, x: Value, norm: &'w Norm, eps: f32) -> Value {
    let x = layers.graph.transpose(x, &[0, 2, 3, 1]);
    let x = layers.norm("norm", x, norm, eps);
    layers.graph.transpose(x, &[0, 3, 1, 2])
}

fn block<'w>(layers: &mut Layers<'w>, block: &'w ConvnextBlock, input: Value, eps: f32) -> Value {
    let x = layers.narrow(input);
    let x = layers.conv("depthwise", x, &block.depthwise);
    let x = layers.widen(x);
    // [B, h, w, C]
    let x = layers.graph.transpose(x, &[0, 2, 3, 1]);
    let x = layers.norm("norm", x, &block.norm, eps);
    let x = layers.narrow(x);
    let x = layers.linear("mlp.input", x, &block.input, Range::Any);
    let x = layers.activation(x, Activation::Gelu);
    let x = layers.linear("mlp.output", x, &block.output, Range::Gelu);
    let x = layers.widen(x);
    let x = layers.graph.transpose(x, &[0, 3, 1, 2]);
    layers.graph.add(input, x)
}
