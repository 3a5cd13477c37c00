//! What a collection says of itself.

use std::collections::{BTreeSet, HashSet};

use serde::Serialize;

use super::item::Item;
use super::{CollectionName, Error, Neighbour, Spec};

/// Most items of one page.
pub const MAX_PAGE: usize = 1000;

/// What is known of a collection.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
#[schemars(rename = "CollectionInfo")]
pub struct Info {
    /// Its name.
    pub name: CollectionName,
    /// A collection that is deleted and made again has another one.
    #[serde(skip)]
    pub number: u64,
    /// Dimension and model.
    #[serde(flatten)]
    pub spec: Spec,
    /// Number of items.
    pub count: usize,
    /// Creation, in seconds since 1970.
    pub created: u64,
    /// How searches are answered.
    pub index: IndexState,
    /// Stored items that cannot be read, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damaged: Option<DamagedItems>,
}

/// Most damaged items that are named.
pub(super) const MOST_NAMED: usize = 20;

/// Stored items that cannot be read: they are left out of searches, pages and snapshots, and kept as they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct DamagedItems {
    /// Number of them.
    pub count: usize,
    /// Ids of the first of them, by name.
    pub ids: Vec<String>,
}

impl DamagedItems {
    pub(super) fn of(ids: &BTreeSet<String>) -> Option<Self> {
        (!ids.is_empty()).then(|| Self { count: ids.len(), ids: ids.iter().take(MOST_NAMED).cloned().collect() })
    }
}

/// How searches are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct IndexState {
    /// `exact` without a graph, `hnsw` with one, `int8` where vectors are held as bytes and all of them compared.
    pub kind: &'static str,
    /// Items that the graph knows.
    pub indexed: usize,
    /// Items that are compared one by one beside it.
    pub scanned: usize,
    /// Whether a graph is being built right now.
    pub building: bool,
}

/// What a store still has to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loading {
    /// Collections that do not answer yet, by name; the first is the next.
    pub collections: Vec<CollectionName>,
    /// Number of all collections; `None` until that is known.
    pub of: Option<usize>,
}

impl std::fmt::Display for Loading {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.of, self.collections.first()) {
            (Some(all), Some(next)) => {
                let left = self.collections.len();
                write!(formatter, "collections are being loaded: {left} of {all} are left, {:?} is the next", next.as_str())
            }
            _ => formatter.write_str("the collections are being opened"),
        }
    }
}

/// Connections to a store on another machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[schemars(rename = "StoreConnections")]
pub struct Connections {
    /// Whether the last who asked was answered.
    pub reachable: bool,
    /// Connections that are in use.
    pub busy: usize,
    /// Connections that wait for use.
    pub idle: usize,
    /// Times that the server did not answer.
    pub failures: u64,
}

/// One page of a collection's items.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// Items by id, in the order of its bytes.
    pub items: Vec<Item>,
    /// What to pass as `after` for the next page; `None` at the end.
    pub next: Option<String>,
}

/// Memory of a page's items, in bytes, from which on it ends.
const PAGE_MEMORY: usize = 16 << 20;

/// A page that is being filled.
pub(super) struct Filling {
    limit: usize,
    items: Vec<Item>,
    weight: usize,
    is_full: bool,
}

impl Filling {
    /// A page of at most `limit` items, checked before.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, items: Vec::new(), weight: 0, is_full: false }
    }

    /// Adds the next item, or says that it belongs to the next page: a page has at least one item, and ends early where they
    /// take much memory.
    pub(super) fn add(&mut self, item: Item) -> bool {
        self.is_full = self.items.len() == self.limit || self.weight >= PAGE_MEMORY;
        if !self.is_full {
            self.weight += item.weight();
            self.items.push(item);
        }
        !self.is_full
    }

    /// The page.
    pub(super) fn end(self) -> Page {
        let next = self.items.last().filter(|_| self.is_full).map(|item| item.id.clone());
        Page { items: self.items, next }
    }
}

/// Refuses pages that are empty or too large.
pub(super) fn check_page(limit: usize) -> Result<(), Error> {
    if limit == 0 || limit > MAX_PAGE {
        return Err(Error::InvalidParameter(format!("a page has 1 to {MAX_PAGE} items, not {limit}")));
    }
    Ok(())
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

/// Adds up how well an index agrees with exact search.
#[derive(Default)]
pub(super) struct Agreement {
    found: usize,
    wanted: usize,
    queries: usize,
}

impl Agreement {
    /// Counts the answers to one query.
    pub(super) fn add(&mut self, exact: &[Neighbour], fast: &[Neighbour]) {
        let ids: HashSet<&str> = exact.iter().map(|hit| hit.item.id.as_str()).collect();
        self.found += fast.iter().filter(|hit| ids.contains(hit.item.id.as_str())).count();
        self.wanted += exact.len();
        self.queries += 1;
    }

    /// The outcome; an empty collection hides nothing.
    pub(super) fn recall(&self, k: usize, ef: usize) -> Recall {
        let recall = if self.wanted == 0 { 1.0 } else { self.found as f64 / self.wanted as f64 };
        Recall { recall, k, ef, queries: self.queries }
    }
}
