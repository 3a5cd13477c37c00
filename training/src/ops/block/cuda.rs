//! The block on a GPU: matrix products by cuBLAS, everything between them by kernels of our own, and a backward pass that keeps the
//! intermediate values instead of a graph of small operators.

use std::sync::{Mutex, PoisonError};

use candle_core::{Result, Shape, Tensor, bail};

use super::{Block, DropPath, Rotation, Sequences, Tokens};
use crate::kernels::cuda::{self as kernels, Angles, Buffer, Merged, Stored};
use crate::ops::linear::product;
use crate::ops::on_gpu::{Kernels, OnGpu};

/// What the backward pass needs of the forward pass.
struct Kept {
    normed: Tensor,
    stats: Tensor,
    /// Of each run of sequences: q, k and v `[3, n, heads, tokens, width]`, and the attention's weights `[n, heads, tokens, tokens]`.
    attention: Vec<(Tensor, Tensor)>,
    /// The attention's output, of the rows that come out.
    attended: Tensor,
    middle: Tensor,
    middle_normed: Tensor,
    middle_stats: Tensor,
    hidden: Tensor,
    active: Tensor,
}

pub(super) struct OnDevice {
    block: Block,
    sequences: Sequences,
    /// Of each run of sequences; empty without rotary positions.
    angles: Vec<Angles>,
    attention_factors: Option<Tensor>,
    mlp_factors: Option<Tensor>,
    output: Tokens,
    keep: bool,
    x: Tensor,
    parameters: Tensor,
    /// Filled by the forward pass, taken by the backward pass.
    kept: Mutex<Option<Kept>>,
}

impl OnDevice {
    /// See [`Block::forward`]; `x` and `parameters` are on a GPU, and contiguous.
    pub(super) fn new(
        block: &Block,
        x: &Tensor,
        parameters: &Tensor,
        sequences: &Sequences,
        rotations: &[Rotation],
        drop: Option<&DropPath>,
        output: Tokens,
    ) -> Result<Self> {
        let factors = |of: fn(&DropPath) -> &Vec<f32>| drop.map(|drop| sequences.per_row(of(drop), output, x.device())).transpose();
        Ok(Self {
            block: *block,
            sequences: sequences.clone(),
            angles: if rotations.is_empty() { Vec::new() } else { Rotation::angles(rotations, x.device())? },
            attention_factors: factors(|drop| &drop.attention)?,
            mlp_factors: factors(|drop| &drop.mlp)?,
            output,
            keep: x.track_op() || parameters.track_op(),
            x: x.detach(),
            parameters: parameters.detach(),
            kept: Mutex::default(),
        })
    }

    /// Runs it on what it was made for.
    pub(super) fn apply(self, x: &Tensor, parameters: &Tensor) -> Result<Tensor> {
        if self.keep { x.apply_op2(parameters, OnGpu(self)) } else { x.apply_op2_no_bwd(parameters, &OnGpu(self)) }
    }

    /// Rows that come out, of all rows.
    fn select(&self, rows: &Tensor) -> Result<Tensor> {
        self.sequences.select(rows, self.output)
    }

    /// All rows, zero but for those that come out.
    fn spread(&self, rows: &Tensor) -> Result<Tensor> {
        self.sequences.spread(rows, self.output)
    }

    fn heads(&self) -> (usize, usize, f32) {
        let width = self.block.dim / self.block.heads;
        (self.block.heads, width, 1.0 / (width as f32).sqrt())
    }

