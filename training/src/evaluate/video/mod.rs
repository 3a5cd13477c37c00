//! Video object segmentation without training (DINO paper, section 4.2.1, after Jabri et al. 2020): the labels of the first frame are
//! carried from frame to frame by the likeness of patches, and the masks are measured as DAVIS 2017 does.
//!
//! The steps and their numbers are those of the public `eval_video_segmentation.py` and `davis2017-evaluation`.

pub mod frame;
pub mod labels;
pub mod measures;
pub mod propagation;
pub mod sequences;
