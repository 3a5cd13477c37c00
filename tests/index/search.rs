//! Search finds what is stored: on the exact path, on the graph, after deletions, through filters.

use crate::common::{at_cosine, filter, ids, item, open, random_vector, rng, unit};
use dino_server::index::{Collection, Filter, NewItem, Search};
use serde_json::json;

const DIM: usize = 32;

fn tenant(id: String, tenant: &str, vector: Vec<f32>) -> NewItem {
    let mut new = item(id, tenant, vector);
    new.item.metadata.insert("tenant".into(), json!(tenant));
    new
}

fn of_tenant(tenant: &str) -> Filter {
    filter(json!({ "field": "metadata.tenant", "eq": tenant }))
}

/// Data of one tenant is never shown to another, whichever way the search takes.
#[test]
fn a_filter_is_a_rule_and_not_a_hint() {
    let mut rng = rng(15);
    for (round, exact_below) in [(0, usize::MAX), (1, 1), (2, 1), (3, 1), (4, 1)] {
        let folder = tempfile::tempdir().unwrap();
        let (_store, collection) = open(folder.path(), DIM, exact_below);
        let far: Vec<f32> = std::iter::once(-1.0).chain([0.0; DIM - 1]).collect();
        let query: Vec<f32> = far.iter().map(|x| -x).collect();
        let mut items: Vec<_> = (0..2000).map(|i| tenant(format!("a{i}"), "a", random_vector(&mut rng, DIM))).collect();
        items.push(tenant("b".into(), "b", far));
        collection.upsert(items).unwrap();
        if exact_below == 1 {
            collection.build_index().unwrap();
            assert_eq!(collection.info().unwrap().index.kind, "hnsw");
        }
        let search = |who| {
            let filter = of_tenant(who);
            collection.search(&query, &Search { k: 10, filter: Some(&filter), ..Search::default() }).unwrap()
        };
        assert_eq!(ids(&search("b")), ["b"], "round {round}");
        assert!(search("zzz").is_empty(), "round {round}");
        let found = search("a");
        assert_eq!(found.len(), 10);
        assert!(found.iter().all(|hit| hit.item.metadata["tenant"] == "a"));
    }
}

/// Small collections are scanned, so that no item is beyond reach.
#[test]
fn small_collections_lose_nothing() {
    let mut rng = rng(16);
    for round in 0..300 {
        let folder = tempfile::tempdir().unwrap();
        let (_store, collection) = open(folder.path(), DIM, 20_000);
        let query = unit(random_vector(&mut rng, DIM));
        let cosines = [0.80, 0.75].into_iter().chain((0..24).map(|i| 0.60 - 0.02 * i as f32));
        let items = cosines.enumerate().map(|(i, cosine)| item(format!("{i}"), "x", at_cosine(&mut rng, &query, cosine)));
        collection.upsert(items.collect()).unwrap();
        let found = collection.search(&query, &Search { k: 26, ef: 64, ..Search::default() }).unwrap();
        assert_eq!(found.len(), 26, "round {round}");
        assert_eq!(ids(&found)[..2], ["0", "1"], "round {round}");
        assert!(found.is_sorted_by(|a, b| a.similarity >= b.similarity));
        // And with only three items.
        let first = ["0", "1", "2"];
        collection.delete_where(&filter(json!({ "not": { "field": "id", "in": first } }))).unwrap();
        assert_eq!(collection.search(&query, &Search { k: 3, ..Search::default() }).unwrap().len(), 3);
    }
}

/// A crowd of near-copies does not hide the items beyond it, on the graph either.
#[test]
fn near_copies_do_not_hide_the_rest() {
    let mut rng = rng(161);
    for exact_below in [usize::MAX, 1] {
        let folder = tempfile::tempdir().unwrap();
        let (_store, collection) = open(folder.path(), DIM, exact_below);
        let query = unit(random_vector(&mut rng, DIM));
        let copies = (0..60).map(|i| item(format!("copy{i}"), "x", at_cosine(&mut rng, &query, 0.999_99)));
        let mut items: Vec<_> = copies.collect();
        items.extend((0..20).map(|i| item(format!("far{i}"), "y", at_cosine(&mut rng, &query, -0.5))));
        collection.upsert(items).unwrap();
        if exact_below == 1 {
            collection.build_index().unwrap();
        }
        let found = collection.search(&query, &Search { k: 80, ef: 200, ..Search::default() }).unwrap();
        assert_eq!(found.len(), 80);
    }
}