    /// What the backward pass needs; its attention weights, the most of it, with `keep` alone.
    fn run(&self, keep: bool) -> Result<Kept> {
        let Block { dim, eps, precision, .. } = self.block;
        let (heads, width, scale) = self.heads();
        let [norm1_w, norm1_b, qkv_w, qkv_b, proj_w, proj_b, norm2_w, norm2_b, fc1_w, fc1_b, ..] = self.block.split(&self.parameters)?;
        let (normed, stats) = kernels::layer_norm(&self.x, &norm1_w, &norm1_b, eps)?;
        let qkv = product(&normed, &qkv_w.t()?, precision)?;
        let mut attended = Merged::new(&self.x, self.sequences.rows(), dim)?;
        let (mut row, mut attention) = (0, Vec::new());
        for (run, &(n, tokens)) in self.sequences.0.iter().enumerate() {
            let rows = qkv.narrow(0, row, n * tokens)?;
            let split = kernels::split_heads(&rows, Some(&qkv_b), self.angles.get(run), (n, tokens), (3, heads, width))?;
            let weights = kernels::softmax(&split.get(0)?.matmul(&split.get(1)?.t()?)?, scale)?;
            attended.put(&weights.matmul(&split.get(2)?)?, None, row, 0)?;
            row += n * tokens;
            if keep {
                attention.push((split, weights));
            }
        }
        let attended = self.select(&attended.into_tensor())?;
        let branch = product(&attended, &proj_w.t()?, precision)?;
        let shape = (self.sequences.rows_out(self.output), dim);
        let middle = kernels::residual(&self.select(&self.x)?, &branch, &proj_b, self.attention_factors.as_ref())?;
        let middle = kernels::rows(middle, &self.x, shape)?;
        let (middle_normed, middle_stats) = kernels::layer_norm(&middle, &norm2_w, &norm2_b, eps)?;
        let hidden = product(&middle_normed, &fc1_w.t()?, precision)?;
        let activate = if self.block.gated { kernels::bias_swiglu } else { kernels::bias_gelu };
        let active = activate(&hidden, &fc1_b)?;
        Ok(Kept { normed, stats, attention, attended, middle, middle_normed, middle_stats, hidden, active })
    }

    /// The rows that come out.
    fn out(&self, Kept { middle, active, .. }: &Kept) -> Result<Buffer> {
        let [.., fc2_w, fc2_b] = self.block.split(&self.parameters)?;
        kernels::residual(middle, &product(active, &fc2_w.t()?, self.block.precision)?, &fc2_b, self.mlp_factors.as_ref())
    }
}

