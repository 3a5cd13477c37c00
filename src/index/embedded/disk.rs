//! The durable side of the store: one `redb` database, the only truth about what is stored.
//!
//! Collections and items are keyed by number and id inside the database; neither ever becomes a path.

mod lifecycle;

use std::ops::{Bound, Range};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use dino_vision::anomaly::PatchSet;
use redb::{
    AccessGuard, Builder, Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableError,
    WriteTransaction,
};
use serde::{Deserialize, Serialize};

use super::handle::{Handle, Open, Space};
use super::item::{Damaged, Item, NewItem, StoredItem, vector_from_bytes, vector_to_bytes};
use super::{Attached, CollectionName, Error, Spec, StoredPatches};

/// Name of the database in the data folder.
const FILE: &str = "store.redb";
/// Memory for the database's pages; items live in memory anyway, so that little is read twice.
const CACHE_BYTES: usize = 16 << 20;

/// Collection name → [`Record`] as JSON.
const COLLECTIONS: TableDefinition<&str, &[u8]> = TableDefinition::new("collections");
/// (collection number, id) → (sequence number, vector as little-endian f32, [`Item`] as JSON).
const ITEMS: TableDefinition<(u64, &str), RowValue> = TableDefinition::new("items");
type RowValue = (u64, &'static [u8], &'static [u8]);
/// (collection number, id) → JPEG.
const THUMBNAILS: TableDefinition<(u64, &str), &[u8]> = TableDefinition::new("thumbnails");
/// (collection number, id) → the stored form of its patches. The first write makes it: stores of earlier versions have none.
const PATCHES: TableDefinition<(u64, &str), &[u8]> = TableDefinition::new("patches");
type PatchesTable = ReadOnlyTable<(u64, &'static str), &'static [u8]>;
/// [`FORMAT_KEY`] and [`NEXT_KEY`].
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Version of these tables.
const FORMAT_KEY: &str = "format";
const FORMAT: u64 = 1;
/// Next number for a collection or a version of an item. Never given twice, also after deletions.
const NEXT_KEY: &str = "next";
/// Number of commits: tells whether one that failed has reached the disk all the same.
const COMMITS_KEY: &str = "commits";
/// Free pages that each change leaves, in bytes: more than several deletes of an item change.
const HEADROOM: usize = 128 << 10;
/// Space that an item takes beside its vector, labels, metadata and picture, in bytes.
const ITEM_OVERHEAD: usize = 512;

/// A collection as the database knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Key of its items; a collection that is deleted and made again has another one.
    pub(super) number: u64,
    #[serde(flatten)]
    pub(super) spec: Spec,
    /// Seconds since 1970.
    pub(super) created: u64,
}

/// An item with its sequence number.
pub(super) struct Row {
    pub(super) sequence: u64,
    pub(super) stored: StoredItem,
}

/// What is to happen to the items of a collection.
pub(super) enum Change {
    Upsert(Vec<NewItem>),
    Delete(Vec<String>),
}

/// What a change did: sequence numbers of the new versions in the order of the items, and of the deleted or replaced ones.
#[derive(Default)]
pub(super) struct Written {
    pub(super) new: Vec<u64>,
    pub(super) replaced: Vec<u64>,
}

impl Change {
    fn space(&self) -> Space {
        match self {
            Self::Upsert(items) => needed_by(items),
            Self::Delete(_) => Space::Frees,
        }
    }
}

pub(super) struct Disk {
    path: PathBuf,
    handle: Handle,
}

/// The right to write, of which a store has one. What writes asks for it, so that one transaction runs at a time.
#[derive(Default)]
pub(super) struct Writer(());

impl Disk {
    /// Opens the database of a data folder, or makes one where the folder has none.
    ///
    /// The checksum of every page is compared: a file that was cut or changed is refused, never repaired by guess and
    /// never taken for an empty one.
    ///
    /// `used_before`: the folder holds traces of a store, so that a missing database is a loss and not a beginning.
    pub(super) fn open(folder: &Path, used_before: bool) -> Result<Self, Error> {
        let path = folder.join(FILE);
        if !path.try_exists()? {
            if used_before {
                return Err(Error::damaged(&path, "it is missing, though indexes were made from it"));
            }
            create(folder, &path)?;
        }
        if fs_err::metadata(&path)?.len() == 0 {
            return Err(Error::damaged(&path, "it is empty"));
        }
        let file = path.clone();
        // Its checksums are compared once: a disk that was full has changed none of what was committed.
        let is_first = AtomicBool::new(true);
        let open = move || {
            let checks = is_first.swap(false, Ordering::Relaxed);
            // The database's own debug assertions panic on some kinds of damage.
            let opened = catch_unwind(|| Self::builder().set_check_integrity_on_open(checks).open(&file));
            let opened = opened.map_err(|_| Error::damaged(&file, "its pages contradict each other"))?;
            opened.map_err(|error| Error::database(&file, error))
        };
        Self::over(&path, Box::new(open))
    }

