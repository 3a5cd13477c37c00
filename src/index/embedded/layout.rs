//! What a collection holds at one moment: blocks of rows, and which of their rows are dead.
//!
//! Readers take one [`Layout`] and work on it undisturbed; a writer builds the next one from shared parts and swaps it
//! in. Half an update is never visible, and a search never waits for a write.

use std::sync::Arc;

use super::VectorFormat;
use super::graph::Graph;
use super::item::Item;
use super::rows::Rows;

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
                *segment = Segment::new(Arc::new(merge(std::slice::from_ref(segment), new.dim, new.kind())), None);
            }
        }
        let (dim, kind) = (new.dim, new.kind());
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
            let merged = merge(&[before.clone(), last.clone()], dim, kind);
            segments.truncate(segments.len() - 2);
            segments.push(Segment::new(Arc::new(merged), None));
        }
        Self(segments)
    }

    /// The layout in which the rows of `graph` replace every row up to their last one, and later rows stay as they are.
    ///
    /// The graph was built from an earlier layout of the same collection: what has died since is dead in its rows too.
    /// `None` where that is not so and a living row is missing.
    pub(super) fn with_indexed(&self, graph: Arc<Graph>) -> Option<Self> {
        let rows = Arc::clone(graph.rows());
        let newest = rows.sequences.last().copied();
        let mut indexed = Segment::new(Arc::clone(&rows), Some(graph));
        let mut alive = vec![false; rows.len()];
        let mut tail = Rows::with_capacity(rows.dim, 0, rows.kind());
        for segment in &self.0 {
            for row in segment.live_rows() {
                let sequence = segment.rows.sequences[row];
                if newest.is_some_and(|newest| sequence <= newest) {
                    alive[rows.row_of(sequence)?] = true;
                } else {
                    tail.push_from(&segment.rows, row);
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

/// What is alive in `segments`, whose vectors are `dim` floats, as one block: the one that is there, where there is no other and
/// nothing in it is dead.
pub(super) fn whole(segments: &[Segment], dim: usize) -> Arc<Rows> {
    match segments {
        [segment] if segment.live == segment.rows.len() => Arc::clone(&segment.rows),
        _ => Arc::new(merge(segments, dim, VectorFormat::F32)),
    }
}

/// One block of what is alive in `segments`, in their order. Where there is none it still is of `dim` dimensions: rows that come
/// later may be put beside it.
fn merge(segments: &[Segment], dim: usize, kind: VectorFormat) -> Rows {
    let mut merged = Rows::with_capacity(dim, segments.iter().map(|segment| segment.live).sum(), kind);
    for segment in segments {
        for row in segment.live_rows() {
            merged.push_from(&segment.rows, row);
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(sequences: std::ops::Range<u64>) -> Rows {
        let mut rows = Rows::with_capacity(2, 0, VectorFormat::F32);
        for sequence in sequences {
            rows.push(sequence, Arc::default(), &[1.0, sequence as f32]);
        }
        rows
    }

    /// Rows in memory, dead ones too.
    fn held(layout: &Layout) -> usize {
        layout.0.iter().map(|segment| segment.rows.len()).sum()
    }

    fn graph(layout: Layout) -> Arc<Graph> {
        let (progress, stop) = (indicatif::ProgressBar::hidden(), std::sync::atomic::AtomicBool::new(false));
        Arc::new(Graph::build(Arc::new(layout), 2, &progress, &stop).unwrap())
    }

    /// A graph over nothing, beside which rows came.
    #[test]
    fn rows_beside_an_empty_block_keep_their_vectors() {
        let layout = Layout::plain(Arc::new(rows(1..4))).with_indexed(graph(Layout::default())).unwrap();
        let tail = layout.changed(&[], rows(4..6), 0).0.pop().unwrap();
        assert_eq!((tail.rows.len(), tail.rows.vector(0), tail.rows.vector(4)), (5, &[1.0, 1.0][..], &[1.0, 5.0][..]));
    }

    #[test]
    fn deleted_rows_leave_the_memory() {
        let all = Arc::new(rows(0..1000));
        let graph = graph(Layout::plain(Arc::clone(&all)));
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
