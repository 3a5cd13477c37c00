//! What `dino-server` and `dino-train` do as programs: their versions, shell completions, manual pages, signals, and flags that both have.

#![deny(unsafe_code)]

pub mod flags;
pub mod manuals;
pub mod signals;
