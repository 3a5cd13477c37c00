//! How many pictures may be inside the server at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The bound on pictures that wait, are decoded or run. It is asked before any picture is decoded, so that an
/// overloaded server spends nothing on what it will not answer.
pub struct Admission {
    places: Arc<Semaphore>,
    capacity: usize,
    /// Mean time that tickets were held lately, in microseconds.
    held: Arc<AtomicU64>,
}

/// The right of some pictures to be worked on. Its places are free again once it is dropped.
#[derive(Debug)]
pub struct Ticket {
    _places: OwnedSemaphorePermit,
    since: Instant,
    held: Arc<AtomicU64>,
}

/// There is no place left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{capacity} pictures are being worked on already")]
pub struct Full {
    /// Places in all.
    pub capacity: usize,
    /// When a new attempt is likely to find one.
    pub retry_after: Duration,
}

impl Admission {
    /// Room for `capacity` pictures.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.min(Semaphore::MAX_PERMITS);
        Self { places: Arc::new(Semaphore::new(capacity)), capacity, held: Arc::new(AtomicU64::new(0)) }
    }

    /// Takes `pictures` places, all or none, without waiting.
    ///
    /// # Errors
    /// When fewer are free.
    pub fn admit(&self, pictures: usize) -> Result<Ticket, Full> {
        let wanted = u32::try_from(pictures).map_err(|_| self.full())?;
        let places = self.places.clone().try_acquire_many_owned(wanted).map_err(|_| self.full())?;
        Ok(Ticket { _places: places, since: Instant::now(), held: self.held.clone() })
    }

    /// Pictures inside now.
    pub fn inside(&self) -> usize {
        self.capacity - self.places.available_permits().min(self.capacity)
    }

    /// What is inside now will mostly be gone after the time that tickets were held lately.
    fn full(&self) -> Full {
        let held = Duration::from_micros(self.held.load(Ordering::Relaxed));
        let seconds = held.as_secs_f64().ceil().clamp(1.0, 60.0);
        Full { capacity: self.capacity, retry_after: Duration::from_secs_f64(seconds) }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let now = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        // An exponential mean over the last ten or so. Two tickets that end at once may lose one update, which
        // an estimate in whole seconds does not notice.
        let before = self.held.load(Ordering::Relaxed);
        let mean = if before == 0 { now } else { before - before / 10 + now / 10 };
        self.held.store(mean, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back_when_a_ticket_is_dropped() {
        let admission = Admission::new(4);
        let three = admission.admit(3).unwrap();
        assert_eq!(admission.inside(), 3);
        let full = admission.admit(2).unwrap_err();
        assert_eq!(full.capacity, 4);
        assert!(full.retry_after >= Duration::from_secs(1));
        let one = admission.admit(1).unwrap();
        drop(three);
        assert!(admission.admit(3).is_ok());
        drop(one);
    }

    #[test]
    fn a_refusal_takes_no_places() {
        let admission = Admission::new(2);
        assert!(admission.admit(3).is_err());
        assert!(admission.admit(2).is_ok());
    }
}
