//! A pre-norm transformer block as one operator: x + attention(norm(x)), then x + mlp(norm(x)).
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use dino_train::{kernels::matmul::Precision, ops::block::{Block, Sequences, Tokens}};
//!
//! let block = Block { dim: 16, heads: 2, hidden: 64, gated: false, eps: 1e-6, precision: Precision::F32, recompute: false };
//! // Two pictures of five tokens, one row each. Weights of zero add nothing to them.
//! let sequences = Sequences(vec![(2, 5)]);
//! let x = Tensor::randn(0.0_f32, 1.0, (sequences.rows(), 16), &Device::Cpu)?;
//! let weights = Tensor::zeros(block.len(), DType::F32, &Device::Cpu)?;
//! let y = block.forward(&x, &weights, &sequences, &[], None, Tokens::All)?;
//! assert_eq!(y.to_vec2::<f32>()?, x.to_vec2::<f32>()?);
//! assert_eq!(block.forward(&x, &weights, &sequences, &[], None, Tokens::First)?.dims(), [2, 16]);
//! # Ok::<(), candle_core::Error>(())
//! ```

mod composed;
#[cfg(any(feature = "cuda", test))]
mod cuda;
mod fused;
mod rotation;
mod scales;
mod sequences;

use std::sync::{Arc, Mutex};

use candle_core::{Result, Tensor, bail};

use self::fused::Fused;
use self::rotation::Turn;
pub use self::rotation::{Jitter, Rotation};
pub use self::sequences::Sequences;
use super::host::is_host;
use super::with_slice;
use crate::kernels::attention;
use crate::kernels::matmul::Precision;

/// Sizes of a block; its parameters follow one another in the order of [`Block::parameters`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    /// Columns of the residual stream.
    pub dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Columns of the hidden layer.
    pub hidden: usize,
    /// Whether the hidden layer is `silu(gate) · value` (`SwiGLU`, Shazeer 2020) of a first layer twice as wide; else GELU.
    pub gated: bool,
    /// Added to variances in the layer norms.
    pub eps: f32,
    /// Arithmetic of the four linear layers.
    pub precision: Precision,
    /// Keep nothing but the input for the backward pass, which computes the rest again (Chen et al. 2016): the same numbers, in less
    /// memory and more time.
    pub recompute: bool,
}

/// Which tokens of each sequence a block puts out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// Every one.
    All,
    /// The first alone, CLS: the last block of a network whose other tokens are not read needs the others' keys and values only.
    First,
    /// Every one of the first run of sequences, and the first alone of others: patches of large crops, and no more than CLS of small ones.
    AllOfFirstRun,
}