/// Deleted items take no place in an answer, and have no vote.
#[test]
fn deletions_leave_full_answers() {
    let mut rng = rng(18);
    for exact_below in [usize::MAX, 1] {
        let folder = tempfile::tempdir().unwrap();
        let (_store, collection) = open(folder.path(), DIM, exact_below);
        let query = unit(random_vector(&mut rng, DIM));
        let cosine = |i: usize| 0.95 - 0.02 * i as f32;
        let items = (0..60).map(|i| item(format!("{i:02}"), "x", at_cosine(&mut rng, &query, cosine(i))));
        collection.upsert(items.collect()).unwrap();
        if exact_below == 1 {
            collection.build_index().unwrap();
        }
        // Narrow, so that the graph answers for so few items.
        let search = |k| collection.search(&query, &Search { k, ef: 10, ..Search::default() }).unwrap();
        for i in 0..10 {
            collection.delete(&format!("{i:02}")).unwrap();
        }
        assert_eq!(ids(&search(1)), ["10"]);
        let expected: Vec<String> = (10..30).map(|i| format!("{i:02}")).collect();
        assert_eq!(ids(&search(20)), expected);
        let removed = collection.delete_where(&filter(json!({ "field": "id", "lt": "57" }))).unwrap();
        assert_eq!(removed, 47);
        assert_eq!(ids(&search(20)), ["57", "58", "59"]);
        assert_eq!(collection.len(), 3);
    }
}

/// The graph path against exact search, and how a replaced item is found on it.
#[test]
fn the_graph_finds_nearly_all_true_neighbours() {
    let mut rng = rng(7);
    let folder = tempfile::tempdir().unwrap();
    let (_store, collection) = open(folder.path(), DIM, 1000);
    let clusters: Vec<_> = (0..50).map(|_| unit(random_vector(&mut rng, DIM))).collect();
    let items = (0..6000).map(|i| {
        let near = random_vector(&mut rng, DIM);
        let vector = clusters[i % 50].iter().zip(near).map(|(c, n)| c + 0.15 * n).collect();
        item(format!("{i}"), &format!("{}", i % 50), vector)
    });
    collection.upsert(items.collect()).unwrap();
    collection.build_index().unwrap();
    let index = collection.info().unwrap().index;
    assert_eq!((index.kind, index.indexed, index.scanned), ("hnsw", 6000, 0));

    let recall = collection.recall(20, 128, 200).unwrap();
    println!("recall@20 with ef 128 on 6000 items of {DIM} dimensions: {:.4}", recall.recall);
    assert!(recall.recall > 0.98, "{recall:?}");
    assert_eq!(recall.queries, 200);

    // New and replaced items are found at once, beside the graph.
    let query = unit(random_vector(&mut rng, DIM));
    collection.upsert(vec![item("new", "n", query.clone()), item("17", "n", query.clone())]).unwrap();
    let found = collection.search(&query, &Search { k: 2, ..Search::default() }).unwrap();
    assert_eq!(ids(&found), ["17", "new"]);
    assert_eq!(collection.len(), 6001);
    assert_eq!(collection.info().unwrap().index.scanned, 2);
    let all = collection.search(&query, &Search { k: 10_000, ..Search::default() }).unwrap();
    let mut distinct = ids(&all);
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!((all.len(), distinct.len()), (6001, 6001));
}

#[test]
fn queries_that_cannot_be_compared_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (_store, collection) = open(folder.path(), 3, 100);
    for query in [vec![0.0; 3], vec![1.0; 4], vec![f32::NAN, 0.0, 1.0]] {
        let error = collection.search(&query, &Search::default()).unwrap_err().to_string();
        assert!(error.starts_with("query: "), "{error}");
    }
    assert!(collection.search(&[1.0, 0.0, 0.0], &Search { k: 0, ..Search::default() }).is_err());
    assert!(collection.search(&[1.0, 0.0, 0.0], &Search { k: usize::MAX, ..Search::default() }).unwrap().is_empty());
}
