//! What is asked of a search, and what comes back.

use std::cmp::Ordering;
use std::sync::Arc;

use super::item::{Item, normalise};
use super::{Error, Filter};

/// Default width of the graph search.
pub const DEFAULT_EF: usize = 128;

/// How to search.
#[derive(Clone, Copy, Debug)]
pub struct Search<'a> {
    /// Number of neighbours; fewer come back only where fewer items exist (or pass `filter`).
    pub k: usize,
    /// Width of the graph search: more finds more of the true neighbours and takes longer. At least `k` is used.
    pub ef: usize,
    /// Compare with every item, whatever the size of the collection.
    pub exact: bool,
    /// Only items that pass are found.
    pub filter: Option<&'a Filter>,
}

impl Default for Search<'_> {
    fn default() -> Self {
        Self { k: dino_vision::vote::DEFAULT_K, ef: DEFAULT_EF, exact: false, filter: None }
    }
}

impl Search<'_> {
    /// Checks what is asked, and brings `query` to length 1.
    pub(super) fn prepare(&self, query: &[f32], dim: usize) -> Result<Vec<f32>, Error> {
        if self.k == 0 {
            return Err(Error::InvalidParameter("k is at least 1".to_owned()));
        }
        let mut query = query.to_vec();
        normalise(&mut query, dim, || "query".to_owned())?;
        Ok(query)
    }
}

/// A found item.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbour {
    /// Id, labels and metadata of the item.
    pub item: Arc<Item>,
    /// Cosine similarity to the query, in -1..=1.
    pub similarity: f32,
    /// Whether it has a stored picture.
    pub has_picture: bool,
}

impl Neighbour {
    /// Nearest first; equal similarities by id, so that the order never depends on where items lie.
    fn order(&self, other: &Self) -> Ordering {
        other.similarity.total_cmp(&self.similarity).then_with(|| self.item.id.cmp(&other.item.id))
    }
}

impl Eq for Neighbour {}

impl Ord for Neighbour {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order(other)
    }
}

impl PartialOrd for Neighbour {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
