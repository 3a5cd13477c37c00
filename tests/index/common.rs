//! What several test programs need: random vectors, stores in temporary folders.

use std::path::Path;
use std::sync::Arc;

use dino_server::index::{CollectionName, EmbeddedCollection, EmbeddedStore, Filter, IndexOptions, Item, ModelTag, NewItem, Spec};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Options without threads of their own, so that a test knows when an index exists.
pub(crate) fn options(exact_below: usize) -> IndexOptions {
    IndexOptions { exact_below, build_in_background: false, ..IndexOptions::default() }
}

pub(crate) fn name(name: &str) -> CollectionName {
    name.parse().unwrap()
}

pub(crate) fn spec(dim: usize) -> Spec {
    Spec::pictures(dim, ModelTag { fingerprint: "model-a".into(), precision: Some("f32".into()) })
}

/// A store in `folder` and its collection `c`.
pub(crate) fn open(folder: &Path, dim: usize, exact_below: usize) -> (EmbeddedStore, Arc<EmbeddedCollection>) {
    let store = EmbeddedStore::open(folder, options(exact_below)).unwrap();
    let (collection, _) = store.create(&name("c"), spec(dim)).unwrap();
    (store, collection)
}

pub(crate) fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// A vector of independent numbers, the same in all directions.
pub(crate) fn random_vector(rng: &mut StdRng, dim: usize) -> Vec<f32> {
    // The sum of twelve uniform numbers is near enough to normal.
    (0..dim).map(|_| (0..12).map(|_| rng.random::<f32>() - 0.5).sum()).collect()
}

/// A unit vector whose cosine to the unit vector `q` is `cosine`.
pub(crate) fn at_cosine(rng: &mut StdRng, q: &[f32], cosine: f32) -> Vec<f32> {
    let mut other = random_vector(rng, q.len());
    let along: f32 = other.iter().zip(q).map(|(a, b)| a * b).sum();
    other.iter_mut().zip(q).for_each(|(a, b)| *a -= along * b);
    let other = unit(other);
    let sine = (1.0 - cosine * cosine).sqrt();
    q.iter().zip(other).map(|(q, o)| cosine * q + sine * o).collect()
}

pub(crate) fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    for x in &mut vector {
        *x /= length;
    }
    vector
}

pub(crate) fn item(id: impl Into<String>, label: &str, vector: Vec<f32>) -> NewItem {
    let item = Item { id: id.into(), labels: vec![label.into()], ..Item::default() };
    NewItem { item, vector, thumbnail: None, patches: None }
}

pub(crate) fn filter(json: serde_json::Value) -> Filter {
    Filter::from_json(&json).unwrap()
}

pub(crate) fn ids(neighbours: &[dino_server::index::Neighbour]) -> Vec<&str> {
    neighbours.iter().map(|neighbour| neighbour.item.id.as_str()).collect()
}
