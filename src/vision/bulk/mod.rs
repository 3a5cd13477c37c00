//! Many picture files to vectors: on all cores, in the order of the files, one broken file never in the way of others.
//!
//! [`tree`] lists an `ImageFolder`, [`samples`] the pictures of a tar file; [`Embedder`] owns the sessions. Importing, bulk
//! embedding and the k-NN evaluation differ only in what they do with each result.
//!
//! ```no_run
//! use dino_vision::bulk::{self, Embedder, Error, Workload, tree};
//! use dino_vision::embedding::Pooling;
//! use dino_vision::model::{Model, SessionOptions};
//!
//! let model = Model::open("models/demo".as_ref())?;
//! let mut embedder = Embedder::open(&model, Pooling::Cls, &SessionOptions::default(), Workload::default())?;
//! let files = tree::list("photos".as_ref())?.entries;
//! let mut vectors: Vec<Vec<f32>> = Vec::new();
//! embedder.each(
//!     files.len(),
//!     |worker, index| worker.embed(&bulk::read(&files[index].path)?),
//!     |_, results: Vec<Result<_, Error>>| {
//!         // Files that are no pictures are left out.
//!         vectors.extend(results.into_iter().flatten().map(|(_, vector)| vector));
//!         Ok::<(), Error>(())
//!     },
//! )?;
//! assert!(vectors.len() <= files.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod compressed;
pub mod names;
pub mod samples;
pub mod shards;
pub mod sidecars;
pub mod tree;

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures::executor::block_on;
use image::RgbImage;
use ndarray::{Array3, Axis};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::batch::{Batcher, Failure};
use crate::cores;
use crate::embedding::{self, EmbeddingError, Pooling};
use crate::media::{self, DecodeError, Limits};
use crate::model::{Model, ModelError, Outputs, SessionOptions};
use crate::placement::Placement;
use crate::transform::Transform;

pub use crate::placement::Workload;

/// Files between two visits of the sink: enough that workers rarely wait for each other, and few enough that an
/// interrupted import loses little.
pub const BATCH: usize = 256;

/// How long a picture may wait for a session: bulk work has no deadline.
const NO_DEADLINE: Duration = Duration::from_hours(365 * 24);

/// Patches along the side of the first picture that is run, where the model's transform leaves every size as it is.
const WARMUP_PATCHES: u32 = 4;

/// Largest file that is read: twice an uncompressed picture of the most pixels that are decoded.
pub const MAX_FILE: u64 = 6 * Limits::MAX_PIXELS;

/// Why a picture has no vector.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read; the next one may.
    #[error("{0}")]
    Read(std::io::ErrorKind),
    /// The file is too large to be read into memory.
    #[error("the file has {size} bytes, at most {MAX_FILE} are read")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
    },
    /// The file is no picture that is read here; the next one may be.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The picture is not to be had from where it is: a damaged member, an address that does not answer; the next one may be.
    #[error("{0}")]
    NotThere(String),
    /// The storage refuses this picture and gives others; it may be given later, once it was restored from an archive.
    #[error("{0}")]
    Refused(String),
    /// A host does not answer now, and may later; the next picture may be elsewhere.
    #[error("{0}")]
    Unreachable(String),
    /// The storage that holds this picture and others does not answer.
    #[error("{0}")]
    Storage(String),
    /// The model fails, and will with every other picture.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model does not compute what the pooling needs.
    #[error(transparent)]
    Embedding(#[from] EmbeddingError),
}

impl Error {
    /// Whether the one file is to blame, so that the others go on without it.
    pub fn is_of_file(&self) -> bool {
        matches!(
            self,
            Self::Read(_) | Self::TooLarge { .. } | Self::Decode(_) | Self::NotThere(_) | Self::Refused(_) | Self::Unreachable(_)
        )
    }

