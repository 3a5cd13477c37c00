//! The patches of collections in memory, each as a request last needed it.

use std::{
    collections::HashMap,
    convert,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::{Condvar, Mutex};

use super::super::{App, problem::Problem};
use crate::{
    index::{Collection, CollectionName, PatchBank, Version},
    serving::{Panicked, Pool},
};
use dino_vision::segment::ColourBasis;

/// Most collections whose patches are kept. Those of others are read from the store when they are asked for.
const MOST_KEPT: usize = 16;
/// Most memory of all of them together, in bytes. The one that was used last stays, even where it takes more alone.
const MAX_BYTES: usize = 4 << 30;
/// How long a thread that could compute waits for a bank that is just being changed. Adding a picture is done within that; reading all of
/// a collection takes longer, and keeps no thread from other work.
const CHANGING: Duration = Duration::from_secs(1);

/// Keeps banks, and brings them up to date on threads of their own: reading a large collection for the first time takes long.
pub(in crate::http) struct PatchBanks {
    threads: Pool,
    kept: Mutex<HashMap<CollectionName, Arc<Entry>>>,
    /// Counts the requests, to tell which bank was used last.
    clock: AtomicU64,
    /// Times that all patches of a collection were read.
    rebuilds: AtomicU64,
}

/// What all banks in memory take together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::http) struct Held {
    pub(in crate::http) banks: usize,
    pub(in crate::http) patches: usize,
    pub(in crate::http) bytes: usize,
}

struct Entry {
    number: u64,
    used: AtomicU64,
    /// Memory of the bank, as of when it was last brought up to date.
    bytes: AtomicUsize,
    /// Patches that it holds, as of then.
    patches: AtomicUsize,
    /// Held while the bank is brought up to date, by a task that no request owns. Requests for it wait in turn, so that each sees what
    /// was stored before it came.
    turn: tokio::sync::Mutex<Progress>,
    /// The bank with all that was stored when it was last brought up to date; none while it is changed, and where that failed. Who takes
    /// it has it copied by the next change, so it is taken by what compares with it, and not by what waits.
    ready: Mutex<Option<Arc<PatchBank>>>,
    /// Told when it is there again.
    is_ready: Condvar,
    /// Held while a basis of colours is fitted. Requests for it wait in turn, and hold up no thread.
    fitting: tokio::sync::Mutex<()>,
}

/// How far a bank is that is not ready.
#[derive(Default)]
struct Progress {
    /// The version of the collection that the bank holds: the same one need not be looked at again.
    version: Option<Version>,
    /// What was read before an error.
    unfinished: Option<Arc<PatchBank>>,
}

impl Entry {
    fn new(number: u64, used: u64) -> Self {
        Self {
            number,
            used: AtomicU64::new(used),
            bytes: AtomicUsize::new(0),
            patches: AtomicUsize::new(0),
            turn: tokio::sync::Mutex::default(),
            ready: Mutex::default(),
            is_ready: Condvar::new(),
            fitting: tokio::sync::Mutex::default(),
        }
    }

    /// The bank, where it is ready within `patience`. Blocks.
    fn wait(&self, patience: Duration) -> Option<Arc<PatchBank>> {
        let mut ready = self.ready.lock();
        self.is_ready.wait_while_for(&mut ready, |ready| ready.is_none(), patience);
        ready.clone()
    }
}

impl PatchBanks {
    /// So many are brought up to date at a time.
    pub(in crate::http) fn new(threads: usize) -> Self {
        Self { threads: Pool::new(threads), kept: Mutex::default(), clock: AtomicU64::new(0), rebuilds: AtomicU64::new(0) }
    }

    /// What is in memory now.
    pub(in crate::http) fn held(&self) -> Held {
        let add = |held: Held, entry: &Arc<Entry>| Held {
            banks: held.banks + 1,
            patches: held.patches + entry.patches.load(Ordering::Relaxed),
            bytes: held.bytes + entry.bytes.load(Ordering::Relaxed),
        };
        self.kept.lock().values().fold(Held::default(), add)
    }

