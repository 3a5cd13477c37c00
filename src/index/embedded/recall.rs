//! Recall of the graph: how many of the true neighbours it finds.

use super::layout::Layout;
use super::search::{Lookup, search};
use super::{Error, Recall, RecallCounter, Search};

/// Measures the graph against exact search, with up to `queries` stored vectors, evenly spread.
pub(super) fn recall(layout: &Layout, k: usize, ef: usize, queries: usize, lookup: Lookup<'_>) -> Result<Recall, Error> {
    let rows: Vec<_> = layout.0.iter().flat_map(|segment| segment.live_rows().map(move |row| (&segment.rows, row))).collect();
    let queries = queries.clamp(1, rows.len().max(1));
    let sample = rows.iter().step_by((rows.len() / queries).max(1)).take(queries);
    let sample: Vec<(&str, u64)> = sample.map(|&(rows, row)| (rows.items[row].id.as_str(), rows.sequences[row])).collect();
    let mut counter = RecallCounter::default();
    // What was replaced meanwhile is not asked for.
    for query in lookup(&sample)?.into_iter().flatten() {
        let options = Search { k, ef, ..Search::default() };
        let exact = search(layout, &query, &Search { exact: true, ..options }, lookup)?;
        counter.add(&exact, &search(layout, &query, &options, lookup)?);
    }
    Ok(counter.recall(k, ef))
}
