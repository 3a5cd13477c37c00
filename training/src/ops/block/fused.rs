//! The block as one CPU operator with its backward pass.
//!
//! Each core runs whole sequences through the whole block, in chunks whose intermediate values stay in its own cache. Kept for
//! the backward pass are the packed q, k, v, the attention's output, the middle residual and the hidden layer before its activation;
//! normalised rows, attention weights and the activation's output are computed again. A block that recomputes keeps none of these, and the backward
//! pass runs the forward pass once more: the same sums in the same order.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::rotation::{Rotation, Turn};
use super::sequences::{Chunk, Sequences, Task};
use super::{Block, DropPath, Tokens};
use crate::kernels::matmul::{Accum, Precision, Weight, at_b};
use crate::kernels::{activation, attention, layer_norm, reduce, sized};
use crate::ops::{pool, slice, split_rows, sum_of_tasks, with_slice};

/// The parameters of a block as slices, or their gradients.
macro_rules! parts {
    ($name:ident, $slice:ty, $split:ident) => {
        struct $name<'a> {
            norm1_w: $slice,
            norm1_b: $slice,
            qkv_w: $slice,
            qkv_b: $slice,
            proj_w: $slice,
            proj_b: $slice,
            norm2_w: $slice,
            norm2_b: $slice,
            fc1_w: $slice,
            fc1_b: $slice,
            fc2_w: $slice,
            fc2_b: $slice,
        }

        impl<'a> $name<'a> {
            fn new(block: &Block, mut rest: $slice) -> Self {
                let mut lengths = block.lengths().into_iter();
                let mut next = || {
                    let (head, tail) = std::mem::take(&mut rest).$split(lengths.next().unwrap_or(0));
                    rest = tail;
                    head
                };
                Self {
                    norm1_w: next(),
                    norm1_b: next(),
                    qkv_w: next(),
                    qkv_b: next(),
                    proj_w: next(),
                    proj_b: next(),
                    norm2_w: next(),
                    norm2_b: next(),
                    fc1_w: next(),
                    fc1_b: next(),
                    fc2_w: next(),
                    fc2_b: next(),
                }
            }
        }
    };
}

parts!(Weights, &'a [f32], split_at);
parts!(Gradients, &'a mut [f32], split_at_mut);

/// The parameters, and the four weights made ready for one direction.
struct Products<'a> {
    weights: &'a Weights<'a>,
    qkv: Weight<'a>,
    proj: Weight<'a>,
    fc1: Weight<'a>,
    fc2: Weight<'a>,
}

impl<'a> Products<'a> {
    fn new(block: &Block, weights: &'a Weights<'a>, ready: fn(&'a [f32], usize, Precision) -> Weight<'a>) -> Self {
        let ready = |weight, k| ready(weight, k, block.precision);
        Self {
            weights,
            qkv: ready(weights.qkv_w, block.dim),
            proj: ready(weights.proj_w, block.dim),
            fc1: ready(weights.fc1_w, block.dim),
            fc2: ready(weights.fc2_w, block.hidden),
        }
    }
}

/// What the backward pass needs of the forward pass: `qkv` of all rows, the others of the rows that come out.
pub(super) struct Kept {
    qkv: Vec<f32>,
    attended: Vec<f32>,
    middle: Vec<f32>,
    hidden: Vec<f32>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        for buffer in [&mut self.qkv, &mut self.attended, &mut self.middle, &mut self.hidden] {
            pool::give_back(std::mem::take(buffer));
        }
    }
}

pub(super) struct Fused {
    pub(super) block: Block,
    pub(super) sequences: Sequences,
    /// Of each run of sequences; empty without rotary positions.
    pub(super) rotations: Vec<Rotation>,
    pub(super) drop: Option<DropPath>,
    pub(super) output: Tokens,
    pub(super) keep: bool,
    /// Filled by the forward pass, read by the backward pass: candle hands an operator its arguments and result only.
    pub(super) kept: Arc<Mutex<Option<Kept>>>,
}

/// One task's rows of every matrix.
struct Rows<'a> {
    qkv: &'a mut [f32],
    attended: &'a mut [f32],
    middle: &'a mut [f32],
    hidden: &'a mut [f32],
    out: &'a mut [f32],
}

