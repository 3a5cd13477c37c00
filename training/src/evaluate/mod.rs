//! Measures what a backbone has learnt.
//!
//! ```
//! use dino_train::evaluate::knn::{Features, evaluate};
//! use ndarray::array;
//!
//! // Features and classes of labelled pictures, and of those that they classify.
//! let train = Features::new("train", array![[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], vec![0, 0, 1])?;
//! let val = Features::new("val", array![[2.0, 0.2], [0.1, 3.0]], vec![0, 1])?;
//! let report = evaluate(&train, &val, &[1], 0.07)?;
//! assert_eq!((report.0[0].0, report.0[0].1.top1), (1, 100.0));
//! # Ok::<(), dino_train::evaluate::knn::Error>(())
//! ```

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