    /// How databases are opened.
    pub(super) fn builder() -> Builder {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
        builder
    }

    /// The database that `open` opens, if it is one of ours; `path` names it in errors.
    pub(super) fn over(path: &Path, open: Open) -> Result<Self, Error> {
        let disk = Self { path: path.to_owned(), handle: Handle::new(path, open)? };
        let format = disk.read(|txn| Ok(txn.open_table(META)?.get(FORMAT_KEY)?.map(|format| format.value())))?;
        match format {
            Some(FORMAT) => Ok(disk),
            Some(other) => {
                let detail = format!("its format is {other}, this program reads {FORMAT}");
                Err(Error::damaged(&disk.path, detail))
            }
            None => Err(Error::damaged(&disk.path, "it is a database of something else")),
        }
    }

    /// Makes the tables of an empty database.
    pub(super) fn initialise(database: &Database) -> Result<(), Failure> {
        let txn = database.begin_write()?;
        txn.open_table(COLLECTIONS)?;
        txn.open_table(ITEMS)?;
        txn.open_table(THUMBNAILS)?;
        let mut meta = txn.open_table(META)?;
        meta.insert(FORMAT_KEY, FORMAT)?;
        meta.insert(NEXT_KEY, 1)?;
        drop(meta);
        txn.commit()?;
        Ok(())
    }

