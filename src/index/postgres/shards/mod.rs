//! Collections over several databases. An item is in the database that a hash of its id names, and what is asked of a collection is asked
//! of all of them.
//!
//! The first database knows which collections there are: a row for each, with the name that its parts have in the other databases. Parts
//! that no row names do not exist for readers. So a collection appears, is replaced and goes by one commit of the first database. Writes
//! are committed in all databases once each of them has done its part; between these commits readers may see some of a body.
//!
//! | file | what |
//! | --- | --- |
//! | `placement` | which database an id belongs to |
//! | `lookup`, `staging`, `leftovers`, `lost` | collections by name; making them; what is left of deleted ones; what the first database lost |
//! | `collection`, `search`, `page`, `export` | the items of one |
//! | `merge` | one answer of those of all databases |

mod collection;
mod export;
mod leftovers;
mod lookup;
mod lost;
mod merge;
mod page;
mod placement;
mod search;
mod staging;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use sqlx::PgConnection;
use tempfile::NamedTempFile;
use tokio::sync::{OnceCell, Semaphore};

use self::collection::ShardedCollection;
use self::staging::Staging;
use super::super::item::{next_part, prepare};
use super::super::{Collection, CollectionName, Connections, DatabaseState, Error, Info, Items, OnExisting, PostgresOptions, Spec, Store};
use super::approximate::Builder;
use super::arrangement::Role;
use super::background::Repeated;
use super::database::Database;
use super::record::Record;
use super::runtime::Runtime;
use super::{IndexUrl, arrangement, build_after_restore, check_dim};
use futures::future::join_all;

/// The collections of several databases.
pub struct ShardedStore {
    shards: Arc<Shards>,
    scratch: PathBuf,
}

/// The databases, in their order.
pub(super) struct Shards {
    runtime: Arc<Runtime>,
    all: Vec<Shard>,
    /// Whether they are those of one arrangement.
    arranged: OnceCell<()>,
    /// Held by work that holds connections to all databases for long: two of them never wait for each other's.
    whole: Semaphore,
    leftovers: Arc<Repeated>,
}

/// One of the databases.
pub(super) struct Shard {
    database: Arc<Database>,
    builder: Arc<Builder>,
}

impl Shard {
    /// What it is called in messages.
    pub(super) fn label(&self) -> &str {
        self.database.label()
    }

    /// Does `work` on it; an error says which database does not answer.
    pub(super) async fn run<T>(&self, work: impl AsyncFn(&mut PgConnection) -> Result<T, Error>) -> Result<T, Error> {
        self.named(self.database.run_async(work).await)
    }

    /// Notes its place.
    pub(super) fn belongs(&self, place: i32, arrangement: &str) {
        self.database.belongs(place, arrangement);
    }

    /// Says which database does not answer.
    fn named<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        outcome.map_err(|error| match error {
            Error::Unreachable(reason) => Error::PartUnreachable { database: self.label().to_owned(), reason },
            Error::Unsuitable(reason) if !reason.starts_with(self.label()) => Error::Unsuitable(format!("{}: {reason}", self.label())),
            Error::Sql(source) => {
                tracing::error!(database = self.label(), "a database of the collections fails: {source}");
                Error::Sql(source)
            }
            other => other,
        })
    }
}

/// What all of them answer, in their order, or the first error. All are waited for: a connection whose statement was not waited for would
/// go back to its pool before that has ended.
pub(super) async fn all<T>(asked: impl IntoIterator<Item = impl Future<Output = Result<T, Error>>>) -> Result<Vec<T>, Error> {
    join_all(asked).await.into_iter().collect()
}

impl Shards {
    /// Refuses databases that are not those of one arrangement, in its order.
    async fn arrange(&self) -> Result<(), Error> {
        if self.arranged.get().is_none() {
            // Callers wait for databases that do not answer side by side; behind the next line they would do it one after another.
            all(self.all.iter().map(|shard| shard.run(async |_| Ok(())))).await?;
        }
        let arrange = || async {
            arrangement::arrange(&self.all).await?;
            self.report_lost().await
        };
        self.arranged.get_or_try_init(arrange).await.copied()
    }

    async fn check(&self) -> Result<(), Error> {
        all(self.all.iter().map(|shard| async { shard.named(shard.database.check().await) })).await?;
        self.arrange().await
    }

    /// Deletes tables of deleted collections.
    fn drop_orphaned_tables(&self) {
        for shard in &self.all {
            shard.builder.drop_orphaned_tables();
        }
    }
}

impl ShardedStore {
    /// Connects, and brings the tables to the version of this program. The first time, the databases note that they belong together.
    ///
    /// # Errors
    /// [`Error::PartUnreachable`] where a server does not answer, [`Error::Unsuitable`] for databases that cannot hold collections
    /// together: others than at the first time, or in another order.
    pub fn open(url: &IndexUrl, options: PostgresOptions) -> Result<Self, Error> {
        let store = Self::open_later(url, options)?;
        store.check()?;
        Ok(store)
    }

