//! What waits, and how a batch is formed out of it.

use std::collections::VecDeque;

use ndarray::Array3;
use parking_lot::{Condvar, Mutex};
use tokio::{sync::oneshot, time::Instant};

use super::{Answer, Budget, Failure};

/// One picture that waits.
pub(super) struct Job<O> {
    /// `[3, H, W]`, normalised.
    pub(super) picture: Array3<f32>,
    pub(super) deadline: Instant,
    pub(super) queued: Instant,
    pub(super) answer: oneshot::Sender<Result<Answer<O>, Failure>>,
}

impl<O> Job<O> {
    /// Nobody waits for it any more.
    fn is_abandoned(&self) -> bool {
        self.answer.is_closed()
    }
}

struct State<O> {
    waiting: VecDeque<Job<O>>,
    closed: bool,
}

/// First in, first out, except that pictures of one size may overtake others to join a batch.
/// Its length is bounded by whoever hands in pictures (see [`Admission`](super::Admission)).
pub(super) struct Queue<O> {
    state: Mutex<State<O>>,
    arrived: Condvar,
    budget: Budget,
}

impl<O> Queue<O> {
    pub(super) fn new(budget: Budget) -> Self {
        Self { state: Mutex::new(State { waiting: VecDeque::new(), closed: false }), arrived: Condvar::new(), budget }
    }

    /// Appends a job. On a closed queue it is dropped, which its owner sees as a lost worker.
    pub(super) fn push(&self, job: Job<O>) {
        let mut state = self.state.lock();
        if !state.closed {
            state.waiting.push_back(job);
            self.arrived.notify_one();
        }
    }

    /// Ends the workers that ask for more, and drops what waits.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.waiting.clear();
        self.arrived.notify_all();
    }

    /// Waits for work: the longest waiting job and those of its size that fit the budget. `None` once closed.
    pub(super) fn next(&self) -> Option<Vec<Job<O>>> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            let Some(first) = next_alive(&mut state.waiting) else {
                self.arrived.wait(&mut state);
                continue;
            };
            let ripe = self.ripe(&first, &state.waiting);
            if Instant::now() >= ripe {
                let batch = self.fill(first, &mut state.waiting);
                if !state.waiting.is_empty() {
                    // Their arrival may have woken nobody but this worker.
                    self.arrived.notify_one();
                }
                return Some(batch);
            }
            // Back in front, where another worker that is free when the batch is ripe finds it too.
            state.waiting.push_front(first);
            self.arrived.wait_until(&mut state, ripe.into_std());
        }
    }

    /// When the batch of `first` need wait no longer: at once if it is full already.
    fn ripe(&self, first: &Job<O>, waiting: &VecDeque<Job<O>>) -> Instant {
        let size = first.picture.dim();
        let others = self.budget.pictures_of(size.1, size.2) - 1;
        if self.budget.delay.is_zero() || waiting.iter().filter(|job| job.picture.dim() == size).take(others).count() == others {
            return first.queued;
        }
        first.queued + self.budget.delay
    }

    /// Jobs that wait.
    pub(super) fn len(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// Takes jobs of the same size out of `waiting`, in order, until the budget is spent.
    fn fill(&self, first: Job<O>, waiting: &mut VecDeque<Job<O>>) -> Vec<Job<O>> {
        let size = first.picture.dim();
        let room = self.budget.pictures_of(size.1, size.2);
        let mut batch = vec![first];
        let mut position = 0;
        while batch.len() < room && position < waiting.len() {
            if waiting[position].picture.dim() != size {
                position += 1;
            } else if let Some(job) = waiting.remove(position).and_then(alive) {
                batch.push(job);
            }
        }
        batch
    }
}

/// Takes jobs from the front until one is still wanted.
fn next_alive<O>(waiting: &mut VecDeque<Job<O>>) -> Option<Job<O>> {
    std::iter::from_fn(|| waiting.pop_front()).find_map(alive)
}

/// The job, unless nobody waits for it; one past its deadline is told so.
fn alive<O>(job: Job<O>) -> Option<Job<O>> {
    if job.is_abandoned() {
        return None;
    }
    if Instant::now() >= job.deadline {
        // The receiver may go in this very moment, then nobody needs to be told.
        let _ = job.answer.send(Err(Failure::Expired));
        return None;
    }
    Some(job)
}
