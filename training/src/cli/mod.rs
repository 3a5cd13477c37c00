//! One module for each verb of the command line.
//!
//! ```
//! use clap::{Args as _, Command, FromArgMatches as _};
//! use dino_train::cli::{knn, public::with_dashes};
//!
//! // Flags may be spelt as those of the public scripts.
//! let spelt = with_dashes(["train", "--patch_size", "16"].into_iter().map(Into::into));
//! assert_eq!(spelt, ["train", "--patch-size", "16"]);
//!
//! let line = ["knn", "--features", "absent.safetensors", "--k", "5"];
//! let matches = knn::Args::augment_args(Command::new("knn")).try_get_matches_from(line)?;
//! let error = knn::run(&knn::Args::from_arg_matches(&matches)?).unwrap_err();
//! assert!(format!("{error:#}").contains("absent.safetensors"));
//! # Ok::<(), clap::Error>(())
//! ```

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
