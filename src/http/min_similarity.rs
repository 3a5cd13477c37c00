//! The `min_similarity` of `/classify` where a request names none: measured per collection, and kept while it holds.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use quick_cache::sync::Cache;
use tokio::time::timeout;

use super::{App, collections::search_pool, problem::Problem, request_context, single_flight::SingleFlight};
use crate::{
    index::{Collection, CollectionName, Error, MinSimilarity},
    serving::{Panicked, Pool},
};

/// Longest wait of a request for a collection's first measurement, which goes on meanwhile; at most half of the time that it has left.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// The same where there is an earlier value.
const SHORT_WAIT: Duration = Duration::from_millis(200);
/// How long a value is used for other content of about the same size: items may have been replaced.
const INEXACT_FOR: Duration = Duration::from_mins(5);
/// The value where there is none after that wait: it asks all.
const ASKS_ALL: f32 = 0.0;
/// A database reads a whole table to answer whether a collection has changed. It is asked again after so many times as long as that
/// took, so that it spends a twentieth of the time on it at most; a folder answers in microseconds, and is asked for each request.
const REST: u32 = 20;
/// Longest time that a collection is not asked after its database was too slow to answer.
const LONGEST_REST: Duration = Duration::from_mins(2);
/// Most collections whose values are kept.
const MOST_KEPT: usize = 1000;

/// Measures the values of collections on a thread of its own, which no picture and no search waits for, and caches them.
pub(super) struct MinSimilarities {
    thread: Pool,
    /// By name and number: a collection that is made again under a name has another number. What has no place is measured again.
    kept: Cache<(CollectionName, u64), Arc<Entry>>,
}

impl Default for MinSimilarities {
    fn default() -> Self {
        Self { thread: Pool::new(1), kept: Cache::new(MOST_KEPT) }
    }
}

/// The value of one collection.
struct Entry {
    cached: Mutex<Option<CachedValue>>,
    /// Until then the collection is not asked, since the database was too slow.
    rests_until: Mutex<Option<Instant>>,
    /// Looks whether the value still holds, and measures it where it does not: once for all requests that come meanwhile.
    renewal: SingleFlight<Result<f32, Problem>>,
}

#[derive(Clone, Copy)]
struct CachedValue {
    measured: MinSimilarity,
    measured_at: Instant,
    /// Until then the collection is not asked whether it has changed.
    good_until: Instant,
}

impl MinSimilarities {
    fn entry(&self, collection: &dyn Collection) -> Arc<Entry> {
        let unmeasured = || {
            let renewal = SingleFlight::new(Duration::ZERO);
            Ok::<_, Infallible>(Arc::new(Entry { cached: Mutex::default(), rests_until: Mutex::default(), renewal }))
        };
        let Ok(entry) = self.kept.get_or_insert_with(&(collection.name().clone(), collection.number()), unmeasured);
        entry
    }
}

/// The value of a collection: measured by leaving items out, or 0 while the first measurement takes longer than a request should wait.
pub(super) async fn of(app: &App, collection: &Arc<dyn Collection>) -> Result<f32, Problem> {
    let entry = app.min_similarities.entry(&**collection);
    let known = *entry.cached.lock();
    if let Some(known) = known.filter(|known| Instant::now() < known.good_until) {
        return Ok(known.measured.value);
    }
    let rests = (*entry.rests_until.lock()).is_some_and(|until| Instant::now() < until);
    if rests {
        return Ok(known.map_or(ASKS_ALL, |known| known.measured.value));
    }
    let renewing = entry.renewal.get(|| renew(app.clone(), Arc::clone(&entry), Arc::clone(collection)));
    let left =
        request_context::deadline().map_or(app.limits.time, |deadline| deadline.saturating_duration_since(tokio::time::Instant::now()));
    let longest = if known.is_some() { SHORT_WAIT } else { LONGEST_WAIT.min(left / 2) };
    match timeout(longest, renewing).await {
        Ok(outcome) => outcome.ok_or(Panicked)?,
        Err(_) => Ok(known.map_or(ASKS_ALL, |known| known.measured.value)),
    }
}

/// Measures the value where it does not hold any more.
async fn renew(app: App, entry: Arc<Entry>, collection: Arc<dyn Collection>) -> Result<f32, Problem> {
    let asked = Arc::clone(&collection);
    let (version, took) = search_pool(&app)
        .run(move || {
            let began = Instant::now();
            (asked.version(), began.elapsed())
        })
        .await?;
    if matches!(version, Err(Error::Slow { .. })) {
        // A table that takes longer to read than a statement may, or waits for a lock, is not asked again and again.
        *entry.rests_until.lock() = Some(Instant::now() + (took * REST).min(LONGEST_REST));
    }
    let version = version?;
    let known = *entry.cached.lock();
    let holds = |known: &CachedValue| {
        known.measured.is_exact(version) || (known.measured.holds_for(version) && known.measured_at.elapsed() < INEXACT_FOR)
    };
    let (measured, measured_at) = match known.filter(holds) {
        Some(CachedValue { measured, measured_at, .. }) => (measured, measured_at),
        None => (app.min_similarities.thread.run(move || MinSimilarity::measure(&*collection)).await??, Instant::now()),
    };
    *entry.cached.lock() = Some(CachedValue { measured, measured_at, good_until: Instant::now() + took * REST });
    Ok(measured.value)
}
