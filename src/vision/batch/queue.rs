//! What waits, and how a batch is formed out of it.

use std::collections::{HashMap, VecDeque};

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
    /// Whether its caller has stopped waiting.
    fn is_abandoned(&self) -> bool {
        self.answer.is_closed()
    }
}

struct State<O> {
    waiting: VecDeque<Job<O>>,
    closed: bool,
}

/// First in, first out, except that pictures of one size may overtake others to join a batch.
/// Its length is bounded before pictures come here (see [`Admission`](super::Admission)).
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

    /// Waits for work: the longest waiting job whose batch is full or has waited long enough, and those of its size that fit the
    /// budget. `None` once closed.
    pub(super) fn next(&self) -> Option<Vec<Job<O>>> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            match self.next_batch(&mut state.waiting) {
                NextBatch::Ready(position) => {
                    let batch = self.fill(position, &mut state.waiting);
                    if !state.waiting.is_empty() {
                        // Their arrival may have woken this worker alone.
                        self.arrived.notify_one();
                    }
                    if !batch.is_empty() {
                        return Some(batch);
                    }
                }
                NextBatch::ReadyAt(moment) => drop(self.arrived.wait_until(&mut state, moment.into_std())),
                NextBatch::None => self.arrived.wait(&mut state),
            }
        }
    }

    /// Where the batch begins that is to be run next.
    fn next_batch(&self, waiting: &mut VecDeque<Job<O>>) -> NextBatch {
        let delay = self.budget.delay;
        if !delay.is_zero() {
            // A batch does not wait for pictures whose callers have left.
            waiting.retain(|job| !job.is_abandoned());
        }
        let Some(first) = waiting.front() else { return NextBatch::None };
        if first.queued.elapsed() >= delay {
            return NextBatch::Ready(0);
        }
        // By size: where its first job is, and how many there are.
        let mut batches: HashMap<(usize, usize, usize), (usize, usize)> = HashMap::new();
        for (position, job) in waiting.iter().enumerate() {
            let size = job.picture.dim();
            let (begin, jobs) = batches.entry(size).or_insert((position, 0));
            *jobs += 1;
            if *jobs == self.budget.pictures_of(size.1, size.2) {
                return NextBatch::Ready(*begin);
            }
        }
        NextBatch::ReadyAt(first.queued + delay)
    }

    /// Jobs that wait.
    pub(super) fn len(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// Takes the first job from `position` on that is still wanted, and those of its size out of what waits, in order, until the
    /// budget is spent.
    fn fill(&self, mut position: usize, waiting: &mut VecDeque<Job<O>>) -> Vec<Job<O>> {
        let mut batch: Vec<Job<O>> = Vec::new();
        let mut room = 1;
        while batch.len() < room && position < waiting.len() {
            if batch.first().is_some_and(|first| waiting[position].picture.dim() != first.picture.dim()) {
                position += 1;
            } else if let Some(job) = waiting.remove(position).and_then(still_wanted) {
                let (_, height, width) = job.picture.dim();
                room = self.budget.pictures_of(height, width);
                batch.push(job);
            }
        }
        batch
    }
}

/// When the next batch can run.
enum NextBatch {
    /// The job at this position begins a batch to be run now.
    Ready(usize),
    /// There will be one then, or earlier if more jobs come.
    ReadyAt(Instant),
    /// Nothing waits.
    None,
}

/// The job, if its caller still waits; a caller whose deadline has passed is told so.
fn still_wanted<O>(job: Job<O>) -> Option<Job<O>> {
    if job.is_abandoned() {
        return None;
    }
    if Instant::now() >= job.deadline {
        // The receiver may be dropped in this very moment; then no caller is left to tell.
        let _ = job.answer.send(Err(Failure::Expired));
        return None;
    }
    Some(job)
}
