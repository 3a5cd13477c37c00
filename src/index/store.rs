//! The traits of stores and of their collections.
//!
//! All methods may block on a disk, a network or a processor: call them on threads that may block.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tempfile::NamedTempFile;

use super::{
    Attached, CollectionName, Connections, Damaged, Error, Filter, Info, Item, Loading, Neighbour, NewItem, OnExisting, Page, Recall,
    Sample, Search, Spec, StoredItem, StoredPatches, Version,
};

/// A store of collections.
///
/// # Errors
/// Besides those that each method names, all of them fail with [`Error::Unreachable`], or [`Error::PartUnreachable`] of several databases,
/// while a database cannot be reached, [`Error::Slow`] while one is busy, and with the errors of reading and writing.
#[expect(clippy::missing_errors_doc, reason = "said above for all of them")]
pub trait Store: Send + Sync {
    /// Whether the store can be read and written right now: [`Error::Unwritable`] while a write that failed cannot be made,
    /// [`Error::Moved`] where what was opened is not there any more.
    fn check(&self) -> Result<(), Error>;

    /// Connections to the database of a store that servers share: there a search waits for the database, rather than for a processor
    /// here. Never blocks.
    fn connections(&self) -> Option<Connections> {
        None
    }

    /// What still has to be read before every collection answers. Never blocks.
    fn loading(&self) -> Option<Loading> {
        None
    }

    /// Dimension and model of each collection, by name; those that are not loaded yet are left out. The items are not looked at.
    fn specs(&self) -> Result<Vec<(CollectionName, Spec)>, Error>;

    /// What is known of each collection, by name; those that are not loaded yet are left out.
    fn list(&self) -> Result<Vec<Info>, Error>;

    /// One collection; [`Error::NoCollection`] where it does not exist.
    fn collection(&self, name: &CollectionName) -> Result<Arc<dyn Collection>, Error>;

    /// The collection of this name, made where it does not exist; true where it is new.
    ///
    /// [`Error::Conflict`] where it exists with another dimension or model; [`Error::InvalidParameter`] for a dimension that
    /// cannot be.
    fn create(&self, name: &CollectionName, spec: Spec) -> Result<(Arc<dyn Collection>, bool), Error>;

    /// Makes a collection that holds exactly `items`, in one step: nothing of it is seen before the last of them, nor after an error
    /// that came in place of one. Where an id comes twice, the last one wins. [`Error::Exists`] where it exists and `existing` says so;
    /// otherwise as [`create`](Self::create) and [`Collection::upsert`].
    fn create_with(
        &self,
        name: &CollectionName,
        spec: Spec,
        items: &mut Items<'_>,
        existing: OnExisting,
    ) -> Result<Arc<dyn Collection>, Error>;

    /// Deletes a collection with all its items; [`Error::NoCollection`] where it does not exist.
    fn remove(&self, name: &CollectionName) -> Result<(), Error>;

    /// A temporary file for a snapshot. It is deleted when it is dropped.
    fn scratch(&self) -> Result<NamedTempFile, Error>;
}

/// A named set of items with vectors of one model.
///
/// # Errors
/// As for [`Store`]; [`Error::NoCollection`] where it was deleted in the meantime.
#[expect(clippy::missing_errors_doc, reason = "said above for all of them")]
pub trait Collection: Send + Sync {
    /// The collection's name.
    fn name(&self) -> &CollectionName;

    /// Dimension and model.
    fn spec(&self) -> &Spec;

    /// Its number: a collection that is deleted and made again under its name has another one.
    fn number(&self) -> u64;

    /// What is known of the collection right now.
    fn info(&self) -> Result<Info, Error>;

    /// Stores `items`: all of them or, after an error, none; over several databases some of them after an error between their commits, which
    /// [`Error::PartUnreachable`] tells. They are durable and visible when this returns.
    ///
    /// An item whose id exists is replaced as a whole. Where one call has an id twice, the last one wins.
    /// [`Error::InvalidItem`], [`Error::InvalidVector`] and [`Error::Dimension`] name the item.
    fn upsert(&self, items: Vec<NewItem>) -> Result<(), Error>;

    /// Deletes one item; [`Error::NoItem`] where it does not exist.
    fn delete(&self, id: &str) -> Result<(), Error>;

