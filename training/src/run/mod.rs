//! A training run: its settings, its steps from first to last, its lock, and what it shows of itself.

pub mod diagnostics;
pub mod lock;
pub mod observer;
pub mod random;
pub mod recipe;
pub mod report;
pub mod state;
pub mod trainer;
pub mod verdict;
