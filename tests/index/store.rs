//! What was acknowledged stays, what is damaged is refused, and names and ids never become paths.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::common::{filter, ids, item, name, open, options, random_vector, rng, spec};
use dino_server::index::{
    Collection, EmbeddedCollection, EmbeddedStore, Error, Item, ModelTag, NewItem, OnExisting, Search, Spec, Store, snapshot,
};
use serde_json::json;

const DIM: usize = 16;

fn fill(collection: &EmbeddedCollection, count: usize) {
    let mut rng = rng(1);
    let items = (0..count).map(|i| item(format!("{i}"), &format!("{}", i % 7), random_vector(&mut rng, DIM)));
    collection.upsert(items.collect()).unwrap();
}

fn answers(collection: &EmbeddedCollection) -> Vec<Vec<(String, f32)>> {
    let mut rng = rng(2);
    let search = |_| {
        let query = random_vector(&mut rng, DIM);
        let found = collection.search(&query, &Search { k: 15, ef: 20, ..Search::default() }).unwrap();
        found.into_iter().map(|hit| (hit.item.id.clone(), hit.similarity)).collect()
    };
    (0..50).map(search).collect()
}

#[test]
fn answers_survive_a_restart() {
    for exact_below in [usize::MAX, 500] {
        let folder = tempfile::tempdir().unwrap();
        let (store, collection) = open(folder.path(), DIM, exact_below);
        fill(&collection, 3000);
        if exact_below == 500 {
            collection.build_index().unwrap();
        }
        // Some of what the graph knows goes, is replaced, and something comes after it.
        for i in 0..40 {
            collection.delete(&format!("{}", i * 7)).unwrap();
        }
        let mut rng = rng(3);
        let later = (1..60).map(|i| item(format!("{}", i * 53), "later", random_vector(&mut rng, DIM)));
        collection.upsert(later.collect()).unwrap();
        let before = (answers(&collection), collection.info().unwrap());
        drop((store, collection));

        let store = EmbeddedStore::open(folder.path(), options(exact_below)).unwrap();
        let collection = store.collection(&name("c")).unwrap();
        assert_eq!(answers(&collection), before.0);
        assert_eq!(collection.info().unwrap(), before.1);
    }
}

#[test]
fn a_lost_stale_or_torn_index_only_costs_a_rebuild() {
    let folder = tempfile::tempdir().unwrap();
    let (store, collection) = open(folder.path(), DIM, 500);
    fill(&collection, 2000);
    collection.build_index().unwrap();
    drop((store, collection));
    let graphs = folder.path().join("graphs");
    let saved = fs_err::read_dir(&graphs).unwrap().next().unwrap().unwrap().path();
    let files: Vec<_> = fs_err::read_dir(&saved).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 3);
    for file in files {
        for damage in ["cut", "flip", "remove"] {
            let mut bytes = fs_err::read(&file).unwrap();
            match damage {
                "cut" => bytes.truncate(bytes.len() * 6 / 10),
                "flip" => {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 0x40;
                }
                _ => fs_err::remove_file(&file).unwrap(),
            }
            if damage != "remove" {
                fs_err::write(&file, bytes).unwrap();
            }
            let store = EmbeddedStore::open(folder.path(), options(500)).unwrap();
            let collection = store.collection(&name("c")).unwrap();
            assert_eq!((collection.len(), collection.info().unwrap().index.kind), (2000, "hnsw"), "{damage} {}", file.display());
            assert!(collection.recall(10, 100, 50).unwrap().recall > 0.95);
        }
    }
}

/// The rows that no search reaches had another name before `hnsw_rs` built the graphs; all else is as it was.
#[test]
fn a_graph_of_an_earlier_version_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let (store, collection) = open(folder.path(), DIM, 500);
    fill(&collection, 2000);
    collection.build_index().unwrap();
    drop((store, collection));
    let graph = fs_err::read_dir(folder.path().join("graphs")).unwrap().next().unwrap().unwrap().path();
    let (description, links) = (graph.join("graph.json"), fs_err::read(graph.join("links.bin")).unwrap());
    let earlier = fs_err::read_to_string(&description).unwrap().replace("\"unreachable\"", "\"strays\"");
    assert!(earlier.contains("strays"), "{earlier}");
    fs_err::write(&description, &earlier).unwrap();
    let store = EmbeddedStore::open(folder.path(), options(500)).unwrap();
    assert_eq!(store.collection(&name("c")).unwrap().info().unwrap().index.indexed, 2000);
    // A graph that does not fit is built and saved anew.
    assert_eq!((fs_err::read_to_string(&description).unwrap(), fs_err::read(graph.join("links.bin")).unwrap()), (earlier, links));
}

