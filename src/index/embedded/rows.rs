//! Vectors, items and sequence numbers in memory, as blocks of rows that never change.

use std::sync::Arc;

use super::VectorFormat;
use super::codes::Codes;
use super::item::Item;
use super::large_pages;

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
    pub(super) fn with_capacity(dim: usize, rows: usize, vectors: VectorFormat) -> Self {
        let vectors = match vectors {
            VectorFormat::F32 => VectorData::Floats(large_pages::with_capacity(dim * rows)),
            VectorFormat::Int8 => VectorData::Bytes(Codes::with_capacity(dim, rows)),
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
        Self { dim, vectors: VectorData::Floats(large_pages::zeros(dim * rows)), items: vec![nothing; rows], sequences }
    }

    /// A row `[dim]` of those held as floats, to be filled in.
    pub(super) fn vector_mut(&mut self, row: usize) -> &mut [f32] {
        match &mut self.vectors {
            VectorData::Floats(floats) => &mut floats[row * self.dim..(row + 1) * self.dim],
            VectorData::Bytes(_) => &mut [],
        }
    }

    /// Frees the memory that was reserved for rows that did not come.
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

    pub(super) fn kind(&self) -> VectorFormat {
        match self.vectors {
            VectorData::Floats(_) => VectorFormat::F32,
            VectorData::Bytes(_) => VectorFormat::Int8,
        }
    }

    pub(super) fn row_of(&self, sequence: u64) -> Option<usize> {
        self.sequences.binary_search(&sequence).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first id sorts last: every row is one place away from its own, in one long cycle, on which a quadratic sort does not end.
    #[test]
    fn a_rotated_order_is_sorted_in_linear_time() {
        let count = 400_000_u64;
        let mut rows = Rows::with_capacity(1, 0, VectorFormat::F32);
        for sequence in (1..count).chain([0]) {
            rows.push(sequence, Arc::default(), &[sequence as f32]);
        }
        rows.sort();
        assert!(rows.sequences.iter().copied().eq(0..count) && rows.vector(7) == [7.0]);
    }

    #[test]
    fn rows_are_sorted_in_place() {
        for kind in [VectorFormat::F32, VectorFormat::Int8] {
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
}
