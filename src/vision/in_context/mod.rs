//! Segmentation in context: pictures with masks are the knowledge, and a patch of another picture takes the labels of its nearest
//! neighbours among their patches.
//!
//! Nothing is trained. The way is that of the dense nearest neighbour retrieval of Balažević et al., Towards In-Context Scene
//! Understanding (2023): a stored patch votes with the share of it that its mask covers, and neighbours are weighted by a softmax of their
//! cosines; here with the temperature of DINO's k-NN vote.
//!
//! | file | what |
//! | --- | --- |
//! | `labelled` | the patches of pictures with masks, and their vote |
//! | `nearest` | the k nearest of each patch |
//! | `votes` | what the vote says, of a bounded number of labels |
//! | `painted` | from votes of patches to masks of pixels |
//!
//! ```
//! use dino_vision::anomaly::{PatchSet, Rows};
//! use dino_vision::in_context::{LabelledPatches, Plane, painted};
//! use dino_vision::transform::PatchGrid;
//!
//! // A picture of two patches, two numbers each: the mask of a cat covers the first.
//! let grid = PatchGrid { rows: 1, columns: 2 };
//! let patches = |vectors: [[f32; 2]; 2]| {
//!     let mut rows = Rows::new(2);
//!     vectors.iter().for_each(|vector| rows.push(vector.iter().copied()));
//!     rows
//! };
//! let set = PatchSet { grid, foreground: vec![true; 2], coverage: None, rows: patches([[1.0, 0.0], [0.0, 1.0]]) };
//! let mut known = LabelledPatches::new(1000);
//! known.add("1.jpg", Plane { id: "1".into(), labels: vec!["cat".into()], coverage: vec![255, 0] }, &set);
//!
//! // In another picture the cat is on the right.
//! let votes = known.vote(&patches([[0.0, 2.0], [2.0, 0.0]]), 1, 0.07)?;
//! let painting = painted(&votes, grid, (200, 100), 0.5)?;
//! let label = painting.found[0].label;
//! assert_eq!(votes.labels[label], "cat");
//! assert_eq!(painting.mask(label).bbox(), [100, 0, 100, 100]);
//! # Ok::<(), dino_vision::cancel::Cancelled>(())
//! ```

mod labelled;
mod nearest;
mod painted;
mod votes;

pub use labelled::{LabelledPatches, Plane};
pub use painted::{Painted, Painting, painted};
pub use votes::Votes;
