//! A training run: its settings, its steps from first to last, its lock, and what it shows of itself.
//!
//! ```
//! use dino_train::run::recipe::{Preset, Recipe};
//!
//! let recipe: Recipe = toml::from_str(Preset::SmallData.text())?;
//! recipe.check()?;
//! assert_eq!(recipe.crop_sizes(0).0, 48);
//!
//! // What it says of the first step of a run of one process whose epochs have 100 steps.
//! let step = recipe.schedules(100, 1).at(0);
//! assert_eq!(step.teacher_temp, recipe.warmup_teacher_temp);
//! # Ok::<(), anyhow::Error>(())
//! ```

pub mod diagnostics;
pub mod lock;
pub mod observer;
pub mod random;
pub mod recipe;
pub mod report;
pub mod state;
pub mod trainer;
pub mod verdict;
