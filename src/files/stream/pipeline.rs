//! Rows on their way through the workers. They are taken one by one, across the borders of record batches, and answered in their order.
//!
//! Three kinds of threads meet here: the one that reads admits units of rows and waits while too many are on their way; workers take
//! single rows; the one that writes takes units whose rows are all done.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// What may be on its way at once. One unit always may, whatever its size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Rows that are not answered.
    pub(super) rows: usize,
    /// Bytes of their memory.
    pub(super) bytes: u64,
}

/// Units `U` of rows, each of which becomes an outcome `T`.
pub(super) struct Pipeline<U, T> {
    limits: Limits,
    state: Mutex<State<U, T>>,
    /// A row can be taken, or none will ever be.
    rows: Condvar,
    /// The first unit is done, or none will ever be.
    done: Condvar,
    /// A unit was answered.
    room: Condvar,
}

struct State<U, T> {
    /// Units that are not done, or not taken by the thread that writes.
    units: VecDeque<InFlight<U, T>>,
    /// Number of the first of them, counted from the beginning.
    first: usize,
    /// Place of the first of them that has rows that no worker has taken.
    open: usize,
    /// Units that are not answered: those, and the one that is being written.
    unanswered: usize,
    rows: usize,
    bytes: u64,
    began: Option<Instant>,
    /// No further units come: how the input ended.
    end: Option<Result<(), String>>,
    is_cancelled: bool,
}

struct InFlight<U, T> {
    unit: Arc<U>,
    size: Size,
    taken: usize,
    outcomes: Vec<Option<T>>,
    /// Outcomes that are missing.
    left: usize,
}

#[derive(Clone, Copy, Debug)]
struct Size {
    rows: usize,
    bytes: u64,
}

/// A row for a worker.
struct Task<U> {
    unit: Arc<U>,
    row: usize,
    /// That of the unit, counted from the beginning.
    number: usize,
}

/// What the thread that writes does next.
pub(super) enum Next<U, T> {
    /// A unit, and what became of its rows.
    Answer(Answer<U, T>),
    /// Everything is answered, and the input has ended so.
    End(Result<(), String>),
    /// A worker ended while it held a row.
    Lost,
}

/// A unit whose rows are all done.
pub(super) struct Answer<U, T> {
    pub(super) unit: Arc<U>,
    pub(super) outcomes: Vec<T>,
    size: Size,
}

impl<U, T> Pipeline<U, T> {
    pub(super) fn new(limits: Limits) -> Self {
        let state = State {
            units: VecDeque::new(),
            first: 0,
            open: 0,
            unanswered: 0,
            rows: 0,
            bytes: 0,
            began: None,
            end: None,
            is_cancelled: false,
        };
        Self { limits, state: Mutex::new(state), rows: Condvar::new(), done: Condvar::new(), room: Condvar::new() }
    }

    /// Waits until there is room for a unit, and adds it. `false` where nothing is answered any more.
    pub(super) fn admit(&self, unit: U, rows: usize, bytes: u64) -> bool {
        let mut state = self.state.lock();
        while !state.is_cancelled && !self.has_room(&state, rows, bytes) {
            self.room.wait(&mut state);
        }
        if state.is_cancelled {
            return false;
        }
        let size = Size { rows, bytes };
        state.units.push_back(InFlight {
            unit: Arc::new(unit),
            size,
            taken: 0,
            outcomes: std::iter::repeat_with(|| None).take(rows).collect(),
            left: rows,
        });
        state.unanswered += 1;
        state.rows += size.rows;
        state.bytes += size.bytes;
        state.began.get_or_insert_with(Instant::now);
        self.rows.notify_all();
        // A unit without rows is done.
        self.done.notify_all();
        true
    }

    /// A unit without rows takes as much room as one of a row.
    fn has_room(&self, state: &State<U, T>, rows: usize, bytes: u64) -> bool {
        let with_it = state.rows.max(state.unanswered) + rows.max(1);
        state.unanswered == 0 || with_it <= self.limits.rows && state.bytes + bytes <= self.limits.bytes
    }

    /// Says that no further units come. The first time counts.
    pub(super) fn end(&self, how: Result<(), String>) {
        let mut state = self.state.lock();
        state.end.get_or_insert(how);
        self.rows.notify_all();
        self.done.notify_all();
    }

    /// Ends the waiting of all threads.
    pub(super) fn cancel(&self) {
        self.state.lock().is_cancelled = true;
        self.rows.notify_all();
        self.done.notify_all();
        self.room.notify_all();
    }

    /// Works on rows until there are no more.
    pub(super) fn work(&self, mut work: impl FnMut(&U, usize) -> T) {
        let _guard = CancelOnPanic(self);
        while let Some(task) = self.take() {
            let outcome = work(&task.unit, task.row);
            self.put(&task, outcome);
        }
    }

    /// Waits for a row. `None` once there are no more.
    fn take(&self) -> Option<Task<U>> {
        let mut state = self.state.lock();
        loop {
            if state.is_cancelled {
                return None;
            }
            if let Some(task) = state.take() {
                return Some(task);
            }
            if state.end.is_some() {
                return None;
            }
            self.rows.wait(&mut state);
        }
    }

    fn put(&self, task: &Task<U>, outcome: T) {
        let mut state = self.state.lock();
        // The unit of a row that has no outcome is still there.
        let place = task.number - state.first;
        let unit = &mut state.units[place];
        unit.outcomes[task.row] = Some(outcome);
        unit.left -= 1;
        if unit.left == 0 && place == 0 {
            self.done.notify_all();
        }
    }

