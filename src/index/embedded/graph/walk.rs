//! Searching a graph: from node to node, always on from the nearest.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::index::embedded::rows::Rows;
use crate::index::embedded::similarity::Similarity;
use dino_vision::cancel;

/// Nodes that a search visits between two checks whether the request was cancelled.
const STRIDE: usize = 256;

/// A node and its similarity to what is looked for. Ordered by similarity, nearer ones above; of equal ones the first row.
///
/// Both lie in one number, since heaps of numbers are several times faster than those of pairs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found(u64);

impl Found {
    pub(super) fn new(node: u32, similarity: f32) -> Self {
        let bits = similarity.to_bits();
        // Floats in the order of their bits: negative ones are reversed, and below the others.
        let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        Self(u64::from(ordered) << 32 | u64::from(!node))
    }

    pub(super) fn node(self) -> u32 {
        !(self.0 as u32)
    }

    pub(super) fn similarity(self) -> f32 {
        let ordered = (self.0 >> 32) as u32;
        f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
    }
}

/// One layer of a graph.
pub(super) trait Layer {
    /// Adds the neighbours of a node to `into`.
    fn neighbours(&self, node: u32, into: &mut Vec<u32>);
}

/// Memory of one walk, used again by the next.
#[derive(Default)]
pub(super) struct Scratch {
    /// One bit a node.
    seen: Vec<u64>,
    /// The words of `seen` that are not zero any more.
    touched: Vec<u32>,
    /// Where to go on from, the nearest on top.
    open: BinaryHeap<Found>,
    /// The nearest so far, the farthest of them on top.
    best: BinaryHeap<Reverse<Found>>,
    fresh: Vec<u32>,
    similarities: Vec<f32>,
}

/// One search of the graph.
pub(super) struct Walk<'a> {
    rows: &'a Rows,
    similarity: Similarity,
    query: &'a [f32],
    scratch: &'a mut Scratch,
}

impl<'a> Walk<'a> {
    pub(super) fn new(rows: &'a Rows, query: &'a [f32], scratch: &'a mut Scratch) -> Self {
        scratch.seen.resize(rows.len().div_ceil(64), 0);
        Self { rows, similarity: Similarity::default(), query, scratch }
    }

    pub(super) fn look(&self, node: u32) -> Found {
        Found::new(node, self.similarity.dot(self.query, self.rows.vector(node as usize)))
    }

    /// The node of this layer at which none of its neighbours is nearer.
    pub(super) fn descend(&mut self, layer: &impl Layer, from: Found) -> Found {
        let mut at = from;
        loop {
            self.scratch.fresh.clear();
            layer.neighbours(at.node(), &mut self.scratch.fresh);
            let before = at;
            self.look_at_fresh();
            for (&node, &similarity) in self.scratch.fresh.iter().zip(&self.scratch.similarities) {
                at = at.max(Found::new(node, similarity));
            }
            if at == before {
                return at;
            }
        }
    }

    /// Up to `width` nodes near the query, the nearest first, found from `from` on (algorithm 2 of the paper). Ends early
    /// where the request was cancelled.
    pub(super) fn search(&mut self, layer: &impl Layer, from: &[Found], width: usize) -> Vec<Found> {
        for &found in from {
            if self.is_fresh(found.node()) {
                self.scratch.open.push(found);
                self.scratch.best.push(Reverse(found));
            }
        }
        let mut step: usize = 0;
        while let Some(at) = self.scratch.open.pop() {
            step += 1;
            if step.is_multiple_of(STRIDE) && cancel::is_cancelled() {
                break;
            }
            let full = self.scratch.best.len() >= width;
            if full && self.scratch.best.peek().is_some_and(|farthest| at < farthest.0) {
                break;
            }
            self.scratch.fresh.clear();
            layer.neighbours(at.node(), &mut self.scratch.fresh);
            let mut fresh = std::mem::take(&mut self.scratch.fresh);
            fresh.retain(|&node| self.is_fresh(node));
            self.scratch.fresh = fresh;
            self.look_at_fresh();
            let Scratch { open, best, fresh, similarities, .. } = &mut *self.scratch;
            for (&node, &similarity) in fresh.iter().zip(&*similarities) {
                let found = Found::new(node, similarity);
                if best.len() < width {
                    best.push(Reverse(found));
                } else if let Some(mut farthest) = best.peek_mut()
                    && found > farthest.0
                {
                    farthest.0 = found;
                } else {
                    continue;
                }
                open.push(found);
            }
        }
        self.forget();
        let mut found: Vec<Found> = self.scratch.best.drain().map(|found| found.0).collect();
        found.sort_unstable_by(|a, b| b.cmp(a));
        found
    }

    /// Whether a node is seen for the first time.
    fn is_fresh(&mut self, node: u32) -> bool {
        let (word, bit) = (node / 64, 1 << (node % 64));
        let seen = &mut self.scratch.seen[word as usize];
        if *seen & bit != 0 {
            return false;
        }
        if *seen == 0 {
            self.scratch.touched.push(word);
        }
        *seen |= bit;
        true
    }

    fn look_at_fresh(&mut self) {
        let Scratch { fresh, similarities, .. } = &mut *self.scratch;
        self.similarity.rows(self.query, self.rows.floats(), fresh, similarities);
    }

    fn forget(&mut self) {
        let Scratch { seen, touched, open, .. } = &mut *self.scratch;
        touched.drain(..).for_each(|word| seen[word as usize] = 0);
        open.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_nodes_are_ordered_by_similarity_then_row() {
        let similarities = [-1.0, -0.5, -f32::MIN_POSITIVE, -0.0, 0.0, f32::MIN_POSITIVE, 0.25, 1.0];
        for (a, first) in similarities.iter().enumerate() {
            for (b, second) in similarities.iter().enumerate() {
                assert_eq!(Found::new(7, *first).cmp(&Found::new(7, *second)), a.cmp(&b), "{first} {second}");
            }
            let found = Found::new(u32::MAX - 3, *first);
            assert_eq!((found.node(), found.similarity().to_bits()), (u32::MAX - 3, first.to_bits()));
        }
        assert!(Found::new(3, 0.5) > Found::new(4, 0.5));
    }
}