impl Tokens {
    /// How many of the `tokens` of a sequence of a run.
    pub(super) fn of(self, run: usize, tokens: usize) -> usize {
        match self {
            Self::All => tokens,
            Self::AllOfFirstRun if run == 0 => tokens,
            Self::First | Self::AllOfFirstRun => 1,
        }
    }
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
        let (d, h, wide) = (self.dim, self.hidden, self.wide());
        // Of a gated MLP the names of DINOv2's public code.
        let [fc1_w, fc1_b, fc2_w, fc2_b] = if self.gated {
            ["mlp.w12.weight", "mlp.w12.bias", "mlp.w3.weight", "mlp.w3.bias"]
        } else {
            ["mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"]
        };
        [
            ("norm1.weight", vec![d]),
            ("norm1.bias", vec![d]),
            ("attn.qkv.weight", vec![3 * d, d]),
            ("attn.qkv.bias", vec![3 * d]),
            ("attn.proj.weight", vec![d, d]),
            ("attn.proj.bias", vec![d]),
            ("norm2.weight", vec![d]),
            ("norm2.bias", vec![d]),
            (fc1_w, vec![wide, d]),
            (fc1_b, vec![wide]),
            (fc2_w, vec![d, h]),
            (fc2_b, vec![d]),
        ]
    }

    /// Columns that the first layer of the MLP puts out.
    fn wide(&self) -> usize {
        if self.gated { 2 * self.hidden } else { self.hidden }
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

    /// `x` `[rows, dim]` and the flat parameters to `[rows, dim]`, of the tokens that `output` names.
    /// `rotations` are those of each run of sequences, or none where positions are not rotary.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn forward(
        &self,
        x: &Tensor,
        parameters: &Tensor,
        sequences: &Sequences,
        rotations: &[Rotation],
        drop: Option<&DropPath>,
        output: Tokens,
    ) -> Result<Tensor> {
        if x.dims() != [sequences.rows(), self.dim] || parameters.dims() != [self.len()] {
            bail!("block of dim {}: input {:?}, parameters {:?}", self.dim, x.dims(), parameters.dims());
        }
        self.check_rotations(sequences, rotations)?;
        #[cfg(any(feature = "cuda", test))]
        if super::host::is_gpu(x.device()) {
            let (x, parameters) = (x.contiguous()?, parameters.contiguous()?);
            return cuda::OnDevice::new(self, &x, &parameters, sequences, rotations, drop, output)?.apply(&x, &parameters);
        }
        if !is_host(x.device()) {
            return self.composed(x, parameters, sequences, rotations, drop, output);
        }
        let kept = Arc::new(Mutex::new(None));
        let keep = x.track_op() || parameters.track_op();
        let (sequences, rotations, drop) = (sequences.clone(), rotations.to_vec(), drop.cloned());
        let fused = Fused { block: *self, sequences, rotations, drop, output, keep, kept };
        if keep { x.contiguous()?.apply_op2(parameters, fused) } else { x.contiguous()?.apply_op2_no_bwd(parameters, &fused) }
    }

    /// The flat parameters in their shapes.
    fn split(&self, parameters: &Tensor) -> Result<[Tensor; 12]> {
        let mut at = 0;
        let mut next = |(_, shape): (_, Vec<usize>)| {
            let len = shape.iter().product::<usize>();
            at += len;
            parameters.narrow(0, at - len, len)?.reshape(shape)
        };
        let parts = self.parameters().into_iter().map(&mut next).collect::<Result<Vec<_>>>()?;
        parts.try_into().map_err(|_| candle_core::Error::Msg("a block has twelve parameters".to_owned()))
    }

    fn check_rotations(&self, sequences: &Sequences, rotations: &[Rotation]) -> Result<()> {
        let width = self.dim / self.heads;
        let fits = |(&(_, tokens), rotation): (&(usize, usize), &Rotation)| rotation.tokens() == tokens && rotation.width() == width;
        if !rotations.is_empty() && (rotations.len() != sequences.0.len() || !sequences.0.iter().zip(rotations).all(fits)) {
            bail!("block of dim {}: the rotations do not fit sequences of {:?} and heads of {width} channels", self.dim, sequences.0);
        }
        Ok(())
    }

    /// The attention weights of this block, `[heads, tokens, tokens]` for each sequence, in order.
    ///
    /// # Errors
    /// When shapes do not fit, or the device fails.
    pub fn attention_weights(&self, x: &Tensor, parameters: &Tensor, sequences: &Sequences, rotations: &[Rotation]) -> Result<Vec<Tensor>> {
        self.check_rotations(sequences, rotations)?;
        let d = self.dim;
        let [norm_w, norm_b, qkv_w, qkv_b, ..] = self.split(parameters)?;
        let qkv = super::layer_norm::composed(x, &norm_w, &norm_b, self.eps)?.matmul(&qkv_w.t()?)?.broadcast_add(&qkv_b)?;
        with_slice(&qkv.to_device(&candle_core::Device::Cpu)?, |qkv| {
            let mut at = 0;
            let mut all = Vec::with_capacity(sequences.count());
            for (run, &(n, tokens)) in sequences.0.iter().enumerate() {
                for _ in 0..n {
                    let mut qkv = qkv[at..at + tokens * 3 * d].to_vec();
                    if let Some(rotation) = rotations.get(run) {
                        rotation.turn(&mut qkv, d, Turn::Forward);
                    }
                    let mut weights = vec![0.0; self.heads * tokens * tokens];
                    for (head, out) in weights.chunks_exact_mut(tokens * tokens).enumerate() {
                        attention::weights(&qkv, d, self.heads, head, out);
                    }
                    all.push(Tensor::from_vec(weights, (self.heads, tokens, tokens), &candle_core::Device::Cpu)?);
                    at += tokens * 3 * d;
                }
            }
            Ok(all)
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use rand::SeedableRng;

    use super::*;
    use crate::backbone::parameters::Random;
    use crate::kernels::matmul::has_bf16;

    pub(super) fn random(shape: &[usize], scale: f32, seed: u64) -> Var {
        let mut source = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| scale * source.normal()).collect();
        Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn assert_close(got: &Tensor, want: &Tensor, what: &str) {
        assert_eq!(got.dims(), want.dims(), "{what}");
        for (i, (g, w)) in values(got).iter().zip(values(want)).enumerate() {
            assert!((g - w).abs() < 1e-4 + 1e-4 * w.abs(), "{what}, element {i}: {g}, not {w}");
        }
    }

    fn block(precision: Precision) -> Block {
        Block { dim: 24, heads: 3, hidden: 40, gated: false, eps: 1e-6, precision, recompute: false }
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
        // 2 x 3 patches and 1 x 2, behind CLS; heads of 8 channels.
        let jitter = Jitter { shift: [0.1, -0.2], scale: [1.4, 0.8] };
        let rotations = [(2, 3), (1, 2)].map(|grid| Rotation::new(1, grid, &[1.0, 10.0], &jitter));
        compare(block(Precision::F32), &[]);
        compare(Block { gated: true, ..block(Precision::F32) }, &[]);
        compare(block(Precision::F32), &rotations);
        compare(Block { gated: true, ..block(Precision::F32) }, &rotations);
    }

    fn compare(block: Block, rotations: &[Rotation]) {
        // Enough rows for several chunks and tasks, of two lengths.
        compare_on(block, &Sequences(vec![(70, 7), (31, 3)]), rotations, |forward| forward());
    }

    /// Output, gradient of x and the gradients of each parameter.
    fn parts(block: &Block, [out, dx, dp]: &[Tensor; 3]) -> Vec<(&'static str, Tensor)> {
        let mut parts = vec![("output", out.clone()), ("gradient of x", dx.clone())];
        let mut at = 0;
        for ((name, _), len) in block.parameters().into_iter().zip(block.lengths()) {
            parts.push((name, dp.narrow(0, at, len).unwrap()));
            at += len;
        }
        parts
    }

    /// A block beside the composed one, where `on` runs what is compared: with and without drop path, of all tokens and of the first ones.
    pub(super) fn compare_on(
        block: Block,
        sequences: &Sequences,
        rotations: &[Rotation],
        on: fn(&dyn Fn() -> Result<Tensor>) -> Result<Tensor>,
    ) {
        let (x, p) = (random(&[sequences.rows(), block.dim], 1.0, 1), random(&[block.len()], 0.3, 2));
        let drop = DropPath {
            attention: (0..sequences.count()).map(|i| if i % 3 == 0 { 0.0 } else { 1.25 }).collect(),
            mlp: (0..sequences.count()).map(|i| if i % 4 == 1 { 0.0 } else { 1.25 }).collect(),
        };
        let outputs = [Tokens::All, Tokens::First, Tokens::AllOfFirstRun];
        for (drop, output) in outputs.into_iter().flat_map(|output| [(None, output), (Some(&drop), output)]) {
            let run_as = |block: Block| run(&x, &p, |x, p| on(&|| block.forward(x, p, sequences, rotations, drop, output)));
            let fused = run_as(block);
            let composed = run(&x, &p, |x, p| block.composed(x, p, sequences, rotations, drop, output));
            for ((what, fused), (_, composed)) in parts(&block, &fused).iter().zip(&parts(&block, &composed)) {
                // Gradients of parameters are sums over hundreds of rows: their scale sets the tolerance.
                let scale = values(composed).iter().fold(1f32, |a, b| a.max(b.abs()));
                assert_close(&(fused / f64::from(scale)).unwrap(), &(composed / f64::from(scale)).unwrap(), what);
            }
            let again = run_as(Block { recompute: true, ..block });
            for (again, fused) in again.iter().zip(&fused) {
                assert_eq!(values(again), values(fused), "what is computed again is the same");
            }
            let (x, p) = (x.as_detached_tensor(), p.as_detached_tensor());
            let frozen = on(&|| block.forward(&x, &p, sequences, rotations, drop, output)).unwrap();
            assert_eq!(values(&frozen), values(&fused[0]), "the frozen pass computes the same");
        }
    }

    #[test]
    fn every_parameter_of_a_block_is_trained() {
        let block = block(Precision::F32);
        let sequences = Sequences(vec![(4, 5)]);
        let (x, p) = (random(&[sequences.rows(), block.dim], 1.0, 3), random(&[block.len()], 0.3, 4));
        let [_, _, gradient] = run(&x, &p, |x, p| block.forward(x, p, &sequences, &[], None, Tokens::All));
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
        let sequences = Sequences(vec![(20, 9)]);
        let exact = block(Precision::F32);
        let (x, p) = (random(&[sequences.rows(), exact.dim], 1.0, 5), random(&[exact.len()], 0.2, 6));
        let want = run(&x, &p, |x, p| exact.forward(x, p, &sequences, &[], None, Tokens::All));
        let rounded = block(Precision::Bf16);
        let mut got = vec![run(&x, &p, |x, p| rounded.composed(x, p, &sequences, &[], None, Tokens::All))];
        // Not every processor has such products.
        got.extend(has_bf16().then(|| run(&x, &p, |x, p| rounded.forward(x, p, &sequences, &[], None, Tokens::All))));
        for (got, want) in got.iter().flatten().zip(want.iter().cycle()) {
            let (got, want) = (values(got), values(want));
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let cosine = dot(&got, &want) / (dot(&got, &got) * dot(&want, &want)).sqrt();
            assert!(cosine > 0.9995 && got.iter().zip(&want).any(|(got, want)| got.to_bits() != want.to_bits()), "{cosine}");
        }
    }
}
