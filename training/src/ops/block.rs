//! A pre-norm transformer block as one operator: x + attention(norm(x)), then x + mlp(norm(x)).
//!
//! Each core runs whole sequences through the whole block, in chunks whose intermediate values stay in its own cache. Kept for
//! the backward pass are the packed q, k, v, the attention's output, the middle residual and the hidden layer before GELU;
//! normalised rows, attention weights and GELU's output are computed again.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{slice, split_rows, with_slice};
use crate::kernels::matmul::{Accum, Precision, Weight, at_b};
use crate::kernels::{activation, attention, layer_norm, reduce};

/// Rows of one chunk: the widest intermediate of a ViT-S (1536 columns) then fits a 2 MB cache.
const CHUNK_ROWS: usize = 256;

/// Sequences packed into one matrix of rows: runs of (number of sequences, tokens in each).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences(pub Vec<(usize, usize)>);

impl Sequences {
    /// Total rows.
    pub fn rows(&self) -> usize {
        self.0.iter().map(|(n, tokens)| n * tokens).sum()
    }

    /// Total sequences.
    pub fn count(&self) -> usize {
        self.0.iter().map(|(n, _)| n).sum()
    }

    /// Row of each sequence's first token.
    pub fn first_rows(&self) -> Vec<u32> {
        let mut row = 0;
        let mut rows = Vec::with_capacity(self.count());
        for &(n, tokens) in &self.0 {
            for _ in 0..n {
                rows.push(row);
                row += tokens as u32;
            }
        }
        rows
    }

    /// Cuts all sequences into chunks and shares those between `tasks`, by rows.
    fn tasks(&self, tasks: usize) -> Vec<Task> {
        let goal = self.rows().div_ceil(tasks.max(1)).max(1);
        // Small enough that no task gets much more than its share.
        let most = CHUNK_ROWS.min(goal.div_ceil(4));
        let (mut shares, mut done, mut sequence) = (vec![Task::default(); tasks.max(1)], 0, 0);
        for &(n, tokens) in &self.0 {
            let at_once = (most / tokens.max(1)).max(1);
            for from in (0..n).step_by(at_once) {
                let sequences = at_once.min(n - from);
                let rows = sequences * tokens;
                let task = ((done + rows / 2) / goal).min(shares.len() - 1);
                let share = &mut shares[task];
                if share.chunks.is_empty() {
                    share.first_row = done;
                }
                share.chunks.push(Chunk { sequences: sequence..sequence + sequences, tokens });
                done += rows;
                sequence += sequences;
            }
        }
        shares.retain(|share| !share.chunks.is_empty());
        shares
    }
}

/// What one core does.
#[derive(Clone, Debug, Default)]
struct Task {
    first_row: usize,
    chunks: Vec<Chunk>,
}

impl Task {
    fn rows(&self) -> usize {
        self.chunks.iter().map(Chunk::rows).sum()
    }
}

/// Consecutive sequences of equal length.
#[derive(Clone, Debug)]
struct Chunk {
    sequences: Range<usize>,
    tokens: usize,
}

impl Chunk {
    fn rows(&self) -> usize {
        self.sequences.len() * self.tokens
    }
}

/// Sizes of a block; its parameters follow one another in the order of [`Block::parameters`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    /// Columns of the residual stream.
    pub dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Columns of the hidden layer.
    pub hidden: usize,
    /// Added to variances in the layer norms.
    pub eps: f32,
    /// Arithmetic of the four linear layers.
    pub precision: Precision,
}

/// Stochastic depth: the factor of each sequence's attention and MLP branch, 0 or 1/keep.
#[derive(Clone, Debug)]
pub struct DropPath {
    /// Factors of the attention branch.
    pub attention: Vec<f32>,
    /// Factors of the MLP branch.
    pub mlp: Vec<f32>,
}