    /// Waits until all rows of the next unit are done.
    pub(super) fn next(&self) -> Next<U, T> {
        let mut state = self.state.lock();
        loop {
            if state.is_cancelled {
                return Next::Lost;
            }
            if let Some(InFlight { unit, size, outcomes, .. }) = state.pop_done() {
                return Next::Answer(Answer { unit, outcomes: outcomes.into_iter().flatten().collect(), size });
            }
            if state.units.is_empty()
                && let Some(end) = &state.end
            {
                return Next::End(end.clone());
            }
            self.done.wait(&mut state);
        }
    }

    /// Makes room for others: an answer was written.
    pub(super) fn release(&self, answer: &Answer<U, T>) {
        let mut state = self.state.lock();
        state.unanswered -= 1;
        state.rows -= answer.size.rows;
        state.bytes -= answer.size.bytes;
        self.room.notify_all();
    }

    /// When the first unit came.
    pub(super) fn began(&self) -> Option<Instant> {
        self.state.lock().began
    }
}

impl<U, T> State<U, T> {
    fn take(&mut self) -> Option<Task<U>> {
        while let Some(unit) = self.units.get_mut(self.open) {
            if unit.taken < unit.outcomes.len() {
                let task = Task { unit: Arc::clone(&unit.unit), row: unit.taken, number: self.first + self.open };
                unit.taken += 1;
                return Some(task);
            }
            self.open += 1;
        }
        None
    }

    fn pop_done(&mut self) -> Option<InFlight<U, T>> {
        let unit = self.units.pop_front_if(|unit| unit.left == 0)?;
        self.first += 1;
        self.open = self.open.saturating_sub(1);
        Some(unit)
    }
}

/// Without it, the thread that writes would wait for the row of a worker that panicked.
struct CancelOnPanic<'a, U, T>(&'a Pipeline<U, T>);

impl<U, T> Drop for CancelOnPanic<'_, U, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    const LIMITS: Limits = Limits { rows: 8, bytes: 100 };

    /// Reads all answers, of which each outcome is its unit's number and its row.
    fn answers(pipeline: &Pipeline<usize, (usize, usize)>) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        loop {
            match pipeline.next() {
                Next::Answer(answer) => {
                    found.extend(&answer.outcomes);
                    pipeline.release(&answer);
                }
                Next::End(end) => {
                    end.unwrap();
                    return found;
                }
                Next::Lost => panic!("nothing is cancelled"),
            }
        }
    }

    #[test]
    fn rows_are_answered_in_their_order_and_no_more_are_on_their_way_than_may_be() {
        let pipeline = Pipeline::new(LIMITS);
        let sizes = [3, 0, 1, 20, 0, 0, 5, 2, 8, 1, 1, 1, 0];
        let (admitted, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let found = thread::scope(|scope| {
            scope.spawn(|| {
                for (number, rows) in sizes.into_iter().enumerate() {
                    assert!(pipeline.admit(number, rows, 7));
                    admitted.fetch_add(1, Ordering::SeqCst);
                    let state = pipeline.state.lock();
                    if state.unanswered > 1 {
                        most.fetch_max(state.rows, Ordering::SeqCst);
                    }
                }
                pipeline.end(Ok(()));
                pipeline.end(Err("too late".to_owned()));
            });
            for _ in 0..3 {
                scope.spawn(|| pipeline.work(|&unit, row| (unit, row)));
            }
            answers(&pipeline)
        });
        let wanted: Vec<_> = sizes.into_iter().enumerate().flat_map(|(unit, rows)| (0..rows).map(move |row| (unit, row))).collect();
        assert_eq!(found, wanted);
        assert!(most.load(Ordering::SeqCst) <= LIMITS.rows, "{most:?}");
        let state = pipeline.state.lock();
        assert_eq!((state.rows, state.bytes, state.unanswered), (0, 0, 0));
    }

    #[test]
    fn units_without_rows_and_large_pictures_take_room_too() {
        let pipeline = Pipeline::<usize, ()>::new(LIMITS);
        for number in 0..LIMITS.rows {
            assert!(pipeline.admit(number, 0, 0));
        }
        assert!(!pipeline.has_room(&pipeline.state.lock(), 0, 0));
        let pipeline = Pipeline::<usize, ()>::new(LIMITS);
        assert!(pipeline.admit(0, 1, 1000), "one of any size");
        assert!(!pipeline.has_room(&pipeline.state.lock(), 1, 1));
    }

    #[test]
    fn an_input_that_ends_badly_is_answered_first_and_cancelling_ends_all_waiting() {
        let pipeline = Pipeline::new(LIMITS);
        assert!(pipeline.admit(0, 2, 0));
        pipeline.end(Err("it is cut".to_owned()));
        pipeline.work(|&unit, row| (unit, row));
        let Next::Answer(answer) = pipeline.next() else { panic!("there is an answer") };
        assert_eq!(answer.outcomes, [(0, 0), (0, 1)]);
        pipeline.release(&answer);
        assert!(matches!(pipeline.next(), Next::End(Err(reason)) if reason == "it is cut"));

        let pipeline = Pipeline::<_, ()>::new(LIMITS);
        thread::scope(|scope| {
            scope.spawn(|| assert!(pipeline.admit(0, 8, 0) && !pipeline.admit(1, 8, 0)));
            let lost = scope.spawn(|| {
                let panics = std::panic::AssertUnwindSafe(|| pipeline.work(|_, _| std::panic::resume_unwind(Box::new(()))));
                assert!(std::panic::catch_unwind(panics).is_err());
            });
            assert!(matches!(pipeline.next(), Next::Lost));
            lost.join().unwrap();
        });
        assert!(pipeline.take().is_none());
    }
}
