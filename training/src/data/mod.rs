//! Folders of pictures to batches of crops.

pub mod augment;
pub mod colour;
pub mod labelled;
pub mod loader;
pub mod pictures;
