//! Building a graph: nodes go in one after the other, on all cores, each linked to the nearest of those before it.

use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::ProgressBar;
use parking_lot::{Mutex, RwLock};
use rayon::prelude::*;

use super::links::{LINKS, Links};
use super::walk::{Found, Layer, Scratch, Walk};
use crate::index::embedded::mix::mix;
use crate::index::embedded::rows::Rows;
use crate::index::embedded::similarity::Similarity;

/// Width of the search for links.
const WIDTH: usize = 128;
/// The first nodes go in one by one: inserted all at once, they would not see each other.
const SERIAL_NODES: usize = 512;
/// Nodes per step of the progress bar.
pub(super) const STEP: usize = 1024;

/// A graph that grows: the links of each node, from the bottom layer up.
struct Growing<'a> {
    rows: &'a Rows,
    nodes: Vec<RwLock<Vec<Vec<u32>>>>,
    /// The node that is on the highest layer; the first to go in.
    entry: u32,
    similarity: Similarity,
    scratches: Mutex<Vec<Scratch>>,
}

/// One layer of it.
struct GrowingLayer<'a>(&'a Growing<'a>, usize);

impl Layer for GrowingLayer<'_> {
    fn neighbours(&self, node: u32, into: &mut Vec<u32>) {
        into.extend_from_slice(&self.0.nodes[node as usize].read()[self.1]);
    }
}

/// The links of a graph over `rows`, of which there is at least one; `None` where it was told to stop.
pub(super) fn build(rows: &Rows, progress: &ProgressBar, stop: &AtomicBool) -> Option<Links> {
    let node = |row| RwLock::new(vec![Vec::new(); 1 + layer_of(row)]);
    let count = rows.len() as u32;
    let entry = (0..count).max_by_key(|&row| (layer_of(row), std::cmp::Reverse(row))).unwrap_or_default();
    let growing =
        Growing { rows, nodes: (0..count).map(node).collect(), entry, similarity: Similarity::default(), scratches: Mutex::default() };
    let others: Vec<u32> = (0..count).filter(|&row| row != entry).collect();
    let (first, others) = others.split_at(SERIAL_NODES.min(others.len()));
    for &row in first {
        growing.insert(row);
    }
    for step in others.chunks(STEP) {
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        step.par_iter().for_each(|&row| growing.insert(row));
        progress.inc(step.len() as u64);
    }
    Some(Links::new(entry, growing.nodes.into_iter().map(RwLock::into_inner)))
}

/// The highest layer of a row: each has a share of 1 / [`LINKS`] of the nodes of the one below. The same for a row each time.
fn layer_of(row: u32) -> usize {
    mix(u64::from(row)).trailing_zeros() as usize / LINKS.ilog2() as usize
}

impl Growing<'_> {
    fn insert(&self, row: u32) {
        let mut scratch = self.scratches.lock().pop().unwrap_or_default();
        let mut walk = Walk::new(self.rows, self.rows.vector(row as usize), &mut scratch);
        let (own, top) = (layer_of(row), layer_of(self.entry));
        let mut from = walk.look(self.entry);
        for layer in (own + 1..=top).rev() {
            from = walk.descend(&GrowingLayer(self, layer), from);
        }
        let mut from = vec![from];
        for layer in (0..=own.min(top)).rev() {
            from = walk.search(&GrowingLayer(self, layer), &from, WIDTH);
            // A node that went in at the same time may have linked to this node already.
            from.retain(|found| found.node() != row);
            self.link(row, layer, &self.spread(&from, LINKS));
        }
        self.scratches.lock().push(scratch);
    }

    /// Links a node with its neighbours, both ways.
    fn link(&self, row: u32, layer: usize, neighbours: &[Found]) {
        self.add(row, layer, neighbours);
        for neighbour in neighbours {
            self.add(neighbour.node(), layer, &[Found::new(row, neighbour.similarity())]);
        }
    }

    /// Adds links to those of a node, and keeps the best where they are too many.
    fn add(&self, row: u32, layer: usize, new: &[Found]) {
        let most = Links::most(layer);
        let mut node = self.nodes[row as usize].write();
        let links = &mut node[layer];
        let new: Vec<Found> = new.iter().copied().filter(|found| !links.contains(&found.node())).collect();
        if links.len() + new.len() <= most {
            links.extend(new.iter().map(|found| found.node()));
            return;
        }
        let own = self.rows.vector(row as usize);
        let mut all: Vec<Found> =
            links.iter().map(|&link| Found::new(link, self.similarity.dot(own, self.rows.vector(link as usize)))).collect();
        all.extend(new);
        all.sort_unstable_by(|a, b| b.cmp(a));
        *links = self.spread(&all, most).iter().map(|found| found.node()).collect();
    }

    /// Up to `most` of `candidates`, the nearest first: each is nearer to the node than to every one chosen before it, so
    /// that links lead in different directions (algorithm 4 of the paper).
    fn spread(&self, candidates: &[Found], most: usize) -> Vec<Found> {
        let mut chosen: Vec<Found> = Vec::with_capacity(most);
        let (mut nodes, mut similarities) = (Vec::with_capacity(most), Vec::with_capacity(most));
        for &candidate in candidates {
            if chosen.len() == most {
                break;
            }
            self.similarity.rows(self.rows.vector(candidate.node() as usize), self.rows.floats(), &nodes, &mut similarities);
            if similarities.iter().all(|&to_chosen| to_chosen < candidate.similarity()) {
                chosen.push(candidate);
                nodes.push(candidate.node());
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layer_has_a_sixteenth_of_the_one_below() {
        let mut sizes = [0_usize; 4];
        for row in 0..1 << 20 {
            sizes.iter_mut().take(1 + layer_of(row)).for_each(|size| *size += 1);
        }
        for (below, above) in sizes.iter().zip(&sizes[1..]) {
            let share = *above as f64 / *below as f64;
            assert!((0.055..0.07).contains(&share), "{sizes:?}");
        }
    }
}
