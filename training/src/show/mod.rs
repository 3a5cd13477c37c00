//! Progress bars, curves, event files and pictures.
//!
//! ```
//! use dino_train::show::draw::{blend, hex, viridis};
//!
//! assert!(viridis(1.0)[1] > viridis(0.0)[1], "yellow is brighter than dark blue");
//! assert_eq!(hex(blend(image::Rgb([0, 0, 0]), image::Rgb([255, 255, 255]), 1.0)), "#ffffff");
//! ```

pub mod avi;
pub mod draw;
pub mod events;
pub mod plot;
pub mod progress;
pub mod scatter;
