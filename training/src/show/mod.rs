//! What a run shows of itself: progress, curves, the report, event files and pictures.

pub mod draw;
pub mod events;
pub mod observer;
pub mod plot;
pub mod progress;
pub mod report;
pub mod scatter;
