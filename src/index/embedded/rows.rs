//! What a collection keeps in memory: immutable blocks of rows, and which of their rows are gone.
//!
//! Readers take one [`Layout`] and work on it undisturbed; a writer builds the next one from shared parts and swaps it
//! in. Half an update is never visible, and a search never waits for a write.

use std::sync::Arc;

use std::fmt;
use std::str::FromStr;

use super::codes::Codes;
use super::graph::Graph;
use super::item::Item;

/// How vectors are held in memory. On the disk they are floats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Vectors {
    /// As floats: 4 bytes a number, and large collections get a graph.
    #[default]
    F32,
    /// As bytes: 1 byte a number. All are scanned at each search, and the nearest looked up on the disk.
    Int8,
}

impl fmt::Display for Vectors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "f32",
            Self::Int8 => "int8",
        })
    }
}

impl FromStr for Vectors {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::F32, Self::Int8]
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| "vectors are held as f32 or int8".to_owned())
    }
}

/// Vectors of a block, side by side.
pub(super) enum VectorData {
    /// `[rows, dim]`, each row of length 1.
    Floats(Vec<f32>),
    Bytes(Codes),
}

/// A block of rows that never changes: vectors side by side, items and sequence numbers beside them.
///
/// Each version of an item has a sequence number of its own, never used again; rows are in their order.
pub(super) struct Rows {
    pub(super) dim: usize,
    pub(super) vectors: VectorData,
    pub(super) items: Vec<Arc<Item>>,
    pub(super) sequences: Vec<u64>,
}

impl Rows {
    pub(super) fn with_capacity(dim: usize, rows: usize, vectors: Vectors) -> Self {
        let vectors = match vectors {
            Vectors::F32 => VectorData::Floats(Vec::with_capacity(dim * rows)),
            Vectors::Int8 => VectorData::Bytes(Codes::with_capacity(dim, rows)),
        };
        Self { dim, vectors, items: Vec::with_capacity(rows), sequences: Vec::with_capacity(rows) }
    }

    pub(super) fn push(&mut self, sequence: u64, item: Arc<Item>, vector: &[f32]) {
        match &mut self.vectors {
            VectorData::Floats(floats) => floats.extend_from_slice(vector),
            VectorData::Bytes(codes) => codes.push(vector),
        }
        self.items.push(item);
        self.sequences.push(sequence);
    }

    /// Adds a row of other rows, which hold their vectors in the same way.
    pub(super) fn push_from(&mut self, other: &Self, row: usize) {
        match (&mut self.vectors, &other.vectors) {
            (VectorData::Floats(floats), VectorData::Floats(_)) => floats.extend_from_slice(other.vector(row)),
            (VectorData::Bytes(codes), VectorData::Bytes(others)) => codes.push_from(others, row),
            _ => unreachable!("a collection holds all its vectors in one way"),
        }
        self.items.push(Arc::clone(&other.items[row]));
        self.sequences.push(other.sequences[row]);
    }

    /// Rows that are filled in later: vectors of zeros and empty items, in the order of `sequences`.
    pub(super) fn blank(dim: usize, sequences: Vec<u64>) -> Self {
        let (rows, nothing) = (sequences.len(), Arc::new(Item::default()));
        Self { dim, vectors: VectorData::Floats(vec![0.0; dim * rows]), items: vec![nothing; rows], sequences }
    }

    /// A row of those held as floats, to be filled in.
    pub(super) fn vector_mut(&mut self, row: usize) -> &mut [f32] {
        match &mut self.vectors {
            VectorData::Floats(floats) => &mut floats[row * self.dim..(row + 1) * self.dim],
            VectorData::Bytes(_) => &mut [],
        }
    }

    /// Gives back the memory that was set aside for rows that did not come.
    pub(super) fn shrink(&mut self) {
        match &mut self.vectors {
            VectorData::Floats(floats) => floats.shrink_to_fit(),
            VectorData::Bytes(codes) => codes.shrink(),
        }
        self.items.shrink_to_fit();
        self.sequences.shrink_to_fit();
    }