impl Block {
    /// Names and shapes of the parameters, in the order in which they are stored.
    pub fn parameters(&self) -> [(&'static str, Vec<usize>); 12] {
        let (d, h) = (self.dim, self.hidden);
        [
            ("norm1.weight", vec![d]),
            ("norm1.bias", vec![d]),
            ("attn.qkv.weight", vec![3 * d, d]),
            ("attn.qkv.bias", vec![3 * d]),
            ("attn.proj.weight", vec![d, d]),
            ("attn.proj.bias", vec![d]),
            ("norm2.weight", vec![d]),
            ("norm2.bias", vec![d]),
            ("mlp.fc1.weight", vec![h, d]),
            ("mlp.fc1.bias", vec![h]),
            ("mlp.fc2.weight", vec![d, h]),
            ("mlp.fc2.bias", vec![d]),
        ]
    }

    fn lengths(&self) -> [usize; 12] {
        self.parameters().map(|(_, shape)| shape.iter().product())
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.lengths().iter().sum()
    }

    /// True for a block without parameters.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `x` `[rows, dim]` and the flat parameters to `[rows, dim]`.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn forward(&self, x: &Tensor, parameters: &Tensor, sequences: &Sequences, drop: Option<&DropPath>) -> Result<Tensor> {
        if x.dims() != [sequences.rows(), self.dim] || parameters.dims() != [self.len()] {
            bail!("block of dim {}: input {:?}, parameters {:?}", self.dim, x.dims(), parameters.dims());
        }
        if !x.device().is_cpu() {
            return self.composed(x, parameters, sequences, drop);
        }
        let kept = Arc::new(Mutex::new(None));
        let keep = x.track_op() || parameters.track_op();
        let fused = Fused { block: *self, sequences: sequences.clone(), drop: drop.cloned(), keep, kept };
        if keep { x.contiguous()?.apply_op2(parameters, fused) } else { x.contiguous()?.apply_op2_no_bwd(parameters, &fused) }
    }

    /// The same out of candle's own operators, for devices without the fused one and as its reference in tests.
    ///
    /// # Errors
    /// When the device fails.
    pub fn composed(&self, x: &Tensor, parameters: &Tensor, sequences: &Sequences, drop: Option<&DropPath>) -> Result<Tensor> {
        let mut offset = 0;
        let mut weights = Vec::with_capacity(12);
        for (_, shape) in self.parameters() {
            let len = shape.iter().product::<usize>();
            weights.push(parameters.narrow(0, offset, len)?.reshape(shape)?);
            offset += len;
        }
        let [norm1_w, norm1_b, qkv_w, qkv_b, proj_w, proj_b, norm2_w, norm2_b, fc1_w, fc1_b, fc2_w, fc2_b] = &weights[..] else {
            bail!("a block has twelve parameters")
        };
        let factors = |per_sequence: &[f32]| -> Result<Tensor> {
            let mut values = Vec::with_capacity(sequences.rows());
            let mut at = per_sequence.iter();
            for &(n, tokens) in &sequences.0 {
                for factor in at.by_ref().take(n) {
                    values.extend(std::iter::repeat_n(*factor, tokens));
                }
            }
            Tensor::from_vec(values, (sequences.rows(), 1), x.device())
        };
        let normed = super::layer_norm::composed(x, norm1_w, norm1_b, self.eps)?;
        let qkv = normed.matmul(&qkv_w.t()?)?.broadcast_add(qkv_b)?;
        let mut branch = self.composed_attention(&qkv, sequences)?.matmul(&proj_w.t()?)?.broadcast_add(proj_b)?;
        if let Some(drop) = drop {
            branch = branch.broadcast_mul(&factors(&drop.attention)?)?;
        }
        let x = (x + branch)?;
        let normed = super::layer_norm::composed(&x, norm2_w, norm2_b, self.eps)?;
        let hidden = normed.matmul(&fc1_w.t()?)?.broadcast_add(fc1_b)?.gelu_erf()?;
        let mut branch = hidden.matmul(&fc2_w.t()?)?.broadcast_add(fc2_b)?;
        if let Some(drop) = drop {
            branch = branch.broadcast_mul(&factors(&drop.mlp)?)?;
        }
        x + branch
    }

