//! Embeddings that were computed before, by the content of their pictures.
//!
//! An entry's [`Key`] is a hash of the picture's bytes and of all else that its vectors depend on. Entries are held in memory, within a
//! bound, and where a folder is named on disk too (`folder`). Callers that ask for one key at once share one computation: the first
//! computes, and the others wait. Where the first fails or leaves, the next one computes for itself.
//!
//! ```
//! use dino_server::embedding_cache::{Embedded, EmbeddingCache, Key, Options, Source};
//! use dino_vision::transform::PatchGrid;
//!
//! let options = Options { embedding_cache: Some(1 << 20), embedding_cache_dir: None, embedding_cache_dir_size: 0 };
//! let cache = EmbeddingCache::open(&options)?.unwrap();
//! let compute = async || {
//!     let grid = PatchGrid { rows: 14, columns: 14 };
//!     Ok::<_, std::io::Error>(Embedded { rows: ndarray::array![[[0.6, 0.8]]], grid })
//! };
//! let sources = tokio::runtime::Runtime::new()?.block_on(async {
//!     let key = || Key::of("weights, transform and pooling", b"the bytes of a picture");
//!     Ok::<_, std::io::Error>([cache.get(key(), compute()).await?.1, cache.get(key(), compute()).await?.1])
//! })?;
//! assert_eq!(sources, [Source::Computed, Source::Memory]);
//! # Ok::<(), std::io::Error>(())
//! ```

mod folder;
mod options;

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use dino_vision::transform::PatchGrid;
use ndarray::Array3;
use quick_cache::{
    DefaultHashBuilder, OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle},
};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use folder::Folder;
pub use options::Options;

/// Bytes of an entry beside its numbers: its key, the counters around it, and its places in the cache's tables.
const ENTRY: u64 = 256;
/// Bytes of an entry of a small vector, by which the tables of the cache are sized at first.
const USUAL: u64 = 2048;
/// Entries that the tables of an empty cache have room for, at most.
const MOST_RESERVED: u64 = 16_384;
/// Files that are written at once, or wait to be; further entries are kept in memory alone.
const MOST_WRITES: usize = 64;

/// What one picture became: not yet cut, nor normalised.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    /// `[1, D]`, or a row for each patch, with a first axis of 1.
    pub rows: Array3<f32>,
    /// The patches of its input.
    pub grid: PatchGrid,
}

/// Names an entry.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct Key([u8; 32]);

/// Where an embedding came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From memory.
    Memory,
    /// From the folder.
    Folder,
    /// From another request that was computing it.
    Shared,
    /// It was computed.
    Computed,
}

/// How often an embedding came from where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// See [`Source::Memory`].
    pub memory: u64,
    /// See [`Source::Folder`].
    pub folder: u64,
    /// See [`Source::Shared`].
    pub shared: u64,
    /// See [`Source::Computed`]; those that failed among them.
    pub computed: u64,
}

/// The entries of a server.
pub struct EmbeddingCache {
    memory: Cache<Key, Arc<Embedded>, Bytes>,
    folder: Option<Arc<Folder>>,
    /// Places for files that are being written: a slow disk costs entries, not memory.
    writes: Arc<Semaphore>,
    counts: [AtomicU64; 4],
}

impl Key {
    /// Of the bytes of a picture, and of all else that its embedding depends on, in words.
    pub fn of(recipe: &str, picture: &[u8]) -> Self {
        // With its length, so that no part of one is taken for a part of the other.
        let length = (recipe.len() as u64).to_le_bytes();
        Self(Sha256::new().chain_update(length).chain_update(recipe).chain_update(picture).finalize().into())
    }
}

impl Embedded {
    fn bytes(&self) -> u64 {
        (self.rows.len() * size_of::<f32>()) as u64
    }
}

/// Least share of the memory that a part of the cache with a lock of its own has: all patches of a large picture fit.
const LEAST_SHARD: u64 = 128 << 20;
/// Most such parts.
const MOST_SHARDS: u64 = 64;

/// Counts an entry by its memory.
#[derive(Clone)]
struct Bytes;

impl Weighter<Key, Arc<Embedded>> for Bytes {
    fn weight(&self, _: &Key, value: &Arc<Embedded>) -> u64 {
        ENTRY + value.bytes()
    }
}

