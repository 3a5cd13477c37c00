//! Making and deleting whole collections: in many short transactions, so that writes to other collections run between them.
//!
//! Items are stored under a number that no collection has, which nothing reads; the last transaction gives the number to a
//! collection. Deleting is the same backwards. What a process that ended in between leaves behind is found at the next start.

use std::time::{SystemTime, UNIX_EPOCH};

use redb::ReadableTable;

use super::{COLLECTIONS, Disk, ITEMS, PATCHES, Record, THUMBNAILS, Writer, Written, all_of, needed_by, put, take_numbers};
use crate::index::embedded::handle::Space;
use crate::index::item::NewItem;
use crate::index::{CollectionName, Error, OnExisting, Spec};

/// Most items, or stored pictures, that one transaction deletes.
const MAX_DELETED: usize = 1000;
/// Bytes of stored pictures after which a transaction deletes no further ones: each is read for that.
const MAX_DELETED_BYTES: usize = 32 << 20;

impl Disk {
    /// A number that no collection has or had.
    pub(in super::super) fn reserve(&self, _: &mut Writer) -> Result<u64, Error> {
        self.write(Space::Needs(0), |txn| take_numbers(txn, 1))
    }

    /// Stores items under a number that no collection has yet.
    pub(in super::super) fn fill(&self, _: &mut Writer, number: u64, items: &[NewItem]) -> Result<Written, Error> {
        self.write(needed_by(items), |txn| put(txn, number, items))
    }

    /// Makes a collection of what is stored under `number` (or an empty one under a new number), in place of the one that is there if `existing` allows it.
    /// Returns the record of the new one, and the number whose items belong to no collection any more.
    pub(in super::super) fn enter(
        &self,
        _: &mut Writer,
        name: &CollectionName,
        spec: Spec,
        number: Option<u64>,
        existing: OnExisting,
    ) -> Result<(Record, Option<u64>), Error> {
        self.write(Space::Needs(0), |txn| {
            let mut table = txn.open_table(COLLECTIONS)?;
            let old = table.get(name.as_str())?.map(|record| self.record(name.as_str(), record.value())).transpose()?;
            if old.is_some() && existing == OnExisting::Refuse {
                return Err(Error::Exists(name.to_string()).into());
            }
            let number = number.map_or_else(|| take_numbers(txn, 1), Ok)?;
            let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
            let record = Record { number, spec: spec.clone(), created };
            let json = serde_json::to_vec(&record).expect("numbers and strings are JSON");
            table.insert(name.as_str(), json.as_slice())?;
            Ok((record, old.map(|old| old.number)))
        })
    }

    /// Deletes the name of a collection. Its items are left to [`delete_some`](Self::delete_some).
    pub(in super::super) fn remove(&self, _: &mut Writer, name: &CollectionName, record: &Record) -> Result<(), Error> {
        self.write(Space::Frees, |txn| {
            self.must_exist(txn, name, record)?;
            txn.open_table(COLLECTIONS)?.remove(name.as_str())?;
            Ok(())
        })
    }

    /// Deletes some of what is stored under a number that no collection has; false where nothing is left, or where a collection has
    /// the number after all.
    pub(in super::super) fn delete_some(&self, _: &mut Writer, number: u64) -> Result<bool, Error> {
        self.write(Space::Frees, |txn| {
            // A commit that failed at its very end may have given the number to a collection nevertheless.
            for entry in txn.open_table(COLLECTIONS)?.iter()? {
                let (name, record) = entry?;
                if self.record(name.value(), record.value())?.number == number {
                    return Ok(false);
                }
            }
            let (mut deleted, mut bytes) = (0, 0);
            for table in [THUMBNAILS, PATCHES] {
                // Entries that the iterator is not asked for stay.
                for entry in txn.open_table(table)?.extract_from_if(all_of(number), |_, _| true)? {
                    (deleted, bytes) = (deleted + 1, bytes + entry?.1.value().len());
                    if deleted == MAX_DELETED || bytes >= MAX_DELETED_BYTES {
                        return Ok(true);
                    }
                }
            }
            let mut items = txn.open_table(ITEMS)?;
            let deleted = items.extract_from_if(all_of(number), |_, _| true)?.take(MAX_DELETED).map(|entry| entry.map(drop));
            // Pictures and patches before items: `orphans` finds a number by its items.
            Ok(deleted.collect::<Result<Vec<()>, _>>()?.len() == MAX_DELETED)
        })
    }

