//! The maps that were made last, as many as fit a bound of memory.

use std::sync::Arc;

use quick_cache::{
    DefaultHashBuilder, OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle},
};

use super::Map;
use crate::index::{CollectionName, Version};

/// Maps that are expected: a few of the usual size.
const USUAL_COUNT: usize = 100;

/// Maps by collection and number of points.
pub(super) struct MapCache(Cache<(CollectionName, usize), CachedMap, Bytes>);

#[derive(Clone)]
struct CachedMap {
    /// What the collection held when the map was made.
    version: Version,
    map: Arc<Map>,
}

/// Counts a map by its memory.
#[derive(Clone)]
struct Bytes;

impl Weighter<(CollectionName, usize), CachedMap> for Bytes {
    fn weight(&self, _: &(CollectionName, usize), cached: &CachedMap) -> u64 {
        cached.map.bytes() as u64
    }
}

impl MapCache {
    /// A cache of at most so many bytes.
    pub(super) fn new(most: u64) -> Self {
        // With one shard the largest map may take all of it.
        let options = OptionsBuilder::new().estimated_items_capacity(USUAL_COUNT).weight_capacity(most).shards(1).build();
        let options = options.expect("capacities are given");
        Self(Cache::with_options(options, Bytes, DefaultHashBuilder::default(), DefaultLifecycle::default()))
    }

    /// The map that was made of just this version of the collection.
    pub(super) fn find(&self, collection: &CollectionName, points: usize, version: Version) -> Option<Arc<Map>> {
        let found = self.0.get(&(collection.clone(), points));
        found.filter(|cached| cached.version == version).map(|cached| cached.map)
    }

    /// Keeps a map in place of an older one of the same collection and number of points. One that is larger than the whole bound is not
    /// kept.
    pub(super) fn insert(&self, collection: &CollectionName, points: usize, version: Version, map: &Arc<Map>) {
        self.0.insert((collection.clone(), points), CachedMap { version, map: Arc::clone(map) });
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Point, *};
    use crate::index::{EmbeddedStore, IndexOptions, ModelTag, Spec, Store};

    fn map(labels: usize) -> Arc<Map> {
        let labels = vec!["x".repeat(1000); labels];
        Arc::new(Map { collection: "c".into(), count: 1, points: vec![Point { id: "a".into(), labels, x: 0.5, y: 0.5, has_image: false }] })
    }

    #[test]
    fn maps_go_before_the_bound_is_passed() {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(folder.path(), IndexOptions::default()).unwrap();
        let spec = Spec::pictures(2, ModelTag { fingerprint: "x".into(), precision: None });
        let (collection, _) = Store::create(&store, &"a".parse().unwrap(), spec).unwrap();
        let version = collection.version().unwrap();
        let cache = MapCache::new(64_000);
        let [a, b]: [CollectionName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        for points in 0..100 {
            cache.insert(&a, points, version, &map(10));
            assert!(cache.0.weight() <= 64_000);
        }
        assert!(cache.find(&a, 99, version).is_some() && cache.find(&b, 99, version).is_none());
        // A newer one of the same takes the place of the older.
        let count = cache.0.len();
        let newer = map(10);
        cache.insert(&a, 99, version, &newer);
        assert!(Arc::ptr_eq(&cache.find(&a, 99, version).unwrap(), &newer));
        // One that is larger than all room costs the others nothing.
        cache.insert(&b, 5, version, &map(100));
        assert!(cache.find(&b, 5, version).is_none() && cache.0.len() == count && (3..=6).contains(&count), "{count}");
    }
}
