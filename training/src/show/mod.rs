//! Progress bars, curves, event files and pictures.

pub mod avi;
pub mod draw;
pub mod events;
pub mod plot;
pub mod progress;
pub mod scatter;
