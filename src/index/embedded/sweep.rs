//! Clearing away what belongs to no collection any more, in many small transactions and while others write.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Error;
use super::disk::Disk;

/// Until the next try after the disk refused.
const PAUSE: Duration = Duration::from_secs(5);

/// Deletes the items of collections that are gone.
pub(super) struct Sweeper {
    disk: Arc<Disk>,
    /// Whether a thread does it; otherwise the caller that hands over a number does.
    in_background: bool,
    work: Arc<(Mutex<Work>, Condvar)>,
}

#[derive(Default)]
struct Work {
    /// Numbers whose items are to go.
    numbers: Vec<u64>,
    /// Whether a thread is at work.
    runs: bool,
    /// Whether the store is closed: what is left is found at the next start.
    is_over: bool,
}

impl Sweeper {
    pub(super) fn new(disk: Arc<Disk>, in_background: bool) -> Self {
        Self { disk, in_background, work: Arc::default() }
    }

    /// Clears away what is stored under numbers that no collection has.
    pub(super) fn clear(&self, numbers: impl IntoIterator<Item = u64>) {
        let mut work = self.work.0.lock();
        work.numbers.extend(numbers);
        if work.numbers.is_empty() || work.runs {
            return;
        }
        if !self.in_background {
            let numbers = std::mem::take(&mut work.numbers);
            drop(work);
            for number in numbers {
                if let Err(error) = self.clear_all(number) {
                    tracing::warn!("what a deleted collection held is left to the next start: {error}");
                }
            }
            return;
        }
        work.runs = true;
        let (disk, shared) = (Arc::clone(&self.disk), Arc::clone(&self.work));
        let spawned = std::thread::Builder::new().name("sweep".to_owned()).spawn(move || run(&disk, &shared));
        if let Err(error) = spawned {
            work.runs = false;
            tracing::warn!("what deleted collections held is not cleared away, a thread cannot be started: {error}");
        }
    }

    fn clear_all(&self, number: u64) -> Result<(), Error> {
        while self.disk.clear_some(number)? {}
        Ok(())
    }
}

impl Drop for Sweeper {
    /// Waits for the transaction that runs.
    fn drop(&mut self) {
        let mut work = self.work.0.lock();
        work.is_over = true;
        self.work.1.notify_all();
        while work.runs {
            self.work.1.wait(&mut work);
        }
    }
}

/// Says that the thread has ended where it panics.
struct Running<'a>(&'a (Mutex<Work>, Condvar));

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.0.lock().runs = false;
            self.0.1.notify_all();
        }
    }
}

fn run(disk: &Disk, shared: &(Mutex<Work>, Condvar)) {
    let _running = Running(shared);
    let (work, changed) = shared;
    let mut locked = work.lock();
    let mut was_refused = false;
    while let Some(&number) = locked.numbers.last().filter(|_| !locked.is_over) {
        drop(locked);
        let outcome = disk.clear_some(number);
        locked = work.lock();
        // Once, not every few seconds while a disk is full.
        if let Err(error) = &outcome
            && !was_refused
        {
            tracing::warn!("what deleted collections held is not cleared away yet: {error}");
        }
        was_refused = outcome.is_err();
        match outcome {
            Ok(true) => {}
            Ok(false) => locked.numbers.retain(|&other| other != number),
            Err(_) => {
                changed.wait_for(&mut locked, PAUSE);
            }
        }
    }
    locked.runs = false;
    changed.notify_all();
}