    /// Whether changes can be made: the file is where it was, and no write has failed since the last that succeeded.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.handle.check()
    }

    /// All collections, by name. One whose record cannot be read is named in the log, and keeps its name.
    pub(super) fn collections(&self) -> Result<Vec<(CollectionName, Record)>, Error> {
        self.read(|txn| {
            let table = txn.open_table(COLLECTIONS)?;
            let mut collections = Vec::new();
            for entry in table.iter()? {
                let (name, record) = entry?;
                match (name.value().parse(), self.record(name.value(), record.value())) {
                    (Ok(name), Ok(record)) => collections.push((name, record)),
                    (Err(error), _) | (_, Err(error)) => tracing::error!(name = name.value(), "a collection is left out: {error}"),
                }
            }
            Ok(collections)
        })
    }

    /// Makes one change durable.
    pub(super) fn write_one(&self, _: &mut Writer, name: &CollectionName, record: &Record, change: &Change) -> Result<Written, Error> {
        self.write(change.space(), |txn| self.apply(txn, name, record, change))
    }

    /// Makes changes durable in one step. Each fails or succeeds by itself, unless the database fails.
    pub(super) fn write_many(
        &self,
        _: &mut Writer,
        changes: &[(&CollectionName, &Record, &Change)],
    ) -> Result<Vec<Result<Written, Error>>, Error> {
        let space = changes.iter().map(|(_, _, change)| change.space()).reduce(Space::and).unwrap_or(Space::Frees);
        self.write(space, |txn| {
            let apply = |&(name, record, change): &_| match self.apply(txn, name, record, change) {
                Ok(written) => Ok(Ok(written)),
                // Found before anything was written.
                Err(Failure::Ours(error)) => Ok(Err(error)),
                Err(failure @ Failure::Database(_)) => Err(failure),
            };
            changes.iter().map(apply).collect()
        })
    }

    fn apply(&self, txn: &WriteTransaction, name: &CollectionName, record: &Record, change: &Change) -> Result<Written, Failure> {
        self.must_exist(txn, name, record)?;
        match change {
            Change::Upsert(items) => put(txn, record.number, items),
            Change::Delete(ids) => take_out(txn, record.number, ids),
        }
    }

    /// One item.
    pub(super) fn get(&self, record: &Record, id: &str) -> Result<Option<Row>, Error> {
        self.read(|txn| {
            let row = txn.open_table(ITEMS)?.get((record.number, id))?;
            let damaged = |Damaged { id, reason }| Error::DamagedItem { id, reason };
            Ok(row.map(|row| row_of(record, id, row.value())).transpose().map_err(damaged)?)
        })
    }

    /// Vectors by id and sequence number, in that order; `None` where the item was deleted or replaced.
    pub(super) fn vectors(&self, record: &Record, wanted: &[(&str, u64)]) -> Result<Vec<Option<Vec<f32>>>, Error> {
        self.read(|txn| {
            let table = txn.open_table(ITEMS)?;
            let find = |&(id, sequence): &(&str, u64)| {
                let row = table.get((record.number, id))?;
                let vector = row.filter(|row| row.value().0 == sequence).map(|row| vector_from_bytes(row.value().1));
                // A damaged one counts as deleted.
                Ok(vector.filter(|vector| vector.len() == record.spec.dim))
            };
            wanted.iter().map(find).collect()
        })
    }

    /// The stored picture of an item.
    pub(super) fn thumbnail(&self, record: &Record, id: &str) -> Result<Option<Vec<u8>>, Error> {
        self.read(|txn| {
            let jpeg = txn.open_table(THUMBNAILS)?.get((record.number, id))?;
            Ok(jpeg.map(|jpeg| jpeg.value().to_owned()))
        })
    }

    /// Which of these items have a stored picture.
    pub(super) fn have_thumbnails<'a>(&self, record: &Record, ids: impl Iterator<Item = &'a str>) -> Result<Vec<bool>, Error> {
        self.read(|txn| {
            let thumbnails = txn.open_table(THUMBNAILS)?;
            ids.map(|id| Ok(thumbnails.get((record.number, id))?.is_some())).collect()
        })
    }

    /// Hands every item after `after` to `visit`, ordered by id as bytes, until it returns false. Returns those that cannot be
    /// read, which are skipped.
    pub(super) fn visit(&self, record: &Record, after: Option<&str>, mut visit: impl FnMut(Row) -> bool) -> Result<Vec<Damaged>, Error> {
        self.read(|txn| {
            let mut damaged = Vec::new();
            let start = match after {
                Some(id) => Bound::Excluded((record.number, id)),
                None => Bound::Included((record.number, "")),
            };
            let end = Bound::Excluded((record.number + 1, ""));
            for entry in txn.open_table(ITEMS)?.range::<(u64, &str)>((start, end))? {
                let (key, row) = entry?;
                match row_of(record, key.value().1, row.value()) {
                    Ok(row) => {
                        if !visit(row) {
                            break;
                        }
                    }
                    Err(item) => damaged.push(item),
                }
            }
            Ok(damaged)
        })
    }

    /// The patches of items. Those that do not exist are left out; those that cannot be read too, and named in the log.
    pub(super) fn patches(&self, record: &Record, ids: &[&str]) -> Result<Vec<StoredPatches>, Error> {
        self.read(|txn| {
            let Some(patches) = patches_table(txn)? else { return Ok(Vec::new()) };
            let items = txn.open_table(ITEMS)?;
            let mut found = Vec::with_capacity(ids.len());
            for &id in ids {
                let key = (record.number, id);
                let (Some(row), Some(bytes)) = (items.get(key)?, patches.get(key)?) else { continue };
                let read = row_of(record, id, row.value()).map_err(|Damaged { reason, .. }| reason);
                match read.and_then(|row| Ok((row, PatchSet::from_bytes(bytes.value(), record.spec.dim)?))) {
                    Ok((Row { sequence, stored }, patches)) => found.push(StoredPatches { stamp: sequence, item: stored.item, patches }),
                    Err(reason) => tracing::error!(id, "an item is damaged and left out: {reason}"),
                }
            }
            Ok(found)
        })
    }

    /// Hands every item of one moment, with its picture, to `visit`, ordered by id as bytes. Returns those that cannot be read, which
    /// are skipped.
    pub(super) fn export(
        &self,
        record: &Record,
        mut visit: impl FnMut(&StoredItem, Attached<'_>) -> std::io::Result<()>,
    ) -> Result<Vec<Damaged>, Error> {
        self.read(|txn| {
            let mut damaged = Vec::new();
            let (thumbnails, patches) = (txn.open_table(THUMBNAILS)?, patches_table(txn)?);
            for entry in txn.open_table(ITEMS)?.range::<(u64, &str)>(all_of(record.number))? {
                let (key, row) = entry?;
                let row = match row_of(record, key.value().1, row.value()) {
                    Ok(row) => row,
                    Err(item) => {
                        damaged.push(item);
                        continue;
                    }
                };
                let jpeg = thumbnails.get(key.value())?;
                let patches = patches.as_ref().map(|patches| patches.get(key.value())).transpose()?.flatten();
                let (picture, patches) = (jpeg.as_ref().map(AccessGuard::value), patches.as_ref().map(AccessGuard::value));
                visit(&row.stored, Attached { picture, patches }).map_err(Error::Io)?;
            }
            Ok(damaged)
        })
    }

    fn read<T>(&self, work: impl FnOnce(&ReadTransaction) -> Result<T, Failure>) -> Result<T, Error> {
        let (database, generation) = self.handle.get()?;
        let txn = database.begin_read().map_err(|error| Error::database(&self.path, error));
        // The thread that opens the database again waits until no transaction uses it.
        drop(database);
        let value = txn.and_then(|txn| work(&txn).map_err(|failure| failure.at(&self.path)));
        value.map_err(|error| self.handle.failed(error, generation, None))
    }

    /// Runs `work` and makes what it did durable; nothing of it remains where it fails. What frees space is tried a second time
    /// with the reserve that is kept for it.
    fn write<T>(&self, space: Space, work: impl Fn(&WriteTransaction) -> Result<T, Failure>) -> Result<T, Error> {
        self.handle.admit(space)?;
        let mut outcome = self.try_write(space, &work);
        if matches!(outcome, Err(Error::Unwritable { .. })) && space == Space::Frees && self.handle.release_reserve() {
            outcome = self.try_write(space, &work);
        }
        if outcome.is_ok() {
            self.handle.wrote(space);
        }
        outcome
    }

    fn try_write<T>(&self, space: Space, work: impl Fn(&WriteTransaction) -> Result<T, Failure>) -> Result<T, Error> {
        let (database, generation) = self.handle.get()?;
        let failed = |error, database| {
            drop(database);
            self.handle.failed(error, generation, Some(space))
        };
        let begun = (|| {
            let txn = database.begin_write()?;
            let value = work(&txn)?;
            if space != Space::Frees {
                keep_headroom(&txn)?;
            }
            let commit = take_number(&txn, COMMITS_KEY, 1)?;
            self.handle.check_file_identity()?;
            Ok((txn, value, commit))
        })();
        let (txn, value, commit) = match begun {
            Ok(begun) => begun,
            Err(failure) => return Err(failed(Failure::at(failure, &self.path), database)),
        };
        match txn.commit() {
            Ok(()) => Ok(value),
            Err(error) => {
                let error = failed(Error::database(&self.path, error), database);
                // The error may have come after the change had reached the disk.
                let next = self.read(|txn| Ok(txn.open_table(META)?.get(COMMITS_KEY)?.map_or(0, |next| next.value())));
                if next.is_ok_and(|next| next == commit + 1) { Ok(value) } else { Err(error) }
            }
        }
    }

    /// Refuses to write to a collection that was deleted (and perhaps made again) in the meantime.
    fn must_exist(&self, txn: &WriteTransaction, name: &CollectionName, record: &Record) -> Result<(), Failure> {
        let table = txn.open_table(COLLECTIONS)?;
        let found = table.get(name.as_str())?;
        let number = found.map(|found| self.record(name.as_str(), found.value())).transpose()?;
        match number {
            Some(found) if found.number == record.number => Ok(()),
            _ => Err(Error::NoCollection(name.to_string()).into()),
        }
    }

    fn record(&self, name: &str, json: &[u8]) -> Result<Record, Error> {
        let damaged = |_| Error::damaged(&self.path, format!("the record of collection {name:?} cannot be read"));
        serde_json::from_slice(json).map_err(damaged)
    }
}

