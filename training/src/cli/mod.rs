//! One module for each verb of the command line.

use std::ffi::OsString;

use clap::builder::{OsStringValueParser, TypedValueParser};
use dino_hub::Location;

pub mod attention;
pub mod backbone;
mod checkpoint;
pub mod export;
pub mod finetune;
pub mod knn;
mod launch;
pub mod linear;
pub mod public;
pub mod report;
pub mod segment_eval;
pub mod train;
pub mod tsne;

/// Where a model or a checkpoint is, as a flag has it.
fn location() -> impl TypedValueParser<Value = Location> {
    OsStringValueParser::new().try_map(|text: OsString| Location::of(text))
}
