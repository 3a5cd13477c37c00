//! Measures what a backbone has learnt.

pub mod agreement;
pub mod anomaly;
pub mod attention;
pub mod copies;
pub mod copydays;
pub mod dense;
pub mod descriptors;
pub mod drawn;
pub mod features;
pub mod figures;
pub mod files;
pub mod input;
pub mod knn;
pub mod linear;
pub mod online;
pub mod ranking;
pub mod revisited;
pub mod segmentation;
pub mod video;
pub mod watch;
pub mod whitening;
