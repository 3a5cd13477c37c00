//! Folders of pictures to batches of crops.

pub mod augment;
pub mod colour;
mod compressed;
pub mod labelled;
pub mod loader;
pub mod pictures;
mod shards;
mod sidecars;