#[test]
fn a_damaged_database_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (store, collection) = open(folder.path(), DIM, 100);
    fill(&collection, 300);
    drop((store, collection));
    let path = folder.path().join("store.redb");
    let whole = fs_err::read(&path).unwrap();
    let mut damaged: Vec<Vec<u8>> = [0, 1, 100, 4096, whole.len() * 6 / 10, whole.len() - 1].map(|len| whole[..len].to_vec()).into();
    for at in (64..whole.len()).step_by(4999) {
        // Only bytes that are in use can be told from damage.
        if whole[at] != 0 {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x55;
            damaged.push(flipped);
        }
    }
    damaged.push(b"not a database at all, but long enough to look at".repeat(100));
    let mut refused = 0;
    for bytes in &damaged {
        fs_err::write(&path, bytes).unwrap();
        match EmbeddedStore::open(folder.path(), options(100)) {
            Err(Error::Damaged { path: named, .. }) => {
                assert_eq!(named, path);
                assert_eq!(&fs_err::read(&path).unwrap(), bytes, "a damaged file was changed");
                refused += 1;
            }
            Err(error) => panic!("{} bytes: not named as damaged: {error}", bytes.len()),
            // The byte was in a page that nothing refers to: all is there.
            Ok(store) => assert_eq!(store.collection(&name("c")).unwrap().len(), 300, "{} bytes", bytes.len()),
        }
    }
    println!("{refused} of {} damaged files refused", damaged.len());
    assert!(refused >= 7);
    // The database is gone, its indexes are not: no fresh start over lost data.
    fs_err::remove_file(&path).unwrap();
    assert!(matches!(EmbeddedStore::open(folder.path(), options(100)), Err(Error::Damaged { .. })));
    fs_err::write(&path, whole).unwrap();
    assert_eq!(EmbeddedStore::open(folder.path(), options(100)).unwrap().collection(&name("c")).unwrap().len(), 300);
}

#[test]
fn a_killed_process_loses_nothing_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let (_store, collection) = open(folder.path(), DIM, 100_000);
    fill(&collection, 300);
    // A copy of the live files is what the disk holds at the moment of a kill.
    let copy = tempfile::tempdir().unwrap();
    fs_err::copy(folder.path().join("store.redb"), copy.path().join("store.redb")).unwrap();
    let store = EmbeddedStore::open(copy.path(), options(100_000)).unwrap();
    assert_eq!(store.collection(&name("c")).unwrap().len(), 300);
}

#[test]
fn an_id_twice_in_one_call_or_in_many_is_one_item() {
    let folder = tempfile::tempdir().unwrap();
    let (_store, collection) = open(folder.path(), 2, 100);
    collection.upsert(vec![item("other", "o", vec![-1.0, 0.0])]).unwrap();
    collection.upsert(vec![item("x", "first", vec![1.0, 0.0]), item("x", "last", vec![0.0, 1.0])]).unwrap();
    assert_eq!(collection.get("x").unwrap().item.labels, ["last"]);
    assert_eq!(collection.get("x").unwrap().vector, [0.0, 1.0]);

    std::thread::scope(|scope| {
        for client in 0..8 {
            let collection = &collection;
            scope.spawn(move || {
                for i in 0..50 {
                    collection.upsert(vec![item("x", &format!("{client}"), vec![1.0, i as f32])]).unwrap();
                }
            });
        }
    });
    let search = collection.search(&[1.0, 1.0], &Search { k: 10, ..Search::default() }).unwrap();
    assert_eq!(ids(&search), ["x", "other"]);
    assert_eq!(collection.len(), 2);
    let page = collection.page(None, 10).unwrap();
    assert_eq!(page.items.iter().map(|item| item.id.as_str()).collect::<Vec<_>>(), ["other", "x"]);
    // What is found is what is stored.
    let stored = collection.get("x").unwrap();
    assert_eq!(stored.item, *search[0].item);
}

#[test]
fn a_batch_is_stored_as_a_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let (_store, collection) = open(folder.path(), 2, 100);
    let bad = |vector: Vec<f32>| vec![item("good", "l", vec![1.0, 0.0]), item("bad", "l", vector)];
    for vector in [vec![0.0, 0.0], vec![1.0], vec![f32::NAN, 1.0]] {
        let error = collection.upsert(bad(vector)).unwrap_err();
        assert!(
            matches!(&error, Error::InvalidVector { owner, .. } | Error::Dimension { owner, .. } if owner.contains("\"bad\"")),
            "{error}"
        );
    }
    assert!(collection.upsert(vec![item("", "l", vec![1.0, 0.0])]).is_err());
    assert!(collection.is_empty());
    assert!(matches!(collection.get("good"), Err(Error::NoItem { .. })));
}

