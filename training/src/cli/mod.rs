//! One module for each verb of the command line.

pub mod anomaly_eval;
pub mod attention;
pub mod backbone;
mod checkpoint;
pub mod copy_eval;
pub mod distill;
pub mod export;
pub mod finetune;
pub mod knn;
mod launch;
pub mod linear;
pub mod pca;
pub mod public;
pub mod report;
mod resume;
pub mod retrieval_eval;
pub mod segment_eval;
mod shape;
mod stop;
pub mod train;
pub mod tsne;
mod usage;
pub mod video_eval;
mod warmup;

pub use usage::Usage;