impl Fused {
    /// The rows that come out, with `finish` alone, and what the backward pass needs, with `keep` alone.
    fn run(&self, x: &[f32], p: &[f32], keep: bool, finish: bool) -> (Vec<f32>, Kept) {
        let (dim, wide) = (self.block.dim, self.block.wide());
        let (rows, rows_out) = (self.sequences.rows(), self.sequences.rows_out(self.output));
        let weights = Weights::new(&self.block, p);
        let products = Products::new(&self.block, &weights, Weight::transposed);
        let tasks = self.tasks();
        let if_kept = |rows: usize| if keep { rows } else { 0 };
        let if_finished = |rows: usize| if finish { rows } else { 0 };
        let mut out = vec![0.0; if_finished(rows_out) * dim];
        let mut kept = Kept {
            qkv: pool::take(if_kept(rows) * 3 * dim),
            attended: pool::take(if_kept(rows_out) * dim),
            middle: pool::take(if_kept(rows_out) * dim),
            hidden: pool::take(if_kept(rows_out) * wide),
        };
        let chunks = Task::in_order(&tasks);
        let counts_out = || chunks.iter().map(|chunk| chunk.rows_out());
        let rows_of_chunks = split_rows(&mut out, dim, counts_out().map(if_finished))
            .into_iter()
            .zip(split_rows(&mut kept.qkv, 3 * dim, chunks.iter().map(|chunk| if_kept(chunk.rows()))))
            .zip(split_rows(&mut kept.attended, dim, counts_out().map(if_kept)))
            .zip(split_rows(&mut kept.middle, dim, counts_out().map(if_kept)))
            .zip(split_rows(&mut kept.hidden, wide, counts_out().map(if_kept)))
            .map(|((((out, qkv), attended), middle), hidden)| Rows { qkv, attended, middle, hidden, out });
        Task::deal(&tasks, rows_of_chunks).into_par_iter().zip(&tasks).for_each(|(rows_of_chunks, task)| {
            let mut scratch = ForwardScratch::default();
            let mut spare: [Vec<f32>; 4] = Default::default();
            for (mut rows, chunk) in rows_of_chunks.into_iter().zip(&task.chunks) {
                let (n, m) = (chunk.rows(), chunk.rows_out());
                if !keep {
                    let [a, b, c, d] = &mut spare;
                    let (qkv, attended, middle) = (sized(a, n * 3 * dim), sized(b, m * dim), sized(c, m * dim));
                    rows = Rows { qkv, attended, middle, hidden: sized(d, m * wide), out: rows.out };
                }
                self.forward_chunk(chunk, chunk.of(x, dim), &products, &mut rows, &mut scratch);
            }
        });
        (out, kept)
    }

    /// How cores share the sequences.
    fn tasks(&self) -> Vec<Task> {
        let Block { dim, .. } = self.block;
        let (keys, rest) = (3 * dim * dim, dim * dim + dim * (self.block.wide() + self.block.hidden));
        // Small products, and exponentials: a multiplication there takes twice as long or more.
        self.sequences
            .tasks(rayon::current_num_threads(), self.output, |tokens, queries| tokens * keys + queries * (rest + 2 * 2 * tokens * dim))
    }

    fn factor(&self, sequence: usize, of: impl Fn(&DropPath) -> &Vec<f32>) -> f32 {
        self.drop.as_ref().map_or(1.0, |drop| of(drop)[sequence])
    }

    fn forward_chunk(&self, chunk: &Chunk, x: &[f32], products: &Products<'_>, rows: &mut Rows<'_>, scratch: &mut ForwardScratch) {
        let Block { dim, heads, hidden, eps, .. } = self.block;
        let w = products.weights;
        let (n, m, tokens, queries) = (chunk.rows(), chunk.rows_out(), chunk.tokens, chunk.queries);
        let normed = sized(&mut scratch.normed, n * dim);
        layer_norm::forward(x, w.norm1_w, w.norm1_b, eps, normed);
        products.qkv.multiply(rows.qkv, Accum::Replace, normed);
        reduce::add_bias(rows.qkv, w.qkv_b);
        for (qkv, out) in rows.qkv.chunks_exact_mut(3 * dim * tokens).zip(rows.attended.chunks_exact_mut(dim * queries)) {
            if let Some(rotation) = self.rotations.get(chunk.run) {
                rotation.turn(qkv, dim, Turn::Forward);
            }
            attention::forward(qkv, dim, heads, out, &mut scratch.attention);
        }
        products.proj.multiply(rows.middle, Accum::Replace, rows.attended);
        for ((sequence, out), x) in
            chunk.sequences.clone().zip(rows.middle.chunks_exact_mut(dim * queries)).zip(x.chunks_exact(dim * tokens))
        {
            reduce::add_residual(out, w.proj_b, &x[..dim * queries], self.factor(sequence, |d| &d.attention));
        }
        let normed = &mut normed[..m * dim];
        layer_norm::forward(rows.middle, w.norm2_w, w.norm2_b, eps, normed);
        products.fc1.multiply(rows.hidden, Accum::Replace, normed);
        if rows.out.is_empty() {
            // The backward pass reads the hidden layer with its bias.
            return reduce::add_bias(rows.hidden, w.fc1_b);
        }
        let active = sized(&mut scratch.active, m * hidden);
        if self.block.gated {
            activation::bias_swiglu(rows.hidden, w.fc1_b, active);
        } else {
            activation::bias_gelu(rows.hidden, w.fc1_b, active);
        }
        products.fc2.multiply(rows.out, Accum::Replace, active);
        for ((sequence, out), x) in
            chunk.sequences.clone().zip(rows.out.chunks_exact_mut(dim * queries)).zip(rows.middle.chunks_exact(dim * queries))
        {
            reduce::add_residual(out, w.fc2_b, x, self.factor(sequence, |d| &d.mlp));
        }
    }

