//! Rotary positions (Su et al. 2021) in the form of DINOv3: queries and keys of patches are turned by angles that follow from where the
//! patches are; CLS and registers are not turned.
//!
//! ```
//! use dino_train::ops::block::{Jitter, Rotation};
//!
//! // CLS, a register and 2 x 3 patches; heads of 8 channels.
//! let rotation = Rotation::new(2, (2, 3), &[1.0, 10.0], &Jitter::NONE);
//! assert_eq!(rotation.tokens(), 8);
//! ```

use std::f32::consts::TAU;

use candle_core::{D, Device, Result, Tensor};

#[cfg(any(feature = "cuda", test))]
use crate::kernels::cuda::Angles;

/// What a step does to the positions of patches, so that they are not learnt by heart: factors and offsets of rows and columns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Jitter {
    /// Added to the positions of rows and of columns, which are from -1 to 1.
    pub shift: [f32; 2],
    /// Multiplied with them afterwards.
    pub scale: [f32; 2],
}

impl Jitter {
    /// Positions as they are.
    pub const NONE: Self = Self { shift: [0.0; 2], scale: [1.0; 2] };
}

/// Which way vectors are turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// By the angles.
    Forward,
    /// Back: of gradients.
    Back,
}

/// The angles of one sequence's patches.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// Tokens ahead of the patches.
    prefix: usize,
    /// Angles of a patch: half of a head's channels. Channel i is turned together with channel i + half.
    half: usize,
    /// Patches of a row.
    columns: usize,
    /// `[patches, half]`.
    cos: Vec<f32>,
    /// `[patches, half]`.
    sin: Vec<f32>,
}

impl Rotation {
    /// Of `rows` x `columns` patches behind `prefix` tokens; `periods` are a quarter as many as a head has channels. The angles of a patch
    /// are 2π · position / period, those of its row first.
    pub fn new(prefix: usize, (rows, columns): (usize, usize), periods: &[f32], jitter: &Jitter) -> Self {
        let position = |axis: usize, index: usize, count: usize| {
            let centre = 2.0 * (index as f32 + 0.5) / count as f32 - 1.0;
            (centre + jitter.shift[axis]) * jitter.scale[axis]
        };
        let half = 2 * periods.len();
        let (mut cos, mut sin) = (Vec::with_capacity(rows * columns * half), Vec::with_capacity(rows * columns * half));
        for row in 0..rows {
            for column in 0..columns {
                for position in [position(0, row, rows), position(1, column, columns)] {
                    for period in periods {
                        let (s, c) = (TAU * position / period).sin_cos();
                        cos.push(c);
                        sin.push(s);
                    }
                }
            }
        }
        Self { prefix, half, columns, cos, sin }
    }

    /// Tokens of a sequence that it is for.
    pub fn tokens(&self) -> usize {
        self.prefix + self.cos.len() / self.half.max(1)
    }

    /// Channels of a head that it is for.
    pub(super) fn width(&self) -> usize {
        2 * self.half
    }

