//! All collections of one data folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tempfile::NamedTempFile;

use super::collection::{EmbeddedCollection, Parts};
use super::commit::WriteQueue;
use super::disk::Disk;
use super::garbage::GarbageCollector;
use super::graph_files::GraphFiles;
use super::item::{next_part, prepare};
use super::layout::Layout;
use super::rows::Rows;
use super::{Collection, CollectionName, Error, IndexOptions, Info, Items, Loading, OnExisting, Spec, Store};

/// How names of scratch files begin.
const SCRATCH: &str = ".scratch-";

/// The collections of a data folder. One process at a time can have it open.
pub struct EmbeddedStore {
    folder: PathBuf,
    options: IndexOptions,
    /// What is known once the database is open.
    opened: OnceLock<Opened>,
    /// All collections by name. Replaced as a whole: looking one up never waits.
    catalogue: ArcSwap<Catalogue>,
    /// Held while a name is given or taken, which is one short transaction, so that the catalogue changes in the order of the
    /// database. Never while items are read, written or indexed.
    naming: Mutex<()>,
}

type Catalogue = BTreeMap<CollectionName, Slot>;
/// A collection, once it is in memory.
type Slot = Arc<OnceLock<Arc<EmbeddedCollection>>>;

struct Opened {
    parts: Parts,
    garbage: GarbageCollector,
}

impl EmbeddedStore {
    /// Opens the data folder, making it where it does not exist, reads all collections into memory, and builds the indexes that
    /// are due.
    ///
    /// # Errors
    /// [`Error::Damaged`] names a file that is not what was written (it stays untouched), [`Error::InUse`] where
    /// another process has the folder open.
    pub fn open(folder: &Path, options: IndexOptions) -> Result<Self, Error> {
        let store = Self::unopened(folder, options);
        store.load()?;
        for collection in store.collections() {
            collection.build_if_due()?;
        }
        Ok(store)
    }

