//! Writes a backbone as an ONNX graph of standard operators, for every batch and every picture size.

mod calibrate;
mod graph;
mod layers;
mod positions;
mod quantise;
mod resnet;
mod vit;

use std::collections::BTreeSet;

use crate::weights::{Backbone, Vit};

pub use calibrate::{Plan, Rows, fit};
use layers::Layers;

/// The most that a protobuf message, and so an ONNX file that needs no others, can hold.
const LARGEST: usize = i32::MAX as usize;

/// Why a backbone is not written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The weights do not fit into one file.
    #[error(
        "the weights take {0} bytes in this precision, more than the 2 GiB that one ONNX file can hold; f16 takes half of what f32 takes, int8 a quarter"
    )]
    TooLarge(usize),
    /// Integers are for matrix products only.
    #[error("int8 is for vision transformers; export this ResNet as f32 or f16")]
    Int8Resnet,
}

/// What the names of the outputs of [`encode_taps`] start with.
const TAP: &str = "reads:";

/// The number format of a graph's matrix products.
#[derive(Clone, Copy, Debug)]
pub enum Format<'a> {
    /// float32.
    F32,
    /// float16, and float32 where it must be.
    F16,
    /// 8-bit integers, as the plan of [`fit`] says, which goes with the transformer that it gives.
    Int8(&'a Plan),
}

/// What the graph of a vision transformer gives beside its usual outputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// Blocks, counted from the last, whose CLS tokens it gives; at most the depth.
    pub last_blocks: usize,
    /// Blocks, from 1 to the depth, all of whose tokens it gives.
    pub layers: BTreeSet<usize>,
}

/// The backbone as an ONNX file. Inputs and outputs are float32 in every precision, and those of a model folder:
///
/// - a vision transformer has `last_hidden_state` `[B, T, D]` after the final norm, `attention` `[B, heads, T]` (the last
///   block's CLS row after softmax) and `keys` `[B, patches, D]` (the last block's, bias included, before rotary
///   positions), where `extras` ask for it `last_blocks` `[B, n, D]` (CLS after each of the last n blocks and the final norm),
///   and for each of their layers N `hidden_state_N` `[B, T, D]` (all tokens after block N and the final norm);
/// - a residual network has `embedding` `[B, D]` and `feature_map` `[B, D, h, w]`.
///
/// # Errors
/// See [`Error`]; nothing is built before it is known to fit.
pub fn encode(backbone: &Backbone, format: Format<'_>, extras: &Extras) -> Result<Vec<u8>, Error> {
    let mut layers = Layers::new(format, 0);
    match backbone {
        Backbone::Vit(vit) => vit::build(vit, &mut layers, extras),
        Backbone::Resnet(_) if matches!(format, Format::Int8(_)) => return Err(Error::Int8Resnet),
        Backbone::Resnet(resnet) => resnet::build(resnet, &mut layers),
    }
    finish(&layers)
}

/// A transformer's graph that also gives what each matrix product reads, of every `step`th token from CLS on; for [`Rows`].
/// In float32, or, where that takes more than one file can hold, in 8 bits as they come.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn encode_taps(vit: &Vit, step: usize) -> Result<Vec<u8>, Error> {
    let build = |format| {
        let mut layers = Layers::new(format, step.max(1));
        vit::build(vit, &mut layers, &Extras::default());
        finish(&layers)
    };
    let plain = Plan::default();
    build(Format::F32).or_else(|_| build(Format::Int8(&plain)))
}

fn finish(layers: &Layers<'_>) -> Result<Vec<u8>, Error> {
    let size = layers.graph.size();
    // The nodes take well under a megabyte per thousand.
    if size > LARGEST - (16 << 20) {
        return Err(Error::TooLarge(size));
    }
    Ok(layers.graph.encode("dino"))
}
