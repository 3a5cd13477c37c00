//! How collections are indexed.

use std::fmt;
use std::str::FromStr;

/// How vectors are held in memory. On the disk they are floats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VectorFormat {
    /// As floats: 4 bytes a number, and large collections get a graph.
    #[default]
    F32,
    /// As bytes: 1 byte a number. All are scanned at each search, and the nearest looked up on the disk.
    Int8,
}

impl fmt::Display for VectorFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "f32",
            Self::Int8 => "int8",
        })
    }
}

impl FromStr for VectorFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::F32, Self::Int8]
            .into_iter()
            .find(|format| format.to_string() == text)
            .ok_or_else(|| "vectors are held as f32 or int8".to_owned())
    }
}

/// When collections get an approximate index, and how it is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexOptions {
    /// Collections with fewer items are always searched exactly; larger ones get a graph.
    pub exact_below: usize,
    /// Whether a thread builds a new graph when a collection has outgrown its own (or has none yet). Without it
    /// that happens at the next start, or by [`EmbeddedCollection::build_index`](super::EmbeddedCollection::build_index).
    pub build_in_background: bool,
    /// Whether building shows a progress bar on stderr.
    pub progress: bool,
    /// How vectors are held in memory.
    pub vectors: VectorFormat,
}

impl IndexOptions {
    /// Default of `exact_below`. With 384 dimensions a scan of that many takes 3 ms of one core, a graph search 0.1 ms
    /// (BENCHMARKS.md), which is next to nothing beside the inference before each search; and below, a graph costs exactness,
    /// and 0.6 ms of a core for each item.
    pub const EXACT_BELOW: usize = 50_000;
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self { exact_below: Self::EXACT_BELOW, build_in_background: true, progress: false, vectors: VectorFormat::F32 }
    }
}