    /// As [`open`](Self::open), on a thread of its own: until a collection is in memory, a caller that asks for it gets
    /// [`Error::Loading`]. `done` is called with the outcome; after an error nothing of the store answers.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn open_in_background(
        folder: &Path,
        options: IndexOptions,
        done: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) -> Result<Arc<Self>, Error> {
        let store = Arc::new(Self::unopened(folder, options));
        let opening = Arc::clone(&store);
        std::thread::Builder::new().name("load".to_owned()).spawn(move || {
            let outcome = opening.load();
            if outcome.is_ok() {
                // Not before: building would take the cores from loading the other collections.
                opening.collections().iter().for_each(|collection| collection.build_in_background());
            }
            drop(opening);
            done(outcome);
        })?;
        Ok(store)
    }

    fn unopened(folder: &Path, options: IndexOptions) -> Self {
        let (folder, catalogue) = (folder.to_owned(), ArcSwap::default());
        Self { folder, options, opened: OnceLock::new(), catalogue, naming: Mutex::new(()) }
    }

    /// Opens the database and reads all collections into memory.
    fn load(&self) -> Result<(), Error> {
        let start = Instant::now();
        fs_err::create_dir_all(&self.folder)?;
        let graph_files = Arc::new(GraphFiles::new(&self.folder));
        let disk = Arc::new(Disk::open(&self.folder, graph_files.exist())?);
        let records = disk.collections()?;
        let numbers: Vec<u64> = records.iter().map(|(_, record)| record.number).collect();
        // With the database open it is certain that no other process is at work here.
        graph_files.tidy(&numbers);
        tidy(&self.folder);
        let writes = Arc::<WriteQueue>::default();
        let garbage = GarbageCollector::new(Arc::clone(&disk), Arc::clone(&writes), self.options.build_in_background);
        garbage.delete(disk.orphans(&numbers)?);
        let parts = Parts { disk, writes, graph_files, builder: Arc::default(), options: self.options };
        let mut slots = Catalogue::new();
        slots.extend(records.iter().map(|(name, _)| (name.clone(), Slot::default())));
        self.catalogue.store(Arc::new(slots.clone()));
        // From here on collections can be made.
        let Opened { parts, .. } = self.opened.get_or_init(|| Opened { parts, garbage });
        let count = records.len();
        for (name, record) in records {
            let collection = EmbeddedCollection::load(name.clone(), record, parts)?;
            slots[&name].get_or_init(|| collection);
        }
        tracing::info!(collections = count, seconds = start.elapsed().as_secs_f32(), "collections loaded");
        Ok(())
    }

    fn opened(&self) -> Result<&Opened, Error> {
        self.opened.get().ok_or_else(|| Error::Loading("the collections are being opened".to_owned()))
    }

    /// All collections that are in memory, by name.
    fn collections(&self) -> Vec<Arc<EmbeddedCollection>> {
        self.catalogue.load().values().filter_map(|slot| slot.get().cloned()).collect()
    }

    /// The collection of this name, if there is one.
    fn find(&self, name: &CollectionName) -> Result<Option<Arc<EmbeddedCollection>>, Error> {
        self.opened()?;
        match self.catalogue.load().get(name) {
            Some(slot) => {
                let loaded = slot.get().cloned();
                loaded.map(Some).ok_or_else(|| Error::Loading(format!("collection {:?} is being loaded", name.as_str())))
            }
            None => Ok(None),
        }
    }

    /// One collection.
    ///
    /// # Errors
    /// [`Error::NoCollection`] where it does not exist, [`Error::Loading`] where it is not in memory yet.
    pub fn collection(&self, name: &CollectionName) -> Result<Arc<EmbeddedCollection>, Error> {
        self.find(name)?.ok_or_else(|| Error::NoCollection(name.to_string()))
    }

    /// The collection of this name, made where it does not exist; true where it is new.
    ///
    /// # Errors
    /// [`Error::Conflict`] where it exists with another dimension or model; [`Error::InvalidParameter`] for a
    /// dimension that cannot be.
    pub fn create(&self, name: &CollectionName, spec: Spec) -> Result<(Arc<EmbeddedCollection>, bool), Error> {
        spec.check_dim()?;
        let Opened { parts, .. } = self.opened()?;
        let existing = |existing: Arc<EmbeddedCollection>| {
            existing.spec().check_same(name, &spec)?;
            Ok((existing, false))
        };
        if let Some(found) = self.find(name)? {
            return existing(found);
        }
        let naming = self.naming.lock();
        if let Some(found) = self.find(name)? {
            return existing(found);
        }
        let (record, _) = parts.disk.enter(&mut parts.writes.lock(), name, spec.clone(), None, OnExisting::Refuse)?;
        let collection = EmbeddedCollection::new(name.clone(), record, Layout::default(), parts);
        self.publish(&collection);
        drop(naming);
        Ok((collection, true))
    }

    /// Makes a collection that holds exactly `items`, in one step.
    ///
    /// # Errors
    /// [`Error::Exists`] where it exists and `existing` says so, and those of [`Collection::upsert`] and of `items`.
    pub fn create_with(
        &self,
        name: &CollectionName,
        spec: Spec,
        items: &mut Items<'_>,
        existing: OnExisting,
    ) -> Result<Arc<EmbeddedCollection>, Error> {
        spec.check_dim()?;
        let Opened { parts, garbage } = self.opened()?;
        if self.find(name)?.is_some() && existing == OnExisting::Refuse {
            return Err(Error::Exists(name.to_string()));
        }
        let number = parts.disk.reserve(&mut parts.writes.lock())?;
        let entered = fill(parts, &spec, number, items).and_then(|layout| {
            let naming = self.naming.lock();
            let (record, old) = parts.disk.enter(&mut parts.writes.lock(), name, spec, Some(number), existing)?;
            let collection = EmbeddedCollection::new(name.clone(), record, layout, parts);
            let replaced = self.publish(&collection);
            drop(naming);
            Ok((collection, replaced, old))
        });
        let (collection, replaced, old) = entered.inspect_err(|_| garbage.delete([number]))?;
        if let Some(replaced) = replaced {
            replaced.retire();
        }
        garbage.delete(old);
        collection.build_if_due()?;
        Ok(collection)
    }

    /// Puts a collection into the catalogue, and returns the one that it replaces.
    fn publish(&self, collection: &Arc<EmbeddedCollection>) -> Option<Arc<EmbeddedCollection>> {
        let mut catalogue = Catalogue::clone(&self.catalogue.load());
        let old = catalogue.insert(collection.name.clone(), Arc::new(OnceLock::from(Arc::clone(collection))));
        self.catalogue.store(Arc::new(catalogue));
        old.and_then(|slot| slot.get().cloned())
    }
}

