//! Deleting the items of deleted collections, in many small transactions, between which others write.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Error;
use super::commit::WriteQueue;
use super::disk::Disk;

/// Time until the next attempt after an error.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Deletes items whose collection was deleted.
pub(super) struct GarbageCollector {
    disk: Arc<Disk>,
    writes: Arc<WriteQueue>,
    /// Whether a thread deletes; otherwise the thread that calls [`delete`](Self::delete) does.
    in_background: bool,
    work: Arc<(Mutex<Work>, Condvar)>,
}

#[derive(Default)]
struct Work {
    /// Numbers whose items are to be deleted.
    numbers: Vec<u64>,
    /// Whether the thread runs.
    runs: bool,
    /// Whether the store is closed: what is left is found at the next start.
    is_over: bool,
}

impl GarbageCollector {
    pub(super) fn new(disk: Arc<Disk>, writes: Arc<WriteQueue>, in_background: bool) -> Self {
        Self { disk, writes, in_background, work: Arc::default() }
    }

    /// Deletes what is stored under numbers that no collection has.
    pub(super) fn delete(&self, numbers: impl IntoIterator<Item = u64>) {
        let mut work = self.work.0.lock();
        work.numbers.extend(numbers);
        if work.numbers.is_empty() || work.runs {
            return;
        }
        if !self.in_background {
            let numbers = std::mem::take(&mut work.numbers);
            drop(work);
            for number in numbers {
                if let Err(error) = self.delete_all(number) {
                    tracing::warn!("the items of a deleted collection stay on the disk until the next start: {error}");
                }
            }
            return;
        }
        work.runs = true;
        let (disk, writes, shared) = (Arc::clone(&self.disk), Arc::clone(&self.writes), Arc::clone(&self.work));
        let spawned = std::thread::Builder::new().name("garbage".to_owned()).spawn(move || run(&disk, &writes, &shared));
        if let Err(error) = spawned {
            work.runs = false;
            tracing::warn!("the items of deleted collections stay on the disk, a thread cannot be started: {error}");
        }
    }

    fn delete_all(&self, number: u64) -> Result<(), Error> {
        while self.disk.delete_some(&mut self.writes.lock(), number)? {}
        Ok(())
    }
}

impl Drop for GarbageCollector {
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

/// Notes that the thread has ended where it panics.
struct Running<'a>(&'a (Mutex<Work>, Condvar));

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.0.lock().runs = false;
            self.0.1.notify_all();
        }
    }
}

fn run(disk: &Disk, writes: &WriteQueue, shared: &(Mutex<Work>, Condvar)) {
    let _running = Running(shared);
    let (work, changed) = shared;
    let mut locked = work.lock();
    let mut was_refused = false;
    while let Some(&number) = locked.numbers.last().filter(|_| !locked.is_over) {
        drop(locked);
        let outcome = disk.delete_some(&mut writes.lock(), number);
        locked = work.lock();
        // Once, not every few seconds while a disk is full.
        if let Err(error) = &outcome
            && !was_refused
        {
            tracing::warn!("the items of deleted collections cannot be deleted yet: {error}");
        }
        was_refused = outcome.is_err();
        match outcome {
            Ok(true) => {}
            Ok(false) => locked.numbers.retain(|&other| other != number),
            Err(_) => {
                changed.wait_for(&mut locked, RETRY_INTERVAL);
            }
        }
    }
    locked.runs = false;
    changed.notify_all();
}
