//! Values of flags that both programs have.

use clap::builder::{OsStringValueParser, TypedValueParser};
use dino_hub::Location;

/// Where a model or a checkpoint is: a path, or a name on a model hub.
pub fn location() -> impl TypedValueParser<Value = Location> {
    OsStringValueParser::new().try_map(Location::of)
}
