//! Reading a collection into memory: its rows once, each into the place where it stays.

use std::sync::Arc;

use super::disk::{Disk, Record, Row};
use super::graph_files::{GraphFiles, Saved};
use super::item::Damaged;
use super::layout::{Layout, Segment};
use super::rows::Rows;
use super::{CollectionName, Error, IndexOptions, VectorFormat};

/// What is laid out, and what is left out of it because it cannot be read.
type Loaded = (Layout, Vec<Damaged>);

/// All that a collection holds, over its saved graph where there is one that fits.
pub(super) fn load(
    name: &CollectionName,
    record: &Record,
    disk: &Disk,
    graph_files: &GraphFiles,
    options: &IndexOptions,
) -> Result<Loaded, Error> {
    if options.vectors == VectorFormat::F32 {
        let over_graph = match graph_files.open(record.number, record.spec.dim, options.exact_below) {
            Ok(Some(saved)) => over_graph(record, disk, saved)?.map(Some),
            Ok(None) => Ok(None),
            Err(reason) => Err(reason),
        };
        match over_graph {
            Ok(Some(loaded)) => return Ok(loaded),
            Ok(None) => {}
            Err(reason) => tracing::warn!(collection = %name, "the saved index is not used: {reason}"),
        }
    }
    let mut rows = Rows::with_capacity(record.spec.dim, 0, options.vectors);
    let damaged = disk.visit(record, None, |Row { sequence, stored }| {
        rows.push(sequence, Arc::new(stored.item), &stored.vector);
        true
    })?;
    Ok((Layout::plain(in_order(rows)), damaged))
}

/// Fills the rows of a saved graph with what is stored, and adds what came after it; the reason where that does not fit.
fn over_graph(record: &Record, disk: &Disk, mut saved: Saved) -> Result<Result<Loaded, String>, Error> {
    let mut indexed = Rows::blank(record.spec.dim, std::mem::take(&mut saved.sequences));
    let mut later = Rows::with_capacity(record.spec.dim, 0, VectorFormat::F32);
    let newest = indexed.sequences.last().copied();
    let mut alive = vec![false; indexed.len()];
    let mut fits = true;
    let damaged = disk.visit(record, None, |Row { sequence, stored }| {
        if let Some(row) = indexed.row_of(sequence) {
            indexed.vector_mut(row).copy_from_slice(&stored.vector);
            indexed.items[row] = Arc::new(stored.item);
            alive[row] = true;
        } else if Some(sequence) > newest {
            later.push(sequence, Arc::new(stored.item), &stored.vector);
        } else {
            fits = false;
        }
        fits
    })?;
    if !fits {
        return Ok(Err("an item is missing in it".to_owned()));
    }
    Ok(saved.lay_over(indexed, &alive).map(|(rows, graph)| {
        let mut segment = Segment::new(rows, Some(Arc::new(graph)));
        segment.live = alive.iter().filter(|&&alive| alive).count();
        segment.dead = Arc::new(alive.into_iter().map(|alive| !alive).collect());
        let later = Layout::plain(in_order(later));
        (Layout([vec![segment], later.0].concat()), damaged)
    }))
}

fn in_order(mut rows: Rows) -> Arc<Rows> {
    rows.sort();
    rows.shrink();
    Arc::new(rows)
}