    /// Whether the same may succeed later, so that the file is not to be left out for ever.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Read(kind) => {
                use std::io::ErrorKind::{
                    HostUnreachable, NetworkDown, NetworkUnreachable, NotConnected, StaleNetworkFileHandle, TimedOut,
                };
                matches!(kind, HostUnreachable | NetworkDown | NetworkUnreachable | NotConnected | StaleNetworkFileHandle | TimedOut)
            }
            _ => false,
        }
    }
}

/// A model with its sessions, behind the queue that the server has before them.
pub struct Embedder {
    batcher: Batcher<Outputs>,
    sessions: usize,
    /// Threads that decode and wait for their picture's outputs.
    workers: usize,
    /// Nanoseconds that the sessions have run, added up.
    busy: AtomicU64,
    recipe: Recipe,
    dim: usize,
}

struct Recipe {
    transform: Transform,
    registers: usize,
    pooling: Pooling,
    limits: Limits,
}

/// One thread's access to the sessions; see [`Embedder::each`].
pub struct Worker<'a> {
    batcher: &'a Batcher<Outputs>,
    busy: &'a AtomicU64,
    recipe: &'a Recipe,
}

impl Embedder {
    /// Opens the sessions, and runs a black picture through the first.
    ///
    /// # Errors
    /// Those of opening the model.
    pub fn open(model: &Model, pooling: Pooling, options: &SessionOptions, workload: Workload) -> Result<Self, ModelError> {
        let manifest = model.manifest();
        let Placement { mut sessions, budget, .. } = Placement::of(model, options, workload)?;
        let count = sessions.len();
        let side = WARMUP_PATCHES * manifest.patch_size;
        let (height, width) = model.only_size().or(manifest.transform.output_size()).unwrap_or((side, side));
        let warmup = Array3::zeros((3, height as usize, width as usize));
        // The queue would tell no more than that a worker is lost.
        sessions[0].0.run(warmup.view().insert_axis(Axis(0)))?;

        let batcher = Batcher::start("embed", sessions, budget, &warmup)?;
        // A batch forms out of what waits while the one before runs.
        let workers = if budget.pictures == 1 { count } else { cores::available().max(2 * count * budget.pictures) };
        let recipe =
            Recipe { transform: manifest.transform.clone(), registers: manifest.registers as usize, pooling, limits: Limits::default() };
        Ok(Self { batcher, sessions: count, workers, busy: AtomicU64::new(0), recipe, dim: pooling.dim(manifest.dim as usize) })
    }

    /// Has at least `count` pictures read at once: those behind a network wait for it rather than for a core.
    #[must_use]
    pub fn with_readers(mut self, count: usize) -> Self {
        self.workers = self.workers.max(count);
        self
    }

    /// Number of sessions.
    pub fn sessions(&self) -> usize {
        self.sessions
    }

    /// Threads that decode pictures and wait for their outputs.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Time that the sessions have run, added up over them.
    pub fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy.load(Ordering::Relaxed))
    }

    /// Runs `work` once on each worker, and `meanwhile` on this thread; returns what that returns when all workers have ended. A worker that
    /// panics ends alone: `work` has to tell `meanwhile`.
    pub fn on_workers<T>(&mut self, work: impl Fn(&mut Worker<'_>) + Sync, meanwhile: impl FnOnce() -> T) -> T {
        beside((0..self.workers).map(|_| self.worker()), work, meanwhile)
    }

    fn worker(&self) -> Worker<'_> {
        Worker { batcher: &self.batcher, busy: &self.busy, recipe: &self.recipe }
    }

    /// Length of the vectors.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Runs `work` for 0..`count` on all workers, and hands what it returns to `sink` in batches, in order. An error of
    /// the sink ends everything.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn each<T: Send, E>(
        &mut self,
        count: usize,
        work: impl Fn(&mut Worker<'_>, usize) -> T + Sync,
        mut sink: impl FnMut(std::ops::Range<usize>, Vec<T>) -> Result<(), E>,
    ) -> Result<(), E> {
        for start in (0..count).step_by(BATCH) {
            let batch = start..(start + BATCH).min(count);
            let next = AtomicUsize::new(start);
            let results = Mutex::new(Vec::with_capacity(batch.len()));
            std::thread::scope(|scope| {
                for _ in 0..self.workers.min(batch.len()) {
                    let mut worker = self.worker();
                    let (next, results, work, end) = (&next, &results, &work, batch.end);
                    scope.spawn(move || {
                        loop {
                            let index = next.fetch_add(1, Ordering::Relaxed);
                            if index >= end {
                                break;
                            }
                            let result = work(&mut worker, index);
                            results.lock().push((index, result));
                        }
                    });
                }
            });
            let mut results = results.into_inner();
            results.sort_unstable_by_key(|(index, _)| *index);
            sink(batch, results.into_iter().map(|(_, result)| result).collect())?;
        }
        Ok(())
    }
}

