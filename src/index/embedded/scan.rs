//! Scans: the query against every row.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rayon::prelude::*;

use super::codes::{self, Codes};
use super::layout::Segment;
use super::search::{FILTERED, Lookup, Nearest, may_be_found};
use super::similarity::Similarity;
use super::{Error, Search};
use dino_vision::cancel;

/// Rows that one task scans; also the size from which a scan is spread over the cores (smaller ones take less time
/// than waking the other threads).
const SCAN_ROWS: usize = 4096;
/// Rows that are compared at once: their products stay in the nearest cache.
const BLOCK: usize = 256;
/// Rows that are looked up on the disk at once.
const LOOKUP: usize = 64;
/// Most rows that a search looks up unless it has to be exact: so many, and so many times k.
const LOOKUPS: usize = 512;
const LOOKUPS_PER_K: usize = 16;

/// Rows that are compared between two checks whether the request was cancelled.
fn block_of(options: &Search<'_>) -> usize {
    if options.filter.is_some() { FILTERED } else { BLOCK }
}

/// Compares the query with every row of the segment. Ends early, with fewer rows, where the request was cancelled.
pub(super) fn floats(segment: &Segment, floats: &[f32], query: &[f32], options: &Search<'_>, best: &mut Nearest) {
    let (k, block_rows, token) = (best.k, block_of(options), cancel::current());
    let part = |(start, rows): (usize, &[f32])| {
        let (mut nearest, mut products) = (Nearest::new(k), Vec::with_capacity(block_rows));
        for (block, rows) in rows.chunks(block_rows * query.len()).enumerate() {
            if token.is_cancelled() {
                break;
            }
            Similarity::default().block(query, rows, &mut products);
            for (row, &product) in (start + block * block_rows..).zip(&products) {
                if product >= nearest.threshold() && may_be_found(segment, row, options.filter) {
                    nearest.offer(&segment.rows.items[row], product);
                }
            }
        }
        nearest
    };
    for nearest in in_parts(floats, SCAN_ROWS * query.len(), |at, rows| part((at / query.len(), rows))) {
        best.absorb(nearest);
    }
}

/// A row whose similarity is not known but for its bounds.
#[derive(Clone, Copy)]
struct Candidate {
    /// The similarity is no larger than this.
    most: f32,
    /// It is near this.
    about: f32,
    row: usize,
}

/// What a part of the rows may add to the nearest.
struct Candidates {
    /// The k largest similarities that rows have at least, as ordered numbers, the smallest on top.
    least: BinaryHeap<Reverse<Ordered>>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, PartialEq)]
struct Ordered(f32);

impl Eq for Ordered {}

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Candidates {
    fn offer(&mut self, k: usize, least: f32) {
        self.least.push(Reverse(Ordered(least)));
        if self.least.len() > k {
            self.least.pop();
        }
    }

    /// A row that cannot reach this is not among the k nearest.
    fn threshold(&self, k: usize) -> f32 {
        if self.least.len() < k { f32::NEG_INFINITY } else { self.least.peek().map_or(f32::INFINITY, |least| least.0.0) }
    }
}

/// Compares the query with the bytes of every row, and with the floats of those that may be among the nearest.
///
/// The answer is that of a scan of floats, by the bounds of [`Codes`]; unless the search need not be exact, and so many rows are so
/// close together that looking them all up would take longer than the scan.
pub(super) fn bytes(
    segment: &Segment,
    codes: &Codes,
    query: &[f32],
    options: &Search<'_>,
    lookup: Lookup<'_>,
    best: &mut Nearest,
) -> Result<(), Error> {
    let (k, known) = (best.k, best.threshold());
    let (block_rows, token) = (block_of(options), cancel::current());
    let coded = codes::Query::new(query);
    let part = |rows: std::ops::Range<usize>| {
        let mut part = Candidates { least: BinaryHeap::new(), candidates: Vec::new() };
        let (mut products, mut bounds) = (Vec::with_capacity(block_rows), Vec::with_capacity(block_rows));
        let mut threshold = known;
        for start in rows.clone().step_by(block_rows) {
            if token.is_cancelled() {
                break;
            }
            codes.bounds(&coded, start..(start + block_rows).min(rows.end), &mut products, &mut bounds);
            for (row, &(least, most)) in (start..).zip(&bounds) {
                if most >= threshold && may_be_found(segment, row, options.filter) {
                    part.candidates.push(Candidate { most, about: least.midpoint(most), row });
                    part.offer(k, least);
                    threshold = known.max(part.threshold(k));
                }
            }
        }
        part.candidates.retain(|candidate| candidate.most >= threshold);
        part
    };
    let mut whole = Candidates { least: BinaryHeap::new(), candidates: Vec::new() };
    let starts: Vec<usize> = (0..codes.len()).step_by(SCAN_ROWS).collect();
    for part in starts.into_par_iter().map(|start| part(start..(start + SCAN_ROWS).min(codes.len()))).collect::<Vec<_>>() {
        part.least.into_iter().for_each(|least| whole.offer(k, least.0.0));
        whole.candidates.extend(part.candidates);
    }
    let threshold = known.max(whole.threshold(k));
    let mut candidates = whole.candidates;
    candidates.retain(|candidate| candidate.most >= threshold);
    candidates.sort_unstable_by(|a, b| b.most.total_cmp(&a.most).then(a.row.cmp(&b.row)));
    if !options.exact {
        candidates.truncate(LOOKUPS.max(k.saturating_mul(LOOKUPS_PER_K)));
    }
    for candidates in candidates.chunks(LOOKUP) {
        cancel::check()?;
        // The best of them, and so all that follow, are too far away.
        if candidates[0].most < best.threshold() {
            break;
        }
        let wanted: Vec<(&str, u64)> =
            candidates.iter().map(|&Candidate { row, .. }| (segment.rows.items[row].id.as_str(), segment.rows.sequences[row])).collect();
        for (candidate, vector) in candidates.iter().zip(lookup(&wanted)?) {
            // What was replaced or deleted since this search began is here as it was then, but for its last digits.
            let similarity = vector.map_or(candidate.about, |vector| Similarity::default().dot(query, &vector));
            best.offer(&segment.rows.items[candidate.row], similarity);
        }
    }
    Ok(())
}

/// Runs `work` on parts of `all`, with the place at which each begins; on all cores where there are several.
fn in_parts<T: Sync, R: Send>(all: &[T], part: usize, work: impl Fn(usize, &[T]) -> R + Sync) -> Vec<R> {
    if all.len() <= part {
        vec![work(0, all)]
    } else {
        all.par_chunks(part).enumerate().map(|(index, rows)| work(index * part, rows)).collect()
    }
}
