//! Writes a backbone as an ONNX graph of standard operators, for every batch and every picture size.

mod graph;
mod layers;
mod positions;
mod resnet;
pub(crate) mod runtime;
mod vit;

use crate::checkpoint::Backbone;

use layers::Layers;

/// The most that a protobuf message, and so an ONNX file that needs no others, can hold.
const LARGEST: usize = i32::MAX as usize;

/// The weights do not fit into one file.
#[derive(Debug, thiserror::Error)]
#[error("the weights take {0} bytes, more than the 2 GiB that one ONNX file can hold")]
pub struct TooLarge(usize);

/// The backbone as an ONNX file. Inputs and outputs are those of a model folder:
///
/// - a vision transformer has `last_hidden_state` `[B, T, D]` after the final norm, `attention` `[B, heads, T]` (the last
///   block's CLS row after softmax) and `keys` `[B, patches, D]` (the last block's, bias included, before rotary
///   positions);
/// - a residual network has `embedding` `[B, D]` and `feature_map` `[B, D, h, w]`.
///
/// # Errors
/// [`TooLarge`], before the file is built.
pub fn encode(backbone: &Backbone) -> Result<Vec<u8>, TooLarge> {
    let mut layers = Layers::default();
    match backbone {
        Backbone::Vit(vit) => vit::build(vit, &mut layers),
        Backbone::Resnet(resnet) => resnet::build(resnet, &mut layers),
    }
    let size = layers.graph.size();
    // The nodes take well under a megabyte per thousand.
    if size > LARGEST - (16 << 20) {
        return Err(TooLarge(size));
    }
    Ok(layers.graph.encode("dino"))
}
