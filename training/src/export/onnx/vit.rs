//! The graph of a vision transformer.

use crate::weights::{Activation, Block, Mlp, Positions, StemLevel, Vit};

use crate::export::whitening::Whitening;

use super::Extras;
use super::graph::{Attr, Axis, Graph, Value};
use super::layers::{Layers, Scale};
use super::positions::{self, Grid};
use super::quantise::Range;

/// Builds the graph: `pixel_values` `[B, 3, H, W]` → `last_hidden_state`, `attention`, `keys` of the model folder, and what `extras`
/// ask for.
pub(super) fn build<'w>(vit: &'w Vit, layers: &mut Layers<'w>, extras: &Extras) {
    let dim = vit.dim as i64;
    let graph = &mut layers.graph;
    let axes = super::input_axes(extras.size);
    let pixels = graph.input("pixel_values", &axes);

    graph.enter("patch_embed");
    // [B, D, rows, columns]
    let mut map = pixels;
    for (level, stem) in vit.stem.iter().enumerate() {
        map = stem_level(layers, level, map, stem, vit.eps);
    }
    let patches = layers.patches(map, &vit.patch, vit.patch.weight.shape[2]);
    let graph = &mut layers.graph;
    let shape = graph.op("Shape", &[patches], &[]);
    let batch = graph.slice(shape, 0, 0, 1);
    let grid = match extras.size {
        Some((height, width)) => Grid::Fixed { rows: height / vit.patch_size, columns: width / vit.patch_size },
        None => Grid::Free { rows: graph.slice(shape, 0, 2, 3), columns: graph.slice(shape, 0, 3, 4) },
    };
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

    let (mut last, mut summaries, mut hidden) = (None, Vec::new(), Vec::new());
    for (index, block) in vit.blocks.iter().enumerate() {
        layers.graph.enter(format!("blocks.{index}"));
        let (next, seen) = self::block(layers, vit, block, tokens, rotation);
        tokens = next;
        last = Some(seen);
        if index + extras.last_blocks >= vit.blocks.len() {
            summaries.push(layers.graph.slice(tokens, 1, 0, 1));
        }
        if extras.layers.contains(&(index + 1)) {
            hidden.push((index + 1, tokens));
        }
    }
    layers.graph.enter("");
    if !summaries.is_empty() {
        let count = summaries.len();
        let summaries = layers.graph.concat(&summaries, 1);
        let summaries = layers.norm("last_blocks.norm", summaries, &vit.norm, vit.eps);
        layers.graph.output(summaries, "last_blocks", &[axes[0], Axis::Fixed(count), Axis::Fixed(vit.dim)]);
    }
    for (number, tokens) in hidden {
        let name = format!("hidden_state_{number}");
        let tokens = layers.norm(&format!("{name}.norm"), tokens, &vit.norm, vit.eps);
        layers.graph.output(tokens, &name, &[axes[0], Axis::Named("tokens"), Axis::Fixed(vit.dim)]);
    }
    let mut tokens = layers.norm("norm", tokens, &vit.norm, vit.eps);
    if let Some(whitening) = &extras.whitening {
        tokens = whitened(&mut layers.graph, tokens, vit.prefix.shape[0], whitening);
    }
    let graph = &mut layers.graph;
    graph.output(tokens, "last_hidden_state", &[axes[0], Axis::Named("tokens"), Axis::Fixed(vit.dim)]);
    if let Some(seen) = last {
        graph.enter("last_block");
        let cls = graph.index(0);
        let attention = graph.op("Gather", &[seen.attention, cls], &[("axis", Attr::Int(2))]);
        graph.output(attention, "attention", &[axes[0], Axis::Fixed(vit.heads), Axis::Named("tokens")]);
        let keys = graph.slice(seen.keys, 1, vit.prefix.shape[0] as i64, i64::MAX);
        let keys = layers.widen(keys);
        let graph = &mut layers.graph;
        graph.output(keys, "keys", &[axes[0], Axis::Named("patches"), Axis::Fixed(vit.dim)]);
    }
}

/// Puts the whitened embedding in the place of CLS, before the other tokens `[B, T, D]`, of which `prefix` are no patches.
fn whitened(graph: &mut Graph<'_>, tokens: Value, prefix: usize, whitening: &Whitening) -> Value {
    graph.enter("whitening");
    let cls = graph.slice(tokens, 1, 0, 1);
    let patches = graph.slice(tokens, 1, prefix as i64, i64::MAX);
    let mean = graph.op("ReduceMean", &[patches], &[("axes", Attr::Ints(vec![1])), ("keepdims", Attr::Int(1))]);
    let [cls, mean] = [cls, mean].map(|part| {
        let length = graph.op("ReduceL2", &[part], &[("axes", Attr::Ints(vec![2])), ("keepdims", Attr::Int(1))]);
        let least = graph.scalar(f32::MIN_POSITIVE);
        let length = graph.op("Max", &[length, least], &[]);
        graph.div(part, length)
    });
    let both = graph.concat(&[cls, mean], 2);
    let standard = |array: ndarray::ArrayViewD<'_, f32>| array.iter().copied().collect::<Vec<f32>>();
    let matrix = graph.floats("matrix", whitening.matrix.shape(), &standard(whitening.matrix.view().into_dyn()));
    let bias = graph.floats("bias", &[whitening.bias.len()], &standard(whitening.bias.view().into_dyn()));
    let embedding = graph.matmul(both, matrix);
    let embedding = graph.add(embedding, bias);
    let others = graph.slice(tokens, 1, 1, i64::MAX);
    let tokens = graph.concat(&[embedding, others], 1);
    graph.enter("");
    tokens
}

