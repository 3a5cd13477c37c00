//! Anomaly detection by patches: how far each patch of a picture is from everything that good pictures hold.
//!
//! The method is AnomalyDINO (Damm et al., <https://arxiv.org/abs/2405.14529>). The distance of a patch is 1 minus the cosine to the
//! nearest stored patch ([`Bank`]); the score of a picture is the mean of its largest 1 % ([`mean_of_largest`]); the map is that of the
//! distances, enlarged to the picture and smoothed ([`enlarged`]).
//!
//! | file | what |
//! | --- | --- |
//! | `scan` | of vectors [as bytes](Rows), the nearest of each |
//! | `patch_set` | the patches of one picture, and their stored form |
//! | `bank`, `coreset`, `leave_one_out` | the patches of all good pictures; the bound on their number; the threshold |
//! | `score`, `map`, `regions` | from distances to a score, a map, and regions of patches |
//! | `foreground`, `rotate` | the two options of the paper: masking by the first principal component, and rotated pictures |
//!
//! ```
//! use dino_vision::anomaly::{Bank, DEFAULT_TOP, PatchSet, Rows, mean_of_largest};
//! use dino_vision::transform::PatchGrid;
//!
//! /// The two patches of a picture, two numbers each.
//! fn patches(vectors: [[f32; 2]; 2]) -> Rows {
//!     let mut rows = Rows::new(2);
//!     vectors.iter().for_each(|vector| rows.push(vector.iter().copied()));
//!     rows
//! }
//!
//! let grid = PatchGrid { rows: 1, columns: 2 };
//! let good = PatchSet { grid, foreground: vec![true; 2], coverage: None, rows: patches([[1.0, 0.0], [1.0, 0.1]]) };
//! let mut bank = Bank::new(2, 1000);
//! bank.add("good.jpg", 0, false, &good)?;
//!
//! let asked = patches([[1.0, 0.0], [0.0, 1.0]]);
//! let distances: Vec<f32> = bank.nearest(&asked)?.into_iter().flatten().map(|nearest| nearest.distance()).collect();
//! assert!(distances[0] < 0.01 && distances[1] > 0.8);
//! assert_eq!(mean_of_largest(&distances, DEFAULT_TOP), distances[1]);
//! # Ok::<(), dino_vision::cancel::Cancelled>(())
//! ```

mod bank;
mod coreset;
mod foreground;
mod leave_one_out;
mod map;
mod patch_set;
mod regions;
mod rotate;
pub(crate) mod scan;
mod score;

pub use crate::byte_rows::Rows;
pub use bank::{Bank, Nearest};
pub use foreground::foreground;
pub use map::{AnomalyMap, bilinear, enlarged};
pub use patch_set::{MAX_STORED, PatchSet};
pub use regions::{Region, labels, regions};
pub use rotate::{ROTATIONS, rotated};
pub use scan::distances_of_floats;
pub use score::{DEFAULT_TOP, mean_of_largest};