/// Readers see all of a batch or nothing of it, while batches replace each other and segments are merged.
#[test]
fn readers_never_see_half_a_batch() {
    let folder = tempfile::tempdir().unwrap();
    let (_store, collection) = open(folder.path(), 2, 100);
    let batch = |round: usize| (0..20).map(|i| item(format!("{i}"), &format!("{round}"), vec![1.0, i as f32])).collect();
    collection.upsert(batch(0)).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (1..60).for_each(|round| collection.upsert(batch(round)).unwrap()));
        while !writer.is_finished() {
            let found = collection.search(&[1.0, 0.0], &Search { k: 100, ..Search::default() }).unwrap();
            let rounds: BTreeSet<_> = found.iter().map(|hit| hit.item.labels.clone()).collect();
            assert_eq!((found.len(), rounds.len()), (20, 1));
        }
    });
}

/// What is written while a filter is asked is either deleted or stays, as it says itself.
#[test]
fn deleting_by_a_filter_beside_writers_leaves_what_does_not_pass() {
    let folder = tempfile::tempdir().unwrap();
    let (_store, collection) = open(folder.path(), 2, 10_000);
    let drop = filter(json!({"field": "label", "eq": "drop"}));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..60 {
                let label = if round % 2 == 0 { "drop" } else { "keep" };
                collection.upsert((0..30).map(|i| item(format!("{i}"), label, vec![1.0, i as f32])).collect()).unwrap();
            }
        });
        while !writer.is_finished() {
            collection.delete_where(&drop).unwrap();
            let left = collection.page(None, 100).unwrap().items;
            assert!(left.len() == 30 || left.iter().all(|item| item.labels == ["drop"]), "{} are left", left.len());
        }
    });
    assert_eq!((collection.delete_where(&drop).unwrap(), collection.len()), (0, 30));
}

/// Items come part by part; until the last one nothing is seen, and after an error nothing is left.
#[test]
fn a_collection_of_many_parts_is_there_as_a_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let (store, old) = open(folder.path(), 2, 10_000);
    old.upsert(vec![item("old", "l", vec![1.0, 0.0])]).unwrap();
    let parts = |last: Result<NewItem, Error>| {
        (0..2500).map(|i| Ok(item(format!("{}", i % 2300), &format!("{i}"), vec![1.0, i as f32]))).chain([last])
    };
    let error = || Err(Error::InvalidParameter("the end".into()));
    let replaced = store.create_with(&name("c"), spec(2), &mut parts(error()), OnExisting::Replace);
    assert!(matches!(replaced, Err(Error::InvalidParameter(_))));
    assert_eq!(store.collection(&name("c")).unwrap().get("old").unwrap().item.labels, ["l"]);
    let refused = store.create_with(&name("c"), spec(2), &mut parts(error()), OnExisting::Refuse);
    assert!(matches!(refused, Err(Error::Exists(_))));

    let new = store.create_with(&name("c"), spec(2), &mut parts(Ok(item("last", "l", vec![0.0, 1.0]))), OnExisting::Replace).unwrap();
    let check = |collection: &EmbeddedCollection| {
        assert_eq!(collection.len(), 2301);
        // The later of two versions counts, also where they came in different parts.
        assert_eq!(collection.get("7").unwrap().item.labels, ["2307"]);
        assert!(matches!(collection.get("old"), Err(Error::NoItem { .. })));
        let found = collection.search(&[1.0, 7.0], &Search { k: 3000, ..Search::default() }).unwrap();
        assert_eq!((found.len(), ids(&found).iter().collect::<BTreeSet<_>>().len()), (2301, 2301));
    };
    check(&new);
    assert!(matches!(old.upsert(vec![item("x", "l", vec![1.0, 0.0])]), Err(Error::NoCollection(_))));
    drop((old, new, store));
    check(&EmbeddedStore::open(folder.path(), options(10_000)).unwrap().collection(&name("c")).unwrap());
}