/// Runs `work` on a thread for each of `workers`, and `meanwhile` on this one.
fn beside<W: Send, T>(workers: impl Iterator<Item = W>, work: impl Fn(&mut W) + Sync, meanwhile: impl FnOnce() -> T) -> T {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = workers.map(|mut worker| scope.spawn(move || work(&mut worker))).collect();
        let result = meanwhile();
        for thread in threads {
            // The scope would panic for a thread that was not joined here, and the result would be lost.
            drop(thread.join());
        }
        result
    })
}

impl Worker<'_> {
    /// Decodes a picture and embeds it; the vector `[dim]` is not normalised.
    ///
    /// # Errors
    /// [`Error::Decode`] blames the picture, the others the model.
    pub fn embed(&mut self, bytes: &[u8]) -> Result<(RgbImage, Vec<f32>), Error> {
        let picture = media::decode(bytes, &self.recipe.limits)?;
        let outputs = self.run(self.recipe.transform.apply(&picture))?;
        let rows = embedding::pool(&outputs, self.recipe.registers, self.recipe.pooling)?;
        Ok((picture, rows.into_iter().collect()))
    }

    /// The model's evaluation transform.
    pub fn transform(&self) -> &Transform {
        &self.recipe.transform
    }

    /// The model's number of register tokens.
    pub fn registers(&self) -> usize {
        self.recipe.registers
    }

    /// Runs one input `[3, H, W]`; the outputs are those of a batch of one.
    ///
    /// # Errors
    /// [`ModelError::Run`].
    pub fn run(&mut self, pixels: Array3<f32>) -> Result<Outputs, ModelError> {
        match block_on(self.batcher.run(pixels, Instant::now() + NO_DEADLINE)) {
            Ok(answer) => {
                // A run of several pictures counts once.
                let share = answer.ran.as_nanos() / answer.batch.max(1) as u128;
                self.busy.fetch_add(share as u64, Ordering::Relaxed);
                Ok(answer.output)
            }
            Err(Failure::Engine(error)) => Err(ModelError::Run(error.0)),
            Err(failure) => Err(ModelError::Run(failure.to_string())),
        }
    }
}

/// The bytes of a file. The errors do not repeat its path: the list of skipped files has it.
///
/// # Errors
/// [`Error::Read`] and, before memory is spent, [`Error::TooLarge`].
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let kind = |error: std::io::Error| Error::Read(error.kind());
    let size = fs_err::metadata(path).map_err(kind)?.len();
    if size > MAX_FILE {
        return Err(Error::TooLarge { size });
    }
    fs_err::read(path).map_err(kind)
}

#[cfg(test)]
mod tests {
    use super::beside;

    #[test]
    fn what_is_done_meanwhile_returns_also_where_a_worker_panics() {
        let work = |worker: &mut usize| {
            if *worker == 1 {
                std::panic::resume_unwind(Box::new(()));
            }
        };
        assert_eq!(beside(0..3, work, || "lost"), "lost");
    }
}
