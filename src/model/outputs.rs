//! What a graph computes.

use std::ops::Range;

use ndarray::{Array, Array2, Array3, Array4, Axis, Dimension, RemoveAxis, Slice, concatenate};

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
    /// `[B, D]`: the pooled features of a ResNet.
    pub embedding: Option<Array2<f32>>,
    /// `[B, D, h, w]`: the feature map of a ResNet.
    pub feature_map: Option<Array4<f32>>,
    /// `[B, n, D]`: CLS after each of the last n blocks, normalised by the final norm, in the order of the blocks.
    pub last_blocks: Option<Array3<f32>>,
}

impl Outputs {
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