    /// Deletes every item that passes `filter`, all at once in each database, and returns their number.
    fn delete_where(&self, filter: &Filter) -> Result<usize, Error>;

    /// One item with its vector; [`Error::NoItem`] where it does not exist.
    fn get(&self, id: &str) -> Result<StoredItem, Error>;

    /// The stored picture of an item: a JPEG, or the file that it was made of. [`Error::NoItem`] where the item or its
    /// picture does not exist.
    fn thumbnail(&self, id: &str) -> Result<Vec<u8>, Error>;

    /// Up to `limit` (1 to [`MAX_PAGE`](super::MAX_PAGE)) items whose id comes after `after`, in the order of their bytes.
    fn page(&self, after: Option<&str>, limit: usize) -> Result<Page, Error>;

    /// Id and source of every item, for an import that skips what it has.
    fn sources(&self) -> Result<HashMap<String, Option<String>>, Error>;

    /// The nearest items to `query` `[dim]` (of any length), nearest first, equal ones by id.
    ///
    /// As many as asked for come back where that many exist and pass the filter, on every path. Without an approximate index
    /// the answer is exact; with one see [`recall`](Self::recall). [`Error::InvalidVector`] and [`Error::Dimension`] for a
    /// query that cannot be compared, [`Error::InvalidParameter`] for `k` = 0.
    fn search(&self, query: &[f32], options: &Search<'_>) -> Result<Vec<Neighbour>, Error>;

    /// How many items have each of `labels`. Labels that nothing has may be left out.
    fn label_counts(&self, labels: &BTreeSet<&str>) -> Result<HashMap<String, usize>, Error>;

    /// Measures the approximate index against exact search, with up to `queries` stored vectors, evenly spread.
    fn recall(&self, k: usize, ef: usize, queries: usize) -> Result<Recall, Error>;

    /// What the collection holds right now, as a mark to compare.
    fn version(&self) -> Result<Version, Error>;

    /// At most `most` items with their vectors: a tenth of that the newest, the others chosen by a hash, so that a sample changes as
    /// little as its collection does.
    fn sample(&self, most: usize) -> Result<Sample, Error>;

    /// Id and stamp of every item, older ones first: a version of an item has a stamp that no other version of it has.
    fn stamps(&self) -> Result<Vec<(String, u64)>, Error>;

    /// The patches of items of a collection of patches. Those that do not exist, and those that cannot be read, are left out.
    fn patches(&self, ids: &[&str]) -> Result<Vec<StoredPatches>, Error>;

    /// Calls `visit` with every item that passes `filter` and its vector `[dim]` of length 1, in no particular order, and says of which
    /// version they are. An error of `visit` ends it. Items that cannot be read are left out.
    fn scan(&self, filter: Option<&Filter>, visit: &mut VisitVector<'_>) -> Result<Version, Error>;

    /// Calls `visit` with every item of one moment (of each of several databases, its own) and what is attached to it, ordered by id. An
    /// error of `visit` ends it. Returns the items that cannot be read, which are skipped.
    fn export(&self, visit: &mut Visit<'_>) -> Result<Vec<Damaged>, Error>;

    /// Builds the approximate index now, where one is due.
    fn build_if_due(&self) -> Result<(), Error>;

    /// Refuses vectors of another model: [`Error::Conflict`] where `fingerprint` is not that of the collection.
    fn check_model(&self, fingerprint: &str) -> Result<(), Error> {
        self.spec().check_model(self.name(), fingerprint)
    }
}

/// Items one after the other, or why there are no more.
pub type Items<'a> = dyn Iterator<Item = Result<NewItem, Error>> + 'a;

/// Takes an item and what is stored beside its vector.
pub type Visit<'a> = dyn FnMut(&StoredItem, Attached<'_>) -> std::io::Result<()> + 'a;

/// Takes an item and its vector.
pub type VisitVector<'a> = dyn FnMut(&Item, &[f32]) -> Result<(), Error> + 'a;

/// What a collection answers for an item that it does not have.
pub(super) fn no_item(collection: &CollectionName, id: &str) -> Error {
    // An id that is too long to exist is not repeated as a whole.
    Error::NoItem { collection: collection.to_string(), id: id.chars().take(super::item::MAX_STRING).collect() }
}
