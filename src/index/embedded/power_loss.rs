//! Content of the database after a power failure: a disk that loses, at random, writes since the last sync.
//!
//! A kill cannot show this, because the page cache outlives the process.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use serde_json::json;

use super::collection::EmbeddedCollection;
use super::disk::Writer;
use super::item::{Item, NewItem};
use super::{Collection, Filter, ModelTag, OnExisting, Spec, in_memory};

const DIM: usize = 4;
/// Writes that are acknowledged, and points of failure that are tried over their whole course.
const CHANGES: usize = 150;
const FAILURES: usize = 600;

#[derive(Clone, Debug)]
enum Event {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

/// A disk in memory that remembers all that was ever done to it.
#[derive(Clone, Debug, Default)]
struct Recorder {
    content: Arc<InMemoryBackend>,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Recorder {
    fn holding(content: &[u8]) -> Self {
        let recorder = Self::default();
        recorder.content.set_len(content.len() as u64).unwrap();
        recorder.content.write(0, content).unwrap();
        recorder
    }
}

fn apply(content: &mut Vec<u8>, event: &Event) {
    match event {
        Event::Write(offset, bytes) => {
            let (start, end) = (*offset as usize, *offset as usize + bytes.len());
            if content.len() < end {
                content.resize(end, 0);
            }
            content[start..end].copy_from_slice(bytes);
        }
        Event::SetLen(len) => content.resize(*len as usize, 0),
        Event::Sync => {}
    }
}

impl StorageBackend for Recorder {
    fn len(&self) -> std::io::Result<u64> {
        self.content.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.content.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.events.lock().push(Event::SetLen(len));
        self.content.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.events.lock().push(Event::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.events.lock().push(Event::Write(offset, data.to_vec()));
        self.content.write(offset, data)
    }
}

/// What the disk holds if the power fails after `events`: all up to the last sync, and of what came later each write
/// whole, cut short, or not at all.
fn after_failure(events: &[Event], rng: &mut StdRng) -> Vec<u8> {
    let safe = events.iter().rposition(|event| matches!(event, Event::Sync)).map_or(0, |at| at + 1);
    let mut content = Vec::new();
    events[..safe].iter().for_each(|event| apply(&mut content, event));
    for event in &events[safe..] {
        match (rng.random_range(0..3), event) {
            (0, _) => apply(&mut content, event),
            (1, Event::Write(offset, bytes)) => {
                // Disks write whole sectors.
                let kept = rng.random_range(0..=bytes.len() / 512) * 512;
                apply(&mut content, &Event::Write(*offset, bytes[..kept.min(bytes.len())].to_vec()));
            }
            _ => {}
        }
    }
    content
}

/// Ids, with the label of the version that is stored.
type Content = BTreeMap<String, String>;

fn content(collection: &EmbeddedCollection) -> Content {
    let page = collection.page(None, 1000).unwrap();
    assert_eq!(page.items.len(), collection.len());
    page.items.into_iter().map(|item| (item.id, item.labels[0].clone())).collect()
}

fn random_change(collection: &Arc<EmbeddedCollection>, number: usize, rng: &mut StdRng) {
    let id = |rng: &mut StdRng| format!("{}", rng.random_range(0..40));
    match rng.random_range(0..10) {
        0..7 => {
            let item = |rng: &mut StdRng| NewItem {
                item: Item { id: id(rng), labels: vec![format!("{number}")], ..Item::default() },
                vector: (0..DIM).map(|_| rng.random::<f32>() + 0.1).collect(),
                thumbnail: rng.random_bool(0.2).then(|| vec![7; rng.random_range(1..20_000)]),
                patches: None,
            };
            let items = (0..rng.random_range(1..8)).map(|_| item(rng)).collect();
            collection.upsert(items).unwrap();
        }
        7..9 => drop(collection.delete(&id(rng))),
        _ => {
            let digit = rng.random_range(0..10);
            let ids: Vec<_> = (0..40).filter(|id| id % 10 == digit).map(|id| id.to_string()).collect();
            let filter = Filter::from_json(&json!({ "field": "id", "in": ids })).unwrap();
            collection.delete_where(&filter).unwrap();
        }
    }
}

#[test]
fn the_power_may_fail_at_any_moment() {
    let mut rng = StdRng::seed_from_u64(8);
    let recorder = Recorder::default();
    let spec = Spec::pictures(DIM, ModelTag { fingerprint: "m".into(), precision: None });
    let disk = in_memory::make(&recorder);
    disk.enter(&mut Writer::default(), &"c".parse().unwrap(), spec, None, OnExisting::Refuse).unwrap();
    drop(disk);
    let begun = recorder.events.lock().len();

    let collection = in_memory::load(in_memory::disk(&recorder));
    // What was stored after each change, and how much had been done to the disk when it was acknowledged.
    let mut acknowledged = vec![(0, Content::new())];
    for number in 0..CHANGES {
        random_change(&collection, number, &mut rng);
        acknowledged.push((recorder.events.lock().len(), content(&collection)));
    }
    drop(collection);

    let events = recorder.events.lock().clone();
    let (mut exact, mut ahead) = (0, 0);
    for _ in 0..FAILURES {
        let point = rng.random_range(begun..=events.len());
        let recovered = content(&in_memory::load(in_memory::disk(&Recorder::holding(&after_failure(&events[..point], &mut rng)))));
        let last = acknowledged.partition_point(|(at, _)| *at <= point) - 1;
        if recovered == acknowledged[last].1 {
            exact += 1;
        } else {
            // Only the change that was being written may be there too, as a whole.
            let next = acknowledged.get(last + 1).map(|(_, content)| content);
            assert_eq!(Some(&recovered), next, "failed after {point} of {} events", events.len());
            ahead += 1;
        }
    }
    println!("{FAILURES} power failures in {CHANGES} changes: {exact} times all that was acknowledged, {ahead} times one change more");
}