/// A restore that stands still in its middle, as behind a slow disk, holds up no other collection.
#[test]
fn nothing_waits_for_a_collection_that_is_being_made() {
    let folder = tempfile::tempdir().unwrap();
    let (store, other) = open(folder.path(), 2, 10_000);
    let (reached, at_its_middle) = std::sync::mpsc::channel();
    let (go_on, wait) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let store = &store;
        let making = scope.spawn(move || {
            let new = |i: usize| {
                if i == 1500 {
                    reached.send(()).unwrap();
                    wait.recv().unwrap();
                }
                Ok(item(format!("{i}"), "l", vec![1.0, i as f32]))
            };
            store.create_with(&name("made"), spec(2), &mut (0..2000).map(new), OnExisting::Refuse).unwrap().len()
        });
        at_its_middle.recv().unwrap();
        let (done, all_done) = std::sync::mpsc::channel();
        scope.spawn(move || {
            assert!(matches!(store.collection(&name("made")), Err(Error::NoCollection(_))));
            other.upsert(vec![item("x", "l", vec![1.0, 0.0])]).unwrap();
            assert_eq!(store.list().unwrap().len(), 1);
            store.create(&name("new"), spec(2)).unwrap();
            let more = (0..10).map(|i| Ok(item(format!("{i}"), "l", vec![1.0, 0.0])));
            store.create_with(&name("second"), spec(2), &mut { more }, OnExisting::Refuse).unwrap();
            store.remove(&name("new")).unwrap();
            done.send(()).unwrap();
        });
        let in_time = all_done.recv_timeout(Duration::from_secs(20));
        go_on.send(()).unwrap();
        assert!(in_time.is_ok(), "another collection waited");
        assert_eq!(making.join().unwrap(), 2000);
    });
}

