//! The commands that read many pictures, as programs: `import`, `embed`, `duplicates`, `snapshot`, `restore`.

#![expect(clippy::unwrap_used, reason = "helpers of tests, as the tests themselves")]

mod arrow;
mod common;
mod duplicates;
mod embed;
mod import;
#[cfg(feature = "object-store")]
mod objects;
#[cfg(feature = "object-store")]
mod refused;
mod sources;
mod table;
