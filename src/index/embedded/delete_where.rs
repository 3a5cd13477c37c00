//! Deleting what passes a filter.

use std::sync::Arc;

use super::collection::EmbeddedCollection;
use super::commit::Target;
use super::disk::Change;
use super::item::Item;
use super::layout::Layout;
use super::{Error, Filter};
use dino_vision::cancel;

/// Deletes every item that passes `filter`, all at once, and returns their number.
///
/// A filter may take long. So it is evaluated without the lock, in several passes over what was written meanwhile, and with the lock
/// only on the few rows that are left.
pub(super) fn delete_where(collection: &EmbeddedCollection, filter: &Filter) -> Result<usize, Error> {
    let matches = match_unlocked(collection, filter)?;
    delete_matches(collection, filter, matches)
}

/// Evaluates the filter on all but the last few rows, without the lock.
fn match_unlocked(collection: &EmbeddedCollection, filter: &Filter) -> Result<Matches, Error> {
    let mut matches = Matches::default();
    for _ in 0..MAX_PASSES {
        let layout = collection.layout.load_full();
        if matches.extend(&layout, filter)? <= FEW_ROWS {
            break;
        }
    }
    Ok(matches)
}

/// Evaluates the filter on the rows that are left, and deletes all that passed.
fn delete_matches(collection: &EmbeddedCollection, filter: &Filter, mut matches: Matches) -> Result<usize, Error> {
    let mut writer = collection.writes.lock();
    let layout = collection.layout.load_full();
    matches.extend(&layout, filter)?;
    let change = Change::Delete(matches.live_ids(&layout));
    let written = collection.disk.write_one(&mut writer, &collection.name, &collection.record, &change)?;
    Ok(collection.publish(change, &written))
}

/// Most passes without the lock. Each is over what was written during the one before.
const MAX_PASSES: usize = 8;
/// Rows that are few enough for a pass with the lock. Also the rows between two checks whether the request was cancelled.
const FEW_ROWS: usize = 64;

/// The rows on which a filter was evaluated so far.
#[derive(Default)]
struct Matches {
    /// It was evaluated on every version of an item up to this number.
    newest: u64,
    /// Those that passed, with their sequence numbers.
    passed: Vec<(u64, Arc<Item>)>,
}

impl Matches {
    /// Evaluates the filter on the rows that came since the last pass, and returns their number.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    fn extend(&mut self, layout: &Layout, filter: &Filter) -> Result<usize, Error> {
        let (known, mut count) = (self.newest, 0);
        for segment in &layout.0 {
            let first = segment.rows.sequences.partition_point(|&sequence| sequence <= known);
            for row in (first..segment.rows.len()).filter(|&row| !segment.dead[row]) {
                if count % FEW_ROWS == 0 {
                    cancel::check()?;
                }
                count += 1;
                let (sequence, item) = (segment.rows.sequences[row], &segment.rows.items[row]);
                self.newest = self.newest.max(sequence);
                if filter.passes(item) {
                    self.passed.push((sequence, Arc::clone(item)));
                }
            }
        }
        Ok(count)
    }

    /// Ids of what passed and was not replaced or deleted since.
    fn live_ids(self, layout: &Layout) -> Vec<String> {
        let alive = |sequence: u64| layout.0.iter().any(|segment| segment.rows.row_of(sequence).is_some_and(|row| !segment.dead[row]));
        self.passed.into_iter().filter(|&(sequence, _)| alive(sequence)).map(|(_, item)| item.id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use serde_json::json;

    use super::super::{Collection, EmbeddedStore, IndexOptions, ModelTag, Spec};
    use super::*;
    use crate::index::NewItem;

    fn item(id: usize, label: &str) -> NewItem {
        let item = Item { id: id.to_string(), labels: vec![label.into()], ..Item::default() };
        NewItem { item, vector: vec![1.0, 0.0], thumbnail: None, patches: None }
    }

    /// A filter is evaluated while another thread holds the lock, and then on what was written meanwhile.
    #[test]
    fn a_write_does_not_wait_for_a_filter() {
        let folder = tempfile::tempdir().unwrap();
        let options = IndexOptions { build_in_background: false, ..IndexOptions::default() };
        let store = EmbeddedStore::open(folder.path(), options).unwrap();
        let spec = Spec::pictures(2, ModelTag { fingerprint: "m".into(), precision: None });
        let (collection, _) = store.create(&"c".parse().unwrap(), spec).unwrap();
        collection.upsert((0..200).map(|id| item(id, "drop")).collect()).unwrap();
        let filter = Filter::from_json(&json!({"field": "label", "eq": "drop"})).unwrap();
        let writer = collection.writes.lock();
        let (done, outcome) = mpsc::channel();
        let (asked, asked_for) = (Arc::clone(&collection), filter.clone());
        let deciding = std::thread::spawn(move || done.send(match_unlocked(&asked, &asked_for)).unwrap());
        let matches = outcome.recv_timeout(Duration::from_secs(30)).expect("the filter waits for the lock").unwrap();
        deciding.join().unwrap();
        assert_eq!(matches.passed.len(), 200);
        drop(writer);

        // What was replaced meanwhile by something that does not pass stays.
        collection.upsert(vec![item(7, "keep"), item(1000, "keep"), item(1001, "drop")]).unwrap();
        assert_eq!((delete_matches(&collection, &filter, matches).unwrap(), collection.len()), (200, 2));
    }
}