    /// Numbers under which items are stored that belong to none of `collections`.
    pub(in super::super) fn orphans(&self, collections: &[u64]) -> Result<Vec<u64>, Error> {
        self.read(|txn| {
            let items = txn.open_table(ITEMS)?;
            let (mut orphans, mut from) = (Vec::new(), 0);
            // One look per number, however many items it has.
            while let Some(entry) = items.range::<(u64, &str)>((from, "")..)?.next() {
                let number = entry?.0.value().0;
                if !collections.contains(&number) {
                    orphans.push(number);
                }
                from = number + 1;
            }
            Ok(orphans)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{EmbeddedStore, IndexOptions, Item, ModelTag};

    /// The last step of a restore seems to have failed, and its collection is on record.
    #[test]
    fn the_items_of_a_collection_are_never_deleted_as_orphans() {
        let writer = &mut Writer::default();
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path(), false).unwrap();
        let spec = Spec::pictures(1, ModelTag { fingerprint: "m".into(), precision: None });
        let number = disk.reserve(writer).unwrap();
        let item = NewItem { item: Item { id: "x".into(), ..Item::default() }, vector: vec![1.0], thumbnail: Some(vec![7]), patches: None };
        disk.fill(writer, number, &[item]).unwrap();
        let (record, _) = disk.enter(writer, &"c".parse().unwrap(), spec, Some(number), OnExisting::Refuse).unwrap();
        assert!(!disk.delete_some(writer, number).unwrap());
        assert!(disk.get(&record, "x").unwrap().is_some() && disk.thumbnail(&record, "x").unwrap().is_some());
        disk.remove(writer, &"c".parse().unwrap(), &record).unwrap();
        assert!(!disk.delete_some(writer, number).unwrap());
        assert!(disk.get(&record, "x").unwrap().is_none() && disk.thumbnail(&record, "x").unwrap().is_none());
    }

    /// A process that ended in the middle of a restore, or of deleting a collection, leaves items that belong to nothing.
    #[test]
    fn orphans_are_found_and_deleted_at_the_next_start() {
        let writer = &mut Writer::default();
        let folder = tempfile::tempdir().unwrap();
        let open = || Disk::open(folder.path(), false).unwrap();
        let spec = Spec::pictures(1, ModelTag { fingerprint: "m".into(), precision: None });
        let item = |i: usize| NewItem {
            item: Item { id: format!("{i}"), ..Item::default() },
            vector: vec![1.0],
            thumbnail: i.is_multiple_of(2).then(|| vec![7; 10]),
            patches: None,
        };
        let items: Vec<_> = (0..2500).map(item).collect();
        let disk = open();
        let (kept, _) = disk.enter(writer, &"kept".parse().unwrap(), spec, None, OnExisting::Refuse).unwrap();
        disk.fill(writer, kept.number, &items[..10]).unwrap();
        let lost = [disk.reserve(writer).unwrap(), disk.reserve(writer).unwrap()];
        for number in lost {
            disk.fill(writer, number, &items).unwrap();
        }
        assert_eq!(disk.orphans(&[kept.number]).unwrap(), lost);
        assert!(disk.delete_some(writer, lost[0]).unwrap());
        assert_eq!(disk.orphans(&[kept.number]).unwrap(), lost);
        drop(disk);

        let options = IndexOptions { build_in_background: false, ..IndexOptions::default() };
        let store = EmbeddedStore::open(folder.path(), options).unwrap();
        assert_eq!(store.collection(&"kept".parse().unwrap()).unwrap().len(), 10);
        drop(store);
        let disk = open();
        assert!(disk.orphans(&[kept.number]).unwrap().is_empty());
        assert_eq!(disk.thumbnail(&kept, "8").unwrap(), Some(vec![7; 10]));
        assert_eq!(disk.thumbnail(&Record { number: lost[1], ..kept }, "8").unwrap(), None);
    }
}
