//! A snapshot carries everything over, and a damaged one carries nothing.

use dino_server::index::{Collection, Error, NewItem, OnExisting, Search, snapshot};
use serde_json::json;

use crate::common::{item, name, open, random_vector, rng};

const DIM: usize = 24;

#[test]
fn a_restored_collection_gives_the_same_answers() {
    let mut rng = rng(4);
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_store, collection) = open(one.path(), DIM, 20_000);
    let items = (0..400).map(|i| {
        let mut new = item(format!("dog/ü{i}"), &format!("{}", i % 9), random_vector(&mut rng, DIM));
        new.item.metadata.insert("n".into(), json!({"i": i}));
        new.item.source = Some(format!("{i:064}"));
        NewItem { thumbnail: (i % 3 == 0).then(|| vec![i as u8; 50]), ..new }
    });
    collection.upsert(items.collect()).unwrap();
    let file = one.path().join("gallery.dino");
    snapshot::save(&*collection, &file).unwrap();
    assert_eq!(snapshot::read_header(&file).unwrap().spec, *collection.spec());

    let (store, _) = open(two.path(), 3, 20_000);
    assert!(matches!(snapshot::restore(&store, &file, None, OnExisting::Refuse), Err(Error::Exists(_))));
    let other = snapshot::restore(&store, &file, Some(name("other")), OnExisting::Refuse).unwrap();
    let replaced = snapshot::restore(&store, &file, None, OnExisting::Replace).unwrap();
    assert_eq!(replaced.name().as_str(), "c");
    for restored in [&other, &replaced] {
        assert_eq!((restored.info().unwrap().count, restored.spec()), (400, collection.spec()));
        for id in ["dog/ü0", "dog/ü7", "dog/ü399"] {
            assert_eq!(restored.get(id).unwrap(), collection.get(id).unwrap());
            assert_eq!(restored.thumbnail(id).ok(), collection.thumbnail(id).ok());
        }
        for _ in 0..20 {
            let query = random_vector(&mut rng, DIM);
            let search = |c: &dyn Collection| c.search(&query, &Search::default()).unwrap();
            assert_eq!(search(&**restored), search(&*collection));
        }
    }
}

#[test]
fn a_damaged_snapshot_is_named_and_changes_nothing() {
    let mut rng = rng(5);
    let folder = tempfile::tempdir().unwrap();
    let (store, collection) = open(folder.path(), DIM, 20_000);
    collection.upsert((0..50).map(|i| item(format!("{i}"), "l", random_vector(&mut rng, DIM))).collect()).unwrap();
    let file = folder.path().join("c.dino");
    snapshot::save(&*collection, &file).unwrap();
    let whole = fs_err::read(&file).unwrap();
    let mut damaged: Vec<Vec<u8>> = (0..whole.len()).step_by(97).map(|len| whole[..len].to_vec()).collect();
    damaged.extend((0..whole.len()).step_by(97).map(|at| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    }));
    damaged.push([whole.as_slice(), b"more"].concat());
    for bytes in damaged {
        fs_err::write(&file, &bytes).unwrap();
        let error = snapshot::restore(&store, &file, None, OnExisting::Replace).err().expect("damage was not seen");
        match error {
            Error::Damaged { path, .. } | Error::Unsupported { path, .. } => assert_eq!(path, file),
            error => panic!("not named: {error}"),
        }
        assert_eq!(store.collection(&name("c")).unwrap().len(), 50);
    }
}