/// Reads the row of an item, or says why that cannot be done.
fn row_of(record: &Record, id: &str, row: (u64, &[u8], &[u8])) -> Result<Row, Damaged> {
    let (sequence, vector, item) = row;
    let damaged = |reason: String| Damaged { id: id.to_owned(), reason };
    let item = Item::from_stored_form(item).map_err(damaged)?;
    if item.id != id {
        return Err(damaged("it is stored under another id".to_owned()));
    }
    if vector.len() != record.spec.dim * 4 {
        return Err(damaged(format!("its vector has {} bytes in place of {}", vector.len(), record.spec.dim * 4)));
    }
    Ok(Row { sequence, stored: StoredItem { item, vector: vector_from_bytes(vector) } })
}

/// The space that items take.
fn needed_by(items: &[NewItem]) -> Space {
    let bytes = |new: &NewItem| ITEM_OVERHEAD + new.vector.len() * 4 + new.attached();
    Space::Needs(items.iter().map(bytes).sum::<usize>() as u64)
}

/// Makes an empty database beside `path` and moves it there, so that a crash never leaves half of one under its name.
fn create(folder: &Path, path: &Path) -> Result<(), Error> {
    let temporary = tempfile::Builder::new().prefix(".store-").tempfile_in(folder)?.into_temp_path();
    let fail = |failure: Failure| failure.at(path);
    let database = Database::create(&temporary).map_err(|error| Error::database(path, error))?;
    Disk::initialise(&database).map_err(fail)?;
    database.close().map_err(|error| Error::database(path, error))?;
    temporary.persist_noclobber(path).map_err(|error| error.error)?;
    fs_err::File::open(folder)?.sync_all()?;
    Ok(())
}

