//! Low-rank adapters (`LoRA`, Hu et al. 2022) on the linear layers of transformer blocks: W + B·A, where W stays as it is.
//!
//! B starts at zero, so that a backbone with fresh adapters computes what it did without. The factor that the paper calls α / r is 1.

use candle_core::{Device, Result, Tensor};

use super::parameters::{Group, Init, Random};
use crate::ops::block::Block;

/// Layers that have adapters.
const LAYERS: [&str; 6] = ["attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight", "mlp.w12.weight", "mlp.w3.weight"];

/// Adapters of all blocks.
#[derive(Clone, Debug)]
pub(super) struct Lora {
    /// For each block A `[rank, in]` and B `[out, rank]` of each layer, one after another.
    groups: Vec<Group>,
}

impl Lora {
    /// Fresh adapters of `rank` for `depth` blocks.
    pub(super) fn new(block: &Block, depth: usize, rank: usize, random: &mut impl Random, device: &Device) -> Result<Self> {
        let of_block = |index: usize, random: &mut _| {
            let mut parameters = Vec::new();
            for (name, shape) in block.parameters().into_iter().filter(|(name, _)| LAYERS.contains(name)) {
                let name = name.trim_end_matches("weight");
                let (outputs, inputs) = (shape[0], shape[1]);
                let bound = Init::Uniform(1.0 / (inputs as f32).sqrt());
                parameters.push((format!("backbone.blocks.{index}.{name}lora_a"), vec![rank, inputs], bound));
                parameters.push((format!("backbone.blocks.{index}.{name}lora_b"), vec![outputs, rank], Init::Constant(0.0)));
            }
            Group::new(parameters, random, device)
        };
        Ok(Self { groups: (0..depth).map(|index| of_block(index, random)).collect::<Result<_>>()? })
    }

    /// All adapters.
    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The same values in variables of their own.
    pub(super) fn duplicate(&self) -> Result<Self> {
        Ok(Self { groups: Group::duplicate_all(&self.groups)? })
    }

    /// The flat parameters of a block with its adapters added; `track` is for gradients of the adapters.
    pub(super) fn merged(&self, block: &Block, index: usize, flat: &Tensor, track: bool) -> Result<Tensor> {
        let group = &self.groups[index];
        let adapters = group.flat(track);
        let (mut deltas, mut next) = (Vec::new(), 0);
        for (name, shape) in block.parameters() {
            let len = shape.iter().product::<usize>();
            deltas.push(if LAYERS.contains(&name) {
                let (a, b) = (group.view(&adapters, next)?, group.view(&adapters, next + 1)?);
                next += 2;
                b.matmul(&a)?.reshape(len)?
            } else {
                Tensor::zeros(len, flat.dtype(), flat.device())?
            });
        }
        flat + Tensor::cat(&deltas, 0)?
    }
}
