//! Which places of two pictures show the same: patches that are each other's nearest, and the geometry that they agree on.
//!
//! | file | what |
//! | --- | --- |
//! | `matches` | mutual nearest patches, placed between patches by a parabola over the similarities |
//! | `geometry` | affine maps, homographies and fundamental matrices from points, and how far a point is from one |
//! | `ransac` | the geometry that most matches agree on |
//!
//! ```
//! use dino_vision::correspondence::{Geometry, PointPair, fit};
//!
//! // Eight places that moved by (10, -5), and one wrong match.
//! let mut pairs: Vec<PointPair> = (0..8).map(|at| [f64::from(at * at), f64::from(20 * at)]).map(|[x, y]| ([x, y], [x + 10.0, y - 5.0])).collect();
//! pairs.push(([3.0, 3.0], [90.0, 90.0]));
//! let found = fit(Geometry::Affine, &pairs, 2.0)?.unwrap();
//! assert_eq!(found.inliers, [0, 1, 2, 3, 4, 5, 6, 7]);
//! assert!((found.matrix[0][2] - 10.0).abs() < 1e-6 && (found.matrix[1][2] + 5.0).abs() < 1e-6);
//! # Ok::<(), dino_vision::cancel::Cancelled>(())
//! ```

mod geometry;
mod matches;
mod ransac;

pub use geometry::{Geometry, Matrix, PointPair};
pub use matches::{Match, Options, Side, matches};
pub use ransac::{Fit, fit};