/// Stores items under a number that no collection has yet, part by part, and lays them out in memory.
fn fill(parts: &Parts, spec: &Spec, number: u64, items: &mut Items<'_>) -> Result<Layout, Error> {
    let mut rows = Rows::with_capacity(spec.dim, 0, parts.options.vectors);
    let mut gone = Vec::new();
    loop {
        let part = prepare(next_part(items)?, spec)?;
        if part.is_empty() {
            break;
        }
        let written = parts.disk.fill(&mut parts.writes.lock(), number, &part)?;
        for (sequence, new) in written.new.into_iter().zip(part) {
            rows.push(sequence, Arc::new(new.item), &new.vector);
        }
        // An id that came in an earlier part too: the last one wins.
        gone.extend(written.replaced);
    }
    rows.shrink();
    let layout = Layout::plain(Arc::new(rows));
    Ok(if gone.is_empty() { layout } else { layout.changed(&gone, Rows::with_capacity(spec.dim, 0, parts.options.vectors), 0) })
}

impl Store for EmbeddedStore {
    fn check(&self) -> Result<(), Error> {
        self.opened()?.parts.disk.check()
    }

    fn loading(&self) -> Option<Loading> {
        if self.opened.get().is_none() {
            return Some(Loading { collections: Vec::new(), of: None });
        }
        let catalogue = self.catalogue.load();
        let collections: Vec<_> = catalogue.iter().filter(|(_, slot)| slot.get().is_none()).map(|(name, _)| name.clone()).collect();
        (!collections.is_empty()).then_some(Loading { collections, of: Some(catalogue.len()) })
    }

    fn specs(&self) -> Result<Vec<(CollectionName, Spec)>, Error> {
        self.opened()?;
        Ok(self.collections().iter().map(|collection| (collection.name.clone(), collection.spec().clone())).collect())
    }

    fn list(&self) -> Result<Vec<Info>, Error> {
        self.opened()?;
        self.collections().iter().map(|collection| collection.info()).collect()
    }

    fn collection(&self, name: &CollectionName) -> Result<Arc<dyn Collection>, Error> {
        Ok(Self::collection(self, name)?)
    }

    fn create(&self, name: &CollectionName, spec: Spec) -> Result<(Arc<dyn Collection>, bool), Error> {
        let (collection, is_new) = Self::create(self, name, spec)?;
        Ok((collection, is_new))
    }

    fn create_with(
        &self,
        name: &CollectionName,
        spec: Spec,
        items: &mut Items<'_>,
        existing: OnExisting,
    ) -> Result<Arc<dyn Collection>, Error> {
        Ok(Self::create_with(self, name, spec, items, existing)?)
    }

    fn remove(&self, name: &CollectionName) -> Result<(), Error> {
        let Opened { parts, garbage } = self.opened()?;
        let naming = self.naming.lock();
        let collection = self.collection(name)?;
        parts.disk.remove(&mut parts.writes.lock(), name, &collection.record)?;
        let mut catalogue = Catalogue::clone(&self.catalogue.load());
        catalogue.remove(name);
        self.catalogue.store(Arc::new(catalogue));
        drop(naming);
        collection.retire();
        garbage.delete([collection.record.number]);
        Ok(())
    }

    /// Beside the store; what a process that was killed left behind is deleted at the next start. Not before the database is
    /// open, since that deletes every scratch file.
    fn scratch(&self) -> Result<NamedTempFile, Error> {
        self.opened()?;
        Ok(tempfile::Builder::new().prefix(SCRATCH).tempfile_in(&self.folder)?)
    }
}

/// Deletes scratch files that a process which was killed left behind.
fn tidy(folder: &Path) {
    let entries = fs_err::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(SCRATCH.as_bytes())) {
        if let Err(error) = fs_err::remove_file(entry.path()) {
            tracing::warn!("{error}");
        }
    }
}
