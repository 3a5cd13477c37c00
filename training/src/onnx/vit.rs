//! The graph of a vision transformer.

use crate::checkpoint::{Activation, Block, Mlp, Positions, Vit};

use super::graph::{Attr, Axis, Graph, Value};
use super::layers::Layers;
use super::positions::{self, Grid};

/// Builds the graph: `pixel_values` `[B, 3, H, W]` → `last_hidden_state`, `attention` and `keys` of the model folder.
pub(super) fn build(vit: &Vit, layers: &mut Layers) {
    let dim = vit.dim as i64;
    let graph = &mut layers.graph;
    let axes = ["batch", "height", "width"].map(Axis::Named);
    let pixels = graph.input("pixel_values", &[axes[0], Axis::Fixed(3), axes[1], axes[2]]);

    graph.enter("patch_embed");
    // [B, D, rows, columns]
    let patches = layers.patches(pixels, &vit.patch, vit.patch_size);
    let graph = &mut layers.graph;
    let shape = graph.op("Shape", &[patches], &[]);
    let batch = graph.slice(shape, 0, 0, 1);
    let grid = Grid { rows: graph.slice(shape, 0, 2, 3), columns: graph.slice(shape, 0, 3, 4) };
    // [B, patches, D]
    let patches = graph.reshape(patches, &[0, dim, -1]);
    let patches = graph.transpose(patches, &[0, 2, 1]);

    graph.enter("positions");
    let (patches, rotation) = match &vit.positions {
        Positions::Learned { table, interpolation } => {
            let table = positions::learned(graph, grid, table, *interpolation);
            (graph.add(patches, table), None)
        }
        Positions::Rotary { periods } => (patches, Some(positions::rotary(graph, grid, periods, 1 + vit.registers()))),
    };
    graph.enter("prefix");
    let prefix = graph.floats("tokens", &[1, vit.prefix.shape[0], vit.dim], &vit.prefix.data);
    let rest = graph.integers(&[1, 1]);
    let shape = graph.concat(&[batch, rest], 0);
    let prefix = graph.op("Expand", &[prefix, shape], &[]);
    let mut tokens = graph.concat(&[prefix, patches], 1);

    let mut last = None;
    for (index, block) in vit.blocks.iter().enumerate() {
        let (next, seen) = self::block(layers, vit, block, tokens, rotation, index);
        tokens = next;
        last = Some(seen);
    }
    layers.graph.enter("norm");
    let tokens = layers.norm(tokens, &vit.norm, vit.eps);
    let graph = &mut layers.graph;
    graph.output(tokens, "last_hidden_state", &[axes[0], Axis::Named("tokens"), Axis::Fixed(vit.dim)]);
    if let Some(seen) = last {
        graph.enter("last_block");
        let cls = graph.index(0);
        let attention = graph.op("Gather", &[seen.attention, cls], &[("axis", Attr::Int(2))]);
        graph.output(attention, "attention", &[axes[0], Axis::Fixed(vit.heads), Axis::Named("tokens")]);
        let keys = graph.slice(seen.keys, 1, vit.prefix.shape[0] as i64, i64::MAX);
        graph.output(keys, "keys", &[axes[0], Axis::Named("patches"), Axis::Fixed(vit.dim)]);
    }
}

/// What a block lets one see, in float32.
struct Seen {
    /// After softmax, `[B, heads, T, T]`.
    attention: Value,
    /// Before rotary positions, `[B, T, D]`.
    keys: Value,
}

fn block(layers: &mut Layers, vit: &Vit, block: &Block, tokens: Value, rotation: Option<[Value; 2]>, index: usize) -> (Value, Seen) {
    let (dim, heads) = (vit.dim as i64, vit.heads as i64);
    let head_dim = dim / heads;
    layers.graph.enter(format!("blocks.{index}.norm1"));
    let normed = layers.norm(tokens, &block.norm1, vit.eps);

    layers.graph.enter(format!("blocks.{index}.attn"));
    // The factor 1/√head_dim of the scores goes into the queries' weights.
    let mut qkv = block.qkv.clone();
    let mut factors = vec![1.0; 3 * vit.dim];
    factors[..vit.dim].fill((head_dim as f32).sqrt().recip());
    qkv.scale_outputs(&factors);
    let qkv = layers.linear("qkv", normed, &qkv);
    let graph = &mut layers.graph;
    let parts = graph.split(qkv, -1, &[dim; 3]);
    let keys = parts[1];
    let [mut query, mut key, value] = [parts[0], parts[1], parts[2]]
        .map(|part| {
            let part = graph.reshape(part, &[0, 0, heads, head_dim]);
            (part, [0, 2, 1, 3])
        })
        .map(|(part, axes)| graph.transpose(part, &axes));
    if let Some(rotation) = rotation {
        [query, key] = [query, key].map(|part| rotate(graph, part, rotation, head_dim));
    }
    let key = graph.transpose(key, &[0, 1, 3, 2]);
    let scores = graph.matmul(query, key);
    let attention = graph.op("Softmax", &[scores], &[("axis", Attr::Int(-1))]);
    let mixed = graph.matmul(attention, value);
    let mixed = graph.transpose(mixed, &[0, 2, 1, 3]);
    let mixed = graph.reshape(mixed, &[0, 0, dim]);
    let mixed = layers.linear("proj", mixed, &block.proj);
    let tokens = layers.graph.add(tokens, mixed);

    layers.graph.enter(format!("blocks.{index}.norm2"));
    let normed = layers.norm(tokens, &block.norm2, vit.eps);
    layers.graph.enter(format!("blocks.{index}.mlp"));
    let hidden = match &block.mlp {
        Mlp::Plain { input, output } => {
            let hidden = layers.linear("input", normed, input);
            let hidden = layers.activation(hidden, Activation::Gelu);
            layers.linear("output", hidden, output)
        }
        Mlp::Gated { input, activation, output } => {
            let width = output.weight.shape[1] as i64;
            let both = layers.linear("input", normed, input);
            let parts = layers.graph.split(both, -1, &[width, width]);
            let gate = layers.activation(parts[0], *activation);
            let hidden = layers.graph.mul(gate, parts[1]);
            layers.linear("output", hidden, output)
        }
    };
    (layers.graph.add(tokens, hidden), Seen { attention, keys })
}

/// Rotary positions: `x · cos + swap(x) · sin`.
fn rotate(graph: &mut Graph, x: Value, [cos, sin]: [Value; 2], head_dim: i64) -> Value {
    let halves = graph.split(x, -1, &[head_dim / 2; 2]);
    let swapped = graph.concat(&[halves[1], halves[0]], -1);
    let straight = graph.mul(x, cos);
    let crossed = graph.mul(swapped, sin);
    graph.add(straight, crossed)
}
