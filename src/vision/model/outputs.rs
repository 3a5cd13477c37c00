//! What a graph computes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use ndarray::{Array, Array2, Array3, Array4, ArrayViewD, Axis, Dimension, RemoveAxis, Slice, concatenate};

use super::Manifest;

/// Names of the outputs that a graph of a model folder may have.
pub const OUTPUTS: [&str; 6] = ["last_hidden_state", "attention", "keys", "embedding", "feature_map", "last_blocks"];

/// What a model computed for a batch of B pictures; `None` where its graph has no such output.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outputs {
    /// `[B, 1 + registers + patches, D]`, after the final norm; patches row by row.
    pub last_hidden_state: Option<Array3<f32>>,
    /// `[B, heads, 1 + registers + patches]`: how the last block's CLS token attends, after softmax.
    pub attention: Option<Array3<f32>>,
    /// `[B, patches, D]`: keys of the last block, heads side by side.
    pub keys: Option<Array3<f32>>,
    /// `[B, D]`: the pooled features of a convolutional network; of a `ConvNeXt` behind its norm.
    pub embedding: Option<Array2<f32>>,
    /// `[B, D, h, w]`: the feature map of a convolutional network; of a `ConvNeXt` behind its norm.
    pub feature_map: Option<Array4<f32>>,
    /// `[B, n, D]`: CLS after each of the last n blocks, normalised by the final norm, in the order of the blocks.
    pub last_blocks: Option<Array3<f32>>,
    /// By number of the block, from 1: what `last_hidden_state` would be if it were the last one.
    pub layers: BTreeMap<u32, Array3<f32>>,
}

/// The graph's name of a block's tokens.
pub(super) fn layer_name(number: u32) -> String {
    format!("{LAYER}{number}")
}

/// What names of blocks' tokens begin with.
const LAYER: &str = "hidden_state_";

/// What the shapes of a model's outputs follow from.
#[derive(Clone, Copy, Debug)]
pub(super) struct OutputGeometry {
    /// Side of a patch, or of a cell of the feature map; not 0.
    pub(super) patch: usize,
    /// Length of the vectors.
    pub(super) dim: usize,
    /// Tokens between CLS and the patches.
    pub(super) registers: usize,
    /// Attention heads.
    pub(super) heads: usize,
    /// Blocks in `last_blocks`.
    pub(super) last_blocks: usize,
}

impl OutputGeometry {
    pub(super) fn of(manifest: &Manifest) -> Self {
        let Manifest { patch_size, dim, registers, heads, last_blocks, .. } = *manifest;
        let [patch, dim, registers, heads, last_blocks] = [patch_size, dim, registers, heads, last_blocks].map(|number| number as usize);
        Self { patch, dim, registers, heads, last_blocks }
    }

    /// Whether the output of our name `name` may have this shape for `batch` pictures of (height, width). Some exporters leave
    /// the axes of what they pooled in place: `[B, D, 1, 1]`.
    pub(super) fn fits(&self, name: &str, shape: &[usize], batch: usize, (height, width): (usize, usize)) -> bool {
        let [rows, columns] = [height / self.patch, width / self.patch];
        let patches = rows.saturating_mul(columns);
        let tokens = patches.saturating_add(1 + self.registers);
        let expected: &[usize] = match name {
            _ if name.starts_with(LAYER) => &[batch, tokens, self.dim],
            "last_hidden_state" => &[batch, tokens, self.dim],
            "attention" => &[batch, self.heads, tokens],
            "keys" => &[batch, patches, self.dim],
            "embedding" => &[batch, self.dim],
            "feature_map" => &[batch, self.dim, rows, columns],
            "last_blocks" => &[batch, self.last_blocks, self.dim],
            _ => return false,
        };
        shape.strip_prefix(expected).is_some_and(|rest| rest.iter().all(|side| *side == 1))
    }
}

impl Outputs {
    /// Name and numbers of each output there is.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = (Cow<'static, str>, ArrayViewD<'_, f32>)> {
        let arrays = [
            self.last_hidden_state.as_ref().map(|array| array.view().into_dyn()),
            self.attention.as_ref().map(|array| array.view().into_dyn()),
            self.keys.as_ref().map(|array| array.view().into_dyn()),
            self.embedding.as_ref().map(|array| array.view().into_dyn()),
            self.feature_map.as_ref().map(|array| array.view().into_dyn()),
            self.last_blocks.as_ref().map(|array| array.view().into_dyn()),
        ];
        let layers = self.layers.iter().map(|(number, array)| (layer_name(*number).into(), array.view().into_dyn()));
        OUTPUTS.into_iter().zip(arrays).filter_map(|(name, array)| Some((name.into(), array?))).chain(layers)
    }

    /// The outputs of some pictures of the batch.
    #[must_use]
    pub fn of(&self, pictures: Range<usize>) -> Self {
        let range = &pictures;
        Self {
            last_hidden_state: part(self.last_hidden_state.as_ref(), range),
            attention: part(self.attention.as_ref(), range),
            keys: part(self.keys.as_ref(), range),
            embedding: part(self.embedding.as_ref(), range),
            feature_map: part(self.feature_map.as_ref(), range),
            last_blocks: part(self.last_blocks.as_ref(), range),
            layers: self.layers.iter().filter_map(|(number, array)| Some((*number, part(Some(array), range)?))).collect(),
        }
    }

    /// The outputs of several batches of one graph as those of one batch.
    pub(super) fn joined(parts: &[Self]) -> Self {
        Self {
            last_hidden_state: join(parts, |part| part.last_hidden_state.as_ref()),
            attention: join(parts, |part| part.attention.as_ref()),
            keys: join(parts, |part| part.keys.as_ref()),
            embedding: join(parts, |part| part.embedding.as_ref()),
            feature_map: join(parts, |part| part.feature_map.as_ref()),
            last_blocks: join(parts, |part| part.last_blocks.as_ref()),
            layers: parts
                .first()
                .into_iter()
                .flat_map(|first| first.layers.keys())
                .filter_map(|number| Some((*number, join(parts, |part| part.layers.get(number))?)))
                .collect(),
        }
    }
}

fn part<D: Dimension>(output: Option<&Array<f32, D>>, pictures: &Range<usize>) -> Option<Array<f32, D>> {
    output.map(|array| array.slice_axis(Axis(0), Slice::from(pictures.clone())).to_owned())
}

fn join<D: Dimension + RemoveAxis>(parts: &[Outputs], field: impl Fn(&Outputs) -> Option<&Array<f32, D>>) -> Option<Array<f32, D>> {
    let views: Vec<_> = parts.iter().map(|part| field(part).map(|array| array.view())).collect::<Option<_>>()?;
    // Batches of one graph and one size differ in nothing but their number.
    concatenate(Axis(0), &views).ok()
}
