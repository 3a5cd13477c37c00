//! Pictures wait here for a free engine.
//!
//! One thread owns one engine, because running a session needs it exclusively. A batch is formed at the
//! moment an engine becomes free, out of what waits then: unless the [`Budget`] asks for one, there is no timer that delays a
//! lone picture. Pictures of one size run together, up to a budget in pictures and in patches. A picture whose caller has stopped waiting is skipped.
//!
//! The room knows nothing of models: an engine is anything that implements [`Engine`], so that the queue is
//! tested with one made up for the purpose.
//!
//! ```
//! use std::time::Duration;
//!
//! use dino_vision::batch::{Batcher, Budget, Engine, EngineError};
//! use ndarray::{Array3, ArrayView4};
//! use tokio::time::Instant;
//!
//! /// Adds up the numbers of each picture.
//! struct Sum;
//! impl Engine for Sum {
//!     type Output = f32;
//!     fn run(&mut self, pictures: ArrayView4<'_, f32>) -> Result<Vec<f32>, EngineError> {
//!         Ok(pictures.outer_iter().map(|picture| picture.sum()).collect())
//!     }
//! }
//!
//! let budget = Budget { pictures: 8, patches: 8 * 196, patch_size: 16, delay: Duration::ZERO };
//! let batcher = Batcher::start("sum", vec![Sum], budget, &Array3::zeros((3, 16, 16)))?;
//! let answer = batcher.run(Array3::ones((3, 16, 16)), Instant::now() + Duration::from_secs(60));
//! assert_eq!(futures::executor::block_on(answer)?.output, 768.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod admission;
mod queue;
mod worker;

use std::{sync::Arc, thread, time::Duration};

use ndarray::{Array3, ArrayView4};
use tokio::{sync::oneshot, time::Instant};

pub use admission::{Admission, Full, Ticket};
use queue::{Job, Queue};
use worker::WorkerCounts;

/// Turns pictures into outputs, exclusively owned by one worker thread.
pub trait Engine: Send + 'static {
    /// What one picture yields.
    type Output: Send + 'static;

    /// Runs `pictures` `[B, 3, H, W]`, normalised, and returns `B` outputs in the same order.
    ///
    /// # Errors
    /// When the run failed; the engine stays usable.
    fn run(&mut self, pictures: ArrayView4<'_, f32>) -> Result<Vec<Self::Output>, EngineError>;
}

/// A run that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct EngineError(pub String);

/// How much one run may take.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Pictures in one batch. On a CPU 1: two sessions that run one picture each beat one session that runs two.
    pub pictures: usize,
    /// Patches in one batch, over all its pictures: attention grows with them, and so does the memory of a run.
    pub patches: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// How long a batch that has room left waits for further pictures, from the arrival of its first. None, if zero: what waits
    /// when an engine is free is a batch.
    pub delay: Duration,
}

impl Budget {
    /// Pictures of `height` × `width` pixels that may run together, at least one.
    pub fn pictures_of(&self, height: usize, width: usize) -> usize {
        let side = self.patch_size.max(1);
        let patches = (height / side).max(1) * (width / side).max(1);
        (self.patches / patches).clamp(1, self.pictures.max(1))
    }
}

/// The output of one picture and what it took.
#[derive(Debug)]
pub struct Answer<O> {
    /// What the engine made of the picture.
    pub output: O,
    /// Time between being queued and being taken up.
    pub waited: Duration,
    /// Time of the run that the picture was part of.
    pub ran: Duration,
    /// Pictures in that run.
    pub batch: usize,
}

/// Why a picture got no output.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// Its deadline passed while it waited.
    #[error("the deadline passed before an engine was free")]
    Expired,
    /// The engine reported an error for this very picture.
    #[error("the model failed on this picture: {0}")]
    Engine(#[from] EngineError),
    /// The worker died on it, or no worker is left.
    #[error("the worker that ran this picture is lost")]
    WorkerLost,
}

/// State of the workers of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Workers that were started.
    pub workers: usize,
    /// Workers that have run a picture and are at work.
    pub ready: usize,
    /// Workers that died.
    pub lost: usize,
}

impl Health {
    /// Every worker has run a picture and none was lost.
    pub fn is_ready(&self) -> bool {
        self.lost == 0 && self.ready == self.workers
    }
}

/// The queue of one model and the threads that empty it.
pub struct Batcher<O> {
    queue: Arc<Queue<O>>,
    counts: Arc<WorkerCounts>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl<O: Send + 'static> Batcher<O> {
    /// Starts one worker thread for each engine. Each first runs `warmup` `[3, H, W]`, and counts as ready after that.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start<E: Engine<Output = O>>(name: &str, engines: Vec<E>, budget: Budget, warmup: &Array3<f32>) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::new(budget));
        let counts = Arc::new(WorkerCounts::new(engines.len()));
        let mut threads = Vec::with_capacity(engines.len());
        for (number, engine) in engines.into_iter().enumerate() {
            let (queue, counts) = (queue.clone(), counts.clone());
            let warmup = warmup.clone();
            let thread =
                thread::Builder::new().name(format!("{name}-{number}")).spawn(move || worker::work(engine, &queue, &counts, &warmup))?;
            threads.push(thread);
        }
        Ok(Self { queue, counts, threads })
    }

    /// Queues `picture` `[3, H, W]` and waits for its output. Dropping the future takes the picture out again.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn run(&self, picture: Array3<f32>, deadline: Instant) -> Result<Answer<O>, Failure> {
        let (answer, waiting) = oneshot::channel();
        self.queue.push(Job { picture, deadline, queued: Instant::now(), answer });
        // A closed channel means that the worker fell, or that the queue was closed under the job.
        waiting.await.unwrap_or(Err(Failure::WorkerLost))
    }

    /// Pictures that wait for an engine.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// State of the workers now.
    pub fn health(&self) -> Health {
        self.counts.health()
    }
}

impl<O> Drop for Batcher<O> {
    /// Lets the runs that have begun finish, then ends the threads, so that sessions are closed before the process ends.
    fn drop(&mut self) {
        self.queue.close();
        for thread in self.threads.drain(..) {
            // A worker catches its own panics; one that died all the same has nothing left to clean up.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "the made-up engine hands its numbers through unchanged")]
mod tests;
