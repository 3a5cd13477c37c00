//! The patches of collections in memory, each as a request last needed it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;

use super::super::{App, problem::Problem};
use crate::{
    index::{Collection, CollectionName, Error, PatchBank, Version},
    serving::{Panicked, Pool},
};
use dino_vision::segment::ColourBasis;

/// Most collections whose patches are kept. Those of others are read from the store when they are asked for.
const MOST_KEPT: usize = 16;
/// Most memory of all of them together, in bytes. The one that was used last stays, even where it takes more alone.
const MAX_BYTES: usize = 4 << 30;

/// Keeps banks, and brings them up to date on threads of their own: reading a large collection for the first time takes long.
pub(in crate::http) struct PatchBanks {
    threads: Pool,
    kept: Mutex<HashMap<CollectionName, Arc<Entry>>>,
    /// Counts the requests, to tell which bank was used last.
    clock: AtomicU64,
    /// Held while a basis of colours is fitted. Requests for it wait in turn, and hold up no thread.
    fitting: tokio::sync::Mutex<()>,
}

struct Entry {
    number: u64,
    used: AtomicU64,
    /// Memory of the bank, as of when it was last brought up to date.
    bytes: AtomicUsize,
    /// Held while the bank is brought up to date, by a task that no request owns. Requests for it wait in turn, so that each sees what
    /// was stored before it came. Beside it the version of the collection that it holds: the same one need not be looked at again.
    bank: tokio::sync::Mutex<(Arc<PatchBank>, Option<Version>)>,
}

impl PatchBanks {
    /// So many are brought up to date at a time.
    pub(in crate::http) fn new(threads: usize) -> Self {
        Self { threads: Pool::new(threads), kept: Mutex::default(), clock: AtomicU64::new(0), fitting: tokio::sync::Mutex::default() }
    }

    /// Frees the memory of a collection.
    pub(super) fn forget(&self, name: &CollectionName) {
        self.kept.lock().remove(name);
    }

    fn entry(&self, collection: &dyn Collection, empty: PatchBank) -> Arc<Entry> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut kept = self.kept.lock();
        if let Some(entry) = kept.get(collection.name()).filter(|entry| entry.number == empty.number) {
            entry.used.store(now, Ordering::Relaxed);
            return Arc::clone(entry);
        }
        while kept.len() >= MOST_KEPT {
            remove_oldest(&mut kept);
        }
        let number = empty.number;
        let entry = Arc::new(Entry {
            number,
            used: AtomicU64::new(now),
            bytes: AtomicUsize::new(0),
            bank: tokio::sync::Mutex::new((Arc::new(empty), None)),
        });
        kept.insert(collection.name().clone(), Arc::clone(&entry));
        entry
    }

    /// Notes what a bank takes, and frees those that were used least recently, until all together are within the bound.
    fn note(&self, entry: &Entry, bytes: usize) {
        entry.bytes.store(bytes, Ordering::Relaxed);
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

/// The patches of a collection, with all that was stored before this was called. `empty` is a bank for them. Reading goes on where the
/// caller leaves meanwhile: the next one finds more of it done.
pub(in crate::http) async fn of(app: &App, collection: &Arc<dyn Collection>, empty: PatchBank) -> Result<Arc<PatchBank>, Problem> {
    let entry = app.patch_banks.entry(&**collection, empty.clone());
    let renewing = renew(app.clone(), entry, Arc::clone(collection), empty);
    tokio::spawn(renewing).await.map_err(|_| Panicked)?
}

/// The basis of colours of a bank, fitted by the first request for it. Fitting goes on where the caller leaves meanwhile.
pub(in crate::http) async fn colour_basis(app: &App, bank: Arc<PatchBank>) -> Result<Option<Arc<ColourBasis>>, Problem> {
    let app = app.clone();
    let fitting = async move {
        let _turn = app.patch_banks.fitting.lock().await;
        app.patch_banks.threads.run(move || bank.colour_basis()).await
    };
    Ok(tokio::spawn(fitting).await.map_err(|_| Panicked)??)
}

async fn renew(app: App, entry: Arc<Entry>, collection: Arc<dyn Collection>, empty: PatchBank) -> Result<Arc<PatchBank>, Problem> {
    let mut kept = entry.bank.lock().await;
    // Taken out, so that it is changed in place where no request compares with it; an empty one stays should the thread panic.
    let (mut bank, known) = std::mem::replace(&mut *kept, (Arc::new(empty), None));
    let refresh = move || {
        let outcome = brought_up_to_date(&mut bank, known, &*collection);
        (bank, outcome)
    };
    let (bank, outcome) = app.patch_banks.threads.run(refresh).await?;
    *kept = (Arc::clone(&bank), outcome.as_ref().ok().copied());
    app.patch_banks.note(&entry, bank.bytes());
    outcome?;
    Ok(bank)
}

/// Brings a bank of the version `known` up to date, and returns the version that it has then. What is written meanwhile makes that an old
/// one, and the next request looks again.
fn brought_up_to_date(bank: &mut Arc<PatchBank>, known: Option<Version>, collection: &dyn Collection) -> Result<Version, Error> {
    let now = collection.version()?;
    if known != Some(now) {
        PatchBank::refresh(bank, collection)?;
    }
    Ok(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_banks_are_freed_first() {
        let mut kept = HashMap::new();
        for (name, used, bytes) in [("a", 3, 40), ("b", 1, 40), ("c", 2, 40)] {
            let bank = PatchBank::empty(0, 8, 10);
            let entry = Entry {
                number: 0,
                used: AtomicU64::new(used),
                bytes: AtomicUsize::new(bytes),
                bank: tokio::sync::Mutex::new((Arc::new(bank), None)),
            };
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
}
