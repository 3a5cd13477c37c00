//! Backbones: pictures to features.

pub mod parameters;
pub mod positions;
pub mod vit;
