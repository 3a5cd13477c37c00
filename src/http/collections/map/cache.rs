//! The maps that were made last, as many as fit a bound of memory.

use std::{collections::VecDeque, sync::Arc};

use super::Map;
use crate::index::{CollectionName, Version};

/// Maps by collection and number of points.
pub(super) struct MapCache {
    /// The one that was made last comes last.
    maps: VecDeque<CachedMap>,
    /// Memory of all maps together, and the most that it may be.
    bytes: usize,
    most: usize,
}

struct CachedMap {
    collection: CollectionName,
    points: usize,
    /// What the collection held when the map was made.
    version: Version,
    map: Arc<Map>,
    bytes: usize,
}

impl MapCache {
    /// A cache of at most so many bytes.
    pub(super) fn new(most: usize) -> Self {
        Self { maps: VecDeque::new(), bytes: 0, most }
    }

    /// The map that was made of just this version of the collection.
    pub(super) fn find(&self, collection: &CollectionName, points: usize, version: Version) -> Option<Arc<Map>> {
        let found = self.maps.iter().find(|cached| cached.collection == *collection && cached.points == points);
        found.filter(|cached| cached.version == version).map(|cached| Arc::clone(&cached.map))
    }

    /// Keeps a map in place of an older one of the same collection and number of points. The oldest ones go where there is no room; one
    /// that is larger than all of it is not kept.
    pub(super) fn insert(&mut self, collection: &CollectionName, points: usize, version: Version, map: &Arc<Map>) {
        self.maps.retain(|cached| cached.collection != *collection || cached.points != points);
        let bytes = map.bytes();
        if bytes <= self.most {
            self.maps.push_back(CachedMap { collection: collection.clone(), points, version, map: Arc::clone(map), bytes });
        }
        self.bytes = self.maps.iter().map(|cached| cached.bytes).sum();
        while self.bytes > self.most
            && let Some(oldest) = self.maps.pop_front()
        {
            self.bytes -= oldest.bytes;
        }
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
    fn the_oldest_maps_go_before_the_bound_is_passed() {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(folder.path(), IndexOptions::default()).unwrap();
        let spec = Spec::pictures(2, ModelTag { fingerprint: "x".into(), precision: None });
        let (collection, _) = Store::create(&store, &"a".parse().unwrap(), spec).unwrap();
        let version = collection.version().unwrap();
        let mut cache = MapCache::new(64_000);
        let [a, b]: [CollectionName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        for points in 0..100 {
            cache.insert(&a, points, version, &map(10));
            assert!(cache.bytes <= 64_000);
        }
        assert!(cache.find(&a, 99, version).is_some() && cache.find(&a, 97, version).is_some() && cache.find(&a, 0, version).is_none());
        // A newer one of the same takes the place of the older.
        cache.insert(&a, 99, version, &map(10));
        assert!(cache.find(&a, 97, version).is_some() && cache.find(&b, 99, version).is_none());
        // One that is larger than all room costs the others nothing.
        cache.insert(&b, 5, version, &map(100));
        assert!(cache.find(&b, 5, version).is_none() && cache.find(&a, 97, version).is_some());
    }
}
