//! What was computed of collections, as much as fits a bound of memory, each with the version of the collection that it was computed of.

use std::{
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use quick_cache::{
    DefaultHashBuilder, OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle},
};

use crate::index::Version;

/// Entries that are expected: a few of the usual size.
const USUAL_COUNT: usize = 100;

/// Something that knows how much memory it takes.
pub(super) trait MemoryUse {
    /// About, in bytes.
    fn bytes(&self) -> usize;
}

/// Values by their keys.
pub(super) struct VersionedCache<K, V>(Cache<K, Cached<V>, Bytes>);

struct Cached<V> {
    version: Version,
    inserted_at: Instant,
    value: Arc<V>,
}

// Derived, it would ask for V: Clone.
impl<V> Clone for Cached<V> {
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), ..*self }
    }
}

/// Counts a value by its memory.
#[derive(Clone)]
struct Bytes;

impl<K, V: MemoryUse> Weighter<K, Cached<V>> for Bytes {
    fn weight(&self, _: &K, cached: &Cached<V>) -> u64 {
        cached.value.bytes() as u64
    }
}

impl<K: Clone + Eq + Hash, V: MemoryUse> VersionedCache<K, V> {
    /// A cache of at most so many bytes.
    pub(super) fn new(most: u64) -> Self {
        // With one shard the largest value may take all of it.
        let options = OptionsBuilder::new().estimated_items_capacity(USUAL_COUNT).weight_capacity(most).shards(1).build();
        let options = options.expect("capacities are given");
        Self(Cache::with_options(options, Bytes, DefaultHashBuilder::default(), DefaultLifecycle::default()))
    }

    /// What was computed of just this version.
    pub(super) fn find(&self, key: &K, version: Version) -> Option<Arc<V>> {
        self.0.get(key).filter(|cached| cached.version == version).map(|cached| cached.value)
    }

    /// What was computed last, of whatever version, if that was not longer ago.
    pub(super) fn find_recent(&self, key: &K, longest: Duration) -> Option<Arc<V>> {
        self.0.get(key).filter(|cached| cached.inserted_at.elapsed() < longest).map(|cached| cached.value)
    }

    /// Counts a value as computed just now.
    pub(super) fn renew(&self, key: &K) {
        if let Some(cached) = self.0.get(key) {
            self.0.insert(key.clone(), Cached { inserted_at: Instant::now(), ..cached });
        }
    }

    /// Drops what was computed longer ago under keys that `is_meant` names.
    pub(super) fn drop_older(&self, longest: Duration, is_meant: impl Fn(&K) -> bool) {
        self.0.retain(|key, cached| cached.inserted_at.elapsed() < longest || !is_meant(key));
    }

    /// Keeps a value in place of an older one of the same key. One that is larger than the whole bound is not kept.
    pub(super) fn insert(&self, key: K, version: Version, value: Arc<V>) {
        self.0.insert(key, Cached { version, inserted_at: Instant::now(), value });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{EmbeddedStore, IndexOptions, ModelTag, Spec, Store};

    struct Text(usize);

    impl MemoryUse for Text {
        fn bytes(&self) -> usize {
            self.0
        }
    }

    #[test]
    fn values_go_before_the_bound_is_passed() {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(folder.path(), IndexOptions::default()).unwrap();
        let spec = Spec::pictures(2, ModelTag { fingerprint: "x".into(), precision: None });
        let (collection, _) = Store::create(&store, &"a".parse().unwrap(), spec).unwrap();
        let version = collection.version().unwrap();
        let cache = VersionedCache::new(64_000);
        let value = |bytes| Arc::new(Text(bytes));
        for points in 0..100 {
            cache.insert(("a", points), version, value(10_000));
            assert!(cache.0.weight() <= 64_000);
        }
        assert!(cache.find(&("a", 99), version).is_some() && cache.find(&("b", 99), version).is_none());
        assert!(cache.find_recent(&("a", 99), Duration::from_mins(10)).is_some());
        assert!(cache.find_recent(&("a", 99), Duration::ZERO).is_none());
        // A newer one of the same takes the place of the older.
        let count = cache.0.len();
        let newer = value(10_000);
        cache.insert(("a", 99), version, Arc::clone(&newer));
        assert!(Arc::ptr_eq(&cache.find(&("a", 99), version).unwrap(), &newer));
        let inserted_at = || cache.0.get(&("a", 99)).unwrap().inserted_at;
        let before = inserted_at();
        while Instant::now() == before {}
        cache.renew(&("a", 99));
        cache.renew(&("b", 99));
        assert!(inserted_at() > before && cache.find(&("b", 99), version).is_none());
        // One that is larger than all room costs the others nothing.
        cache.insert(("b", 5), version, value(100_000));
        assert!(cache.find(&("b", 5), version).is_none() && cache.0.len() == count && (3..=6).contains(&count), "{count}");
        cache.drop_older(Duration::from_mins(10), |_| true);
        cache.drop_older(Duration::ZERO, |(_, points)| *points != 99);
        assert!(cache.find(&("a", 99), version).is_some() && cache.0.len() == 1);
    }
}
