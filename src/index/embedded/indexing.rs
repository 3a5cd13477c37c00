//! When a collection gets a graph, and how it is built beside running searches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::{Mutex, MutexGuard};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::collection::EmbeddedCollection;
use super::graph::Graph;
use super::layout::Layout;
use super::{Error, VectorFormat};

/// Largest share of a graph's rows that may be dead, and of rows beside it, before a new one is due: one quarter.
/// Less would rebuild more often than items come in, more would scan too much.
const STALE_DIVISOR: usize = 4;
/// Attempts to publish a new graph without the lock, each of which fails where an item was written meanwhile.
const UNLOCKED_ATTEMPTS: usize = 8;

impl EmbeddedCollection {
    /// Whether searches would gain from a (new) graph.
    pub(super) fn build_is_due(&self) -> bool {
        if self.is_gone.load(Ordering::Acquire) {
            return false;
        }
        let layout = self.layout.load();
        let (with, without): (Vec<_>, Vec<_>) = layout.0.iter().partition(|segment| segment.graph.is_some());
        let indexed: usize = with.iter().map(|segment| segment.rows.len()).sum();
        let dead = indexed - with.iter().map(|segment| segment.live).sum::<usize>();
        let scanned: usize = without.iter().map(|segment| segment.live).sum();
        self.options.vectors == VectorFormat::F32
            && layout.len() > 0
            && layout.len() >= self.options.exact_below
            && (scanned >= self.options.exact_below.max(indexed / STALE_DIVISOR).max(1) || dead > indexed / STALE_DIVISOR)
    }

    /// Starts a thread that builds a graph, where one is due and the options allow it.
    pub(super) fn build_in_background(&self) {
        if !self.options.build_in_background || !self.build_is_due() || self.claim.is_taken() {
            return;
        }
        let collection = self.me();
        let spawned = std::thread::Builder::new().name("index".to_owned()).spawn(move || {
            let is_due = || collection.build_is_due();
            // Asked again once this thread has the lock: the wait for it may be long.
            let built = collection.claim.work_while(is_due, || {
                collection.build(&collection.builder.begin(&collection.building)?, is_due);
                Ok::<_, Error>(())
            });
            if let Err(error) = built {
                tracing::error!(collection = %collection.name, "the index was not built: {error}");
            }
        });
        if let Err(error) = spawned {
            tracing::error!(collection = %self.name, "the index is not built, a thread cannot be started: {error}");
        }
    }

    /// Builds a graph over everything stored now, saves it, and uses it from then on. Searches and writes go on
    /// meanwhile; other collections of the store wait with theirs.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] where the collection is empty or holds its vectors as bytes.
    pub fn build_index(&self) -> Result<(), Error> {
        if self.options.vectors != VectorFormat::F32 || self.is_empty() {
            return Err(Error::InvalidParameter(format!("collection {} has nothing to index", self.name)));
        }
        self.build(&self.builder.begin(&self.building)?, || true);
        Ok(())
    }

    /// Builds, unless the collection is empty or `is_wanted` says no by now.
    fn build(&self, building: &BuildPermit<'_>, is_wanted: impl Fn() -> bool) {
        let layout = self.layout.load_full();
        if layout.len() == 0 || !is_wanted() {
            return;
        }
        let start = Instant::now();
        let (dim, progress) = (self.record.spec.dim, self.progress());
        let Some(graph) = building.threads.install(|| Graph::build(layout, dim, &progress, &self.is_gone)) else {
            // Deleted or replaced meanwhile.
            return;
        };
        let graph = Arc::new(graph);
        progress.finish_and_clear();
        // A graph that cannot be saved is still good for this process.
        if let Err(reason) = self.graph_files.save(self.record.number, &graph) {
            tracing::warn!(collection = %self.name, "the index could not be saved, the next start builds it again: {reason}");
        }
        if self.is_gone.load(Ordering::Acquire) {
            self.forget_index();
            return;
        }
        tracing::info!(
            collection = %self.name, items = graph.rows().len(), unreachable = graph.unreachable().len(),
            seconds = start.elapsed().as_secs_f32(), "index built",
        );
        self.publish_index(&graph);
    }

    /// Shows readers the graph. Every row is looked at for that, which must not hold up the writers of the store: it is
    /// done before the lock is taken, and again where a write changed the layout meanwhile.
    fn publish_index(&self, graph: &Arc<Graph>) {
        let indexed = |layout: &Layout| {
            let next = layout.with_indexed(Arc::clone(graph));
            Arc::new(next.expect("only one build runs, from a layout that is older than this one"))
        };
        for _ in 0..UNLOCKED_ATTEMPTS {
            let seen = self.layout.load_full();
            let next = indexed(&seen);
            let _writing = self.writing.lock();
            if Arc::ptr_eq(&seen, &self.layout.load()) {
                self.layout.store(next);
                return;
            }
        }
        // Writes come faster than that.
        let _writing = self.writing.lock();
        let next = indexed(&self.layout.load());
        self.layout.store(next);
    }

    /// Deletes the saved graph of a deleted collection, and ends the thread that builds one.
    pub(super) fn retire(&self) {
        self.is_gone.store(true, Ordering::Release);
        self.forget_index();
    }

    fn forget_index(&self) {
        // Its number is never used again: what stays behind takes room, no more.
        if let Err(error) = self.graph_files.remove(self.record.number) {
            tracing::warn!("the saved index of {} could not be deleted: {error}", self.name);
        }
    }

