//! Work that several callers ask for, done once for all of them.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::watch;

/// An outcome, once it is known, and until when it is good.
type Outcome<T> = watch::Receiver<Option<(Instant, T)>>;

/// Runs the same work once for several callers: a caller that asks while it runs, or shortly after, gets the same outcome. Whatever
/// the number of callers, one thread runs it.
pub(super) struct SingleFlight<T> {
    /// How long an outcome is good.
    freshness: Arc<dyn Fn(&T) -> Duration + Send + Sync>,
    last: Mutex<Option<Outcome<T>>>,
}

impl<T: Clone + Send + Sync + 'static> SingleFlight<T> {
    /// An outcome is good for `freshness`.
    pub(super) fn new(freshness: Duration) -> Self {
        Self::by_outcome(move |_| freshness)
    }

    /// An outcome is good for as long as `freshness` says of it.
    pub(super) fn by_outcome(freshness: impl Fn(&T) -> Duration + Send + Sync + 'static) -> Self {
        Self { freshness: Arc::new(freshness), last: Mutex::new(None) }
    }

    /// The outcome of `work`, which continues when the caller is dropped; `None` where it panicked.
    pub(super) async fn get<F>(&self, work: impl FnOnce() -> F) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut outcome = self.join(work);
        let known = outcome.wait_for(Option::is_some).await.ok()?;
        known.as_ref().map(|(_, value)| value.clone())
    }

    fn join<F>(&self, work: impl FnOnce() -> F) -> Outcome<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut last = self.last.lock();
        if let Some(outcome) = &*last {
            let is_good = match &*outcome.borrow() {
                Some((good_until, _)) => Instant::now() < *good_until,
                // Without a sender, the work panicked.
                None => outcome.has_changed().is_ok(),
            };
            if is_good {
                return outcome.clone();
            }
        }
        let (tell, outcome) = watch::channel(None);
        let (work, freshness) = (work(), Arc::clone(&self.freshness));
        tokio::spawn(async move {
            let value = work.await;
            let good_until = Instant::now() + freshness(&value);
            tell.send_replace(Some((good_until, value)));
        });
        *last = Some(outcome.clone());
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use futures::future::join_all;

    use super::*;

    #[tokio::test]
    async fn many_wait_for_one() {
        let (flight, runs) = (SingleFlight::new(Duration::from_mins(1)), Arc::new(AtomicUsize::new(0)));
        let work = || {
            let runs = runs.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                runs.fetch_add(1, Ordering::SeqCst)
            }
        };
        let first = join_all((0..100).map(|_| flight.get(work))).await;
        assert!(first.iter().all(|value| *value == Some(0)));
        assert_eq!(flight.get(work).await, Some(0));
        let stale = SingleFlight::new(Duration::ZERO);
        assert_eq!((stale.get(work).await, stale.get(work).await), (Some(1), Some(2)));
        let even = SingleFlight::by_outcome(|run: &usize| if run.is_multiple_of(2) { Duration::from_mins(1) } else { Duration::ZERO });
        assert_eq!((even.get(work).await, even.get(work).await, even.get(work).await), (Some(3), Some(4), Some(4)));
    }

    #[tokio::test]
    async fn a_caller_that_leaves_does_not_end_it_and_a_panic_is_not_cached() {
        let flight = SingleFlight::new(Duration::from_mins(1));
        let slow = || async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            1
        };
        assert!(tokio::time::timeout(Duration::from_millis(1), flight.get(slow)).await.is_err());
        assert_eq!(flight.get(|| async { 2 }).await, Some(1));
        let flight = SingleFlight::new(Duration::from_mins(1));
        assert_eq!(flight.get(|| async { panic!("asked to") }).await, None::<u32>);
        assert_eq!(flight.get(|| async { 3 }).await, Some(3));
    }
}
