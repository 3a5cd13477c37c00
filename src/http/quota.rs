//! Budgets that all requests share: memory of answers, and disk space of snapshots. One API key may hold half of it.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::{
    keys::Key,
    problem::{Code, Problem},
};

/// Reservations grow in steps of this, so that the lock is seldom taken.
pub(super) const STEP: u64 = 64 << 10;

/// What there is for all requests together.
pub(super) struct Quota {
    budget: Budget,
    bytes: u64,
    held: Mutex<Reserved>,
}

/// What is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Budget {
    /// Memory of answers that were not read yet.
    Answers,
    /// Temporary files of snapshots.
    Scratch,
}

#[derive(Default)]
struct Reserved {
    all: u64,
    by_key: HashMap<String, u64>,
}

/// What one request holds, until this is dropped.
pub(super) struct Reservation {
    quota: Arc<Quota>,
    key: Option<Arc<Key>>,
    bytes: u64,
}

/// There is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BudgetExceeded {
    /// This request alone would take more than it ever may.
    #[error("{} would take more than {most} bytes ({}): {}", .budget.one(), .budget.flag(), .budget.way_out())]
    TooLarge {
        /// What there is too little of.
        budget: Budget,
        /// Bytes that it may take.
        most: u64,
    },
    /// Other requests with the same key hold what a key may hold.
    #[error("{} of this API key hold what one key may hold, {most} bytes, half of {}: read those first, and try again", .budget.many(), .budget.flag())]
    Key {
        /// What there is too little of.
        budget: Budget,
        /// Bytes that it may hold.
        most: u64,
    },
    /// Other requests hold all there is.
    #[error("{} of other requests hold all the room that there is for them ({}): try again in a few seconds", .budget.many(), .budget.flag())]
    All {
        /// What there is too little of.
        budget: Budget,
    },
}

impl Budget {
    fn flag(self) -> &'static str {
        match self {
            Self::Answers => "--answer-memory",
            Self::Scratch => "--scratch-space",
        }
    }

    fn one(self) -> &'static str {
        match self {
            Self::Answers => "the answer",
            Self::Scratch => "the snapshot",
        }
    }

    fn many(self) -> &'static str {
        match self {
            Self::Answers => "answers that were not read yet",
            Self::Scratch => "snapshots on their way",
        }
    }

    fn way_out(self) -> &'static str {
        match self {
            Self::Answers => "ask for less at once",
            Self::Scratch => "raise it, or use `dino-server snapshot` beside a stopped server",
        }
    }
}

impl Quota {
    pub(super) fn new(budget: Budget, bytes: u64) -> Self {
        Self { budget, bytes, held: Mutex::default() }
    }

    /// A reservation to nothing yet, of the owner of a key.
    pub(super) fn reserve(self: &Arc<Self>, key: Option<Arc<Key>>) -> Reservation {
        Reservation { quota: Arc::clone(self), key, bytes: 0 }
    }
}

impl Reservation {
    /// Takes as much as makes it `bytes` in all, or a little more.
    pub(super) fn reach(&mut self, bytes: u64) -> Result<(), BudgetExceeded> {
        if bytes <= self.bytes {
            return Ok(());
        }
        let Quota { budget, bytes: all, held } = &*self.quota;
        let (budget, all) = (*budget, *all);
        let most = if self.key.is_some() { all / 2 } else { all };
        if bytes > most {
            return Err(BudgetExceeded::TooLarge { budget, most });
        }
        let more = bytes.next_multiple_of(STEP).min(most) - self.bytes;
        let mut held = held.lock();
        if held.all + more > all {
            return Err(BudgetExceeded::All { budget });
        }
        if let Some(key) = &self.key {
            let of_key = held.by_key.entry(key.name().to_owned()).or_default();
            if *of_key + more > most {
                return Err(BudgetExceeded::Key { budget, most });
            }
            *of_key += more;
        }
        held.all += more;
        self.bytes += more;
        Ok(())
    }

