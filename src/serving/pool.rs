//! Work for a core, away from the threads that serve connections.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Runs decoding, resampling and drawing on threads of their own, so many at a time: each may hold a decoded
/// picture, so their number bounds memory as well as load.
#[derive(Clone)]
pub struct Pool {
    places: Arc<Semaphore>,
}

/// The work panicked. What it was about is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a part of the server failed on this request; its log says more")]
pub struct Panicked;

impl Pool {
    /// A pool in which `threads` pieces of work run at a time.
    pub fn new(threads: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(threads.max(1))) }
    }

    /// Waits for a place, then for `work`. Work that has begun runs to its end, even when nobody waits for it any more.
    ///
    /// # Errors
    /// When `work` panicked.
    pub async fn run<T, F>(&self, work: F) -> Result<T, Panicked>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let place = self.places.clone().acquire_owned().await.expect("this semaphore is never closed");
        let span = tracing::Span::current();
        tokio::task::spawn_blocking(move || {
            let _place = place;
            span.in_scope(work)
        })
        .await
        .map_err(|_| Panicked)
    }
}