    /// Brings rows into the order of their sequence numbers, without a second copy of them; each row moves at most twice.
    pub(super) fn sort(&mut self) {
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_unstable_by_key(|&row| self.sequences[row]);
        // Where each row belongs.
        let mut place = vec![0; self.len()];
        order.into_iter().enumerate().for_each(|(to, from)| place[from] = to);
        for row in 0..self.len() {
            while place[row] != row {
                let to = place[row];
                self.swap(row, to);
                place.swap(row, to);
            }
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        match &mut self.vectors {
            VectorData::Floats(floats) => (0..self.dim).for_each(|at| floats.swap(a * self.dim + at, b * self.dim + at)),
            VectorData::Bytes(codes) => codes.swap(a, b),
        }
        self.items.swap(a, b);
        self.sequences.swap(a, b);
    }

    pub(super) fn len(&self) -> usize {
        self.sequences.len()
    }

    /// `[rows, dim]`; nothing where vectors are held as bytes.
    pub(super) fn floats(&self) -> &[f32] {
        match &self.vectors {
            VectorData::Floats(floats) => floats,
            VectorData::Bytes(_) => &[],
        }
    }

    /// A row `[dim]` of those held as floats.
    pub(super) fn vector(&self, row: usize) -> &[f32] {
        &self.floats()[row * self.dim..(row + 1) * self.dim]
    }

    pub(super) fn kind(&self) -> Vectors {
        match self.vectors {
            VectorData::Floats(_) => Vectors::F32,
            VectorData::Bytes(_) => Vectors::Int8,
        }
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
        _ => Arc::new(merge(segments, dim, Vectors::F32)),
    }
}

/// One block of what is alive in `segments`, in their order. Where there is none it still is of `dim` dimensions: rows that come
/// later may be put beside it.
fn merge(segments: &[Segment], dim: usize, kind: Vectors) -> Rows {
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
    use super::super::graph::Graph;
    use super::*;

    /// The first id sorts last: every row is one place away from where it belongs, in one long circle.
    #[test]
    fn a_rotated_order_is_sorted_in_linear_time() {
        let count = 400_000_u64;
        let mut rows = Rows::with_capacity(1, 0, Vectors::F32);
        for sequence in (1..count).chain([0]) {
            rows.push(sequence, Arc::default(), &[sequence as f32]);
        }
        let begun = std::time::Instant::now();
        rows.sort();
        assert!(rows.sequences.iter().copied().eq(0..count) && rows.vector(7) == [7.0]);
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    }

    #[test]
    fn rows_are_sorted_in_place() {
        for kind in [Vectors::F32, Vectors::Int8] {
            let (mut rows, mut wanted) = (Rows::with_capacity(2, 0, kind), Rows::with_capacity(2, 0, kind));
            let item = |sequence: u64| Arc::new(Item { id: sequence.to_string(), ..Item::default() });
            let vector = |sequence: u64| [(sequence as f32).sin(), (sequence as f32).cos()];
            for row in 0..101_u64 {
                let sequence = row * 37 % 101;
                rows.push(sequence, item(sequence), &vector(sequence));
                wanted.push(row, item(row), &vector(row));
            }
            rows.sort();
            assert!(rows.sequences == wanted.sequences && rows.items == wanted.items);
            match (&rows.vectors, &wanted.vectors) {
                (VectorData::Floats(found), VectorData::Floats(wanted)) => assert_eq!(found, wanted),
                (VectorData::Bytes(found), VectorData::Bytes(wanted)) => assert!(found == wanted),
                _ => panic!("they are held in one way"),
            }
        }
    }

    fn rows(sequences: std::ops::Range<u64>) -> Rows {
        let mut rows = Rows::with_capacity(2, 0, Vectors::F32);
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
