//! Which places of two pictures show the same: patches that are each other's nearest, and the geometry that they agree on.
//!
//! | file | what |
//! | --- | --- |
//! | `matches` | mutual nearest patches, placed between patches by a parabola over the similarities |
//! | `geometry` | affine maps, homographies and fundamental matrices from points, and how far a point is from one |
//! | `ransac` | the geometry that most matches agree on |

mod geometry;
mod matches;
mod ransac;

pub use geometry::{Geometry, Matrix, PointPair};
pub use matches::{Match, Options, Side, matches};
pub use ransac::{Fit, fit};
