//! Compares the items of a collection once for all requests that ask for it, and keeps what was found.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use quick_cache::sync::Cache;
use tokio::sync::Semaphore;

use super::{
    super::super::{
        App,
        problem::{Code, Problem},
        single_flight::SingleFlight,
        versioned_cache::VersionedCache,
    },
    RETRY_AFTER, Report,
    cursor::ReportId,
};
use crate::{
    index::{Collection, CollectionName, Error, Filter, Version},
    serving::Pool,
};
use dino_vision::duplicates::{Candidate, Candidates, Options};

/// Most items that are compared with each other: the time grows with the square of their number.
pub(super) const MOST_ITEMS: usize = 500_000;
/// Most memory of their vectors, in bytes.
const MOST_VECTORS: usize = 1 << 30;
/// Memory of what is kept, in bytes: the largest report has that many items, with ids of 512 bytes.
const MOST_KEPT: u64 = 640 * MOST_ITEMS as u64;
/// Most comparisons that run or wait: options are free to choose, and each other choice is a comparison of its own.
const MOST_WAITING: usize = 8;
/// Collections with their options that may be compared at once, as it is expected.
const USUAL_COUNT: usize = 100;
/// How long after a page the next one is of the same report, whatever is written meanwhile.
const PAGED_FOR: Duration = Duration::from_mins(10);

/// What is compared: a collection that is made again under a name has another number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) collection: CollectionName,
    pub(super) number: u64,
    /// The bits of the least cosine; none where pixels alone are compared.
    pub(super) min_similarity: Option<u32>,
    /// Hash of the filter's JSON.
    pub(super) filter: Option<String>,
}

/// A comparison that may be running.
pub(super) struct Flight {
    run: SingleFlight<Result<Arc<Report>, Problem>>,
    /// How much of it is done, in percent.
    percent: AtomicU32,
}

impl Flight {
    /// How much of the comparison that runs is done, in percent.
    pub(super) fn percent(&self) -> u32 {
        self.percent.load(Ordering::Relaxed)
    }
}

/// Compares on a thread of its own: one collection at a time.
pub(crate) struct DuplicateFinder {
    thread: Pool,
    /// Of comparisons that run or wait: each goes on where its caller leaves.
    turns: Arc<Semaphore>,
    flights: Cache<Key, Arc<Flight>>,
    /// By what is compared and in which version: readers of pages go on with the report that they began with.
    reports: VersionedCache<(Key, ReportId), Report>,
}

impl Default for DuplicateFinder {
    fn default() -> Self {
        let (flights, reports) = (Cache::new(USUAL_COUNT), VersionedCache::new(MOST_KEPT));
        Self { thread: Pool::new(1), turns: Arc::new(Semaphore::new(MOST_WAITING)), flights, reports }
    }
}

impl DuplicateFinder {
    /// What was found in just this version.
    pub(super) fn find(&self, key: &Key, now: Version) -> Option<Arc<Report>> {
        self.reports.find(&(key.clone(), ReportId::of(key, now)), now)
    }

    /// What the page before was of, if that was not long ago.
    pub(super) fn find_for_next_page(&self, key: &Key, report: &ReportId) -> Option<Arc<Report>> {
        self.reports.find_recent(&(key.clone(), report.clone()), PAGED_FOR)
    }

    /// Keeps a report for the page after one that is given now.
    pub(super) fn keep_for_next_page(&self, key: &Key, report: &ReportId) {
        self.reports.renew(&(key.clone(), report.clone()));
    }

    /// The comparison of these items.
    pub(super) fn flight(&self, key: &Key) -> Arc<Flight> {
        let new = || Ok::<_, Infallible>(Arc::new(Flight { run: SingleFlight::new(Duration::ZERO), percent: AtomicU32::new(0) }));
        let Ok(flight) = self.flights.get_or_insert_with(key, new);
        flight
    }
}

/// Waits for the comparison, which goes on where the caller leaves.
pub(super) async fn compare(
    app: &App,
    flight: &Arc<Flight>,
    key: &Key,
    collection: &Arc<dyn Collection>,
    filter: Option<Filter>,
) -> Option<Result<Arc<Report>, Problem>> {
    flight
        .run
        .get(|| {
            let (app, flight, key, collection) = (app.clone(), Arc::clone(flight), key.clone(), Arc::clone(collection));
            async move {
                let Ok(_turn) = Arc::clone(&app.duplicates.turns).try_acquire_owned() else {
                    let reason = format!("{MOST_WAITING} other comparisons run or wait: try again later");
                    return Err(Problem { retry_after: Some(RETRY_AFTER), ..Problem::new(Code::QueueFull, reason) });
                };
                let inside = app.clone();
                let outcome = app.duplicates.thread.run(move || make(&inside.duplicates, &flight, key, &*collection, filter.as_ref()));
                outcome.await.unwrap_or_else(|panicked| Err(panicked.into()))
            }
        })
        .await
}

fn make(
    finder: &DuplicateFinder,
    flight: &Flight,
    key: Key,
    collection: &dyn Collection,
    filter: Option<&Filter>,
) -> Result<Arc<Report>, Problem> {
    flight.percent.store(0, Ordering::Relaxed);
    // The request that had the thread before may have made it.
    let now = collection.version()?;
    if let Some(report) = finder.find(&key, now) {
        return Ok(report);
    }
    let dim = collection.spec().dim;
    let most = MOST_ITEMS.min(MOST_VECTORS / dim.max(1));
    let too_many =
        || Error::InvalidParameter(format!("more than {most} items would be compared with each other: give a `filter` that fewer pass"));
    if filter.is_none() && now.count > most {
        return Err(too_many().into());
    }
    let mut candidates = Candidates::new(Some(dim));
    let version = collection.scan(filter, &mut |item, vector| {
        if candidates.len() == most {
            return Err(too_many());
        }
        let (source, fingerprint) = (item.source.as_deref(), item.fingerprint.as_deref());
        candidates.push(Candidate { id: &item.id, source, fingerprint, vector });
        Ok(())
    })?;
    let options = Options { min_similarity: key.min_similarity.map(f32::from_bits) };
    let found = candidates.compare(options, &|share| flight.percent.store((share * 100.0) as u32, Ordering::Relaxed))?;
    let id = ReportId::of(&key, version);
    let report = Arc::new(Report::new(id.clone(), &candidates, &found.groups));
    // No page is asked of them any more.
    finder.reports.drop_older(PAGED_FOR, |(other, _)| *other == key);
    finder.reports.insert((key, id), version, Arc::clone(&report));
    Ok(report)
}
