//! The thread around one engine.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicUsize, Ordering},
};

use ndarray::{Array3, ArrayView3, Axis, stack};
use tokio::time::Instant;

use super::{
    Answer, Engine, EngineError, Failure, Health,
    queue::{Job, Queue},
};

/// Counts the workers of one queue.
pub(super) struct WorkerCounts {
    workers: usize,
    ready: AtomicUsize,
    lost: AtomicUsize,
}

impl WorkerCounts {
    pub(super) fn new(workers: usize) -> Self {
        Self { workers, ready: AtomicUsize::new(0), lost: AtomicUsize::new(0) }
    }

    pub(super) fn health(&self) -> Health {
        Health { workers: self.workers, ready: self.ready.load(Ordering::Acquire), lost: self.lost.load(Ordering::Acquire) }
    }

    /// Counts a lost worker; whether it was the last one.
    fn lose(&self) -> bool {
        self.lost.fetch_add(1, Ordering::AcqRel) + 1 == self.workers
    }
}

/// The engine panicked: its state is unknown.
struct Panicked;

/// Failed pictures in a row after which the engine runs its warm-up picture again: that tells bad pictures from a broken engine.
const MOST_FAILURES: usize = 3;

/// A worker that panicked, or whose engine fails on a picture that it has run before, with the jobs that it leaves behind.
struct LostWorker<O>(Vec<Job<O>>);

/// Runs batches until the queue is closed, or the engine panics or fails on everything.
pub(super) fn work<E: Engine>(mut engine: E, queue: &Queue<E::Output>, counts: &WorkerCounts, warmup: &Array3<f32>) {
    if let Err(lost) = serve(&mut engine, queue, counts, warmup) {
        tracing::error!("a worker is lost: restart the server to get it back");
        if counts.lose() {
            // No worker is left: callers that wait, and those that come, get an error at once.
            queue.close();
        }
        // Its callers get their error only now, when the loss is counted.
        drop(lost);
    }
}

fn serve<E: Engine>(
    engine: &mut E,
    queue: &Queue<E::Output>,
    counts: &WorkerCounts,
    warmup: &Array3<f32>,
) -> Result<(), LostWorker<E::Output>> {
    if let Err(error) = guarded(engine, &[warmup.view()]).map_err(|Panicked| LostWorker(Vec::new()))? {
        tracing::error!(%error, "the model failed on its first picture");
        return Err(LostWorker(Vec::new()));
    }
    counts.ready.fetch_add(1, Ordering::AcqRel);
    let mut failures = 0;
    while let Some(batch) = queue.next() {
        run(engine, batch, &mut failures)?;
        if failures >= MOST_FAILURES {
            // Pictures that the engine cannot take do not keep it from running the one that it could at the start.
            if let Err(error) = guarded(engine, &[warmup.view()]).map_err(|Panicked| LostWorker(Vec::new()))? {
                tracing::error!(%error, "the model fails on everything, on its first picture too: its worker is taken out of service");
                return Err(LostWorker(Vec::new()));
            }
            failures = 0;
        }
    }
    Ok(())
}

/// Runs a batch and answers each of its jobs. After an error the pictures run one by one, so that the one that
/// the engine cannot take does not take its neighbours along. Counts `failures` since the last success.
fn run<E: Engine>(engine: &mut E, batch: Vec<Job<E::Output>>, failures: &mut usize) -> Result<(), LostWorker<E::Output>> {
    let began = Instant::now();
    let pictures: Vec<_> = batch.iter().map(|job| job.picture.view()).collect();
    let Ok(outcome) = guarded(engine, &pictures) else { return Err(LostWorker(batch)) };
    match outcome {
        Ok(outputs) => {
            *failures = 0;
            let (ran, together) = (began.elapsed(), batch.len());
            for (job, output) in batch.into_iter().zip(outputs) {
                let waited = began - job.queued;
                // A caller that has stopped waiting needs no answer.
                let _ = job.answer.send(Ok(Answer { output, waited, ran, batch: together }));
            }
        }
        Err(error) if batch.len() == 1 => {
            *failures += 1;
            for job in batch {
                let _ = job.answer.send(Err(Failure::Engine(error.clone())));
            }
        }
        Err(_) => {
            let mut rest = batch.into_iter();
            while let Some(job) = rest.next() {
                if let Err(mut lost) = run(engine, vec![job], failures) {
                    lost.0.extend(rest);
                    return Err(lost);
                }
            }
        }
    }
    Ok(())
}

/// Runs pictures of one size, checks that each has its output, and keeps a panic from ending the thread unseen.
fn guarded<E: Engine>(engine: &mut E, pictures: &[ArrayView3<'_, f32>]) -> Result<Result<Vec<E::Output>, EngineError>, Panicked> {
    let outcome = catch_unwind(AssertUnwindSafe(|| match pictures {
        [one] => engine.run(one.view().insert_axis(Axis(0))),
        many => {
            let stacked = stack(Axis(0), many).map_err(|error| EngineError(error.to_string()))?;
            engine.run(stacked.view())
        }
    }))
    .map_err(|_| Panicked)?;
    Ok(outcome.and_then(|outputs| {
        if outputs.len() == pictures.len() {
            Ok(outputs)
        } else {
            Err(EngineError(format!("{} outputs for {} pictures", outputs.len(), pictures.len())))
        }
    }))
}
