//! A sample of a layout, and its version.

use std::sync::Arc;

use super::disk::Record;
use super::item::Item;
use super::layout::Layout;
use super::{Version, newest_of};
use dino_vision::splitmix::splitmix64;

/// The newest number and the count are enough: a number is never given to two versions of items, so that what is there besides the newest
/// can only have become less.
pub(super) fn version(record: &Record, layout: &Layout) -> Version {
    let newest = layout.0.iter().filter_map(|segment| segment.live_rows().last().map(|row| segment.rows.sequences[row])).max();
    Version { collection: record.number, content: newest.unwrap_or(0), count: layout.len() }
}

/// At most `most` items with their sequence numbers, older before newer: some of them the newest, the others by a hash of their number, so that a sample changes as little as its
/// collection does.
pub(super) fn sample(layout: &Layout, most: usize) -> Vec<(Arc<Item>, u64)> {
    let mut rows: Vec<(u64, usize, usize)> = Vec::with_capacity(layout.len());
    for (at, segment) in layout.0.iter().enumerate() {
        rows.extend(segment.live_rows().map(|row| (segment.rows.sequences[row], at, row)));
    }
    rows.sort_unstable();
    if rows.len() > most {
        let newest = rows.split_off(rows.len() - newest_of(most));
        let others = most - newest.len();
        rows.select_nth_unstable_by_key(others, |&(sequence, ..)| splitmix64(sequence));
        rows.truncate(others);
        rows.extend(newest);
        rows.sort_unstable();
    }
    rows.into_iter().map(|(sequence, at, row)| (Arc::clone(&layout.0[at].rows.items[row]), sequence)).collect()
}
