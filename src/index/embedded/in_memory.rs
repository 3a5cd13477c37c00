//! A store over a database in memory, for tests of what a disk may do.

use std::path::Path;
use std::sync::Arc;

use redb::StorageBackend;

use super::collection::{EmbeddedCollection, Parts};
use super::disk::Disk;
use super::graph_files::GraphFiles;
use super::handle::Open;
use super::{Error, IndexOptions};

/// Name of the database in errors. There is no file of that name.
const PATH: &str = "store";

fn open(backend: &(impl StorageBackend + Clone)) -> Open {
    let backend = backend.clone();
    Box::new(move || Disk::builder().create_with_backend(backend.clone()).map_err(|error| Error::database(Path::new(PATH), error)))
}

/// Makes an empty database.
pub(super) fn make(backend: &(impl StorageBackend + Clone)) -> Disk {
    Disk::initialise(&open(backend)().unwrap()).unwrap_or_else(|_| panic!("a database in memory can be made"));
    disk(backend)
}

/// The database that is there.
pub(super) fn disk(backend: &(impl StorageBackend + Clone)) -> Disk {
    Disk::over(Path::new(PATH), open(backend)).unwrap()
}

/// The only collection of a database, without an index.
pub(super) fn load(disk: Disk) -> Arc<EmbeddedCollection> {
    let (name, record) = disk.collections().unwrap().remove(0);
    let options = IndexOptions { exact_below: usize::MAX, build_in_background: false, progress: false, ..IndexOptions::default() };
    // No index is saved, so that the folder is never made.
    let graph_files = Arc::new(GraphFiles::new(Path::new("nowhere")));
    EmbeddedCollection::load(
        name,
        record,
        &Parts { disk: Arc::new(disk), writes: Arc::default(), graph_files, builder: Arc::default(), options },
    )
    .unwrap()
}
