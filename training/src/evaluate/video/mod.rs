//! Video object segmentation without training (DINO paper, section 4.2.1, after Jabri et al. 2020): the labels of the first frame are
//! carried from frame to frame by the likeness of patches, and the masks are measured as DAVIS 2017 does.
//!
//! The steps and their numbers are those of the public `eval_video_segmentation.py` and `davis2017-evaluation`.
//!
//! ```
//! use dino_train::evaluate::video::{labels::{Numbers, Objects}, measures::region, propagation::{Propagation, Settings}};
//! use dino_vision::transform::PatchGrid;
//! use ndarray::array;
//!
//! // A video of 2 x 1 patches of 8 pixels: object 1 is on the left, and moves to the right.
//! let grid = PatchGrid { rows: 1, columns: 2 };
//! let mask = |values: [u8; 2]| Numbers { size: (16, 8), values: (0..16 * 8).map(|at| values[at % 16 / 8]).collect() };
//! let first = mask([1, 0]);
//! let objects = Objects::of(&first);
//! let (object, ground) = ([1.0, 0.0], [0.0, 1.0]);
//! let settings = Settings { last_frames: 1, top_k: 1, neighbourhood: 0 };
//! let mut video = Propagation::new(settings, grid, array![object, ground].view(), objects.shares(&first, grid));
//! let second = objects.pixels(video.next(array![ground, object].view()), grid, 8, (16, 8));
//! let is_object = |numbers: &Numbers| numbers.values.iter().map(|number| *number == 1).collect::<Vec<_>>();
//! assert!(region(&is_object(&mask([0, 1])), &is_object(&second)) > 0.9);
//! # Ok::<(), anyhow::Error>(())
//! ```

pub mod frame;
pub mod labels;
pub mod measures;
pub mod propagation;
pub mod sequences;
