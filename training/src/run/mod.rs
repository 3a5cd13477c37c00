//! A training run: its settings, its steps from first to last, its log and its lock.

pub mod diagnostics;
pub mod lock;
pub mod log;
pub mod random;
pub mod recipe;
pub mod state;
pub mod trainer;
