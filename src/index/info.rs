//! What is known of a collection, and of a store.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;

use super::{CollectionName, Spec};

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[schemars(rename = "StoreConnections")]
pub struct Connections {
    /// Whether the last who asked was answered; of several databases, by all of them.
    pub reachable: bool,
    /// Connections that are in use.
    pub busy: usize,
    /// Connections that wait for use.
    pub idle: usize,
    /// Times that the server did not answer.
    pub failures: u64,
    /// The databases, where several hold the collections together, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<DatabaseState>,
}

/// One of several databases that hold the collections together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[schemars(rename = "StoreDatabase")]
pub struct DatabaseState {
    /// Its host and name.
    pub database: Arc<str>,
    /// Whether the last who asked was answered.
    pub reachable: bool,
}
