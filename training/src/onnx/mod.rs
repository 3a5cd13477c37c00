//! Writes a backbone as an ONNX graph of standard operators, for every batch and every picture size.

mod graph;
mod layers;
mod positions;
mod quantise;
mod resnet;
mod vit;

use dino_server::model::Precision;

use crate::checkpoint::Backbone;

use layers::Layers;

/// The most that a protobuf message, and so an ONNX file that needs no others, can hold.
const LARGEST: usize = i32::MAX as usize;

/// Why a backbone is not written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The weights do not fit into one file.
    #[error("the weights take {0} bytes, more than the 2 GiB that one ONNX file can hold; try --precision f16 or int8")]
    TooLarge(usize),
    /// Integers are for matrix products only.
    #[error("int8 is for vision transformers; export this ResNet as f32 or f16")]
    Int8Resnet,
}

/// The backbone as an ONNX file. Inputs and outputs are float32 in every precision, and those of a model folder:
///
/// - a vision transformer has `last_hidden_state` `[B, T, D]` after the final norm, `attention` `[B, heads, T]` (the last
///   block's CLS row after softmax) and `keys` `[B, patches, D]` (the last block's, bias included, before rotary
///   positions), and, where `last_blocks` is n > 0, `last_blocks` `[B, n, D]` (CLS after each of the last n blocks and the
///   final norm; n is at most the depth);
/// - a residual network has `embedding` `[B, D]` and `feature_map` `[B, D, h, w]`.
///
/// # Errors
/// See [`Error`]; nothing is built before it is known to fit.
pub fn encode(backbone: &Backbone, precision: Precision, last_blocks: usize) -> Result<Vec<u8>, Error> {
    let mut layers = Layers::new(precision);
    match backbone {
        Backbone::Vit(vit) => vit::build(vit, &mut layers, last_blocks),
        Backbone::Resnet(_) if precision == Precision::Int8 => return Err(Error::Int8Resnet),
        Backbone::Resnet(resnet) => resnet::build(resnet, &mut layers),
    }
    let size = layers.graph.size();
    // The nodes take well under a megabyte per thousand.
    if size > LARGEST - (16 << 20) {
        return Err(Error::TooLarge(size));
    }
    Ok(layers.graph.encode("dino"))
}
