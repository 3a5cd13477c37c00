//! The store that several servers share: PostgreSQL with the extension pgvector.
//!
//! The database holds everything, and the servers nothing: each of them sees what another has written as soon as that was
//! acknowledged. The items of a collection are a table, above a size with an HNSW index, which the database keeps up to date.
//!
//! | file | what |
//! | --- | --- |
//! | `address`, `database`, `runtime`, `error` | URLs, connections, errors |
//! | `schema`, `migrations/` | the tables |
//! | `record` | collections by name |
//! | `collection`, `write`, `search`, `filter`, `escape` | the items of one |
//! | `patches` | the patches of items |
//! | `sample` | some of its items, and the version of its content |
//! | `damage` | which of its items cannot be read |
//! | `approximate`, `background` | when it gets an index; deleting tables of deleted collections |
//! | `shards/`, `arrangement`, `open` | collections over several databases; which these are; transactions on several of them |

mod address;
mod approximate;
mod arrangement;
mod background;
mod collection;
mod damage;
mod database;
mod error;
mod escape;
mod filter;
mod open;
mod patches;
mod record;
mod runtime;
mod sample;
mod schema;
mod search;
mod shards;
mod write;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tempfile::NamedTempFile;
use tokio_util::sync::CancellationToken;

pub use address::IndexUrl;
pub use collection::PostgresCollection;
pub use shards::ShardedStore;

use self::approximate::Builder;
use self::arrangement::Role;
use self::database::{ATTEMPTS, Database};
use self::open::BEGIN;
use self::record::Record;
use self::runtime::Runtime;
use super::item::{next_part, prepare};
use super::{Collection, CollectionName, Connections, Error, IndexOptions, Info, Items, OnExisting, Spec, Store};
use dino_vision::cancel;

/// Largest dimension of pgvector's `vector`.
const MAX_DIM: usize = 16_000;

/// The collections of a database.
pub struct PostgresStore {
    database: Arc<Database>,
    builder: Arc<Builder>,
    scratch: PathBuf,
}

/// How a database is used.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// When collections get an index, and whether a thread builds it.
    pub index: IndexOptions,
    /// Most connections at once, to each database.
    pub connections: u32,
    /// Longest that one call may take; calls that read or write a whole collection have no limit.
    pub timeout: Duration,
    /// Folder for temporary files of snapshots.
    pub scratch: PathBuf,
}

/// Opens the collections of one database, or of several. They have to answer.
///
/// # Errors
/// Those of [`PostgresStore::open`] and [`ShardedStore::open`].
pub(super) fn open(url: &IndexUrl, options: PostgresOptions) -> Result<Box<dyn Store>, Error> {
    if url.databases()?.len() > 1 {
        return Ok(Box::new(ShardedStore::open(url, options)?));
    }
    Ok(Box::new(PostgresStore::open(url, options)?))
}

/// As [`open`], but where a database does not answer, each later call tries again.
///
/// # Errors
/// As for [`open`], without [`Error::Unreachable`] and [`Error::PartUnreachable`].
pub(super) fn open_when_reachable(url: &IndexUrl, options: PostgresOptions) -> Result<Arc<dyn Store>, Error> {
    if url.databases()?.len() > 1 {
        return Ok(Arc::new(ShardedStore::open_when_reachable(url, options)?));
    }
    Ok(Arc::new(PostgresStore::open_when_reachable(url, options)?))
}

impl PostgresStore {
    /// Connects, and brings the tables to the version of this program.
    ///
    /// # Errors
    /// [`Error::Unreachable`] where no server answers, [`Error::Unsuitable`] for a database that cannot hold collections,
    /// [`Error::InvalidParameter`] for a list of several (see [`ShardedStore`]), and the errors of the database: a wrong password, for example.
    pub fn open(url: &IndexUrl, options: PostgresOptions) -> Result<Self, Error> {
        let store = Self::open_later(url, options)?;
        store.check()?;
        Ok(store)
    }

    /// As [`open`](Self::open), but where no server answers, each later call tries again.
    ///
    /// # Errors
    /// As for [`open`](Self::open), without [`Error::Unreachable`].
    pub fn open_when_reachable(url: &IndexUrl, options: PostgresOptions) -> Result<Self, Error> {
        let store = Self::open_later(url, options)?;
        match store.check() {
            Err(error @ (Error::Unreachable(_) | Error::Slow { .. })) => tracing::warn!("the collections cannot be reached yet: {error}"),
            outcome => outcome?,
        }
        let database = Arc::clone(&store.database);
        store.builder.complete_all(async move || database.run_async(async |connection| Record::all(connection).await).await);
        store.builder.drop_orphaned_tables();
        Ok(store)
    }

    fn open_later(url: &IndexUrl, options: PostgresOptions) -> Result<Self, Error> {
        fs_err::create_dir_all(&options.scratch)?;
        let [database] = <[_; 1]>::try_from(url.databases()?)
            .map_err(|_| Error::InvalidParameter("these are several databases: open them with ShardedStore".to_owned()))?;
        let database =
            Database::new(database, options.connections, options.timeout, &Arc::new(Runtime::new()?), Role::Alone(OnceLock::new()));
        let database = Arc::new(database);
        let builder = Arc::new(Builder::new(Arc::clone(&database), options.index));
        Ok(Self { database, builder, scratch: options.scratch })
    }

