//! A disk that is full for a while, and one that reports an error after all was written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redb::StorageBackend;
use redb::backends::InMemoryBackend;

use super::collection::EmbeddedCollection;
use super::disk::Writer;
use super::item::{Item, NewItem};
use super::{Collection, Error, ModelTag, OnExisting, Spec, in_memory};

/// A disk in memory.
#[derive(Clone, Debug, Default)]
struct Device {
    content: Arc<InMemoryBackend>,
    is_full: Arc<AtomicBool>,
    /// Whether each sync writes what it should, and then fails.
    sync_fails: Arc<AtomicBool>,
}

fn full() -> std::io::Error {
    std::io::ErrorKind::StorageFull.into()
}

impl StorageBackend for Device {
    fn len(&self) -> std::io::Result<u64> {
        self.content.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.content.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.content.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        if self.sync_fails.swap(false, Ordering::SeqCst) { Err(full()) } else { Ok(()) }
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let mut before = vec![0; data.len()];
        self.content.read(offset, &mut before)?;
        // What is there may be written over, as on a disk that is full.
        if self.is_full.load(Ordering::SeqCst) && before.iter().all(|&byte| byte == 0) {
            return Err(full());
        }
        self.content.write(offset, data)
    }
}

fn collection(device: &Device) -> Arc<EmbeddedCollection> {
    let disk = in_memory::make(device);
    let spec = Spec::pictures(2, ModelTag { fingerprint: "m".into(), precision: None });
    disk.enter(&mut Writer::default(), &"c".parse().unwrap(), spec, None, OnExisting::Refuse).unwrap();
    in_memory::load(disk)
}

fn item(id: &str) -> Vec<NewItem> {
    vec![NewItem {
        item: Item { id: id.into(), ..Item::default() },
        vector: vec![1.0, 2.0],
        thumbnail: Some(vec![1; 100_000]),
        patches: None,
    }]
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
