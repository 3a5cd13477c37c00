//! What `dino-server` and `dino-train` do as programs: their versions, shell completions, manual pages and signals.

#![deny(unsafe_code)]

pub mod manuals;
pub mod signals;
