//! Recall: how many of the true nearest neighbours an approximate index finds.

use std::collections::HashSet;

use serde::Serialize;

use super::Neighbour;

/// How many of the true neighbours the index finds.
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

/// Counts the true neighbours that an index found.
#[derive(Default)]
pub(super) struct RecallCounter {
    found: usize,
    wanted: usize,
    queries: usize,
}

impl RecallCounter {
    /// Counts the answers to one query.
    pub(super) fn add(&mut self, exact: &[Neighbour], fast: &[Neighbour]) {
        let ids: HashSet<&str> = exact.iter().map(|hit| hit.item.id.as_str()).collect();
        self.found += fast.iter().filter(|hit| ids.contains(hit.item.id.as_str())).count();
        self.wanted += exact.len();
        self.queries += 1;
    }

    /// The outcome; 1 for an empty collection.
    pub(super) fn recall(&self, k: usize, ef: usize) -> Recall {
        let recall = if self.wanted == 0 { 1.0 } else { self.found as f64 / self.wanted as f64 };
        Recall { recall, k, ef, queries: self.queries }
    }
}
