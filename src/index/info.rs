//! What a collection says of itself.

use serde::Serialize;

use super::CollectionName;
use super::disk::Spec;
use super::item::Item;

/// What is known of a collection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Info {
    /// Its name.
    pub name: CollectionName,
    /// Dimension and model.
    #[serde(flatten)]
    pub spec: Spec,
    /// Number of items.
    pub count: usize,
    /// Creation, in seconds since 1970.
    pub created: u64,
    /// How searches are answered.
    pub index: IndexState,
}

/// How searches are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct IndexState {
    /// `exact` without a graph, `hnsw` with one.
    pub kind: &'static str,
    /// Items that the graph knows.
    pub indexed: usize,
    /// Items that are compared one by one beside it.
    pub scanned: usize,
    /// Whether a graph is being built right now.
    pub building: bool,
}

/// One page of a collection's items.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// Items by id, in the order of its bytes.
    pub items: Vec<Item>,
    /// What to pass as `after` for the next page; `None` at the end.
    pub next: Option<String>,
}

/// How well the graph agrees with exact search.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Recall {
    /// Share of the true k nearest neighbours that the index returned, averaged over the queries.
    pub recall: f64,
    /// Number of neighbours asked for.
    pub k: usize,
    /// Width of the graph search.
    pub ef: usize,
    /// Number of stored vectors that were used as queries.
    pub queries: usize,
}