    /// Times that all patches of a collection were read from the store.
    pub(in crate::http) fn rebuilds(&self) -> u64 {
        self.rebuilds.load(Ordering::Relaxed)
    }

    /// Frees the memory of a collection.
    pub(super) fn forget(&self, name: &CollectionName) {
        self.kept.lock().remove(name);
    }

    fn entry(&self, collection: &dyn Collection, number: u64) -> Arc<Entry> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut kept = self.kept.lock();
        if let Some(entry) = kept.get(collection.name()).filter(|entry| entry.number == number) {
            entry.used.store(now, Ordering::Relaxed);
            return Arc::clone(entry);
        }
        while kept.len() >= MOST_KEPT {
            remove_oldest(&mut kept);
        }
        let entry = Arc::new(Entry::new(number, now));
        kept.insert(collection.name().clone(), Arc::clone(&entry));
        entry
    }

    /// Notes what a bank takes, and frees those that were used least recently, until all together are within the bound.
    fn note(&self, entry: &Entry, bank: &PatchBank) {
        entry.bytes.store(bank.bytes(), Ordering::Relaxed);
        entry.patches.store(bank.patches(), Ordering::Relaxed);
        trim(&mut self.kept.lock(), MAX_BYTES);
    }
}

/// Removes entries, the least recently used first, until they take `most` bytes or one is left.
fn trim(kept: &mut HashMap<CollectionName, Arc<Entry>>, most: usize) {
    while kept.len() > 1 && kept.values().map(|entry| entry.bytes.load(Ordering::Relaxed)).sum::<usize>() > most {
        remove_oldest(kept);
    }
}

fn remove_oldest(kept: &mut HashMap<CollectionName, Arc<Entry>>) {
    let oldest = kept.iter().min_by_key(|(_, entry)| entry.used.load(Ordering::Relaxed)).map(|(name, _)| name.clone());
    if let Some(oldest) = oldest {
        kept.remove(&oldest);
    }
}

/// The patches of a collection, with all that was stored before they were asked for. It holds no bank while it waits for its turn to
/// compute, unless it found none there once.
pub(in crate::http) struct Ready {
    entry: Arc<Entry>,
    collection: Arc<dyn Collection>,
    empty: PatchBank,
}

/// Brings the patches of a collection up to date. `empty` is a bank for them. Reading goes on where the caller leaves meanwhile: the next
/// one finds more of it done.
pub(in crate::http) async fn ready(app: &App, collection: &Arc<dyn Collection>, empty: PatchBank) -> Result<Ready, Problem> {
    let entry = app.patch_banks.entry(&**collection, empty.number);
    let ready = Ready { entry, collection: Arc::clone(collection), empty };
    ready.renew(app, drop).await?;
    Ok(ready)
}

