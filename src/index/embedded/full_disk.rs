//! A disk that has no room for a while, and one whose last word is an error after all was written.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redb::StorageBackend;

use super::collection::{EmbeddedCollection, Parts};
use super::disk::Disk;
use super::dump::Dumps;
use super::item::{Item, NewItem};
use super::{Collection, Error, ModelTag, OnExisting, Options, Spec};

/// A disk in memory.
#[derive(Clone, Debug, Default)]
struct Device {
    content: Arc<Mutex<Vec<u8>>>,
    is_full: Arc<AtomicBool>,
    /// Whether each sync writes what it should, and then fails.
    sync_fails: Arc<AtomicBool>,
}

fn full() -> std::io::Error {
    std::io::ErrorKind::StorageFull.into()
}

impl StorageBackend for Device {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.content.lock().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let content = self.content.lock();
        let found = content.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(found.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.content.lock().resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        if self.sync_fails.swap(false, Ordering::SeqCst) { Err(full()) } else { Ok(()) }
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let mut content = self.content.lock();
        let place = &mut content[offset as usize..offset as usize + data.len()];
        // What is there may be written over, as on a disk that is full.
        if self.is_full.load(Ordering::SeqCst) && place.iter().all(|&byte| byte == 0) {
            return Err(full());
        }
        place.copy_from_slice(data);
        Ok(())
    }
}

fn collection(device: &Device) -> Arc<EmbeddedCollection> {
    let path = Path::new("store");
    let device = device.clone();
    let open = move || Disk::builder().create_with_backend(device.clone()).map_err(|error| Error::database(path, error));
    Disk::initialise(&open().unwrap()).unwrap_or_else(|_| panic!("a database in memory can be made"));
    let disk = Arc::new(Disk::over(path, Box::new(open)).unwrap());
    let spec = Spec { dim: 2, model: ModelTag { fingerprint: "m".into(), precision: None } };
    let name = "c".parse().unwrap();
    let (record, _) = disk.enter(&name, spec, None, OnExisting::Refuse).unwrap();
    let options = Options { exact_below: usize::MAX, build_in_background: false, progress: false, ..Options::default() };
    let parts = Parts { disk, dumps: Arc::new(Dumps::new(Path::new("nowhere"))), builder: Arc::default(), options };
    EmbeddedCollection::load(name, record, &parts).unwrap()
}

fn item(id: &str) -> Vec<NewItem> {
    vec![NewItem { item: Item { id: id.into(), ..Item::default() }, vector: vec![1.0, 2.0], thumbnail: Some(vec![1; 100_000]) }]
}

#[test]
fn a_full_disk_does_not_outlast_its_cause() {
    let device = Device::default();
    let collection = collection(&device);
    collection.upsert(item("before")).unwrap();
    device.is_full.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let error = collection.upsert(item("lost")).unwrap_err();
        assert!(matches!(&error, Error::Unwritable { cause, .. } if cause.contains("no storage space")), "{error}");
        assert_eq!(collection.get("before").unwrap().item.id, "before");
        assert_eq!((collection.len(), collection.page(None, 10).unwrap().items.len()), (1, 1));
        assert!(collection.get("lost").is_err());
    }
    device.is_full.store(false, Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(1100));
    collection.upsert(item("after")).unwrap();
    collection.disk.check().unwrap();
    assert_eq!((collection.len(), collection.page(None, 10).unwrap().items.len()), (2, 2));
}

/// Whether a change is answered as done is what a restart shows.
#[test]
fn an_error_after_the_fact_is_no_error() {
    let device = Device::default();
    let collection = collection(&device);
    for number in 0..10 {
        device.sync_fails.store(true, Ordering::SeqCst);
        let id = number.to_string();
        let stored = collection.upsert(item(&id)).is_ok();
        device.sync_fails.store(false, Ordering::SeqCst);
        assert_eq!(collection.get(&id).is_ok(), stored, "{number}");
        assert_eq!(collection.len(), collection.page(None, 100).unwrap().items.len());
        if !stored {
            std::thread::sleep(Duration::from_millis(1100));
        }
    }
}
