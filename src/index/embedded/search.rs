//! Search over one layout: exact scans, the graph where there is one, and the rules that make both reliable.

use std::collections::BinaryHeap;
use std::sync::Arc;

use rayon::prelude::*;

use super::item::Item;
use super::rows::{Layout, Segment};
use super::similarity::Similarity;
use super::{Filter, Neighbour, Search};

/// Rows that one task scans; also the size from which a scan is spread over the cores (smaller ones take less time
/// than waking the other threads).
const SCAN_ROWS: usize = 4096;
/// The neighbours of a normalised query `[dim]`, nearest first; whether they have pictures is not known here.
pub(super) fn search(layout: &Layout, query: &[f32], options: &Search<'_>) -> Vec<Neighbour> {
    let mut best = Nearest::new(options.k.min(layout.len()));
    for segment in &layout.0 {
        if options.exact || !graph_search(segment, query, options, &mut best) {
            scan(segment, query, options, &mut best);
        }
    }
    best.into_sorted()
}

/// Adds the neighbours that the segment's graph finds, or returns false where the graph cannot vouch for its answer.
///
/// The graph knows nothing of deletions and filters: each of its hits is checked here, after the search (the library's
/// own filtered search may return items that fail the filter). Where fewer than k pass, a scan has to answer.
fn graph_search(segment: &Segment, query: &[f32], options: &Search<'_>, best: &mut Nearest) -> bool {
    let Some(graph) = &segment.graph else {
        return false;
    };
    let wanted = options.k.min(segment.live);
    // Some of the nearest may be dead or filtered out: look a little further than asked.
    let ef = options.ef.max(options.k.saturating_mul(2));
    if ef >= segment.rows.len() {
        // The graph would be walked from end to end, at several times the price of a scan.
        return false;
    }
    let mut hits = Nearest::new(wanted);
    let mut found = 0;
    for row in graph.search(query, ef) {
        if let Some(similarity) = compare(segment, row, query, options.filter) {
            hits.offer(&segment.rows.items[row], similarity);
            found += 1;
        }
    }
    if found < wanted {
        return false;
    }
    best.absorb(hits);
    true
}

/// Compares the query with every row of the segment.
fn scan(segment: &Segment, query: &[f32], options: &Search<'_>, best: &mut Nearest) {
    let k = best.k;
    let part = |start: usize| {
        let mut nearest = Nearest::new(k);
        for row in start..(start + SCAN_ROWS).min(segment.rows.len()) {
            if let Some(similarity) = compare(segment, row, query, options.filter) {
                nearest.offer(&segment.rows.items[row], similarity);
            }
        }
        nearest
    };
    let starts: Vec<_> = (0..segment.rows.len()).step_by(SCAN_ROWS).collect();
    let parts: Vec<_> = if starts.len() > 1 { starts.into_par_iter().map(part).collect() } else { starts.into_iter().map(part).collect() };
    for nearest in parts {
        best.absorb(nearest);
    }
}

/// Similarity of the query to a row, or `None` where the row must not be found.
fn compare(segment: &Segment, row: usize, query: &[f32], filter: Option<&Filter>) -> Option<f32> {
    if segment.dead[row] || filter.is_some_and(|filter| !filter.passes(&segment.rows.items[row])) {
        return None;
    }
    // Rounding may take the product of two unit vectors a little out of its range.
    Some(Similarity::default().dot(query, segment.rows.vector(row)).clamp(-1.0, 1.0))
}

/// The k nearest of what was offered.
struct Nearest {
    k: usize,
    /// The farthest of them on top.
    heap: BinaryHeap<Neighbour>,
}

impl Nearest {
    fn new(k: usize) -> Self {
        Self { k, heap: BinaryHeap::new() }
    }

    fn offer(&mut self, item: &Arc<Item>, similarity: f32) {
        if self.heap.len() < self.k {
            self.heap.push(Neighbour { item: Arc::clone(item), similarity, has_picture: false });
        } else if let Some(mut farthest) = self.heap.peek_mut()
            && similarity >= farthest.similarity
        {
            let candidate = Neighbour { item: Arc::clone(item), similarity, has_picture: false };
            if candidate < *farthest {
                *farthest = candidate;
            }
        }
    }

    fn absorb(&mut self, other: Self) {
        for neighbour in other.heap {
            self.offer(&neighbour.item, neighbour.similarity);
        }
    }

    fn into_sorted(self) -> Vec<Neighbour> {
        self.heap.into_sorted_vec()
    }
}
