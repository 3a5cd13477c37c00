//! Vectors held as bytes: the same answers as from floats.

use std::path::Path;

use dino_server::index::{Collection, EmbeddedStore, IndexOptions, Search, VectorFormat};
use rand::RngExt;
use serde_json::json;

use super::common::{at_cosine, filter, ids, item, name, options, random_vector, rng, spec, unit};

fn store(folder: &Path, vectors: VectorFormat) -> EmbeddedStore {
    // A graph would be due at once.
    EmbeddedStore::open(folder, IndexOptions { vectors, ..options(1) }).unwrap()
}

/// Answers of both stores to many questions.
fn compare(bytes: &dyn Collection, floats: &dyn Collection, queries: &[Vec<f32>]) {
    let even = filter(json!({"field": "label", "eq": "even"}));
    for query in queries {
        for k in [1, 10, 300] {
            for filter in [None, Some(&even)] {
                let search = Search { k, exact: true, filter, ..Search::default() };
                let wanted = floats.search(query, &search).unwrap();
                assert_eq!(bytes.search(query, &search).unwrap(), wanted);
                assert_eq!(bytes.search(query, &Search { exact: false, ..search }).unwrap(), wanted);
            }
        }
    }
}

#[test]
fn answers_are_those_of_floats() {
    for dim in [3, 100] {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (bytes, floats) = (store(one.path(), VectorFormat::Int8), store(other.path(), VectorFormat::F32));
        let collections = [&bytes, &floats].map(|store| store.create(&name("c"), spec(dim)).unwrap().0);
        let mut rng = rng(dim as u64);
        let centres: Vec<_> = (0..20).map(|_| unit(random_vector(&mut rng, dim))).collect();
        // Clusters, and in each of them a few that are all but the same.
        let mut vectors: Vec<_> = (0..4200).map(|i| at_cosine(&mut rng, &centres[i % 20], if i < 200 { 0.999_99 } else { 0.8 })).collect();
        for (at, vectors) in vectors.chunks_mut(1500).enumerate() {
            for collection in &collections {
                let label = |i: usize| if i.is_multiple_of(2) { "even" } else { "odd" };
                let items = vectors.iter().enumerate().map(|(i, v)| item((at * 1500 + i).to_string(), label(i), v.clone())).collect();
                collection.upsert(items).unwrap();
            }
        }
        let queries: Vec<_> = (0..2).map(|i| if i == 0 { centres[i].clone() } else { unit(random_vector(&mut rng, dim)) }).collect();
        let [small, large] = [&*collections[0], &*collections[1]];
        compare(small, large, &queries);

        // Replaced and deleted items are never found again.
        let moved = item("0", "odd", queries[1].clone());
        let nearest = large.search(&queries[0], &Search { k: 10, exact: true, ..Search::default() }).unwrap();
        for collection in &collections {
            collection.upsert(vec![moved.clone()]).unwrap();
            for id in ids(&nearest).into_iter().filter(|id| *id != "0") {
                collection.delete(id).unwrap();
            }
        }
        compare(small, large, &queries);
        let info = small.info().unwrap();
        assert_eq!((info.index.kind, info.index.indexed), ("int8", 0));
        small.build_if_due().unwrap();
        assert_eq!(small.info().unwrap().index.indexed, 0);
        let recall = small.recall(10, 10, 50).unwrap();
        assert!((recall.recall - 1.0).abs() < 1e-9 && recall.queries == 50, "{recall:?}");

        // After a restart, and with the kinds exchanged: the disk holds floats either way.
        drop((collections, bytes, floats));
        for kinds in [[VectorFormat::Int8, VectorFormat::F32], [VectorFormat::F32, VectorFormat::Int8]] {
            let stores = [store(one.path(), kinds[0]), store(other.path(), kinds[1])];
            let [one, other] = stores.each_ref().map(|store| store.collection(&name("c")).unwrap());
            let (bytes, floats) = if kinds[0] == VectorFormat::Int8 { (one, other) } else { (other, one) };
            compare(&*bytes, &*floats, &queries);
        }
    }
}

#[test]
fn searches_go_on_while_items_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), VectorFormat::Int8);
    let (collection, _) = store.create(&name("c"), spec(32)).unwrap();
    let mut rng = rng(5);
    let vectors: Vec<_> = (0..500).map(|_| random_vector(&mut rng, 32)).collect();
    let all = || vectors.iter().enumerate().map(|(i, vector)| item(i.to_string(), "x", vector.clone())).collect();
    collection.upsert(all()).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (0..20).for_each(|_| collection.upsert(all()).unwrap()));
        while !writer.is_finished() {
            let query = &vectors[rng.random_range(0..500)];
            let found = collection.search(query, &Search { k: 500, ..Search::default() }).unwrap();
            let mut ids = ids(&found);
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), 500, "each once, at every moment");
        }
    });
    assert_eq!(collection.search(&vectors[0], &Search { k: 600, ..Search::default() }).unwrap().len(), 500);
}