    fn composed_attention(&self, qkv: &Tensor, sequences: &Sequences) -> Result<Tensor> {
        let width = self.dim / self.heads;
        let (mut row, mut parts) = (0, Vec::new());
        for &(n, tokens) in &sequences.0 {
            let qkv = qkv.narrow(0, row, n * tokens)?.reshape((n, tokens, 3, self.heads, width))?;
            let part = |i: usize| qkv.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
            let scores = (part(0)?.matmul(&part(1)?.t()?)? * (1.0 / (width as f64).sqrt()))?;
            let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
            let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
            parts.push(weights.matmul(&part(2)?)?.transpose(1, 2)?.reshape((n * tokens, self.dim))?);
            row += n * tokens;
        }
        Tensor::cat(&parts, 0)
    }

    /// The attention weights of this block, `[heads, tokens, tokens]` for each sequence, in order.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn attention_weights(&self, x: &Tensor, parameters: &Tensor, sequences: &Sequences) -> Result<Vec<Tensor>> {
        let [norm1_w, norm1_b, qkv_w, qkv_b, ..] = self.lengths();
        let (d, mut at) = (self.dim, 0);
        let mut next = |len: usize| {
            at += len;
            parameters.narrow(0, at - len, len)
        };
        let (norm_w, norm_b) = (next(norm1_w)?, next(norm1_b)?);
        let (qkv_w, qkv_b) = (next(qkv_w)?.reshape((3 * d, d))?, next(qkv_b)?);
        let qkv = super::layer_norm::composed(x, &norm_w, &norm_b, self.eps)?.matmul(&qkv_w.t()?)?.broadcast_add(&qkv_b)?;
        with_slice(&qkv.to_device(&candle_core::Device::Cpu)?, |qkv| {
            let mut at = 0;
            let mut all = Vec::with_capacity(sequences.count());
            for &(n, tokens) in &sequences.0 {
                for _ in 0..n {
                    let qkv = &qkv[at..at + tokens * 3 * d];
                    let mut weights = vec![0.0; self.heads * tokens * tokens];
                    for (head, out) in weights.chunks_exact_mut(tokens * tokens).enumerate() {
                        attention::weights(qkv, d, self.heads, head, out);
                    }
                    all.push(Tensor::from_vec(weights, (self.heads, tokens, tokens), &candle_core::Device::Cpu)?);
                    at += tokens * 3 * d;
                }
            }
            Ok(all)
        })
    }
}

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
    fn forward(block: &Block, w: &'a Weights<'a>) -> Self {
        let ready = |weight, k| Weight::transposed(weight, k, block.precision);
        Self {
            weights: w,
            qkv: ready(w.qkv_w, block.dim),
            proj: ready(w.proj_w, block.dim),
            fc1: ready(w.fc1_w, block.dim),
            fc2: ready(w.fc2_w, block.hidden),
        }
    }

    fn backward(block: &Block, w: &'a Weights<'a>) -> Self {
        let ready = |weight, k| Weight::plain(weight, k, block.precision);
        Self {
            weights: w,
            qkv: ready(w.qkv_w, block.dim),
            proj: ready(w.proj_w, block.dim),
            fc1: ready(w.fc1_w, block.dim),
            fc2: ready(w.fc2_w, block.hidden),
        }
    }
}

/// What the backward pass needs of the forward pass, `[rows, …]` each.
struct Kept {
    qkv: Vec<f32>,
    attended: Vec<f32>,
    middle: Vec<f32>,
    hidden: Vec<f32>,
}

