//! Work in the background that is repeated until it is done.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::super::Error;

/// Between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Number of attempts, for a day; the next start goes on.
const ATTEMPTS: usize = 17_280;

/// Work that at most one thread does at a time.
#[derive(Default)]
pub(super) struct Repeated {
    /// Whether a thread does it, and was asked again since it began.
    asked: Mutex<Option<bool>>,
}

impl Repeated {
    /// Makes a thread do `work` until it returns true: the one that runs already, where there is one. An error ends it.
    pub(super) fn ask(self: &Arc<Self>, what: &'static str, work: impl Fn() -> Result<bool, Error> + Send + 'static) {
        {
            let mut asked = self.asked.lock();
            if let Some(again) = &mut *asked {
                *again = true;
                return;
            }
            *asked = Some(false);
        }
        let own = Arc::clone(self);
        let started = spawn(what, move || {
            let noted = Cell::new(false);
            let _end = OnDrop(|| {
                if !noted.get() {
                    *own.asked.lock() = None;
                }
            });
            noted.set(own.repeat(work)?);
            Ok(())
        });
        if !started {
            *self.asked.lock() = None;
        }
    }

    /// Does it. True where it is done and `asked` is reset.
    fn repeat(&self, work: impl Fn() -> Result<bool, Error>) -> Result<bool, Error> {
        for _ in 0..ATTEMPTS {
            let is_done = work()?;
            let mut asked = self.asked.lock();
            match &mut *asked {
                Some(again) if *again => *again = false,
                _ if is_done => {
                    // Before the lock is released: a caller that asks from now on starts a new thread.
                    *asked = None;
                    return Ok(true);
                }
                _ => {
                    drop(asked);
                    std::thread::sleep(RETRY_INTERVAL);
                }
            }
        }
        Ok(false)
    }
}

/// Does something when it goes, also after a panic.
pub(super) struct OnDrop<F: Fn()>(pub(super) F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Starts a thread; whether that was possible.
pub(super) fn spawn(what: &'static str, work: impl FnOnce() -> Result<(), Error> + Send + 'static) -> bool {
    let work = move || {
        if let Err(error) = work() {
            tracing::error!("{what}: {error}");
        }
    };
    let spawned = std::thread::Builder::new().name("index".to_owned()).spawn(work);
    if let Err(error) = &spawned {
        tracing::error!("{what}: a thread cannot be started: {error}");
    }
    spawned.is_ok()
}
