//! The block out of candle's own operators.

use candle_core::{D, Result, Tensor};

use super::{Block, DropPath, Rotation, Sequences, Tokens, rotation};
use crate::ops::layer_norm;
use crate::ops::linear::product;

impl Block {
    /// The same out of candle's own operators, for devices without the fused one and as its reference in tests.
    ///
    /// # Errors
    /// When the device fails.
    pub fn composed(
        &self,
        x: &Tensor,
        parameters: &Tensor,
        sequences: &Sequences,
        rotations: &[Rotation],
        drop: Option<&DropPath>,
        output: Tokens,
    ) -> Result<Tensor> {
        let [norm1_w, norm1_b, qkv_w, qkv_b, proj_w, proj_b, norm2_w, norm2_b, fc1_w, fc1_b, fc2_w, fc2_b] = &self.split(parameters)?;
        let factors = |per_sequence: &[f32]| sequences.per_row(per_sequence, output, x.device());
        let kept = |rows: &Tensor| sequences.select(rows, output);
        let normed = layer_norm::composed(x, norm1_w, norm1_b, self.eps)?;
        let qkv = product(&normed, &qkv_w.t()?, self.precision)?.broadcast_add(qkv_b)?;
        let mut branch =
            product(&kept(&self.composed_attention(&qkv, sequences, rotations)?)?, &proj_w.t()?, self.precision)?.broadcast_add(proj_b)?;
        if let Some(drop) = drop {
            branch = branch.broadcast_mul(&factors(&drop.attention)?)?;
        }
        let x = (kept(x)? + branch)?;
        let normed = layer_norm::composed(&x, norm2_w, norm2_b, self.eps)?;
        let hidden = product(&normed, &fc1_w.t()?, self.precision)?.broadcast_add(fc1_b)?;
        let hidden = if self.gated {
            (hidden.narrow(1, 0, self.hidden)?.silu()? * hidden.narrow(1, self.hidden, self.hidden)?)?
        } else {
            hidden.gelu_erf()?
        };
        let mut branch = product(&hidden, &fc2_w.t()?, self.precision)?.broadcast_add(fc2_b)?;
        if let Some(drop) = drop {
            branch = branch.broadcast_mul(&factors(&drop.mlp)?)?;
        }
        x + branch
    }

    fn composed_attention(&self, qkv: &Tensor, sequences: &Sequences, rotations: &[Rotation]) -> Result<Tensor> {
        let width = self.dim / self.heads;
        let (mut row, mut parts) = (0, Vec::new());
        for (run, &(n, tokens)) in sequences.0.iter().enumerate() {
            let qkv = qkv.narrow(0, row, n * tokens)?.reshape((n, tokens, 3, self.heads, width))?;
            let part = |i: usize| qkv.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
            let tables = rotations.get(run).map(|rotation| rotation.tables(qkv.device())).transpose()?;
            let turned = |i: usize| tables.as_ref().map_or_else(|| part(i), |tables| rotation::turned(&part(i)?, tables));
            let scores = (turned(0)?.matmul(&turned(1)?.t()?)? * (1.0 / (width as f64).sqrt()))?;
            let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
            let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
            parts.push(weights.matmul(&part(2)?)?.transpose(1, 2)?.reshape((n * tokens, self.dim))?);
            row += n * tokens;
        }
        Tensor::cat(&parts, 0)
    }
}
