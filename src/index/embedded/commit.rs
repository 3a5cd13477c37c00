//! Group commit: writes that wait for each other reach the disk together.
//!
//! One write makes the disk sync once, however small it is. So whoever gets the turn takes along all that waits, makes it
//! durable in one transaction, and the others find their work done. A lone writer waits for nobody.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Error;
use super::collection::EmbeddedCollection;
use super::disk::{Change, Written};
use super::rows::{Layout, Rows};

/// Writes that wait for their turn, of all collections of a store.
#[derive(Default)]
pub(super) struct Line {
    waiting: Mutex<Vec<Job>>,
    /// Held while changes become durable and then visible, so that both happen in the same order.
    turn: Mutex<()>,
}

struct Job {
    collection: Arc<EmbeddedCollection>,
    change: Change,
    outcome: Arc<Mutex<Option<Result<usize, Error>>>>,
}

/// Makes a change durable, then visible, and returns the number of items that it replaced or deleted.
pub(super) fn write(collection: &Arc<EmbeddedCollection>, change: Change) -> Result<usize, Error> {
    let line = &collection.disk.line;
    let outcome = Arc::new(Mutex::new(None));
    line.waiting.lock().push(Job { collection: Arc::clone(collection), change, outcome: Arc::clone(&outcome) });
    let turn = line.turn.lock();
    if outcome.lock().is_none() {
        let jobs = std::mem::take(&mut *line.waiting.lock());
        write_all(jobs);
    }
    drop(turn);
    // Whoever took the job along and fell did not answer it.
    outcome.lock().take().unwrap_or_else(|| Err(Error::Io(std::io::Error::other("the write was given up"))))
}

/// As [`write`], for a change that depends on what is stored: nothing else is written meanwhile.
pub(super) fn write_after_look(collection: &Arc<EmbeddedCollection>, look: impl FnOnce(&Layout) -> Change) -> Result<usize, Error> {
    let _turn = collection.disk.line.turn.lock();
    let change = look(&collection.layout.load());
    let written = collection.disk.write_one(&collection.name, &collection.record, &change)?;
    Ok(publish(collection, change, &written))
}

fn write_all(jobs: Vec<Job>) {
    let Some(first) = jobs.first() else { return };
    let changes: Vec<_> = jobs.iter().map(|job| (&job.collection.name, &job.collection.record, &job.change)).collect();
    let disk = &first.collection.disk;
    let written = match disk.write_many(&changes) {
        Ok(written) => written,
        // One by one, so that what the database cannot take does not take its neighbours along.
        Err(_) => changes.iter().map(|(name, record, change)| disk.write_one(name, record, change)).collect(),
    };
    for (job, written) in jobs.into_iter().zip(written) {
        let outcome = written.map(|written| publish(&job.collection, job.change, &written));
        *job.outcome.lock() = Some(outcome);
    }
}

/// Shows readers what is on the disk now.
fn publish(collection: &EmbeddedCollection, change: Change, written: &Written) -> usize {
    let items = match change {
        Change::Upsert(items) => items,
        Change::Delete(_) => Vec::new(),
    };
    let mut rows = Rows::with_capacity(collection.record.spec.dim, items.len());
    for (&sequence, new) in written.new.iter().zip(items) {
        rows.push(sequence, Arc::new(new.item), &new.vector);
    }
    let _writing = collection.writing.lock();
    collection.layout.store(Arc::new(collection.layout.load().changed(&written.replaced, rows, collection.options.exact_below)));
    written.replaced.len()
}
