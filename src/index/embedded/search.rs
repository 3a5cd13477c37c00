//! Search over one layout: exact scans, the graph where there is one, and the rules that make both reliable.

use std::collections::BinaryHeap;
use std::sync::Arc;

use super::item::Item;
use super::layout::{Layout, Segment};
use super::rows::VectorData;
use super::{Error, Filter, Neighbour, Search, scan};
use dino_vision::cancel;

/// Items that are compared with a filter between two checks whether the request was cancelled: one comparison may take a
/// millisecond.
pub(super) const FILTERED: usize = 16;

/// Gets vectors from the disk by id and sequence number; `None` for what was deleted or replaced.
pub(super) type Lookup<'a> = &'a (dyn Fn(&[(&str, u64)]) -> Result<Vec<Option<Vec<f32>>>, Error> + Sync);

/// The neighbours of a normalised query `[dim]`, nearest first; whether they have pictures is not known here.
pub(super) fn search(layout: &Layout, query: &[f32], options: &Search<'_>, lookup: Lookup<'_>) -> Result<Vec<Neighbour>, Error> {
    let mut best = Nearest::new(options.k.min(layout.len()));
    for segment in &layout.0 {
        match &segment.rows.vectors {
            VectorData::Bytes(codes) => scan::bytes(segment, codes, query, options, lookup, &mut best)?,
            VectorData::Floats(floats) => {
                if options.exact || !graph_search(segment, query, options, &mut best)? {
                    scan::floats(segment, floats, query, options, &mut best);
                }
            }
        }
        cancel::check()?;
    }
    Ok(best.into_sorted())
}

/// Adds the neighbours that the segment's graph finds, or returns false where the graph may have missed some.
///
/// The graph knows nothing of deletions and filters: each of its hits is checked here, after the search. Where fewer
/// than k pass, a scan has to answer.
fn graph_search(segment: &Segment, query: &[f32], options: &Search<'_>, best: &mut Nearest) -> Result<bool, Error> {
    let Some(graph) = &segment.graph else {
        return Ok(false);
    };
    let wanted = options.k.min(segment.live);
    // Some of the nearest may be dead or filtered out: look a little further than asked.
    let ef = options.ef.max(options.k.saturating_mul(2));
    if ef >= segment.rows.len() {
        // The graph would be walked from end to end, at several times the price of a scan.
        return Ok(false);
    }
    let mut hits = Nearest::new(wanted);
    let mut found = 0;
    for (at, (row, similarity)) in graph.search(query, ef).into_iter().enumerate() {
        if at.is_multiple_of(FILTERED) {
            cancel::check()?;
        }
        if may_be_found(segment, row, options.filter) {
            hits.offer(&segment.rows.items[row], similarity);
            found += 1;
        }
    }
    if found < wanted {
        return Ok(false);
    }
    best.absorb(hits);
    Ok(true)
}

/// Whether a row is alive and passes the filter.
pub(super) fn may_be_found(segment: &Segment, row: usize, filter: Option<&Filter>) -> bool {
    !segment.dead[row] && filter.is_none_or(|filter| filter.passes(&segment.rows.items[row]))
}

/// The k nearest of what was offered.
pub(super) struct Nearest {
    pub(super) k: usize,
    /// The farthest of them on top.
    heap: BinaryHeap<Neighbour>,
}

impl Nearest {
    pub(super) fn new(k: usize) -> Self {
        Self { k, heap: BinaryHeap::new() }
    }

    /// What a row needs to be among them: any similarity while there are fewer than k.
    pub(super) fn threshold(&self) -> f32 {
        match self.heap.peek() {
            Some(farthest) if self.heap.len() >= self.k => farthest.similarity,
            _ if self.k == 0 => f32::INFINITY,
            _ => f32::NEG_INFINITY,
        }
    }

    pub(super) fn offer(&mut self, item: &Arc<Item>, similarity: f32) {
        // Rounding may take the product of two unit vectors a little out of its range.
        let similarity = similarity.clamp(-1.0, 1.0);
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

    pub(super) fn absorb(&mut self, other: Self) {
        for neighbour in other.heap {
            self.offer(&neighbour.item, neighbour.similarity);
        }
    }

    fn into_sorted(self) -> Vec<Neighbour> {
        self.heap.into_sorted_vec()
    }
}