    /// `dout` scaled by each sequence's branch factor; borrowed as it is without stochastic depth.
    fn branch<'a>(&self, chunk: &Chunk, dout: &'a [f32], scratch: &'a mut Vec<f32>, of: impl Fn(&DropPath) -> &Vec<f32>) -> &'a [f32] {
        if self.drop.is_none() {
            return dout;
        }
        let scaled = sized(scratch, dout.len());
        let stride = self.block.dim * chunk.queries;
        for ((sequence, out), dout) in chunk.sequences.clone().zip(scaled.chunks_exact_mut(stride)).zip(dout.chunks_exact(stride)) {
            reduce::scaled(dout, self.factor(sequence, &of), out);
        }
        scaled
    }

    fn backward_chunk(
        &self,
        chunk: &Chunk,
        input: &Backward<'_>,
        products: &Products<'_>,
        dx: &mut [f32],
        d: &mut Gradients<'_>,
        scratch: &mut BackwardScratch,
    ) {
        let Block { dim, heads, hidden, eps, .. } = self.block;
        let w = products.weights;
        let (n, m, tokens, queries) = (chunk.rows(), chunk.rows_out(), chunk.tokens, chunk.queries);
        // MLP branch, of the rows that came out.
        let dbranch = self.branch(chunk, input.dout, &mut scratch.branch, |d| &d.mlp);
        reduce::add_column_sums(dbranch, d.fc2_b);
        let dhidden = sized(&mut scratch.dhidden, m * self.block.wide());
        let active = sized(&mut scratch.active, m * hidden);
        if self.block.gated {
            let dactive = sized(&mut scratch.dactive, m * hidden);
            products.fc2.multiply(dactive, Accum::Replace, dbranch);
            activation::swiglu_backward(input.hidden, hidden, dactive, dhidden, active);
        } else {
            products.fc2.multiply(dhidden, Accum::Replace, dbranch);
            activation::gelu_backward(input.hidden, dhidden, active);
        }
        at_b(self.block.precision, d.fc2_w, Accum::Add, dbranch, active, m);
        reduce::add_column_sums(dhidden, d.fc1_b);
        let normed = sized(&mut scratch.normed, m * dim);
        layer_norm::forward(input.middle, w.norm2_w, w.norm2_b, eps, normed);
        at_b(self.block.precision, d.fc1_w, Accum::Add, dhidden, normed, m);
        let dnormed = sized(&mut scratch.dnormed, m * dim);
        products.fc1.multiply(dnormed, Accum::Replace, dhidden);
        let dmiddle = sized(&mut scratch.dmiddle, m * dim);
        dmiddle.copy_from_slice(input.dout);
        layer_norm::backward(input.middle, w.norm2_w, eps, dnormed, dmiddle, d.norm2_w, d.norm2_b);
        // Attention branch.
        let dbranch = self.branch(chunk, dmiddle, &mut scratch.branch, |d| &d.attention);
        reduce::add_column_sums(dbranch, d.proj_b);
        at_b(self.block.precision, d.proj_w, Accum::Add, dbranch, input.attended, m);
        let dattended = dnormed;
        products.proj.multiply(dattended, Accum::Replace, dbranch);
        let dqkv = sized(&mut scratch.dqkv, n * 3 * dim);
        let (stride, stride_out) = (dim * tokens, dim * queries);
        for ((qkv, dout), dqkv) in
            input.qkv.chunks_exact(3 * stride).zip(dattended.chunks_exact(stride_out)).zip(dqkv.chunks_exact_mut(3 * stride))
        {
            attention::backward(qkv, dim, heads, dout, dqkv, &mut scratch.attention);
            if let Some(rotation) = self.rotations.get(chunk.run) {
                rotation.turn(dqkv, dim, Turn::Back);
            }
        }
        reduce::add_column_sums(dqkv, d.qkv_b);
        let normed = sized(&mut scratch.normed, n * dim);
        layer_norm::forward(input.x, w.norm1_w, w.norm1_b, eps, normed);
        at_b(self.block.precision, d.qkv_w, Accum::Add, dqkv, normed, n);
        let dnormed = sized(&mut scratch.dnormed, n * dim);
        products.qkv.multiply(dnormed, Accum::Replace, dqkv);
        if queries == tokens {
            dx.copy_from_slice(dmiddle);
        } else {
            dx.fill(0.0);
            for (dx, dmiddle) in dx.chunks_exact_mut(stride).zip(dmiddle.chunks_exact(stride_out)) {
                dx[..stride_out].copy_from_slice(dmiddle);
            }
        }
        layer_norm::backward(input.x, w.norm1_w, eps, dnormed, dx, d.norm1_w, d.norm1_b);
    }
}

