//! Some items of a collection, with their vectors: what a map of it shows.

use std::sync::Arc;

use super::collection::Collection;
use super::item::Item;
use super::rows::Layout;

/// Of a sample, the part that are the newest items: what was just added shall be seen.
const NEWEST: usize = 10;

/// What a collection holds, as of one moment. Equal where nothing was added, replaced or deleted in between: a number is never given
/// to two versions of items, so what is there besides the newest can only have become less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    collection: u64,
    newest: u64,
    count: usize,
}

/// Items as of one moment.
pub struct Sample {
    /// Which moment.
    pub version: Version,
    /// Number of items in the whole collection.
    pub count: usize,
    /// The chosen ones, older before newer.
    pub items: Vec<Arc<Item>>,
    /// Their vectors, `[items, dim]`, each of length 1.
    pub vectors: Vec<f32>,
}

impl Collection {
    /// What is there right now.
    pub fn version(&self) -> Version {
        self.version_of(&self.layout.load())
    }

    fn version_of(&self, layout: &Layout) -> Version {
        let newest = layout.0.iter().filter_map(|segment| segment.live_rows().last().map(|row| segment.rows.sequences[row])).max();
        Version { collection: self.record.number, newest: newest.unwrap_or(0), count: layout.len() }
    }

    /// At most `most` items: a tenth of that the newest ones, the others by a hash of their number, so that a sample changes as little
    /// as its collection does.
    pub fn sample(&self, most: usize) -> Sample {
        let layout = self.layout.load();
        let mut rows: Vec<(u64, usize, usize)> = Vec::with_capacity(layout.len());
        for (at, segment) in layout.0.iter().enumerate() {
            rows.extend(segment.live_rows().map(|row| (segment.rows.sequences[row], at, row)));
        }
        rows.sort_unstable();
        if rows.len() > most {
            let newest = rows.split_off(rows.len() - most / NEWEST);
            rows.select_nth_unstable_by_key(most - newest.len(), |&(sequence, ..)| hash(sequence));
            rows.truncate(most - newest.len());
            rows.extend(newest);
            rows.sort_unstable();
        }
        let mut vectors = Vec::with_capacity(rows.len() * self.record.spec.dim);
        for &(_, at, row) in &rows {
            vectors.extend_from_slice(layout.0[at].rows.vector(row));
        }
        let items = rows.iter().map(|&(_, at, row)| Arc::clone(&layout.0[at].rows.items[row])).collect();
        Sample { version: self.version_of(&layout), count: layout.len(), items, vectors }
    }
}

/// `SplitMix64`'s finaliser: numbers that follow each other become unrelated.
fn hash(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