    /// As [`open`](Self::open), but where a server does not answer, each later call tries again.
    ///
    /// # Errors
    /// As for [`open`](Self::open), without [`Error::PartUnreachable`].
    pub fn open_when_reachable(url: &IndexUrl, options: PostgresOptions) -> Result<Self, Error> {
        let store = Self::open_later(url, options)?;
        match store.check() {
            Err(error @ (Error::PartUnreachable { .. } | Error::Slow { .. })) => {
                tracing::warn!("the collections cannot be reached yet: {error}");
            }
            outcome => outcome?,
        }
        for (place, shard) in store.shards.all.iter().enumerate() {
            let shards = Arc::clone(&store.shards);
            shard.builder.complete_all(async move || shards.records_at(place).await);
        }
        store.shards.drop_orphaned_tables();
        store.shards.clear_leftovers();
        Ok(store)
    }

    fn open_later(url: &IndexUrl, options: PostgresOptions) -> Result<Self, Error> {
        fs_err::create_dir_all(&options.scratch)?;
        let runtime = Arc::new(Runtime::new()?);
        let shard = |database| {
            let database = Arc::new(Database::new(database, options.connections, options.timeout, &runtime, Role::Part(OnceLock::new())));
            let builder = Arc::new(Builder::new(Arc::clone(&database), options.index));
            Shard { database, builder }
        };
        let shards = Shards {
            all: url.databases()?.into_iter().map(shard).collect(),
            runtime,
            arranged: OnceCell::new(),
            whole: Semaphore::new(options.connections as usize),
            leftovers: Arc::default(),
        };
        Ok(Self { shards: Arc::new(shards), scratch: options.scratch })
    }

    fn collection_of(&self, records: Vec<Record>) -> Arc<dyn Collection> {
        Arc::new(ShardedCollection::new(Arc::clone(&self.shards), records))
    }
}

impl Store for ShardedStore {
    fn check(&self) -> Result<(), Error> {
        self.shards.runtime.block_on(self.shards.check())
    }

    fn connections(&self) -> Option<Connections> {
        let mut all = Connections { reachable: true, busy: 0, idle: 0, failures: 0, databases: Vec::new() };
        for shard in &self.shards.all {
            let Connections { reachable, busy, idle, failures, .. } = shard.database.connections();
            all.reachable &= reachable;
            all.busy += busy;
            all.idle += idle;
            all.failures += failures;
            all.databases.push(DatabaseState { database: Arc::clone(shard.database.label()), reachable });
        }
        Some(all)
    }

    fn specs(&self) -> Result<Vec<(CollectionName, Spec)>, Error> {
        let records = self.shards.runtime.block_on(self.shards.records())?;
        Ok(records.into_iter().map(|record| (record.name, record.spec)).collect())
    }

    fn list(&self) -> Result<Vec<Info>, Error> {
        self.shards.runtime.block_on(self.shards.list())
    }

    fn collection(&self, name: &CollectionName) -> Result<Arc<dyn Collection>, Error> {
        let records = self.shards.runtime.block_on(self.shards.find(name))?;
        Ok(self.collection_of(records.ok_or_else(|| Error::NoCollection(name.to_string()))?))
    }

    fn create(&self, name: &CollectionName, spec: Spec) -> Result<(Arc<dyn Collection>, bool), Error> {
        check_dim(&spec)?;
        let find = || self.shards.runtime.block_on(self.shards.find(name));
        let (records, is_new) = if let Some(existing) = find()? {
            (existing, false)
        } else {
            let limit = Some(self.shards.all[0].database.timeout());
            let made = self.shards.runtime.block_on(async {
                let _whole = self.shards.whole().await?;
                Staging::begin(&self.shards, name, &spec, limit).await?.finish(OnExisting::Refuse).await
            });
            self.shards.clear_leftovers();
            match made? {
                Some(records) => (records, true),
                // Another server made one of that name meanwhile.
                None => (find()?.ok_or_else(|| Error::NoCollection(name.to_string()))?, false),
            }
        };
        records[0].spec.check_same(name, &spec)?;
        Ok((self.collection_of(records), is_new))
    }

    fn create_with(
        &self,
        name: &CollectionName,
        spec: Spec,
        items: &mut Items<'_>,
        existing: OnExisting,
    ) -> Result<Arc<dyn Collection>, Error> {
        check_dim(&spec)?;
        let made = self.shards.runtime.block_on(async {
            let exists = || Error::Exists(name.to_string());
            if existing == OnExisting::Refuse && self.shards.find(name).await?.is_some() {
                return Err(exists());
            }
            let _whole = self.shards.whole().await?;
            let mut staging = Staging::begin(&self.shards, name, &spec, None).await?;
            loop {
                let part = prepare(next_part(items)?, &spec)?;
                if part.is_empty() {
                    break;
                }
                staging.store(&spec, part).await?;
            }
            let made = staging.finish(existing).await?.ok_or_else(exists)?;
            if existing == OnExisting::Replace
                && let Err(error) = self.shards.give_up(name).await
            {
                // It is noticed again at the next start.
                tracing::error!(collection = %name, "what an older backup left of it stays for now: {error}");
            }
            Ok(made)
        });
        self.shards.clear_leftovers();
        let collection = self.collection_of(made?);
        build_after_restore(name, &*collection);
        Ok(collection)
    }

    fn remove(&self, name: &CollectionName) -> Result<(), Error> {
        let removed = self.shards.runtime.block_on(self.shards.remove(name));
        // Also after an error: it may have come too late to stop it.
        self.shards.clear_leftovers();
        if removed? { Ok(()) } else { Err(Error::NoCollection(name.to_string())) }
    }

    fn scratch(&self) -> Result<NamedTempFile, Error> {
        Ok(tempfile::Builder::new().prefix(".dino-").tempfile_in(&self.scratch)?)
    }
}