    /// Gives back all but `bytes`.
    pub(super) fn shrink_to(&mut self, bytes: u64) {
        let less = self.bytes.saturating_sub(bytes);
        let mut held = self.quota.held.lock();
        held.all -= less;
        if let Some(key) = &self.key
            && let Some(of_key) = held.by_key.get_mut(key.name())
        {
            *of_key -= less;
            if *of_key == 0 {
                held.by_key.remove(key.name());
            }
        }
        self.bytes -= less;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// A writer whose reservation grows before it writes.
pub(super) struct Metered<W> {
    out: W,
    written: u64,
    reservation: Reservation,
    /// Why it stopped.
    full: Option<BudgetExceeded>,
}

impl<W: io::Write> Metered<W> {
    pub(super) fn new(out: W, reservation: Reservation) -> Self {
        Self { out, written: 0, reservation, full: None }
    }

    /// Why writing failed, where it was for want of room.
    pub(super) fn full(&self) -> Option<BudgetExceeded> {
        self.full
    }

    /// The destination, and the reservation of what was written to it.
    pub(super) fn into_parts(self) -> (W, Reservation) {
        (self.out, self.reservation)
    }
}

impl<W: io::Write> io::Write for Metered<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Err(full) = self.reservation.reach(self.written + bytes.len() as u64) {
            self.full = Some(full);
            return Err(io::Error::other(full));
        }
        let written = self.out.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl From<BudgetExceeded> for Problem {
    fn from(full: BudgetExceeded) -> Self {
        let (code, wait) = match full {
            BudgetExceeded::TooLarge { .. } => return Self::new(Code::AnswerTooLarge, full.to_string()),
            BudgetExceeded::Key { .. } => (Code::RateLimited, 5),
            BudgetExceeded::All { .. } => (Code::QueueFull, 5),
        };
        Self { retry_after: Some(Duration::from_secs(wait)), ..Self::new(code, full.to_string()) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::{super::Keys, *};

    fn key(name: &str) -> Option<Arc<Key>> {
        let keys: Keys = format!("{name} 0123456789abcdef-{name} read-only").parse().unwrap();
        keys.find(format!("0123456789abcdef-{name}").as_bytes()).cloned()
    }

    #[test]
    fn a_key_holds_half_and_all_of_it_comes_back() {
        let quota = Arc::new(Quota::new(Budget::Answers, 8 * STEP));
        let (mut one, mut two) = (quota.reserve(key("one")), quota.reserve(key("one")));
        one.reach(3 * STEP).unwrap();
        assert_eq!(one.reach(5 * STEP), Err(BudgetExceeded::TooLarge { budget: Budget::Answers, most: 4 * STEP }));
        two.reach(1).unwrap();
        assert_eq!(two.reach(STEP + 1), Err(BudgetExceeded::Key { budget: Budget::Answers, most: 4 * STEP }));
        let mut other = quota.reserve(key("other"));
        other.reach(4 * STEP).unwrap();
        assert_eq!(quota.reserve(None).reach(1), Err(BudgetExceeded::All { budget: Budget::Answers }));
        other.shrink_to(STEP);
        quota.reserve(None).reach(3 * STEP).unwrap();
        drop((one, two, other));
        assert!(quota.reserve(None).reach(8 * STEP).is_ok());
        assert_eq!(quota.held.lock().by_key.len(), 0);
    }

    #[test]
    fn a_writer_stops_before_there_is_too_much() {
        let quota = Arc::new(Quota::new(Budget::Scratch, 100));
        let mut out = Metered::new(Vec::new(), quota.reserve(None));
        out.write_all(&[0; 60]).unwrap();
        assert!(out.write_all(&[0; 60]).is_err());
        assert_eq!(out.full(), Some(BudgetExceeded::TooLarge { budget: Budget::Scratch, most: 100 }));
        assert_eq!(out.into_parts().0.len(), 60);
    }
}