/// A convolution of the stem, wide in and out; the norm reads channels last.
fn stem_level<'w>(layers: &mut Layers<'w>, level: usize, map: Value, stem: &'w StemLevel, eps: f32) -> Value {
    let map = layers.narrow(map);
    let map = layers.conv(&format!("stem.{level}"), map, &stem.convolution);
    let map = layers.widen(map);
    let map = layers.graph.transpose(map, &[0, 2, 3, 1]);
    let map = layers.norm(&format!("stem.{level}.norm"), map, &stem.norm, eps);
    let map = layers.narrow(map);
    let map = layers.activation(map, Activation::Gelu);
    let map = layers.widen(map);
    layers.graph.transpose(map, &[0, 3, 1, 2])
}

/// What a block lets one see.
struct Seen {
    /// After softmax, `[B, heads, T, T]`.
    attention: Value,
    /// Before rotary positions, narrow, `[B, T, D]`.
    keys: Value,
}

fn block<'w>(layers: &mut Layers<'w>, vit: &'w Vit, block: &'w Block, tokens: Value, rotation: Option<[Value; 2]>) -> (Value, Seen) {
    let (mixed, seen) = attention(layers, vit, block, tokens, rotation);
    let mixed = layers.widen(mixed);
    let tokens = layers.graph.add(tokens, mixed);
    let hidden = mlp(layers, vit, block, tokens);
    let hidden = layers.widen(hidden);
    (layers.graph.add(tokens, hidden), seen)
}

fn attention<'w>(layers: &mut Layers<'w>, vit: &'w Vit, block: &'w Block, tokens: Value, rotation: Option<[Value; 2]>) -> (Value, Seen) {
    let (dim, heads) = (vit.dim as i64, vit.heads as i64);
    let head_dim = dim / heads;
    // The factor 1/√head_dim of the scores goes into the queries' weights.
    let scale = Scale { outputs: vit.dim, factor: (head_dim as f32).sqrt().recip() };
    let tokens = layers.norm("norm1", tokens, &block.norm1, vit.eps);
    let tokens = layers.narrow(tokens);
    let qkv = layers.scaled_linear("attn.qkv", tokens, &block.qkv, Range::Any, scale);
    let graph = &mut layers.graph;
    let parts = graph.split(qkv, -1, &[dim; 3]);
    let keys = parts[1];
    // [B, heads, T, head_dim] each
    let [mut query, mut key, value] = [parts[0], parts[1], parts[2]].map(|part| {
        let part = graph.reshape(part, &[0, 0, heads, head_dim]);
        graph.transpose(part, &[0, 2, 1, 3])
    });
    if let Some(rotation) = rotation {
        [query, key] = [query, key].map(|part| {
            let part = layers.widen(part);
            let part = rotate(&mut layers.graph, part, rotation, head_dim);
            layers.narrow(part)
        });
    }
    let key = layers.graph.transpose(key, &[0, 1, 3, 2]);
    let scores = layers.graph.matmul(query, key);
    let scores = layers.widen(scores);
    let attention = layers.graph.op("Softmax", &[scores], &[("axis", Attr::Int(-1))]);
    let weights = layers.narrow(attention);
    let graph = &mut layers.graph;
    let mixed = graph.matmul(weights, value);
    let mixed = graph.transpose(mixed, &[0, 2, 1, 3]);
    let mixed = graph.reshape(mixed, &[0, 0, dim]);
    (layers.linear("attn.proj", mixed, &block.proj, Range::Any), Seen { attention, keys })
}

fn mlp<'w>(layers: &mut Layers<'w>, vit: &'w Vit, block: &'w Block, tokens: Value) -> Value {
    let (Mlp::Plain { input, output } | Mlp::Gated { input, output, .. }) = &block.mlp;
    let tokens = layers.norm("norm2", tokens, &block.norm2, vit.eps);
    let tokens = layers.narrow(tokens);
    let hidden = layers.linear("mlp.input", tokens, input, Range::Any);
    match &block.mlp {
        Mlp::Plain { .. } => {
            let hidden = layers.activation(hidden, Activation::Gelu);
            layers.linear("mlp.output", hidden, output, Range::Gelu)
        }
        Mlp::Gated { activation, .. } => {
            let width = output.weight.shape[1] as i64;
            let parts = layers.graph.split(hidden, -1, &[width, width]);
            let gate = layers.activation(parts[0], *activation);
            let hidden = layers.graph.mul(gate, parts[1]);
            layers.linear("mlp.output", hidden, output, Range::Any)
        }
    }
}

/// Rotary positions: `x · cos + swap(x) · sin`.
fn rotate(graph: &mut Graph<'_>, x: Value, [cos, sin]: [Value; 2], head_dim: i64) -> Value {
    let halves = graph.split(x, -1, &[head_dim / 2; 2]);
    let swapped = graph.concat(&[halves[1], halves[0]], -1);
    let straight = graph.mul(x, cos);
    let crossed = graph.mul(swapped, sin);
    graph.add(straight, crossed)
}
