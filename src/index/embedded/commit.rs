//! Group commit: writes that wait for each other reach the disk together.
//!
//! One write makes the disk sync once, however small it is. So the thread that gets the turn takes along all that waits, makes
//! it durable in one transaction, and the others find their work done. A lone writer does not wait.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::collection::EmbeddedCollection;
use super::disk::{Change, Written};
use super::item::Item;
use super::rows::{Layout, Rows};
use super::{Error, Filter};
use dino_vision::cancel;

/// Writes that wait for their turn, of all collections of a store.
#[derive(Default)]
pub(super) struct Line {
    waiting: Mutex<Vec<Job>>,
    /// Held while changes become durable and then visible, so that both happen in the same order.
    turn: Mutex<()>,
}

/// The right to write; it goes to the thread that waits longest, not to the one that had it last.
pub(super) struct Turn<'a>(Option<MutexGuard<'a, ()>>);

impl Line {
    /// Waits for the right to write: one transaction runs at a time.
    pub(super) fn turn(&self) -> Turn<'_> {
        Turn(Some(self.turn.lock()))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(guard) = self.0.take() {
            MutexGuard::unlock_fair(guard);
        }
    }
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
    let turn = line.turn();
    if outcome.lock().is_none() {
        let jobs = std::mem::take(&mut *line.waiting.lock());
        write_all(jobs);
    }
    drop(turn);
    // A thread that took the job along and panicked did not answer it.
    outcome.lock().take().unwrap_or_else(|| Err(Error::Io(std::io::Error::other("the write was given up"))))
}

/// Deletes every item that passes `filter`, all at once, and returns their number.
///
/// A filter may take long: it is asked while others write, again and again about what they wrote meanwhile, and only the
/// little that is left is decided while they wait.
pub(super) fn delete_where(collection: &EmbeddedCollection, filter: &Filter) -> Result<usize, Error> {
    let decided = decide(collection, filter)?;
    delete_decided(collection, filter, decided)
}

/// Asks the filter about all but the last few rows, while others write.
fn decide(collection: &EmbeddedCollection, filter: &Filter) -> Result<Decided, Error> {
    let mut decided = Decided::default();
    for _ in 0..LOOKS {
        let layout = collection.layout.load_full();
        if decided.look(&layout, filter)? <= FEW {
            break;
        }
    }
    Ok(decided)
}

/// Asks the filter about what is left, and deletes what passed.
fn delete_decided(collection: &EmbeddedCollection, filter: &Filter, mut decided: Decided) -> Result<usize, Error> {
    let _turn = collection.disk.line.turn();
    let layout = collection.layout.load_full();
    decided.look(&layout, filter)?;
    let change = Change::Delete(decided.living(&layout));
    let written = collection.disk.write_one(&collection.name, &collection.record, &change)?;
    Ok(publish(collection, change, &written))
}

/// Times that a filter is asked at most before others have to wait for it: each time about less.
const LOOKS: usize = 8;
/// Rows that are few enough to be looked at while others wait.
const FEW: usize = 64;

/// What a filter said so far.
#[derive(Default)]
struct Decided {
    /// Every version of an item up to this number was looked at.
    newest: u64,
    /// Those that passed, with their ids.
    passed: Vec<(u64, Arc<Item>)>,
}

impl Decided {
    /// Asks the filter about what came since the last look, and returns the number of those rows.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    fn look(&mut self, layout: &Layout, filter: &Filter) -> Result<usize, Error> {
        let (known, mut looked_at) = (self.newest, 0);
        for segment in &layout.0 {
            let first = segment.rows.sequences.partition_point(|&sequence| sequence <= known);
            for row in (first..segment.rows.len()).filter(|&row| !segment.dead[row]) {
                if looked_at % FEW == 0 {
                    cancel::check()?;
                }
                looked_at += 1;
                let (sequence, item) = (segment.rows.sequences[row], &segment.rows.items[row]);
                self.newest = self.newest.max(sequence);
                if filter.passes(item) {
                    self.passed.push((sequence, Arc::clone(item)));
                }
            }
        }
        Ok(looked_at)
    }

    /// Ids of what passed and was not replaced or deleted since.
    fn living(self, layout: &Layout) -> Vec<String> {
        let alive = |sequence: u64| layout.0.iter().any(|segment| segment.rows.row_of(sequence).is_some_and(|row| !segment.dead[row]));
        self.passed.into_iter().filter(|&(sequence, _)| alive(sequence)).map(|(_, item)| item.id.clone()).collect()
    }
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
        Change::Delete(ids) => {
            collection.mended(ids.iter().map(String::as_str));
            Vec::new()
        }
    };
    collection.mended(items.iter().map(|new| new.item.id.as_str()));
    let mut rows = Rows::with_capacity(collection.record.spec.dim, items.len(), collection.options.vectors);
    for (&sequence, new) in written.new.iter().zip(items) {
        rows.push(sequence, Arc::new(new.item), &new.vector);
    }
    let _writing = collection.writing.lock();
    collection.layout.store(Arc::new(collection.layout.load().changed(&written.replaced, rows, collection.options.exact_below)));
    written.replaced.len()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use serde_json::json;

    use super::super::{Collection, EmbeddedStore, ModelTag, Options, Spec};
    use super::*;
    use crate::index::NewItem;

    fn item(id: usize, label: &str) -> NewItem {
        let item = Item { id: id.to_string(), labels: vec![label.into()], ..Item::default() };
        NewItem { item, vector: vec![1.0, 0.0], thumbnail: None }
    }

    /// A filter is asked about everything while another thread has the turn, and then about what was written meanwhile.
    #[test]
    fn a_write_does_not_wait_for_a_filter() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { build_in_background: false, ..Options::default() };
        let store = EmbeddedStore::open(folder.path(), options).unwrap();
        let spec = Spec { dim: 2, model: ModelTag { fingerprint: "m".into(), precision: None } };
        let (collection, _) = store.create(&"c".parse().unwrap(), spec).unwrap();
        collection.upsert((0..200).map(|id| item(id, "drop")).collect()).unwrap();
        let filter = Filter::from_json(&json!({"field": "label", "eq": "drop"})).unwrap();
        let turn = collection.disk.line.turn();
        let (done, outcome) = mpsc::channel();
        let (asked, asked_for) = (Arc::clone(&collection), filter.clone());
        let deciding = std::thread::spawn(move || done.send(decide(&asked, &asked_for)).unwrap());
        let decided = outcome.recv_timeout(Duration::from_secs(30)).expect("the filter waits for the turn").unwrap();
        deciding.join().unwrap();
        assert_eq!(decided.passed.len(), 200);
        drop(turn);

        // What was replaced meanwhile by something that does not pass stays.
        collection.upsert(vec![item(7, "keep"), item(1000, "keep"), item(1001, "drop")]).unwrap();
        assert_eq!((delete_decided(&collection, &filter, decided).unwrap(), collection.len()), (200, 2));
    }
}
