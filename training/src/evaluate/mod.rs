//! Measures what a backbone has learnt.

pub mod knn;
pub mod segmentation;