impl Kernels for OnDevice {
    fn name(&self) -> &'static str {
        "transformer-block-cuda"
    }

    /// A block that recomputes keeps nothing.
    fn forward(&self) -> Result<(Stored, Shape)> {
        let keep = self.keep && !self.block.recompute;
        let kept = self.run(keep)?;
        let out = self.out(&kept)?;
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = keep.then_some(kept);
        Ok((kernels::stored(out, &self.x)?, Shape::from((self.sequences.rows_out(self.output), self.block.dim))))
    }

    fn backward(&self, dout: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        let kept = match kept {
            Some(kept) => kept,
            None if self.block.recompute => self.run(true)?,
            None => bail!("the forward pass of this block kept nothing"),
        };
        let Block { dim, precision, .. } = self.block;
        let (heads, width, scale) = self.heads();
        let [norm1_w, _, qkv_w, _, proj_w, _, norm2_w, _, fc1_w, fc1_b, fc2_w, _] = self.block.split(&self.parameters)?;
        let branch = |gradient: &Tensor, factors: &Option<Tensor>| match factors {
            Some(factors) => kernels::scale_rows(gradient, factors),
            None => Ok(gradient.clone()),
        };
        // MLP branch, of the rows that came out.
        let dbranch = branch(dout, &self.mlp_factors)?;
        let (fc2_b_gradient, fc2_w_gradient) = (kernels::column_sums(&dbranch)?, product(&dbranch.t()?, &kept.active, precision)?);
        let activate_input = if self.block.gated { kernels::bias_swiglu_input } else { kernels::bias_gelu_input };
        let dhidden = activate_input(&kept.hidden, &fc1_b, &product(&dbranch, &fc2_w, precision)?)?;
        let (fc1_b_gradient, fc1_w_gradient) = (kernels::column_sums(&dhidden)?, product(&dhidden.t()?, &kept.middle_normed, precision)?);
        let dnormed = product(&dhidden, &fc1_w, precision)?;
        let (norm2_w_gradient, norm2_b_gradient) = kernels::layer_norm_weights(&kept.middle, &kept.middle_stats, &dnormed)?;
        let dmiddle = kernels::layer_norm_input(&kept.middle, &norm2_w, &kept.middle_stats, &dnormed, dout)?;
        // Attention branch.
        let dbranch = branch(&dmiddle, &self.attention_factors)?;
        let (proj_b_gradient, proj_w_gradient) = (kernels::column_sums(&dbranch)?, product(&dbranch.t()?, &kept.attended, precision)?);
        let dattended = self.spread(&product(&dbranch, &proj_w, precision)?)?;
        let mut dqkv = Merged::new(&self.x, self.sequences.rows(), 3 * dim)?;
        let mut row = 0;
        for (run, (&(n, tokens), (split, weights))) in self.sequences.0.iter().zip(&kept.attention).enumerate() {
            let rows = dattended.narrow(0, row, n * tokens)?;
            let dout = kernels::split_heads(&rows, None, None, (n, tokens), (1, heads, width))?.get(0)?;
            let (q, k, v) = (split.get(0)?, split.get(1)?, split.get(2)?);
            let dscores = kernels::softmax_input(weights, &dout.matmul(&v.t()?)?, scale)?;
            dqkv.put(&dscores.matmul(&k)?, self.angles.get(run), row, 0)?;
            dqkv.put(&dscores.t()?.matmul(&q)?, self.angles.get(run), row, dim)?;
            dqkv.put(&weights.t()?.matmul(&dout)?, None, row, 2 * dim)?;
            row += n * tokens;
        }
        let dqkv = dqkv.into_tensor();
        let (qkv_b_gradient, qkv_w_gradient) = (kernels::column_sums(&dqkv)?, product(&dqkv.t()?, &kept.normed, precision)?);
        let dnormed = product(&dqkv, &qkv_w, precision)?;
        let (norm1_w_gradient, norm1_b_gradient) = kernels::layer_norm_weights(&self.x, &kept.stats, &dnormed)?;
        let dx = kernels::layer_norm_input(&self.x, &norm1_w, &kept.stats, &dnormed, &self.spread(&dmiddle)?)?;
        let parts = [
            norm1_w_gradient,
            norm1_b_gradient,
            qkv_w_gradient.flatten_all()?,
            qkv_b_gradient,
            proj_w_gradient.flatten_all()?,
            proj_b_gradient,
            norm2_w_gradient,
            norm2_b_gradient,
            fc1_w_gradient.flatten_all()?,
            fc1_b_gradient,
            fc2_w_gradient.flatten_all()?,
            fc2_b_gradient,
        ];
        Ok((Some(dx), Some(Tensor::cat(&parts, 0)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Jitter;
    use super::super::tests::{compare_on, random};
    use super::*;
    use crate::kernels::matmul::Precision;
    use crate::ops::host::elsewhere;

    /// Sizes that fill no warp, rows for several chunks of a column sum, and more tokens than a warp has threads.
    fn cases() -> [(Block, Sequences); 3] {
        let block = |dim, heads, hidden| Block { dim, heads, hidden, gated: false, eps: 1e-6, precision: Precision::F32, recompute: false };
        [
            (block(24, 3, 40), Sequences(vec![(38, 7), (12, 3)])),
            (block(36, 1, 70), Sequences(vec![(2, 41), (1, 1), (3, 5)])),
            (block(64, 4, 32), Sequences(vec![(2, 33)])),
        ]
    }

    fn compare(gated: bool, rotations: impl Fn(&Block, &Sequences) -> Vec<Rotation>) {
        for (block, sequences) in cases() {
            let rotations = rotations(&block, &sequences);
            compare_on(Block { gated, ..block }, &sequences, &rotations, |forward| elsewhere::run(forward));
        }
    }

    /// Two rows of patches behind CLS.
    fn rotations(block: &Block, sequences: &Sequences) -> Vec<Rotation> {
        let jitter = Jitter { shift: [0.1, -0.2], scale: [1.4, 0.8] };
        let periods: Vec<f32> = (0..block.dim / block.heads / 4).map(|i| 1.0 + 3.0 * i as f32).collect();
        sequences.0.iter().map(|&(_, tokens)| Rotation::new(1, (2, tokens / 2), &periods, &jitter)).collect()
    }

    #[test]
    fn blocks_by_the_kernels_of_a_gpu_and_their_gradients_equal_the_composed_ones() {
        compare(false, |_, _| Vec::new());
    }

    #[test]
    fn gated_blocks_by_the_kernels_of_a_gpu_equal_the_composed_ones() {
        compare(true, |_, _| Vec::new());
    }

    #[test]
    fn rotary_blocks_by_the_kernels_of_a_gpu_equal_the_composed_ones() {
        compare(false, rotations);
        compare(true, rotations);
    }

    #[test]
    fn a_block_that_recomputes_keeps_nothing_until_the_backward_pass() {
        let [(block, sequences), ..] = cases();
        let (x, p) = (random(&[sequences.rows(), block.dim], 1.0, 1), random(&[block.len()], 0.3, 2));
        for recompute in [false, true] {
            let block = Block { recompute, ..block };
            let step = OnDevice::new(&block, &x, &p, &sequences, &[], None, Tokens::All).unwrap();
            let (_, shape) = step.forward().unwrap();
            assert_eq!(step.kept.lock().unwrap().is_none(), recompute);
            let dout = Tensor::ones(shape, candle_core::DType::F32, x.device()).unwrap();
            assert!(step.backward(&dout).is_ok());
        }
    }
}