    /// Turns queries and keys of one sequence, rows of `[q, k, v]` of `dim` columns each.
    pub(super) fn turn(&self, qkv: &mut [f32], dim: usize, turn: Turn) {
        let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
        let patches = qkv.chunks_exact_mut(3 * dim).skip(self.prefix);
        for ((row, cos), sin) in patches.zip(self.cos.chunks_exact(self.half)).zip(self.sin.chunks_exact(self.half)) {
            // Heads of queries, then of keys.
            for head in row[..2 * dim].chunks_exact_mut(2 * self.half) {
                let (first, second) = head.split_at_mut(self.half);
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - sign * *b * sin, *b * cos + sign * *a * sin);
                }
            }
        }
    }

    /// The angles of each run of sequences, for the kernels of a GPU: one copy to it for all, of each row and each column alone, since a copy
    /// that is large waits for the GPU.
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn angles(of: &[Self], device: &Device) -> Result<Vec<Angles>> {
        let (mut all, mut lengths) = (Vec::new(), Vec::with_capacity(of.len()));
        for rotation in of {
            let before = all.len();
            rotation.extend_by_lines(&mut all, &rotation.cos);
            rotation.extend_by_lines(&mut all, &rotation.sin);
            lengths.push(all.len() - before);
        }
        let (count, mut at) = (all.len(), 0);
        let all = Tensor::from_vec(all, count, device)?;
        let angles = |(rotation, len): (&Self, usize)| {
            at += len;
            let quarter = rotation.half / 2;
            let table = all.narrow(0, at - len, len)?.reshape((2, len / 2 / quarter.max(1), quarter))?;
            Ok(Angles { table, prefix: rotation.prefix, columns: rotation.columns })
        };
        of.iter().zip(lengths).map(angles).collect()
    }

    /// Values of the rows, which all patches of a row share, then values of the columns.
    #[cfg(any(feature = "cuda", test))]
    fn extend_by_lines(&self, lines: &mut Vec<f32>, values: &[f32]) {
        let patches = || values.chunks_exact(self.half.max(1));
        for patch in patches().step_by(self.columns.max(1)) {
            lines.extend_from_slice(&patch[..self.half / 2]);
        }
        for patch in patches().take(self.columns) {
            lines.extend_from_slice(&patch[self.half / 2..]);
        }
    }

    /// Cosines and sines of all channels, `[1, 1, tokens, width]` each: those of the prefix turn nothing.
    pub(super) fn tables(&self, device: &Device) -> Result<[Tensor; 2]> {
        let table = |values: &[f32], of_prefix: f32| {
            let mut table = vec![of_prefix; self.prefix * self.width()];
            for values in values.chunks_exact(self.half) {
                // Each angle for both channels that it turns.
                table.extend_from_slice(values);
                table.extend_from_slice(values);
            }
            Tensor::from_vec(table, (1, 1, self.tokens(), self.width()), device)
        };
        Ok([table(&self.cos, 1.0)?, table(&self.sin, 0.0)?])
    }
}

/// `x` `[n, heads, tokens, width]` turned, out of candle's own operators.
pub(super) fn turned(x: &Tensor, [cos, sin]: &[Tensor; 2]) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (first, second) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let across = Tensor::cat(&[second.neg()?, first], D::Minus1)?;
    x.broadcast_mul(cos)? + across.broadcast_mul(sin)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turning_back_undoes_it_and_the_prefix_stays() {
        let rotation = Rotation::new(2, (2, 3), &[1.0, 10.0], &Jitter { shift: [0.1, -0.2], scale: [1.5, 0.7] });
        let before: Vec<f32> = (0..8 * 3 * 16).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut qkv = before.clone();
        rotation.turn(&mut qkv, 16, Turn::Forward);
        assert_eq!(qkv[..2 * 48], before[..2 * 48], "CLS and a register");
        assert!(qkv[2 * 48..].chunks_exact(48).zip(before[2 * 48..].chunks_exact(48)).all(|(new, old)| new[32..] == old[32..]), "values");
        assert!(qkv.iter().zip(&before).any(|(new, old)| (new - old).abs() > 0.1));
        rotation.turn(&mut qkv, 16, Turn::Back);
        assert!(qkv.iter().zip(&before).all(|(new, old)| (new - old).abs() < 1e-5));
    }

    #[test]
    fn products_of_turned_vectors_depend_on_the_distance_of_their_patches_alone() {
        let rotation = Rotation::new(0, (1, 4), &[3.0], &Jitter::NONE);
        let row = [0.3, -0.8, 0.5, 0.9];
        let mut qkv: Vec<f32> = (0..4).flat_map(|_| [row, row, row].concat()).collect();
        rotation.turn(&mut qkv, 4, Turn::Forward);
        let product = |a: usize, b: usize| (0..4).map(|i| qkv[a * 12 + i] * qkv[b * 12 + 4 + i]).sum::<f32>();
        assert!((product(0, 1) - product(1, 2)).abs() < 1e-6 && (product(1, 2) - product(2, 3)).abs() < 1e-6);
        assert!((product(0, 1) - product(0, 2)).abs() > 1e-3);
    }
}