/// Writes `items` under their new sequence numbers.
fn put(txn: &WriteTransaction, collection: u64, items: &[NewItem]) -> Result<Written, Failure> {
    let first = take_numbers(txn, items.len() as u64)?;
    let (mut rows, mut thumbnails) = (txn.open_table(ITEMS)?, txn.open_table(THUMBNAILS)?);
    let mut written = Written::default();
    for (sequence, NewItem { item, vector, thumbnail, patches }) in (first..).zip(items) {
        let key = (collection, item.id.as_str());
        let json = item.to_stored_form().map_err(|error| Error::InvalidItem { id: item.id.clone(), reason: error.to_string() })?;
        let bytes = vector_to_bytes(vector);
        let old = rows.insert(key, (sequence, bytes.as_slice(), json.as_slice()))?;
        written.replaced.extend(old.map(|old| old.value().0));
        written.new.push(sequence);
        match thumbnail {
            Some(jpeg) => drop(thumbnails.insert(key, jpeg.as_slice())?),
            None => drop(thumbnails.remove(key)?),
        }
        // Those of an earlier version are replaced: all items of a collection have some, or none has.
        if let Some(patches) = patches {
            txn.open_table(PATCHES)?.insert(key, patches.as_slice())?;
        }
    }
    Ok(written)
}

/// Deletes items; those that do not exist are none of the replaced.
fn take_out(txn: &WriteTransaction, collection: u64, ids: &[String]) -> Result<Written, Failure> {
    let (mut rows, mut thumbnails, mut patches) = (txn.open_table(ITEMS)?, txn.open_table(THUMBNAILS)?, txn.open_table(PATCHES)?);
    let mut written = Written::default();
    for id in ids {
        let key = (collection, id.as_str());
        written.replaced.extend(rows.remove(key)?.map(|row| row.value().0));
        thumbnails.remove(key)?;
        patches.remove(key)?;
    }
    Ok(written)
}

/// The patches, where any were ever stored.
fn patches_table(txn: &ReadTransaction) -> Result<Option<PatchesTable>, Failure> {
    match txn.open_table(PATCHES) {
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        table => Ok(Some(table?)),
    }
}

/// The keys of all items of a collection.
fn all_of(collection: u64) -> Range<(u64, &'static str)> {
    (collection, "")..(collection + 1, "")
}

/// Makes the file have some free pages after this change, so that a delete is possible where the file cannot grow: a value is
/// added and removed again, which grows the file now if it has to.
fn keep_headroom(txn: &WriteTransaction) -> Result<(), Failure> {
    // No collection has this number.
    let key = (0, "");
    let mut thumbnails = txn.open_table(THUMBNAILS)?;
    drop(thumbnails.insert_reserve(key, HEADROOM)?);
    thumbnails.remove(key)?;
    Ok(())
}

/// The first of `count` numbers that nothing had before.
fn take_numbers(txn: &WriteTransaction, count: u64) -> Result<u64, Failure> {
    take_number(txn, NEXT_KEY, count)
}

/// The number under `key`, which goes up by `count`.
fn take_number(txn: &WriteTransaction, key: &str, count: u64) -> Result<u64, Failure> {
    let mut meta = txn.open_table(META)?;
    let first = meta.get(key)?.map_or(1, |next| next.value());
    meta.insert(key, first + count)?;
    Ok(first)
}

/// Why a transaction was rolled back: an error of ours, or one of the database, without the path of its file.
pub(super) enum Failure {
    Ours(Error),
    Database(Box<redb::Error>),
}

impl Failure {
    fn at(self, path: &Path) -> Error {
        match self {
            Self::Ours(error) => error,
            Self::Database(error) => Error::database(path, *error),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

macro_rules! failure_from {
    ($($error:ty),+) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        })+
    };
}

failure_from!(redb::StorageError, redb::TableError, redb::TransactionError, redb::CommitError);
