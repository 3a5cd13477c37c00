//! One module for each verb of the command line.

pub mod export;
pub mod knn;
mod launch;
pub mod train;