impl Ready {
    /// What `take` takes of the bank, which is brought up to date in a task that goes on without the caller.
    async fn renew<T: Send + 'static>(&self, app: &App, take: fn(Arc<PatchBank>) -> T) -> Result<T, Problem> {
        let renewing = renew(app.clone(), Arc::clone(&self.entry), Arc::clone(&self.collection), self.empty.clone());
        tokio::spawn(async move { renewing.await.map(take) }).await.map_err(|_| Panicked)?
    }

    /// Runs `work` with the bank where masks and maps are drawn, once it is its turn.
    pub(in crate::http) async fn draw<T, F>(self, app: &App, work: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: FnOnce(Arc<PatchBank>) -> T + Send + 'static,
    {
        self.run(app, &app.drawing, CHANGING, work).await
    }

    /// Runs `work` with the bank on one of `threads`, which waits so long for a bank that is just being changed.
    async fn run<T, F>(&self, app: &App, threads: &Pool, patience: Duration, work: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: FnOnce(Arc<PatchBank>) -> T + Send + 'static,
    {
        let entry = Arc::clone(&self.entry);
        let outcome = threads.run(move || match entry.wait(patience) {
            Some(bank) => ControlFlow::Break(work(bank)),
            None => ControlFlow::Continue(work),
        });
        match outcome.await? {
            ControlFlow::Break(done) => Ok(done),
            // It keeps the one that it gets now: requests that change it could take it from each other without end.
            ControlFlow::Continue(work) => {
                let bank = self.renew(app, convert::identity).await?;
                Ok(threads.run(move || work(bank)).await?)
            }
        }
    }
}

/// The basis of colours of a bank, fitted by the first request for it. Fitting goes on where the caller leaves meanwhile.
pub(in crate::http) async fn colour_basis(app: &App, ready: Ready) -> Result<Option<Arc<ColourBasis>>, Problem> {
    let app = app.clone();
    let fitting = async move {
        let _turn = ready.entry.fitting.lock().await;
        // The threads that change banks: one that waited for a change would keep it from being made.
        ready.run(&app, &app.patch_banks.threads, Duration::ZERO, |bank| bank.colour_basis()).await
    };
    tokio::spawn(fitting).await.map_err(|_| Panicked)?
}

async fn renew(app: App, entry: Arc<Entry>, collection: Arc<dyn Collection>, empty: PatchBank) -> Result<Arc<PatchBank>, Problem> {
    let mut turn = entry.turn.lock().await;
    let asked = Arc::clone(&collection);
    // What is written from here on makes that an old version, and the next request looks again.
    let now = app.patch_banks.threads.run(move || asked.version()).await??;
    let standing = entry.ready.lock().clone();
    if let Some(bank) = standing.filter(|_| turn.version == Some(now)) {
        return Ok(bank);
    }
    // Taken out, so that it is changed in place where no request compares with it. Should the thread panic, the next one begins anew.
    turn.version = None;
    let unfinished = turn.unfinished.take();
    let mut bank = entry.ready.lock().take().or(unfinished).unwrap_or_else(|| Arc::new(empty));
    let refresh = move || {
        let outcome = PatchBank::refresh(&mut bank, &*collection);
        (bank, outcome)
    };
    let (bank, outcome) = app.patch_banks.threads.run(refresh).await?;
    app.patch_banks.note(&entry, &bank);
    match outcome {
        Ok(has_read_all) => {
            app.patch_banks.rebuilds.fetch_add(u64::from(has_read_all), Ordering::Relaxed);
            turn.version = Some(now);
            *entry.ready.lock() = Some(Arc::clone(&bank));
            entry.is_ready.notify_all();
            Ok(bank)
        }
        Err(error) => {
            turn.unfinished = Some(bank);
            Err(error.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_banks_are_freed_first() {
        let mut kept = HashMap::new();
        for (name, used, bytes) in [("a", 3, 40), ("b", 1, 40), ("c", 2, 40)] {
            let entry = Entry::new(0, used);
            entry.bytes.store(bytes, Ordering::Relaxed);
            kept.insert(name.parse::<CollectionName>().unwrap(), Arc::new(entry));
        }
        let names = |kept: &HashMap<CollectionName, Arc<Entry>>| {
            let mut names: Vec<String> = kept.keys().map(ToString::to_string).collect();
            names.sort();
            names
        };
        trim(&mut kept, 120);
        assert_eq!(names(&kept), ["a", "b", "c"]);
        trim(&mut kept, 100);
        assert_eq!(names(&kept), ["a", "c"]);
        trim(&mut kept, 10);
        assert_eq!(names(&kept), ["a"]);
    }

    #[test]
    fn work_waits_for_a_bank_that_is_changed_and_not_for_ever() {
        let entry = Arc::new(Entry::new(7, 0));
        assert!(entry.wait(Duration::ZERO).is_none());
        let bank = Arc::new(PatchBank::empty(7, 8, 10));
        let waits = Arc::clone(&entry);
        let waiting = std::thread::spawn(move || waits.wait(Duration::from_mins(1)));
        *entry.ready.lock() = Some(Arc::clone(&bank));
        entry.is_ready.notify_all();
        assert!(Arc::ptr_eq(&waiting.join().unwrap().unwrap(), &bank));
        // Nobody else has it then: the next change makes no copy.
        assert_eq!(Arc::strong_count(&bank), 2);
    }
}