impl EmbeddingCache {
    /// An empty cache of so many bytes, or the one that the folder holds; `None` where the options ask for none.
    ///
    /// # Errors
    /// When the folder cannot be made, read or written.
    pub fn open(options: &Options) -> io::Result<Option<Self>> {
        let Some(bytes) = options.embedding_cache else { return Ok(None) };
        let folder = options.embedding_cache_dir.as_ref().map(|path| Folder::open(path, options.embedding_cache_dir_size)).transpose()?;
        Ok(Some(Self::new(bytes, folder.map(Arc::new))))
    }

    fn new(bytes: u64, folder: Option<Arc<Folder>>) -> Self {
        let entries = (bytes / USUAL).clamp(1, MOST_RESERVED) as usize;
        let writes = Arc::new(Semaphore::new(MOST_WRITES));
        // The bound is divided among the shards, and an entry has to fit into one.
        let shards = (bytes / LEAST_SHARD).clamp(1, MOST_SHARDS) as usize;
        let options = OptionsBuilder::new().estimated_items_capacity(entries).weight_capacity(bytes).shards(shards).build();
        let options = options.expect("capacities are given");
        let memory = Cache::with_options(options, Bytes, DefaultHashBuilder::default(), DefaultLifecycle::default());
        Self { memory, folder, writes, counts: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// The embedding of this key, and where it came from; `compute` makes it where it is not known. A failure is that of this caller alone.
    ///
    /// # Errors
    /// Those of `compute`.
    pub async fn get<E>(&self, key: Key, compute: impl Future<Output = Result<Embedded, E>>) -> Result<(Arc<Embedded>, Source), E> {
        let found = self.find(key, compute).await;
        let source = found.as_ref().map_or(Source::Computed, |(_, source)| *source);
        self.counts[source as usize].fetch_add(1, Ordering::Relaxed);
        found
    }

    async fn find<E>(&self, key: Key, compute: impl Future<Output = Result<Embedded, E>>) -> Result<(Arc<Embedded>, Source), E> {
        if let Some(known) = self.memory.get(&key) {
            return Ok((known, Source::Memory));
        }
        // The caller that gets the guard computes. Where the guard is dropped, after an error or with this future, the next caller gets it.
        let guard = match self.memory.get_value_or_guard_async(&key).await {
            Ok(shared) => return Ok((shared, Source::Shared)),
            Err(guard) => guard,
        };
        let (embedded, source) = match self.stored(key).await {
            Some(stored) => (Arc::new(stored), Source::Folder),
            None => (Arc::new(compute.await?), Source::Computed),
        };
        // Refused only where the entry was removed meanwhile.
        let _ = guard.insert(Arc::clone(&embedded));
        if source == Source::Computed
            && let Some(folder) = self.folder.clone()
        {
            self.keep(folder, key, Arc::clone(&embedded));
        }
        Ok((embedded, source))
    }

    /// Writes an entry to the folder. The answer does not wait for that.
    fn keep(&self, folder: Arc<Folder>, key: Key, embedded: Arc<Embedded>) {
        if let Ok(place) = Arc::clone(&self.writes).try_acquire_owned() {
            tokio::task::spawn_blocking(move || {
                folder.write(&key.0, &embedded);
                drop(place);
            });
        }
    }

    /// The entry in the folder.
    async fn stored(&self, key: Key) -> Option<Embedded> {
        let folder = Arc::clone(self.folder.as_ref()?);
        tokio::task::spawn_blocking(move || folder.read(&key.0)).await.ok().flatten()
    }

    /// How often embeddings came from where, since the start.
    pub fn counts(&self) -> Counts {
        let [memory, folder, shared, computed] = self.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        Counts { memory, folder, shared, computed }
    }

    /// Bytes of the entries in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.weight()
    }

    /// Bytes of the files in the folder, as far as this server knows; `None` without one.
    pub fn folder_bytes(&self) -> Option<u64> {
        self.folder.as_ref().map(|folder| folder.bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn embedded(value: f32, dim: usize) -> Embedded {
        Embedded { rows: Array3::from_elem((1, 1, dim), value), grid: PatchGrid { rows: 2, columns: 3 } }
    }

    fn key(name: &str) -> Key {
        Key::of("recipe", name.as_bytes())
    }

    fn small() -> Arc<EmbeddingCache> {
        Arc::new(EmbeddingCache::new(1 << 20, None))
    }

    #[test]
    fn keys_tell_pictures_and_recipes_apart() {
        assert_eq!(Key::of("a", b"b"), Key::of("a", b"b"));
        assert_ne!(Key::of("a", b"b"), Key::of("ab", b""));
        assert_ne!(Key::of("a", b"b"), Key::of("", b"ab"));
        assert_ne!(Key::of("a", b"b"), Key::of("c", b"b"));
    }

    #[tokio::test]
    async fn what_was_computed_is_not_computed_again() {
        let cache = small();
        let first = cache.get(key("a"), async { Ok::<_, ()>(embedded(1.0, 8)) }).await.unwrap();
        let again = cache.get(key("a"), async { Err(()) }).await.unwrap();
        assert_eq!((first.1, again.1), (Source::Computed, Source::Memory));
        assert_eq!(*again.0, embedded(1.0, 8));
        assert_eq!(cache.counts(), Counts { memory: 1, computed: 1, ..Counts::default() });
        assert!(cache.memory_bytes() >= 8 * 4);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn callers_at_once_share_one_computation() {
        let (cache, runs, gate) = (small(), Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let callers: Vec<_> = (0..50)
            .map(|_| {
                let (cache, runs, gate) = (cache.clone(), runs.clone(), gate.clone());
                tokio::spawn(async move {
                    let compute = async {
                        gate.acquire().await.unwrap().forget();
                        runs.fetch_add(1, Ordering::SeqCst);
                        Ok::<_, ()>(embedded(2.0, 4))
                    };
                    cache.get(key("b"), compute).await
                })
            })
            .collect();
        gate.add_permits(50);
        for caller in callers {
            assert_eq!(*caller.await.unwrap().unwrap().0, embedded(2.0, 4));
        }
        assert_eq!((runs.load(Ordering::SeqCst), cache.counts().computed), (1, 1));
    }

    #[tokio::test]
    async fn a_first_caller_that_leaves_or_fails_does_not_take_the_others_along() {
        for leaves in [true, false] {
            let (cache, begun) = (small(), Arc::new(Semaphore::new(0)));
            let first = {
                let (cache, begun) = (cache.clone(), begun.clone());
                tokio::spawn(async move {
                    let compute = async {
                        begun.add_permits(1);
                        if leaves {
                            std::future::pending::<()>().await;
                        }
                        // Long enough for the others to wait for it.
                        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                        Err::<Embedded, _>("the first one's deadline passed")
                    };
                    cache.get(key("c"), compute).await
                })
            };
            begun.acquire().await.unwrap().forget();
            let others: Vec<_> = (0..3)
                .map(|_| {
                    let cache = cache.clone();
                    tokio::spawn(async move { cache.get(key("c"), async { Ok::<_, &str>(embedded(3.0, 4)) }).await })
                })
                .collect();
            tokio::task::yield_now().await;
            if leaves {
                first.abort();
            }
            assert!(first.await.map_or(leaves, |outcome| outcome.is_err()));
            for other in others {
                assert_eq!(*other.await.unwrap().unwrap().0, embedded(3.0, 4));
            }
        }
    }

    #[tokio::test]
    async fn memory_is_bounded_and_one_entry_that_is_too_large_is_answered_all_the_same() {
        let cache = EmbeddingCache::new(64 << 10, None);
        for index in 0..200 {
            cache.get(key(&index.to_string()), async { Ok::<_, ()>(embedded(1.0, 256)) }).await.unwrap();
        }
        assert!(cache.memory_bytes() <= 64 << 10, "{}", cache.memory_bytes());
        let large = cache.get(key("large"), async { Ok::<_, ()>(embedded(1.0, 100_000)) }).await.unwrap();
        assert_eq!(large.0.rows.len(), 100_000);
        assert!(cache.memory_bytes() <= 64 << 10);
    }

    #[tokio::test]
    async fn a_folder_outlives_the_server() {
        let place = tempfile::tempdir().unwrap();
        let options = Options {
            embedding_cache: Some(1 << 20),
            embedding_cache_dir: Some(place.path().join("cache")),
            embedding_cache_dir_size: 1 << 20,
        };
        let cache = EmbeddingCache::open(&options).unwrap().unwrap();
        cache.get(key("d"), async { Ok::<_, ()>(embedded(0.25, 4)) }).await.unwrap();
        while cache.folder_bytes() == Some(0) {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let next = EmbeddingCache::open(&options).unwrap().unwrap();
        let found = next.get(key("d"), async { Err(()) }).await.unwrap();
        assert_eq!((found.1, &*found.0), (Source::Folder, &embedded(0.25, 4)));
        assert_eq!(next.get(key("d"), async { Err(()) }).await.unwrap().1, Source::Memory);
    }
}
