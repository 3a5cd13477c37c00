//! The open database, and what happens when the operating system refuses to read or write.
//!
//! After one failed read or write the database refuses all further ones until it is opened again. That is done here, at
//! once, so that reads go on while a disk is full, and writes go on once there is space. The first cause is kept until then:
//! later errors only repeat that there was one.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redb::Database;

use super::Error;
use super::file_identity::FileIdentity;
use super::reserve::Reserve;

/// Shortest time between two attempts after a failure: each may open the database again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// For a database that takes long to open, the time between two attempts is this many times as long.
const OPENING_FACTOR: u32 = 10;
/// Longest wait for transactions on a failed database to end. Each of them ends at its next read or write.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens the database of a handle.
pub(super) type Open = Box<dyn Fn() -> Result<Database, Error> + Send + Sync>;

/// Whether a change needs disk space, or frees some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    /// It needs about so many bytes.
    Needs(u64),
    /// It deletes.
    Frees,
}

impl Space {
    /// What two changes come to that are made together.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Needs(a), Self::Needs(b)) => Self::Needs(a + b),
            (needs @ Self::Needs(_), Self::Frees) | (Self::Frees, needs) => needs,
        }
    }
}

/// A database that is opened again after errors of the operating system.
pub(super) struct Handle {
    path: PathBuf,
    open: Open,
    /// The file that was opened; `None` for a database that is no file.
    identity: Option<FileIdentity>,
    reserve: Reserve,
    slot: Mutex<Slot>,
    outage: Mutex<Option<Outage>>,
}

struct Slot {
    database: Option<Arc<Database>>,
    /// Goes up with each opening, so that one error leads to one of them.
    generation: u64,
    /// When it may be opened again, and how long the last opening took.
    retry: Instant,
    took: Duration,
}

/// Why writes fail.
struct Outage {
    cause: String,
    needs: u64,
    retry: Instant,
}

impl Handle {
    /// Opens the database at `path`, whose folder also gets the reserve.
    pub(super) fn new(path: &Path, open: Open) -> Result<Self, Error> {
        let began = Instant::now();
        let database = open()?;
        let slot = Slot { database: Some(Arc::new(database)), generation: 0, retry: began, took: began.elapsed() };
        Ok(Self {
            path: path.to_owned(),
            open,
            identity: FileIdentity::of(path),
            reserve: Reserve::beside(path),
            slot: Mutex::new(slot),
            outage: Mutex::new(None),
        })
    }

    /// The database, and the generation to name in [`failed`](Self::failed).
    pub(super) fn get(&self) -> Result<(Arc<Database>, u64), Error> {
        let mut slot = self.slot.lock();
        if slot.database.is_none() {
            self.reopen(&mut slot)?;
        }
        match &slot.database {
            Some(database) => Ok((Arc::clone(database), slot.generation)),
            None => Err(self.refusal()),
        }
    }

    /// Whether the path still leads to the file that is open.
    pub(super) fn check_file_identity(&self) -> Result<(), Error> {
        if self.identity.is_none() || self.identity == FileIdentity::of(&self.path) {
            return Ok(());
        }
        Err(Error::Moved(self.path.clone()))
    }

    /// Refuses a change that needs space, for a moment after one has failed.
    pub(super) fn admit(&self, space: Space) -> Result<(), Error> {
        self.check_file_identity()?;
        match (&*self.outage.lock(), space) {
            (Some(outage), Space::Needs(_)) if Instant::now() < outage.retry => Err(self.unwritable(&outage.cause)),
            _ => Ok(()),
        }
    }

