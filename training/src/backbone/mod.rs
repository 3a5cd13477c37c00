//! Backbones: pictures to features.

pub mod load;
pub mod parameters;
pub mod positions;
pub mod vit;
