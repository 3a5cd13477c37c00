//! Work for a core, away from the threads that serve connections.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use dino_vision::cancel;

/// Runs work of one kind (decoding, searching, drawing) on threads of its own, so many pieces at a time: each may hold a
/// decoded picture or an answer, so their number bounds memory as well as load, and no kind keeps another waiting.
#[derive(Clone)]
pub struct Pool {
    permits: Arc<Semaphore>,
}

/// The work panicked. What it was about is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a part of the server failed on this request; its log says more")]
pub struct Panicked;

impl Pool {
    /// A pool in which `threads` pieces of work run at a time.
    pub fn new(threads: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(threads.max(1))) }
    }

    /// Waits for a permit, then for `work`.
    ///
    /// When this future is dropped, work that has not begun is dropped, and work that has begun is cancelled: it ends at
    /// its next check of [`cancel`]. Work that has to happen as a whole, such as writes, does not check, and runs to its end.
    ///
    /// # Errors
    /// When `work` panicked.
    pub async fn run<T, F>(&self, work: F) -> Result<T, Panicked>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let permit = self.permits.clone().acquire_owned().await.expect("this semaphore is never closed");
        let span = tracing::Span::current();
        let token = CancellationToken::new();
        let _told = token.clone().drop_guard();
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            // None where the future was dropped before this thread began.
            (!token.is_cancelled()).then(|| span.in_scope(|| cancel::scope(token, work)))
        })
        .await
        .ok()
        .flatten()
        .ok_or(Panicked)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc,
        time::{Duration, Instant},
    };

    use super::*;

    #[tokio::test]
    async fn dropping_the_future_stops_the_work() {
        let pool = Pool::new(1);
        let (stopped, told) = mpsc::channel();
        let endless = pool.run(move || {
            while !cancel::is_cancelled() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let _ = stopped.send(());
        });
        assert!(tokio::time::timeout(Duration::from_millis(50), endless).await.is_err());
        told.recv_timeout(Duration::from_secs(20)).unwrap();
        // The permit is free again, and the next work is not cancelled.
        let began = Instant::now();
        assert_eq!(pool.run(cancel::is_cancelled).await, Ok(false));
        assert!(began.elapsed() < Duration::from_secs(20));
    }
}
