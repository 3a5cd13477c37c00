//! Segmentation in context: pictures with masks are the knowledge, and a patch of another picture takes the labels of its nearest
//! neighbours among their patches.
//!
//! Nothing is trained. The way is that of the dense nearest neighbour retrieval of Balažević et al., Towards In-Context Scene
//! Understanding (2023): a stored patch votes with the share of it that its mask covers, and neighbours are weighted by a softmax of their
//! cosines; here with the temperature of DINO's k-NN vote.
//!
//! | file | what |
//! | --- | --- |
//! | `labelled` | the patches of pictures with masks, and the vote |
//! | `nearest` | the k nearest of each patch |
//! | `painted` | from votes of patches to masks of pixels |

mod labelled;
mod nearest;
mod painted;

pub use labelled::{LabelledPatches, Plane, Votes};
pub use painted::{Painted, painted};
