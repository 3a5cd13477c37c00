//! When a collection gets a graph, how it is built beside running searches, and how good it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use super::collection::EmbeddedCollection;
use super::graph::{self, Graph};
use super::info::Agreement;
use super::rows::{Layout, merge};
use super::search::search;
use super::{Error, Recall, Search};

/// Largest share of a graph's rows that may be dead, and of rows beside it, before a new one is due: one quarter.
/// Less would rebuild more often than items come in, more would scan too much.
const STALE_DIVISOR: usize = 4;

impl EmbeddedCollection {
    /// Whether searches would gain from a (new) graph.
    pub(super) fn build_is_due(&self) -> bool {
        let layout = self.layout.load();
        let (with, without): (Vec<_>, Vec<_>) = layout.0.iter().partition(|segment| segment.graph.is_some());
        let indexed: usize = with.iter().map(|segment| segment.rows.len()).sum();
        let dead = indexed - with.iter().map(|segment| segment.live).sum::<usize>();
        let scanned: usize = without.iter().map(|segment| segment.live).sum();
        graph::possible(self.record.spec.dim)
            && layout.len() > 0
            && layout.len() >= self.options.exact_below
            && (scanned >= self.options.exact_below.max(indexed / STALE_DIVISOR).max(1) || dead > indexed / STALE_DIVISOR)
    }

    /// Starts a thread that builds a graph, where one is due and the options allow it.
    pub(super) fn build_in_background(&self) {
        if !self.options.build_in_background || !self.build_is_due() || self.build_started.swap(true, Ordering::AcqRel) {
            return;
        }
        let collection = self.me();
        let spawned = std::thread::Builder::new().name("index".to_owned()).spawn(move || {
            if let Err(error) = collection.build_index() {
                tracing::error!(collection = %collection.name, "the index was not built: {error}");
            }
            collection.build_started.store(false, Ordering::Release);
        });
        if let Err(error) = spawned {
            self.build_started.store(false, Ordering::Release);
            tracing::error!(collection = %self.name, "the index is not built, a thread cannot be started: {error}");
        }
    }

    /// Builds a graph over everything stored now, saves it, and uses it from then on. Searches and writes go on
    /// meanwhile.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] where the collection is empty or of one dimension.
    pub fn build_index(&self) -> Result<(), Error> {
        if !graph::possible(self.record.spec.dim) || self.is_empty() {
            return Err(Error::InvalidParameter(format!("collection {} has nothing to index", self.name)));
        }
        let _building = self.building.lock();
        let start = Instant::now();
        let rows = Arc::new(merge(&self.layout.load().0));
        let progress = self.progress();
        let graph = Arc::new(Graph::build(&rows, &progress));
        progress.finish_and_clear();
        // A graph that cannot be saved is still good for this process.
        if let Err(reason) = self.dumps.save(self.record.number, &rows, &graph) {
            tracing::warn!(collection = %self.name, "the index could not be saved, the next start builds it again: {reason}");
        }
        tracing::info!(
            collection = %self.name, items = rows.len(), strays = graph.strays().len(),
            seconds = start.elapsed().as_secs_f32(), "index built",
        );
        let _writing = self.writing.lock();
        let layout = self.layout.load().with_indexed(&rows, graph);
        self.layout.store(Arc::new(layout.expect("only one build runs, from a layout that is older than this one")));
        Ok(())
    }

    fn progress(&self) -> ProgressBar {
        if !self.options.progress {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {percent}% {eta}").expect("a fixed template");
        ProgressBar::new(0).with_style(style).with_prefix(format!("indexing {}", self.name))
    }
}

/// Measures the index against exact search, with up to `queries` stored vectors, evenly spread.
pub(super) fn recall(layout: &Layout, k: usize, ef: usize, queries: usize) -> Recall {
    let rows: Vec<&[f32]> = layout.0.iter().flat_map(|segment| segment.live_rows().map(|row| segment.rows.vector(row))).collect();
    let queries = queries.clamp(1, rows.len().max(1));
    let sample = rows.iter().step_by((rows.len() / queries).max(1)).take(queries);
    let mut agreement = Agreement::default();
    for query in sample {
        let options = Search { k, ef, ..Search::default() };
        agreement.add(&search(layout, query, &Search { exact: true, ..options }), &search(layout, query, &options));
    }
    agreement.recall(k, ef)
}