struct Fused {
    block: Block,
    sequences: Sequences,
    drop: Option<DropPath>,
    keep: bool,
    /// Filled by the forward pass, read by the backward pass: candle hands an operator its arguments and result only.
    kept: Arc<Mutex<Option<Kept>>>,
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
    fn factor(&self, sequence: usize, of: impl Fn(&DropPath) -> &Vec<f32>) -> f32 {
        self.drop.as_ref().map_or(1.0, |drop| of(drop)[sequence])
    }

    fn forward_chunk(&self, chunk: &Chunk, x: &[f32], products: &Products<'_>, rows: &mut Rows<'_>, scratch: &mut ForwardScratch) {
        let Block { dim, heads, hidden, eps, .. } = self.block;
        let w = products.weights;
        let (n, tokens) = (chunk.rows(), chunk.tokens);
        let normed = sized(&mut scratch.normed, n * dim);
        layer_norm::forward(x, w.norm1_w, w.norm1_b, eps, normed);
        products.qkv.multiply(rows.qkv, Accum::Replace, normed);
        reduce::add_bias(rows.qkv, w.qkv_b);
        for (qkv, out) in rows.qkv.chunks_exact(3 * dim * tokens).zip(rows.attended.chunks_exact_mut(dim * tokens)) {
            attention::forward(qkv, dim, heads, out, &mut scratch.attention);
        }
        products.proj.multiply(rows.middle, Accum::Replace, rows.attended);
        for ((sequence, out), x) in
            chunk.sequences.clone().zip(rows.middle.chunks_exact_mut(dim * tokens)).zip(x.chunks_exact(dim * tokens))
        {
            reduce::add_residual(out, w.proj_b, x, self.factor(sequence, |d| &d.attention));
        }
        layer_norm::forward(rows.middle, w.norm2_w, w.norm2_b, eps, normed);
        products.fc1.multiply(rows.hidden, Accum::Replace, normed);
        let active = sized(&mut scratch.active, n * hidden);
        activation::bias_gelu(rows.hidden, w.fc1_b, active);
        products.fc2.multiply(rows.out, Accum::Replace, active);
        for ((sequence, out), x) in
            chunk.sequences.clone().zip(rows.out.chunks_exact_mut(dim * tokens)).zip(rows.middle.chunks_exact(dim * tokens))
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
        let stride = self.block.dim * chunk.tokens;
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
        let (n, tokens) = (chunk.rows(), chunk.tokens);
        // MLP branch.
        let dbranch = self.branch(chunk, input.dout, &mut scratch.branch, |d| &d.mlp);
        reduce::add_column_sums(dbranch, d.fc2_b);
        let dhidden = sized(&mut scratch.dhidden, n * hidden);
        products.fc2.multiply(dhidden, Accum::Replace, dbranch);
        let active = sized(&mut scratch.active, n * hidden);
        activation::gelu_backward(input.hidden, dhidden, active);
        at_b(self.block.precision, d.fc2_w, Accum::Add, dbranch, active, n);
        reduce::add_column_sums(dhidden, d.fc1_b);
        let normed = sized(&mut scratch.normed, n * dim);
        layer_norm::forward(input.middle, w.norm2_w, w.norm2_b, eps, normed);
        at_b(self.block.precision, d.fc1_w, Accum::Add, dhidden, normed, n);
        let dnormed = sized(&mut scratch.dnormed, n * dim);
        products.fc1.multiply(dnormed, Accum::Replace, dhidden);
        let dmiddle = sized(&mut scratch.dmiddle, n * dim);
        dmiddle.copy_from_slice(input.dout);
        layer_norm::backward(input.middle, w.norm2_w, eps, dnormed, dmiddle, d.norm2_w, d.norm2_b);
        // Attention branch.
        let dbranch = self.branch(chunk, dmiddle, &mut scratch.branch, |d| &d.attention);
        reduce::add_column_sums(dbranch, d.proj_b);
        at_b(self.block.precision, d.proj_w, Accum::Add, dbranch, input.attended, n);
        let dattended = dnormed;
        products.proj.multiply(dattended, Accum::Replace, dbranch);
        let dqkv = sized(&mut scratch.dqkv, n * 3 * dim);
        let stride = dim * tokens;
        for ((qkv, dout), dqkv) in
            input.qkv.chunks_exact(3 * stride).zip(dattended.chunks_exact(stride)).zip(dqkv.chunks_exact_mut(3 * stride))
        {
            attention::backward(qkv, dim, heads, dout, dqkv, &mut scratch.attention);
        }
        reduce::add_column_sums(dqkv, d.qkv_b);
        layer_norm::forward(input.x, w.norm1_w, w.norm1_b, eps, normed);
        at_b(self.block.precision, d.qkv_w, Accum::Add, dqkv, normed, n);
        let dnormed = dattended;
        products.qkv.multiply(dnormed, Accum::Replace, dqkv);
        dx.copy_from_slice(dmiddle);
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
    dhidden: Vec<f32>,
    dqkv: Vec<f32>,
}

/// The first `len` elements of a scratch buffer that grows on demand.
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

impl CustomOp2 for Fused {
    fn name(&self) -> &'static str {
        "transformer-block"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, p: &CpuStorage, p_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, p) = (slice(x, x_layout)?, slice(p, p_layout)?);
        let Block { dim, hidden, .. } = self.block;
        let rows = self.sequences.rows();
        let weights = Weights::new(&self.block, p);
        let products = Products::forward(&self.block, &weights);
        let tasks = self.sequences.tasks(rayon::current_num_threads());
        let counts = || tasks.iter().map(Task::rows);
        let kept_rows = if self.keep { rows } else { 0 };
        let kept_counts = || counts().map(|n| if self.keep { n } else { 0 });
        let mut out = vec![0.0; rows * dim];
        let mut kept = Kept {
            qkv: vec![0.0; kept_rows * 3 * dim],
            attended: vec![0.0; kept_rows * dim],
            middle: vec![0.0; kept_rows * dim],
            hidden: vec![0.0; kept_rows * hidden],
        };
        split_rows(&mut out, dim, counts())
            .into_par_iter()
            .zip(split_rows(&mut kept.qkv, 3 * dim, kept_counts()))
            .zip(split_rows(&mut kept.attended, dim, kept_counts()))
            .zip(split_rows(&mut kept.middle, dim, kept_counts()))
            .zip(split_rows(&mut kept.hidden, hidden, kept_counts()))
            .zip(&tasks)
            .for_each(|(((((mut out, mut qkv), mut attended), mut middle), mut all_hidden), task)| {
                let mut scratch = ForwardScratch::default();
                let mut spare: [Vec<f32>; 4] = Default::default();
                let mut x = &x[task.first_row * dim..];
                for chunk in &task.chunks {
                    let n = chunk.rows();
                    let (head, tail) = x.split_at(n * dim);
                    x = tail;
                    let [a, b, c, d] = &mut spare;
                    let mut rows = if self.keep {
                        Rows {
                            qkv: qkv.split_off_mut(..n * 3 * dim).unwrap_or_default(),
                            attended: attended.split_off_mut(..n * dim).unwrap_or_default(),
                            middle: middle.split_off_mut(..n * dim).unwrap_or_default(),
                            hidden: all_hidden.split_off_mut(..n * hidden).unwrap_or_default(),
                            out: out.split_off_mut(..n * dim).unwrap_or_default(),
                        }
                    } else {
                        Rows {
                            qkv: sized(a, n * 3 * dim),
                            attended: sized(b, n * dim),
                            middle: sized(c, n * dim),
                            hidden: sized(d, n * hidden),
                            out: out.split_off_mut(..n * dim).unwrap_or_default(),
                        }
                    };
                    self.forward_chunk(chunk, head, &products, &mut rows, &mut scratch);
                }
            });
        if self.keep {
            *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        }
        Ok((CpuStorage::F32(out), Shape::from((rows, dim))))
    }

    fn bwd(&self, x: &Tensor, p: &Tensor, _out: &Tensor, dout: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let guard = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kept) = guard.as_ref() else { bail!("the forward pass of this block kept nothing") };
        let Block { dim, hidden, .. } = self.block;
        let (rows, len) = (self.sequences.rows(), self.block.len());
        let tasks = self.sequences.tasks(rayon::current_num_threads());
        let counts = || tasks.iter().map(Task::rows);
        let mut dx = vec![0.0; rows * dim];
        let mut dp = with_slice(x, |x| {
            with_slice(p, |p| {
                with_slice(dout, |dout| {
                    let weights = Weights::new(&self.block, p);
                    let products = Products::backward(&self.block, &weights);
                    let gradients: Vec<Vec<f32>> = split_rows(&mut dx, dim, counts())
                        .into_par_iter()
                        .zip(&tasks)
                        .map(|(mut dx, task)| {
                            let mut row = task.first_row;
                            let mut gradient = vec![0.0; len];
                            let mut parts = Gradients::new(&self.block, &mut gradient);
                            let mut scratch = BackwardScratch::default();
                            for chunk in &task.chunks {
                                let n = chunk.rows();
                                let of = |columns: usize| row * columns..(row + n) * columns;
                                let input = Backward {
                                    x: &x[of(dim)],
                                    dout: &dout[of(dim)],
                                    qkv: &kept.qkv[of(3 * dim)],
                                    attended: &kept.attended[of(dim)],
                                    middle: &kept.middle[of(dim)],
                                    hidden: &kept.hidden[of(hidden)],
                                };
                                self.backward_chunk(
                                    chunk,
                                    &input,
                                    &products,
                                    dx.split_off_mut(..n * dim).unwrap_or_default(),
                                    &mut parts,
                                    &mut scratch,
                                );
                                row += n;
                            }
                            gradient
                        })
                        .collect();
                    Ok(gradients)
                })
            })
        })?
        .into_iter();
        let mut total = dp.next().unwrap_or_else(|| vec![0.0; len]);
        for part in dp {
            total.par_chunks_mut(1 << 14).zip(part.par_chunks(1 << 14)).for_each(|(a, b)| reduce::add(a, b));
        }
        let dx = if x.track_op() { Some(Tensor::from_vec(dx, (rows, dim), x.device())?) } else { None };
        let dp = if p.track_op() { Some(Tensor::from_vec(total, len, p.device())?) } else { None };
        Ok((dx, dp))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use rand::SeedableRng;

    use super::*;
    use crate::backbone::parameters::Random;
    use crate::kernels::matmul::has_bf16;

    fn random(shape: &[usize], scale: f32, seed: u64) -> Var {
        let mut source = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| scale * source.normal()).collect();
        Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn assert_close(got: &Tensor, want: &Tensor, what: &str) {
        for (i, (g, w)) in values(got).iter().zip(values(want)).enumerate() {
            assert!((g - w).abs() < 1e-4 + 1e-4 * w.abs(), "{what}, element {i}: {g}, not {w}");
        }
    }

    fn block(precision: Precision) -> Block {
        Block { dim: 24, heads: 3, hidden: 40, eps: 1e-6, precision }
    }

    /// Output and both gradients of `sum(output * weights)`.
    fn run(x: &Var, p: &Var, forward: impl Fn(&Tensor, &Tensor) -> Result<Tensor>) -> [Tensor; 3] {
        let out = forward(x, p).unwrap();
        let weights = random(out.dims(), 1.0, 9);
        let gradients = (&out * weights.as_detached_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        [out, gradients.get(x).unwrap().clone(), gradients.get(p).unwrap().clone()]
    }

    #[test]
    fn the_fused_block_and_its_gradients_equal_the_composed_one() {
        let block = block(Precision::F32);
        // Enough rows for several chunks and tasks, of two lengths.
        let sequences = Sequences(vec![(70, 7), (31, 3)]);
        let (x, p) = (random(&[sequences.rows(), block.dim], 1.0, 1), random(&[block.len()], 0.3, 2));
        let drop = DropPath {
            attention: (0..sequences.count()).map(|i| if i % 3 == 0 { 0.0 } else { 1.25 }).collect(),
            mlp: (0..sequences.count()).map(|i| if i % 4 == 1 { 0.0 } else { 1.25 }).collect(),
        };
        for drop in [None, Some(&drop)] {
            let fused = run(&x, &p, |x, p| block.forward(x, p, &sequences, drop));
            let composed = run(&x, &p, |x, p| block.composed(x, p, &sequences, drop));
            for ((fused, composed), what) in fused.iter().zip(&composed).zip(["output", "gradient of x", "gradient of parameters"]) {
                // Gradients of parameters are sums over hundreds of rows: their scale sets the tolerance.
                let scale = values(composed).iter().fold(1f32, |a, b| a.max(b.abs()));
                assert_close(&(fused / f64::from(scale)).unwrap(), &(composed / f64::from(scale)).unwrap(), what);
            }
            let frozen = block.forward(&x.as_detached_tensor(), &p.as_detached_tensor(), &sequences, drop).unwrap();
            assert_eq!(values(&frozen), values(&fused[0]), "the frozen pass computes the same");
        }
    }

    #[test]
    fn every_parameter_of_a_block_is_trained() {
        let block = block(Precision::F32);
        let sequences = Sequences(vec![(4, 5)]);
        let (x, p) = (random(&[sequences.rows(), block.dim], 1.0, 3), random(&[block.len()], 0.3, 4));
        let [_, _, gradient] = run(&x, &p, |x, p| block.forward(x, p, &sequences, None));
        let (gradient, mut at) = (values(&gradient), 0);
        for (name, shape) in block.parameters() {
            let len = shape.iter().product::<usize>();
            let part = &gradient[at..at + len];
            assert!(part.iter().all(|g| g.is_finite()) && part.iter().any(|g| *g != 0.0), "{name}");
            at += len;
        }
        assert_eq!(at, gradient.len());
    }

    #[test]
    fn bfloat16_products_stay_close_to_float32() {
        if !has_bf16() {
            eprintln!("skipped: this processor has no bfloat16 tile unit");
            return;
        }
        let sequences = Sequences(vec![(20, 9)]);
        let exact = block(Precision::F32);
        let (x, p) = (random(&[sequences.rows(), exact.dim], 1.0, 5), random(&[exact.len()], 0.2, 6));
        let want = run(&x, &p, |x, p| exact.forward(x, p, &sequences, None));
        let got = run(&x, &p, |x, p| block(Precision::Bf16).forward(x, p, &sequences, None));
        for (got, want) in got.iter().zip(&want) {
            let (got, want) = (values(got), values(want));
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let cosine = dot(&got, &want) / (dot(&got, &got) * dot(&want, &want)).sqrt();
            assert!(cosine > 0.9995, "{cosine}");
        }
    }

    #[test]
    fn tasks_cover_every_row_once() {
        for sequences in [vec![(1, 1)], vec![(64, 37), (128, 10)], vec![(3, 400)], vec![(1, 2), (5, 1)]] {
            let sequences = Sequences(sequences);
            for tasks in 1..6 {
                let shares = sequences.tasks(tasks);
                let (mut row, mut sequence) = (0, 0);
                for task in &shares {
                    assert_eq!(task.first_row, row);
                    for chunk in &task.chunks {
                        assert_eq!(chunk.sequences.start, sequence);
                        sequence = chunk.sequences.end;
                    }
                    row += task.rows();
                }
                assert_eq!((row, sequence), (sequences.rows(), sequences.count()));
            }
        }
    }
}
