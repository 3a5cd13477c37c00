//! Group commit: writes that wait for each other reach the disk together.
//!
//! One write makes the disk sync once, however small it is. So the thread that gets the lock takes all jobs that wait, makes
//! them durable in one transaction, and their threads find their outcome. A lone writer does not wait.

use std::sync::Arc;

use parking_lot::{FairMutex, FairMutexGuard, Mutex};

use super::disk::{Change, Disk, Record, Writer, Written};
use super::{CollectionName, Error};

/// A collection whose changes are made durable.
pub(super) trait Target: Send + Sync {
    /// Its name and record on the disk.
    fn stored_as(&self) -> (&CollectionName, &Record);

    /// Shows readers a change that is durable, and returns the number of items that it replaced or deleted.
    fn publish(&self, change: Change, written: &Written) -> usize;
}

/// The writes of all collections of a store.
#[derive(Default)]
pub(super) struct WriteQueue {
    /// Writes whose threads wait for the lock.
    waiting: Mutex<Vec<Job>>,
    /// Held while changes become durable and then visible, so that both happen in the same order. Fair, so that a thread that
    /// writes again and again does not keep the others out.
    writer: FairMutex<Writer>,
}

struct Job {
    target: Arc<dyn Target>,
    change: Change,
    outcome: Arc<Mutex<Option<Result<usize, Error>>>>,
}

impl WriteQueue {
    /// Waits for the right to write: one transaction runs at a time.
    pub(super) fn lock(&self) -> FairMutexGuard<'_, Writer> {
        self.writer.lock()
    }

    /// Makes a change durable, then visible, and returns the number of items that it replaced or deleted.
    pub(super) fn write(&self, disk: &Disk, target: Arc<dyn Target>, change: Change) -> Result<usize, Error> {
        let outcome = Arc::new(Mutex::new(None));
        self.waiting.lock().push(Job { target, change, outcome: Arc::clone(&outcome) });
        let mut writer = self.lock();
        if outcome.lock().is_none() {
            let jobs = std::mem::take(&mut *self.waiting.lock());
            write_all(disk, &mut writer, jobs);
        }
        drop(writer);
        // The thread that took the job panicked before it set the outcome.
        outcome.lock().take().unwrap_or_else(|| Err(Error::Io(std::io::Error::other("the thread that wrote this ended"))))
    }
}

fn write_all(disk: &Disk, writer: &mut Writer, jobs: Vec<Job>) {
    let changes: Vec<_> = jobs
        .iter()
        .map(|job| {
            let (name, record) = job.target.stored_as();
            (name, record, &job.change)
        })
        .collect();
    let written = match disk.write_many(writer, &changes) {
        Ok(written) => written,
        // One by one, so that a change that the database refuses does not fail the others.
        Err(_) => changes.iter().map(|(name, record, change)| disk.write_one(writer, name, record, change)).collect(),
    };
    for (job, written) in jobs.into_iter().zip(written) {
        let outcome = written.map(|written| job.target.publish(job.change, &written));
        *job.outcome.lock() = Some(outcome);
    }
}