/// One chunk's rows of what the backward pass reads.
struct Backward<'a> {
    x: &'a [f32],
    dout: &'a [f32],
    qkv: &'a [f32],
    attended: &'a [f32],
    middle: &'a [f32],
    hidden: &'a [f32],
}

#[derive(Default)]
struct ForwardScratch {
    attention: attention::Scratch,
    normed: Vec<f32>,
    active: Vec<f32>,
}

#[derive(Default)]
struct BackwardScratch {
    attention: attention::Scratch,
    branch: Vec<f32>,
    normed: Vec<f32>,
    dnormed: Vec<f32>,
    dmiddle: Vec<f32>,
    active: Vec<f32>,
    dactive: Vec<f32>,
    dhidden: Vec<f32>,
    dqkv: Vec<f32>,
}

impl CustomOp2 for Fused {
    fn name(&self) -> &'static str {
        "transformer-block"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, p: &CpuStorage, p_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, p) = (slice(x, x_layout)?, slice(p, p_layout)?);
        let keep = self.keep && !self.block.recompute;
        let (out, kept) = self.run(x, p, keep, true);
        if keep {
            *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        }
        Ok((CpuStorage::F32(out), Shape::from((self.sequences.rows_out(self.output), self.block.dim))))
    }

    fn bwd(&self, x: &Tensor, p: &Tensor, _out: &Tensor, dout: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let guard = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let again;
        let kept = match guard.as_ref() {
            Some(kept) => kept,
            None if self.block.recompute => {
                again = with_slice(x, |x| with_slice(p, |p| Ok(self.run(x, p, true, false).1)))?;
                &again
            }
            None => bail!("the forward pass of this block kept nothing"),
        };
        let (dim, wide) = (self.block.dim, self.block.wide());
        let (rows, len) = (self.sequences.rows(), self.block.len());
        let tasks = self.tasks();
        let mut dx = vec![0.0; rows * dim];
        let dp: Vec<Vec<f32>> = with_slice(x, |x| {
            with_slice(p, |p| {
                with_slice(dout, |dout| {
                    let weights = Weights::new(&self.block, p);
                    let products = Products::new(&self.block, &weights, Weight::plain);
                    let dx_of_chunks = split_rows(&mut dx, dim, Task::in_order(&tasks).into_iter().map(Chunk::rows));
                    let gradients = Task::deal(&tasks, dx_of_chunks)
                        .into_par_iter()
                        .zip(&tasks)
                        .map(|(dx_of_chunks, task)| {
                            let mut gradient = vec![0.0; len];
                            let mut parts = Gradients::new(&self.block, &mut gradient);
                            let mut scratch = BackwardScratch::default();
                            for (dx, chunk) in dx_of_chunks.into_iter().zip(&task.chunks) {
                                let input = Backward {
                                    x: chunk.of(x, dim),
                                    dout: chunk.of_out(dout, dim),
                                    qkv: chunk.of(&kept.qkv, 3 * dim),
                                    attended: chunk.of_out(&kept.attended, dim),
                                    middle: chunk.of_out(&kept.middle, dim),
                                    hidden: chunk.of_out(&kept.hidden, wide),
                                };
                                self.backward_chunk(chunk, &input, &products, dx, &mut parts, &mut scratch);
                            }
                            gradient
                        })
                        .collect();
                    Ok(gradients)
                })
            })
        })?;
        let dx = if x.track_op() { Some(Tensor::from_vec(dx, (rows, dim), x.device())?) } else { None };
        let dp = if p.track_op() { Some(Tensor::from_vec(sum_of_tasks(dp, len), len, p.device())?) } else { None };
        Ok((dx, dp))
    }
}
