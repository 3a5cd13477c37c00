//! Folders of pictures to batches of crops.
//!
//! ```
//! use std::sync::Arc;
//!
//! use dino_train::data::{augment::Augmentation, loader::{Plan, epoch}, pictures::Pictures};
//!
//! let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/caltech101-val");
//! let pictures = Arc::new(Pictures::open(folder.as_ref(), Some(64), 0)?);
//! let augmentation = Augmentation {
//!     global_size: 32, global_scale: (0.4, 1.0), anchor_size: None, local_crops: 3, local_size: 16, local_scale: (0.05, 0.4), blur_sigma: (0.1, 0.4),
//! };
//! let plan = Plan { augmentation, batch: 2, rank: 0, world: 1, seed: 0, workers: 1 };
//! let batch = epoch(&pictures, plan, 0, 0..1).next().unwrap();
//! assert_eq!((batch.global.len(), batch.local.len()), (2 * 2 * 3 * 32 * 32, 3 * 2 * 3 * 16 * 16));
//! # Ok::<(), dino_train::data::pictures::Error>(())
//! ```

pub mod augment;
pub mod colour;
pub mod labelled;
pub mod loader;
pub mod pictures;