    /// Whether changes can be made; where one has failed, tests whether there is space again.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.check_file_identity()?;
        self.get()?;
        let (cause, needs, is_due) = match &mut *self.outage.lock() {
            None => return Ok(()),
            Some(outage) => {
                let is_due = Instant::now() >= outage.retry;
                if is_due {
                    outage.retry = Instant::now() + RETRY_INTERVAL;
                }
                (outage.cause.clone(), outage.needs, is_due)
            }
        };
        if is_due && self.reserve.has_space_for(needs) && self.reserve.restore() {
            self.recovered("there is space");
            return Ok(());
        }
        Err(self.unwritable(&cause))
    }

    /// Notes that a change was made.
    pub(super) fn wrote(&self, space: Space) {
        if self.outage.lock().is_some() {
            // A delete frees pages inside of the file, which the next changes take before the file grows.
            self.recovered(if space == Space::Frees { "items were deleted" } else { "a write succeeded" });
        }
        self.reserve.restore_if_due();
    }

    /// Frees the space that is reserved for deletes; returns whether there was any.
    pub(super) fn release_reserve(&self) -> bool {
        self.reserve.release()
    }

    /// Takes note of an error of the database of that generation, and opens it again where it needs that. Returns the error to
    /// answer with.
    pub(super) fn failed(&self, error: Error, generation: u64, space: Option<Space>) -> Error {
        let Some(cause) = cause_of(&error) else { return error };
        let is_too_large = kind_of(&error) == Some(ErrorKind::FileTooLarge);
        let mut slot = self.slot.lock();
        if let (Some(cause), Some(space)) = (&cause, space) {
            self.note(cause, is_too_large, space, slot.took);
        }
        if slot.generation == generation
            && let Some(database) = slot.database.take()
        {
            slot.generation += 1;
            if let Some(database) = sole_owner(database) {
                drop(database);
                if let Err(error) = self.reopen(&mut slot) {
                    tracing::error!(%error, "the collections' database cannot be opened again yet");
                }
            } else {
                tracing::error!("the collections' database is not opened again: a transaction on it does not end");
            }
        }
        drop(slot);
        match cause {
            Some(cause) if space.is_none() => Error::Unwritable { path: self.path.clone(), cause },
            _ => self.refusal(),
        }
    }

    fn note(&self, cause: &str, is_too_large: bool, space: Space, took: Duration) {
        let grows = if let Space::Needs(bytes) = space { bytes } else { 0 };
        // Where it is the file that may not grow, one beside it has to be able to be what it grows to, which is twice its length.
        let needs = grows + std::fs::metadata(&self.path).map_or(0, |file| if is_too_large { 2 * file.len() } else { 0 });
        let retry = Instant::now() + RETRY_INTERVAL.max(took * OPENING_FACTOR);
        let mut outage = self.outage.lock();
        if let Some(outage) = &mut *outage {
            outage.retry = retry;
            outage.needs = outage.needs.max(needs);
        } else {
            tracing::error!(path = %self.path.display(), cause, "the collections cannot be written");
            *outage = Some(Outage { cause: cause.to_owned(), needs, retry });
        }
    }

    fn recovered(&self, why: &str) {
        if self.outage.lock().take().is_some() {
            tracing::info!(path = %self.path.display(), "the collections are written again: {why}");
        }
    }

    /// Opens the database, unless that was tried a moment ago.
    fn reopen(&self, slot: &mut Slot) -> Result<(), Error> {
        // Another file under the same name holds other collections than those in memory.
        self.check_file_identity()?;
        let now = Instant::now();
        if now < slot.retry {
            return Err(self.refusal());
        }
        let opened = match (self.open)() {
            // Recovery may need a little space itself.
            Err(_) if self.reserve.release() => (self.open)(),
            opened => opened,
        };
        slot.took = now.elapsed();
        match opened {
            Ok(database) => {
                slot.database = Some(Arc::new(database));
                Ok(())
            }
            Err(error) => {
                slot.retry = Instant::now() + RETRY_INTERVAL.max(slot.took * OPENING_FACTOR);
                Err(error)
            }
        }
    }

    /// The error of callers while nothing can be written, or the database cannot be opened.
    fn refusal(&self) -> Error {
        let outage = self.outage.lock();
        self.unwritable(outage.as_ref().map_or("an earlier read or write failed", |outage| &outage.cause))
    }

    fn unwritable(&self, cause: &str) -> Error {
        Error::Unwritable { path: self.path.clone(), cause: cause.to_owned() }
    }
}

/// For an error of the operating system its message, where it is the first one; `None` for any other error.
#[expect(clippy::option_option, reason = "whether it is one, and whether it says why")]
fn cause_of(error: &Error) -> Option<Option<String>> {
    let Error::Database { source, .. } = error else { return None };
    match &**source {
        redb::Error::Io(error) => Some(Some(error.to_string())),
        redb::Error::PreviousIo | redb::Error::DatabaseClosed => Some(None),
        _ => None,
    }
}

fn kind_of(error: &Error) -> Option<ErrorKind> {
    match error {
        Error::Database { source, .. } => match &**source {
            redb::Error::Io(error) => Some(error.kind()),
            _ => None,
        },
        _ => None,
    }
}

/// The database, once no transaction uses it any more; `None` where that takes too long.
fn sole_owner(mut database: Arc<Database>) -> Option<Database> {
    let began = Instant::now();
    loop {
        match Arc::try_unwrap(database) {
            Ok(database) => return Some(database),
            Err(shared) if began.elapsed() < CLOSE_TIMEOUT => database = shared,
            Err(_) => return None,
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
