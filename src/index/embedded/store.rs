//! All collections of one data folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use tempfile::NamedTempFile;

use super::collection::EmbeddedCollection;
use super::disk::Disk;
use super::dump::Dumps;
use super::item::{NewItem, prepare};
use super::rows::Vectors;
use super::{Collection, CollectionName, Error, Info, OnExisting, Spec, Store};

/// How names of scratch files begin.
const SCRATCH: &str = ".scratch-";

/// How the store keeps its indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Collections with fewer items are always searched exactly; larger ones get a graph.
    pub exact_below: usize,
    /// Whether a thread builds a new graph when a collection has outgrown its own (or has none yet). Without it
    /// that happens at the next start, or by [`EmbeddedCollection::build_index`].
    pub build_in_background: bool,
    /// Whether building shows a progress bar on stderr.
    pub progress: bool,
    /// How vectors are held in memory.
    pub vectors: Vectors,
}

impl Options {
    /// Default of `exact_below`. With 384 dimensions a scan of that many takes 3 ms of one core, a graph search 0.1 ms
    /// (BENCHMARKS.md), which is next to nothing beside the inference before each search; and below, a graph costs exactness,
    /// and 0.6 ms of a core for each item.
    pub const EXACT_BELOW: usize = 50_000;
}

impl Default for Options {
    fn default() -> Self {
        Self { exact_below: Self::EXACT_BELOW, build_in_background: true, progress: false, vectors: Vectors::F32 }
    }
}

/// The collections of a data folder. One process at a time can have it open.
pub struct EmbeddedStore {
    folder: PathBuf,
    disk: Arc<Disk>,
    dumps: Arc<Dumps>,
    options: Options,
    collections: RwLock<BTreeMap<CollectionName, Arc<EmbeddedCollection>>>,
}

impl EmbeddedStore {
    /// Opens the data folder, making it where it does not exist, and reads all collections into memory.
    ///
    /// # Errors
    /// [`Error::Damaged`] names a file that is not what was written (it stays untouched), [`Error::InUse`] where
    /// another process has the folder open.
    pub fn open(folder: &Path, options: Options) -> Result<Self, Error> {
        fs_err::create_dir_all(folder)?;
        let dumps = Arc::new(Dumps::new(folder));
        let disk = Arc::new(Disk::open(folder, dumps.exist())?);
        let records = disk.collections()?;
        // With the database open it is certain that no other process is at work here.
        dumps.tidy(&records.iter().map(|(_, record)| record.number).collect::<Vec<_>>());
        tidy(folder);
        let mut collections = BTreeMap::new();
        for (name, record) in records {
            let collection = EmbeddedCollection::load(name.clone(), record, Arc::clone(&disk), Arc::clone(&dumps), options)?;
            if collection.build_is_due() {
                collection.build_index()?;
            }
            collections.insert(name, collection);
        }
        Ok(Self { folder: folder.to_owned(), disk, dumps, options, collections: RwLock::new(collections) })
    }

    /// One collection.
    ///
    /// # Errors
    /// [`Error::NoCollection`] where it does not exist.
    pub fn collection(&self, name: &CollectionName) -> Result<Arc<EmbeddedCollection>, Error> {
        self.collections.read().get(name).cloned().ok_or_else(|| Error::NoCollection(name.to_string()))
    }

    /// The collection of this name, made where it does not exist; true where it is new.
    ///
    /// # Errors
    /// [`Error::Conflict`] where it exists with another dimension or model; [`Error::InvalidParameter`] for a
    /// dimension that cannot be.
    pub fn create(&self, name: &CollectionName, spec: Spec) -> Result<(Arc<EmbeddedCollection>, bool), Error> {
        let mut collections = self.collections.write();
        if let Some(existing) = collections.get(name) {
            existing.spec().check_same(name, &spec)?;
            return Ok((Arc::clone(existing), false));
        }
        let collection = self.make(name, spec, &[], OnExisting::Refuse)?;
        collections.insert(name.clone(), Arc::clone(&collection));
        Ok((collection, true))
    }

    /// Makes a collection that holds exactly `items`, in one step.
    ///
    /// # Errors
    /// [`Error::Exists`] where it exists and `existing` says so, and those of [`Collection::upsert`].
    pub fn create_with(
        &self,
        name: &CollectionName,
        spec: Spec,
        items: Vec<NewItem>,
        existing: OnExisting,
    ) -> Result<Arc<EmbeddedCollection>, Error> {
        let items = prepare(items, spec.dim)?;
        let mut collections = self.collections.write();
        let collection = self.make(name, spec, &items, existing)?;
        if let Some(old) = collections.insert(name.clone(), Arc::clone(&collection)) {
            self.forget_index(&old);
        }
        drop(collections);
        collection.build_if_due()?;
        Ok(collection)
    }

    fn make(&self, name: &CollectionName, spec: Spec, items: &[NewItem], existing: OnExisting) -> Result<Arc<EmbeddedCollection>, Error> {
        spec.check_dim()?;
        let record = self.disk.create(name, spec, items, existing)?;
        let (disk, dumps) = (Arc::clone(&self.disk), Arc::clone(&self.dumps));
        EmbeddedCollection::load(name.clone(), record, disk, dumps, self.options)
    }

    fn forget_index(&self, collection: &EmbeddedCollection) {
        // Its number is never used again: what stays behind takes room, no more.
        if let Err(error) = self.dumps.remove(collection.record.number) {
            tracing::warn!("the saved index of {} could not be deleted: {error}", collection.name());
        }
    }
}

impl Store for EmbeddedStore {
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    fn list(&self) -> Result<Vec<Info>, Error> {
        self.collections.read().values().map(|collection| collection.info()).collect()
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
        items: Vec<NewItem>,
        existing: OnExisting,
    ) -> Result<Arc<dyn Collection>, Error> {
        Ok(Self::create_with(self, name, spec, items, existing)?)
    }

    fn remove(&self, name: &CollectionName) -> Result<(), Error> {
        let mut collections = self.collections.write();
        let collection = collections.get(name).ok_or_else(|| Error::NoCollection(name.to_string()))?;
        self.disk.remove(name, &collection.record)?;
        self.forget_index(collection);
        collections.remove(name);
        Ok(())
    }

    /// Beside the store; what a process that was killed left behind is deleted at the next start.
    fn scratch(&self) -> Result<NamedTempFile, Error> {
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