    fn collection_of(&self, record: Record) -> Arc<dyn Collection> {
        Arc::new(PostgresCollection::new(Arc::clone(&self.database), Arc::clone(&self.builder), record))
    }
}

fn check_dim(spec: &Spec) -> Result<(), Error> {
    spec.check_dim()?;
    if spec.dim > MAX_DIM {
        return Err(Error::InvalidParameter(format!("pgvector keeps vectors of at most {MAX_DIM} dimensions, not {}", spec.dim)));
    }
    Ok(())
}

/// Builds the index of a collection that was restored, also where the client has left by now.
fn build_after_restore(name: &CollectionName, collection: &dyn Collection) {
    if let Err(error) = cancel::scope(CancellationToken::new(), || collection.build_if_due()) {
        // The collection is there, and is searched without.
        tracing::error!(collection = %name, "its index was not built: {error}");
    }
}

impl Store for PostgresStore {
    fn check(&self) -> Result<(), Error> {
        self.database.runtime().block_on(self.database.check())
    }

    fn connections(&self) -> Option<Connections> {
        Some(self.database.connections())
    }

    fn specs(&self) -> Result<Vec<(CollectionName, Spec)>, Error> {
        let records = self.database.run(async |connection| Record::all(connection).await)?;
        Ok(records.into_iter().map(|record| (record.name, record.spec)).collect())
    }

    fn list(&self) -> Result<Vec<Info>, Error> {
        let listed = self.database.run(async |connection| Record::list(connection).await)?;
        Ok(listed.into_iter().map(|(_, info)| info).collect())
    }

    fn collection(&self, name: &CollectionName) -> Result<Arc<dyn Collection>, Error> {
        let record = self.database.run(async |connection| Record::find(connection, name).await)?;
        Ok(self.collection_of(record.ok_or_else(|| Error::NoCollection(name.to_string()))?))
    }

    fn create(&self, name: &CollectionName, spec: Spec) -> Result<(Arc<dyn Collection>, bool), Error> {
        check_dim(&spec)?;
        let (record, is_new) = self.database.run(async |connection| {
            let mut transaction = connection.begin().await?;
            if let Some(existing) = Record::find(&mut transaction, name).await? {
                // It may have added a column to a table of an older server.
                transaction.commit().await?;
                return Ok((existing, false));
            }
            let record = Record::make(&mut transaction, name, &spec).await?;
            if record.insert(&mut transaction).await? {
                transaction.commit().await?;
                return Ok((record, true));
            }
            // Another server made one of that name meanwhile.
            transaction.rollback().await?;
            let existing = Record::find(connection, name).await?;
            Ok((existing.ok_or_else(|| Error::NoCollection(name.to_string()))?, false))
        })?;
        record.spec.check_same(name, &spec)?;
        Ok((self.collection_of(record), is_new))
    }

    fn create_with(
        &self,
        name: &CollectionName,
        spec: Spec,
        items: &mut Items<'_>,
        existing: OnExisting,
    ) -> Result<Arc<dyn Collection>, Error> {
        check_dim(&spec)?;
        let make = async |connection: &mut PgConnection| {
            let exists = || Error::Exists(name.to_string());
            let mut transaction = connection.begin_with(BEGIN).await?;
            if existing == OnExisting::Refuse && Record::find(&mut transaction, name).await?.is_some() {
                return Err(exists());
            }
            let record = Record::make(&mut transaction, name, &spec).await?;
            loop {
                let part = prepare(next_part(items)?, &spec)?;
                if part.is_empty() {
                    break;
                }
                write::insert(&mut transaction, &record.table(), &spec, &part).await?;
            }
            for _ in 0..ATTEMPTS {
                // The old collection is removed last: it is read and written until then, and transactions that read it go on. Again
                // where another server puts one of that name in its place.
                if existing == OnExisting::Replace {
                    Record::remove(&mut transaction, name).await?;
                }
                if record.insert(&mut transaction).await? {
                    transaction.commit().await?;
                    return Ok(record);
                }
                if existing != OnExisting::Replace {
                    break;
                }
            }
            Err(exists())
        };
        let record = self.database.runtime().block_on(self.database.run_long(make))?;
        if existing == OnExisting::Replace {
            self.builder.drop_orphaned_tables();
        }
        let collection = self.collection_of(record);
        build_after_restore(name, &*collection);
        Ok(collection)
    }

    fn remove(&self, name: &CollectionName) -> Result<(), Error> {
        let removed = self.database.run(async |connection| Record::remove(connection, name).await)?;
        if removed.is_none() {
            return Err(Error::NoCollection(name.to_string()));
        }
        self.builder.drop_orphaned_tables();
        Ok(())
    }

    fn scratch(&self) -> Result<NamedTempFile, Error> {
        Ok(tempfile::Builder::new().prefix(".dino-").tempfile_in(&self.scratch)?)
    }
}
