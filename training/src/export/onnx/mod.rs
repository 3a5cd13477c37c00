//! Writes a backbone as an ONNX graph of standard operators, for every batch and every picture size.
//!
//! ```
//! use dino_train::export::onnx::{Extras, Format, Target, write};
//! use dino_train::weights::{Options, load};
//!
//! let checkpoint = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/checkpoints/pth-dino-backbone/dino_vit_pretrain.pth");
//! let checkpoint = load(checkpoint.as_ref(), &Options { heads: Some(4), ..Options::default() })?;
//! let folder = tempfile::tempdir()?;
//! let target = Target { folder: folder.path(), name: "model.onnx", external: false };
//! let written = write(&checkpoint.backbone, Format::F32, &Extras::default(), target)?;
//! assert_eq!((written.sha256.len(), written.data), (64, None));
//! assert!(folder.path().join("model.onnx").exists());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod calibrate;
mod convnext;
mod file;
mod folded;
mod graph;
mod layers;
mod positions;
mod quantise;
mod resnet;
mod vit;

use std::collections::BTreeSet;
use std::path::Path;

use super::whitening::Whitening;
use crate::weights::{Backbone, Vit};

pub use calibrate::{Plan, Rows, fit};
pub use file::{Place, Places, Written, data_name};
use graph::Axis;
use layers::Layers;

/// Why a backbone is not written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Integers are for matrix products only.
    #[error("int8 is for vision transformers; export this convolutional network as f32 or f16")]
    Int8Convolutional,
    /// A file cannot be written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// What the names of the outputs of [`taps`] start with.
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

/// What a graph is and gives beyond the usual.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extras {
    /// (height, width) in pixels of the pictures that it takes, in whole patches; it takes every such size where this is absent.
    pub size: Option<(usize, usize)>,
    /// Blocks, counted from the last, whose CLS tokens it gives; at most the depth.
    pub last_blocks: usize,
    /// Blocks, from 1 to the depth, all of whose tokens it gives.
    pub layers: BTreeSet<usize>,
    /// What CLS after the final norm is replaced with.
    pub whitening: Option<Whitening>,
}

/// Where a graph is written to.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The folder.
    pub folder: &'a Path,
    /// Name of the ONNX file.
    pub name: &'a str,
    /// Whether the weights lie in a file beside it even where one file could hold all.
    pub external: bool,
}

/// Writes the backbone as an ONNX file. Inputs and outputs are float32 in every precision, and those of a model folder:
///
/// - a vision transformer has `last_hidden_state` `[B, T, D]` after the final norm, `attention` `[B, heads, T]` (the last
///   block's CLS row after softmax) and `keys` `[B, patches, D]` (the last block's, bias included, before rotary
///   positions), where `extras` ask for it `last_blocks` `[B, n, D]` (CLS after each of the last n blocks and the final norm),
///   and for each of their layers N `hidden_state_N` `[B, T, D]` (all tokens after block N and the final norm);
/// - a residual network and a `ConvNeXt` have `embedding` `[B, D]` and `feature_map` `[B, D, h, w]`.
///
/// Beside the weights of the backbone no more than the largest of them is in memory.
///
/// # Errors
/// See [`Error`].
pub fn write(backbone: &Backbone, format: Format<'_>, extras: &Extras, target: Target<'_>) -> Result<Written, Error> {
    let layers = build(backbone, format, extras)?;
    Ok(file::write(&layers.graph, target.folder, target.name, target.external)?)
}

/// The same graph as an ONNX file without weights, which lie at `places` in the folder that it is put into. Runtimes map those into
/// memory.
///
/// # Errors
/// See [`Error`].
pub fn referring(backbone: &Backbone, format: Format<'_>, extras: &Extras, places: &Places) -> Result<Vec<u8>, Error> {
    let layers = build(backbone, format, extras)?;
    Ok(file::referring(&layers.graph, places)?)
}

/// A transformer's graph in float32 that also gives what each matrix product reads, of every `step`th token from CLS on; for [`Rows`].
/// Its weights lie at `places`, like those of [`referring`].
///
/// # Errors
/// See [`Error`].
pub fn taps(vit: &Vit, step: usize, places: &Places) -> Result<Vec<u8>, Error> {
    let mut layers = Layers::new(Format::F32, step.max(1));
    vit::build(vit, &mut layers, &Extras::default());
    Ok(file::referring(&layers.graph, places)?)
}

/// The axes of `pixel_values`.
fn input_axes(size: Option<(usize, usize)>) -> [Axis; 4] {
    let [height, width] = match size {
        Some((height, width)) => [height, width].map(Axis::Fixed),
        None => ["height", "width"].map(Axis::Named),
    };
    [Axis::Named("batch"), Axis::Fixed(3), height, width]
}

fn build<'w>(backbone: &'w Backbone, format: Format<'w>, extras: &Extras) -> Result<Layers<'w>, Error> {
    let mut layers = Layers::new(format, 0);
    match backbone {
        Backbone::Vit(vit) => vit::build(vit, &mut layers, extras),
        Backbone::Resnet(_) | Backbone::Convnext(_) if matches!(format, Format::Int8(_)) => return Err(Error::Int8Convolutional),
        Backbone::Resnet(resnet) => resnet::build(resnet, &mut layers, extras.size),
        Backbone::Convnext(network) => convnext::build(network, &mut layers, extras.size),
    }
    Ok(layers)
}