/// A caller that asks before a collection is in memory is told so.
#[test]
fn a_store_answers_while_it_loads() {
    let folder = tempfile::tempdir().unwrap();
    let (store, collection) = open(folder.path(), DIM, 1_000_000);
    fill(&collection, 2000);
    drop((store, collection));
    let (done, opened) = std::sync::mpsc::channel();
    let store = EmbeddedStore::open_in_background(folder.path(), options(1_000_000), move |outcome| done.send(outcome).unwrap()).unwrap();
    let collection = loop {
        match store.collection(&name("c")) {
            Ok(collection) => break collection,
            Err(Error::Loading(_)) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(collection.len(), 2000);
    opened.recv().unwrap().unwrap();
    assert_eq!(store.loading(), None);

    let (done, opened) = std::sync::mpsc::channel();
    let second = EmbeddedStore::open_in_background(folder.path(), options(1_000_000), move |outcome| done.send(outcome).unwrap()).unwrap();
    assert!(matches!(opened.recv().unwrap(), Err(Error::InUse(_))));
    assert!(matches!(second.create(&name("d"), spec(2)), Err(Error::Loading(_))));
    // Opening deletes scratch files: none is made before that.
    assert!(matches!(second.scratch(), Err(Error::Loading(_))));
}

#[test]
fn another_model_is_a_conflict() {
    let folder = tempfile::tempdir().unwrap();
    let (store, collection) = open(folder.path(), 2, 100);
    assert!(collection.check_model("model-a").is_ok());
    assert!(matches!(collection.check_model("model-b"), Err(Error::Conflict(_))));
    let other = Spec { model: ModelTag { fingerprint: "model-b".into(), precision: None }, ..spec(2) };
    assert!(matches!(store.create(&name("c"), other), Err(Error::Conflict(_))));
    assert!(matches!(store.create(&name("c"), spec(3)), Err(Error::Conflict(_))));
    // The precision is recorded, and no reason to refuse.
    let half = Spec { model: ModelTag { fingerprint: "model-a".into(), precision: Some("f16".into()) }, ..spec(2) };
    assert!(!store.create(&name("c"), half).unwrap().1);
    assert!(matches!(EmbeddedStore::open(folder.path(), options(1)), Err(Error::InUse(_))));
}

#[test]
fn a_deleted_collection_takes_nothing_with_it_and_nothing_more() {
    let folder = tempfile::tempdir().unwrap();
    let (store, old) = open(folder.path(), DIM, 100);
    let (other, _) = store.create(&name("d"), spec(DIM)).unwrap();
    fill(&old, 200);
    old.build_index().unwrap();
    fill(&other, 50);
    store.remove(&name("c")).unwrap();
    assert!(matches!(store.collection(&name("c")), Err(Error::NoCollection(_))));
    assert!(matches!(store.remove(&name("c")), Err(Error::NoCollection(_))));
    // A caller that still holds it cannot write into its successor.
    let (new, created) = store.create(&name("c"), spec(DIM)).unwrap();
    assert!(created && new.is_empty());
    assert!(matches!(old.upsert(vec![item("x", "l", vec![1.0; DIM])]), Err(Error::NoCollection(_))));
    assert!(new.page(None, 10).unwrap().items.is_empty());
    assert_eq!(other.len(), 50);
    assert_eq!(listing(&folder.path().join("graphs")), Vec::<String>::new());
}

#[test]
fn hostile_ids_are_plain_text() {
    let outside = tempfile::tempdir().unwrap();
    let folder = outside.path().join("data");
    let (_store, collection) = open(&folder, 2, 1);
    let before = (listing(outside.path()), listing(&folder));
    let hostile = ["..", "../x", "/etc/passwd", "a/b", "a\\b", "\0", " ", "%2e%2e", "ü\u{202e}", &"x".repeat(512)];
    let new = |id: &&str| NewItem { thumbnail: Some(vec![1, 2, 3]), ..item(*id, "l", vec![1.0, 0.5]) };
    collection.upsert(hostile.iter().map(new).collect()).unwrap();
    for id in hostile {
        assert_eq!(collection.get(id).unwrap().item.id, id);
        assert_eq!(collection.thumbnail(id).unwrap(), [1, 2, 3]);
        collection.delete(id).unwrap();
        assert!(matches!(collection.thumbnail(id), Err(Error::NoItem { .. })));
    }
    assert!(collection.is_empty());
    assert_eq!((listing(outside.path()), listing(&folder)), before);
}

#[test]
fn pages_cover_everything_once() {
    let folder = tempfile::tempdir().unwrap();
    let (_store, collection) = open(folder.path(), DIM, 100);
    fill(&collection, 95);
    let (mut seen, mut after) = (Vec::<Item>::new(), None::<String>);
    loop {
        let page = collection.page(after.as_deref(), 10).unwrap();
        seen.extend(page.items);
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(seen.len(), 95);
    assert!(seen.is_sorted_by(|a, b| a.id < b.id));
    assert!(collection.page(None, 0).is_err() && collection.page(None, 1001).is_err());
}

fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// An item as an earlier version could have stored it: it cannot be read, and takes nothing along.
#[test]
fn a_damaged_item_is_named_and_its_neighbours_stay() {
    type Row = (u64, &'static [u8], &'static [u8]);
    const ITEMS: redb::TableDefinition<(u64, &str), Row> = redb::TableDefinition::new("items");
    let folder = tempfile::tempdir().unwrap();
    let (store, collection) = open(folder.path(), 2, 100);
    collection.upsert(["a", "bad", "worse", "z"].map(|id| item(id, "l", vec![1.0, 0.5])).into()).unwrap();
    drop((store, collection));
    let deep = format!("{{\"id\":\"bad\",\"metadata\":{{\"x\":{}1{}}}}}", "[".repeat(126), "]".repeat(126));
    let database = redb::Database::open(folder.path().join("store.redb")).unwrap();
    let txn = database.begin_write().unwrap();
    {
        let mut table = txn.open_table(ITEMS).unwrap();
        table.insert((1, "bad"), (100, [0; 8].as_slice(), deep.as_bytes())).unwrap();
        table.insert((1, "worse"), (101, [0; 3].as_slice(), b"{\"id\":\"worse\"}".as_slice())).unwrap();
    }
    txn.commit().unwrap();
    drop(database);

    let store = EmbeddedStore::open(folder.path(), options(100)).unwrap();
    let collection = store.collection(&name("c")).unwrap();
    let damaged = collection.info().unwrap().damaged.unwrap();
    assert_eq!((collection.len(), damaged.count, damaged.ids), (2, 2, vec!["bad".to_owned(), "worse".to_owned()]));
    let page = collection.page(None, 10).unwrap();
    assert_eq!(page.items.iter().map(|item| item.id.as_str()).collect::<Vec<_>>(), ["a", "z"]);
    assert!(matches!(collection.get("bad"), Err(Error::DamagedItem { id, .. }) if id == "bad"));
    let file = folder.path().join("c.dino");
    let left_out = snapshot::save(&*collection, &file).unwrap();
    assert_eq!(left_out.iter().map(|item| item.id.as_str()).collect::<Vec<_>>(), ["bad", "worse"]);
    assert_eq!(snapshot::read(&file).unwrap().1.len(), 2);
    // Kept as they are, until they are stored again or deleted.
    drop((store, collection));
    let store = EmbeddedStore::open(folder.path(), options(100)).unwrap();
    let collection = store.collection(&name("c")).unwrap();
    collection.upsert(vec![item("bad", "l", vec![0.0, 1.0])]).unwrap();
    assert_eq!(collection.info().unwrap().damaged.unwrap().ids, ["worse"]);
    collection.delete("worse").unwrap();
    assert_eq!((collection.info().unwrap().damaged, collection.len()), (None, 3));
}
