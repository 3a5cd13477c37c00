//! What a collection keeps in memory: immutable blocks of rows, and which of their rows are gone.
//!
//! Readers take one [`Layout`] and work on it undisturbed; a writer builds the next one from shared parts and swaps it
//! in. Half an update is never visible, and a search never waits for a write.

use std::sync::Arc;

use super::graph::Graph;
use super::item::Item;

/// A block of rows that never changes: vectors side by side, items and sequence numbers beside them.
///
/// Each version of an item has a sequence number of its own, never used again; rows are in their order.
pub(super) struct Rows {
    pub(super) dim: usize,
    /// `[rows, dim]`, each row of length 1.
    pub(super) vectors: Vec<f32>,
    pub(super) items: Vec<Arc<Item>>,
    pub(super) sequences: Vec<u64>,
}

impl Rows {
    pub(super) fn with_capacity(dim: usize, rows: usize) -> Self {
        Self { dim, vectors: Vec::with_capacity(dim * rows), items: Vec::with_capacity(rows), sequences: Vec::with_capacity(rows) }
    }

    pub(super) fn push(&mut self, sequence: u64, item: Arc<Item>, vector: &[f32]) {
        self.vectors.extend_from_slice(vector);
        self.items.push(item);
        self.sequences.push(sequence);
    }

    pub(super) fn len(&self) -> usize {
        self.sequences.len()
    }

    pub(super) fn vector(&self, row: usize) -> &[f32] {
        &self.vectors[row * self.dim..(row + 1) * self.dim]
    }

    pub(super) fn row_of(&self, sequence: u64) -> Option<usize> {
        self.sequences.binary_search(&sequence).ok()
    }
}

/// A block of rows as of one moment.
#[derive(Clone)]
pub(super) struct Segment {
    pub(super) rows: Arc<Rows>,
    /// Rows whose item was deleted or replaced.
    pub(super) dead: Arc<Vec<bool>>,
    /// Number of rows that are not dead.
    pub(super) live: usize,
    /// The graph over all of `rows`, where there is one.
    pub(super) graph: Option<Arc<Graph>>,
}

impl Segment {
    pub(super) fn new(rows: Arc<Rows>, graph: Option<Arc<Graph>>) -> Self {
        let live = rows.len();
        Self { dead: Arc::new(vec![false; live]), live, rows, graph }
    }

    /// Row numbers of what is alive.
    pub(super) fn live_rows(&self) -> impl Iterator<Item = usize> {
        (0..self.rows.len()).filter(|&row| !self.dead[row])
    }

    /// Marks the row of `sequence` as gone, if it is here.
    fn kill(&mut self, sequence: u64) {
        if let Some(row) = self.rows.row_of(sequence)
            && !self.dead[row]
        {
            Arc::make_mut(&mut self.dead)[row] = true;
            self.live -= 1;
        }
    }
}

/// All segments of a collection as of one moment: at most one with a graph, first; then plain ones, older before
/// newer.
#[derive(Clone, Default)]
pub(super) struct Layout(pub(super) Vec<Segment>);

impl Layout {
    /// `rows` without a graph.
    pub(super) fn plain(rows: Arc<Rows>) -> Self {
        Self(if rows.len() == 0 { Vec::new() } else { vec![Segment::new(rows, None)] })
    }

