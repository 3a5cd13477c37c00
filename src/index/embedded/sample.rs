//! A sample of a layout, and its version.

use std::sync::Arc;

use super::disk::Record;
use super::rows::{Layout, Rows};
use super::{Version, newest_of};

/// The newest number and the count are enough: a number is never given to two versions of items, so that what is there besides the newest
/// can only have become less.
pub(super) fn version(record: &Record, layout: &Layout) -> Version {
    let newest = layout.0.iter().filter_map(|segment| segment.live_rows().last().map(|row| segment.rows.sequences[row])).max();
    Version { collection: record.number, content: newest.unwrap_or(0), count: layout.len() }
}

/// At most `most` rows: some of them the newest, the others by a hash of their number, so that a sample changes as little as its
/// collection does.
pub(super) fn sample(layout: &Layout, most: usize) -> Rows {
    let mut rows: Vec<(u64, usize, usize)> = Vec::with_capacity(layout.len());
    for (at, segment) in layout.0.iter().enumerate() {
        rows.extend(segment.live_rows().map(|row| (segment.rows.sequences[row], at, row)));
    }
    rows.sort_unstable();
    if rows.len() > most {
        let newest = rows.split_off(rows.len() - newest_of(most));
        let others = most - newest.len();
        rows.select_nth_unstable_by_key(others, |&(sequence, ..)| hash(sequence));
        rows.truncate(others);
        rows.extend(newest);
        rows.sort_unstable();
    }
    let mut sample = Rows::with_capacity(layout.0.first().map_or(0, |segment| segment.rows.dim), rows.len());
    for (sequence, at, row) in rows {
        let of = &layout.0[at].rows;
        sample.push(sequence, Arc::clone(&of.items[row]), of.vector(row));
    }
    sample
}

/// The finaliser of `SplitMix64`: numbers that follow each other become unrelated.
fn hash(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