    fn progress(&self) -> ProgressBar {
        if !self.options.progress {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {percent}% {eta}").expect("a fixed template");
        ProgressBar::new(0).with_style(style).with_prefix(format!("indexing {}", self.name))
    }
}

/// Builds the graphs of a store, one at a time: each takes all cores, and beside the vectors a copy of them.
#[derive(Default)]
pub(super) struct Builder {
    lock: Mutex<()>,
}

/// The right to build, until it is dropped.
struct BuildPermit<'a> {
    /// Threads of its own: on those of the searches a build would delay them.
    threads: ThreadPool,
    flag: &'a AtomicBool,
    _guard: MutexGuard<'a, ()>,
}

impl Builder {
    /// Waits for the right to build, and sets `flag` until the permit is dropped.
    fn begin<'a>(&'a self, flag: &'a AtomicBool) -> Result<BuildPermit<'a>, Error> {
        let guard = self.lock.lock();
        let threads = ThreadPoolBuilder::new().thread_name(|number| format!("index-{number}")).build();
        let threads = threads.map_err(|error| Error::Io(std::io::Error::other(error)))?;
        flag.store(true, Ordering::Relaxed);
        Ok(BuildPermit { threads, flag, _guard: guard })
    }
}

impl Drop for BuildPermit<'_> {
    fn drop(&mut self) {
        self.flag.store(false, Ordering::Relaxed);
    }
}

/// Lets one thread at a time build the graph of a collection.
#[derive(Default)]
pub(super) struct BuildClaim(AtomicBool);

impl BuildClaim {
    /// The thread that drops the claim after this sees what the caller wrote before.
    fn is_taken(&self) -> bool {
        self.0.fetch_or(false, Ordering::AcqRel)
    }

    /// Does `work` as long as it is due, unless another thread holds the claim. Work that becomes due until this returns is done by
    /// this thread or by the next caller; after work that fails or panics another thread can try again.
    fn work_while<E>(&self, is_due: impl Fn() -> bool, mut work: impl FnMut() -> Result<(), E>) -> Result<(), E> {
        // Asked again after the claim was dropped: a writer that came before saw it taken, and did not start a thread.
        while is_due() && !self.0.swap(true, Ordering::AcqRel) {
            let _claimed = ClaimedBuild(self);
            while is_due() {
                work()?;
            }
        }
        Ok(())
    }
}

/// Drops a claim, also after a panic.
struct ClaimedBuild<'a>(&'a BuildClaim);

impl Drop for ClaimedBuild<'_> {
    fn drop(&mut self) {
        self.0.0.swap(false, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::super::{Collection, EmbeddedStore, Filter, IndexOptions, ModelTag, Search, Spec};
    use super::*;
    use crate::index::{Item, NewItem};

    /// While a build waits for the lock, a filter deletes all that it would have been built over.
    #[test]
    fn a_build_over_what_was_deleted_meanwhile_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let options = IndexOptions { exact_below: 1, build_in_background: false, ..IndexOptions::default() };
        let store = EmbeddedStore::open(folder.path(), options).unwrap();
        let spec = Spec::pictures(2, ModelTag { fingerprint: "m".into(), precision: None });
        let (collection, _) = store.create(&"c".parse().unwrap(), spec).unwrap();
        let item = |id: &str, vector: [f32; 2]| NewItem {
            item: Item { id: id.into(), ..Item::default() },
            vector: vector.into(),
            thumbnail: None,
            patches: None,
        };
        collection.upsert(vec![item("a", [1.0, 0.0])]).unwrap();
        let building = collection.builder.begin(&collection.building).unwrap();
        collection.delete("a").unwrap();
        collection.build(&building, || true);
        assert!(collection.layout.load().0.is_empty());

        // What comes next keeps its vectors, also where segments are merged.
        collection.upsert(vec![item("b", [0.0, 1.0]), item("c", [1.0, 0.0])]).unwrap();
        collection.build(&building, || false);
        assert!(collection.layout.load().0.iter().all(|segment| segment.graph.is_none()));
        collection.build(&building, || true);
        collection.upsert(vec![item("d", [0.6, 0.8])]).unwrap();
        collection.delete_where(&Filter::from_json(&serde_json::json!({"field": "id", "eq": "b"})).unwrap()).unwrap();
        for (query, id) in [([1.0, 0.0], "c"), ([0.6, 0.8], "d")] {
            let found = collection.search(&query, &Search { k: 1, ..Search::default() }).unwrap();
            assert_eq!((found[0].item.id.as_str(), found[0].similarity > 0.999), (id, true));
        }
    }

    /// 80 rows of which a build knows the first 20, and 60 that come while it runs.
    #[test]
    fn what_becomes_due_meanwhile_is_done_without_being_asked_again() {
        let (claim, stored, indexed) = (BuildClaim::default(), Cell::new(20), Cell::new(0));
        let build = || {
            let seen = stored.get();
            // A write while this builds: it asks as well, and finds the claim taken.
            stored.set(80);
            assert!(claim.is_taken());
            claim.work_while(|| true, || -> Result<(), ()> { panic!("two at once") })?;
            indexed.set(seen);
            Ok::<_, ()>(())
        };
        claim.work_while(|| stored.get() > indexed.get(), build).unwrap();
        assert_eq!(indexed.get(), 80);
        assert!(!claim.is_taken());
    }

    #[test]
    fn after_work_that_fails_or_panics_another_thread_can_try_again() {
        let claim = BuildClaim::default();
        let panicked = catch_unwind(AssertUnwindSafe(|| claim.work_while(|| true, || -> Result<(), ()> { panic!("a build") })));
        assert!(panicked.is_err());
        assert_eq!(claim.work_while(|| true, || Err("full")), Err("full"));
        let done = Cell::new(false);
        let work = || {
            done.set(true);
            Ok::<_, ()>(())
        };
        claim.work_while(|| !done.get(), work).unwrap();
        assert!(done.get());
    }
}