    /// Number of items.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|segment| segment.live).sum()
    }

    /// Items in no particular order.
    pub(super) fn items(&self) -> impl Iterator<Item = &Arc<Item>> {
        self.0.iter().flat_map(|segment| segment.live_rows().map(|row| &segment.rows.items[row]))
    }

    /// The layout after `gone` sequence numbers left and `new` rows came. Below `exact_below` items no graph is kept for the
    /// sake of a few.
    pub(super) fn changed(&self, gone: &[u64], new: Rows, exact_below: usize) -> Self {
        let mut segments = self.0.clone();
        for segment in &mut segments {
            for &sequence in gone {
                segment.kill(sequence);
            }
        }
        // What is mostly dead gives its memory back. With a graph, a new graph is what does so.
        let is_small = segments.iter().map(|segment| segment.live).sum::<usize>() + new.len() < exact_below;
        for segment in &mut segments {
            if segment.live * 2 < segment.rows.len() && (segment.graph.is_none() || is_small) {
                *segment = Segment::new(Arc::new(merge(std::slice::from_ref(segment))), None);
            }
        }
        if new.len() > 0 {
            segments.push(Segment::new(Arc::new(new), None));
        }
        segments.retain(|segment| segment.live > 0);
        // Neighbours of similar size are merged, as the digits of a binary counter are: the number of segments stays
        // logarithmic, and so does the number of times that a row is copied.
        while let [.., before, last] = segments.as_slice()
            && before.graph.is_none()
            && last.live * 2 >= before.live
        {
            let merged = merge(&[before.clone(), last.clone()]);
            segments.truncate(segments.len() - 2);
            segments.push(Segment::new(Arc::new(merged), None));
        }
        Self(segments)
    }

    /// The layout in which `indexed` stands for every row up to its last one, and later rows stay as they are.
    ///
    /// `rows` were made from an earlier layout of the same collection: what has died since is dead in them too.
    /// `None` where that is not so and a living row is missing.
    pub(super) fn with_indexed(&self, rows: &Arc<Rows>, graph: Arc<Graph>) -> Option<Self> {
        let newest = rows.sequences.last().copied();
        let mut indexed = Segment::new(Arc::clone(rows), Some(graph));
        let mut alive = vec![false; rows.len()];
        let mut tail = Rows::with_capacity(rows.dim, 0);
        for segment in &self.0 {
            for row in segment.live_rows() {
                let sequence = segment.rows.sequences[row];
                if newest.is_some_and(|newest| sequence <= newest) {
                    alive[rows.row_of(sequence)?] = true;
                } else {
                    tail.push(sequence, Arc::clone(&segment.rows.items[row]), segment.rows.vector(row));
                }
            }
        }
        indexed.live = alive.iter().filter(|&&alive| alive).count();
        indexed.dead = Arc::new(alive.into_iter().map(|alive| !alive).collect());
        let mut segments = vec![indexed];
        if tail.len() > 0 {
            segments.push(Segment::new(Arc::new(tail), None));
        }
        Some(Self(segments))
    }
}

/// One block of what is alive in `segments`, in their order.
pub(super) fn merge(segments: &[Segment]) -> Rows {
    let dim = segments.first().map_or(0, |segment| segment.rows.dim);
    let mut merged = Rows::with_capacity(dim, segments.iter().map(|segment| segment.live).sum());
    for segment in segments {
        for row in segment.live_rows() {
            let rows = &segment.rows;
            merged.push(rows.sequences[row], Arc::clone(&rows.items[row]), rows.vector(row));
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::super::graph::Graph;
    use super::*;

    fn rows(sequences: std::ops::Range<u64>) -> Rows {
        let mut rows = Rows::with_capacity(2, 0);
        for sequence in sequences {
            rows.push(sequence, Arc::default(), &[1.0, sequence as f32]);
        }
        rows
    }

    /// Rows in memory, dead ones too.
    fn held(layout: &Layout) -> usize {
        layout.0.iter().map(|segment| segment.rows.len()).sum()
    }

    #[test]
    fn deleted_rows_leave_the_memory() {
        let all = Arc::new(rows(0..1000));
        let graph = Arc::new(Graph::build(&all, &indicatif::ProgressBar::hidden()));
        let gone: Vec<u64> = (0..900).collect();
        for graph in [None, Some(graph)] {
            let has_graph = graph.is_some();
            let layout = Layout(vec![Segment::new(Arc::clone(&all), graph)]);
            let few = layout.changed(&gone, rows(0..0), 500);
            assert_eq!((few.len(), held(&few)), (100, 100));
            assert!(few.0[0].graph.is_none() && few.items().count() == 100);
            assert_eq!(few.0[0].rows.vector(0), [1.0, 900.0]);
            // A graph over many that is mostly dead still answers until the next one is built.
            let many = layout.changed(&gone, rows(0..0), 50);
            assert_eq!((many.len(), held(&many)), (100, if has_graph { 1000 } else { 100 }));
        }
    }
}
