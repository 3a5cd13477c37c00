//! One module for each verb of the command line.

pub mod export;
pub mod knn;
pub mod public;
pub mod train;
