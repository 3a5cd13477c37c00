//! Some items of a collection with their vectors: what a map of it shows.

use std::sync::Arc;

use super::Item;

/// What a collection holds: equal where nothing was added, replaced or deleted in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// A collection that is deleted and made again has another number.
    pub(super) collection: u64,
    /// What tells contents of the same number of items apart.
    pub(super) content: u64,
    /// Number of items.
    pub count: usize,
}

/// Items of a collection.
pub struct Sample {
    /// Of what they are a sample.
    pub version: Version,
    /// The items, older before newer, and whether each has a stored picture.
    pub items: Vec<(Arc<Item>, bool)>,
    /// Their vectors, `[items, dim]`, each of length 1.
    pub vectors: Vec<f32>,
}

/// Of a sample of `most` items, how many are the newest ones, so that new items show up.
pub(super) fn newest_of(most: usize) -> usize {
    most / 10
}
