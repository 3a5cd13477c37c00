//! The store that several servers share: PostgreSQL with the extension pgvector.
//!
//! The database holds everything, and the servers nothing: each of them sees what another has written as soon as that was
//! acknowledged. The items of a collection are a table, above a size with an HNSW index, which the database keeps up to date.
//!
//! | file | what |
//! | --- | --- |
//! | `address`, `database`, `error` | URL, connections, errors |
//! | `schema`, `migrations/` | the tables |
//! | `record` | collections by name |
//! | `collection`, `write`, `search`, `filter`, `escape` | the items of one |
//! | `patches` | the patches of items |
//! | `sample` | some of its items, and the version of its content |
//! | `damage` | which of its items cannot be read |
//! | `approximate` | when it gets an index; deleting tables of deleted collections |

mod address;
mod approximate;
mod collection;
mod damage;
mod database;
mod error;
mod escape;
mod filter;
mod patches;
mod record;
mod sample;
mod schema;
mod search;
mod write;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Connection;
use tempfile::NamedTempFile;

pub use address::IndexUrl;
pub use collection::PostgresCollection;

use self::approximate::Builder;
use self::database::Database;
use self::record::Record;
use super::item::{next_part, prepare};
use super::{Collection, CollectionName, Connections, Error, IndexOptions, Info, Items, OnExisting, Spec, Store};

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
    /// Most connections at once.
    pub connections: u32,
    /// Longest that one call may take; calls that read or write a whole collection have no limit.
    pub timeout: Duration,
    /// Folder for temporary files of snapshots.
    pub scratch: PathBuf,
}

impl PostgresStore {
    /// Connects, and brings the tables to the version of this program.
    ///
    /// # Errors
    /// [`Error::Unreachable`] where no server answers, [`Error::Unsuitable`] for a database that cannot hold collections, and
    /// the errors of the database: a wrong password, for example.
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
            Err(Error::Unreachable(reason)) => tracing::warn!("the database of the collections cannot be reached yet: {reason}"),
            outcome => outcome?,
        }
        store.builder.complete_all();
        store.builder.drop_orphaned_tables();
        Ok(store)
    }

    fn open_later(url: &IndexUrl, options: PostgresOptions) -> Result<Self, Error> {
        fs_err::create_dir_all(&options.scratch)?;
        let database = Arc::new(Database::new(url, options.connections, options.timeout)?);
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

impl Store for PostgresStore {
    fn check(&self) -> Result<(), Error> {
        self.database.check()
    }

    fn connections(&self) -> Option<Connections> {
        Some(self.database.connections())
    }

    fn specs(&self) -> Result<Vec<(CollectionName, Spec)>, Error> {
        let records = self.database.run(async |connection| Record::all(connection).await)?;
        Ok(records.into_iter().map(|record| (record.name, record.spec)).collect())
    }

    fn list(&self) -> Result<Vec<Info>, Error> {
        self.database.run(async |connection| Record::list(connection).await)
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
        let record = self.database.run_long(async |connection| {
            let exists = || Error::Exists(name.to_string());
            let mut transaction = connection.begin().await?;
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
            // The old collection is removed last: it is read and written until then, and transactions that read it go on.
            if existing == OnExisting::Replace {
                Record::remove(&mut transaction, name).await?;
            }
            if !record.insert(&mut transaction).await? {
                return Err(exists());
            }
            transaction.commit().await?;
            Ok(record)
        })?;
        if existing == OnExisting::Replace {
            self.builder.drop_orphaned_tables();
        }
        let collection = self.collection_of(record);
        if let Err(error) = collection.build_if_due() {
            // The collection is there, and is searched without.
            tracing::error!(collection = %name, "its index was not built: {error}");
        }
        Ok(collection)
    }

    fn remove(&self, name: &CollectionName) -> Result<(), Error> {
        let existed = self.database.run(async |connection| Record::remove(connection, name).await)?;
        if !existed {
            return Err(Error::NoCollection(name.to_string()));
        }
        self.builder.drop_orphaned_tables();
        Ok(())
    }

    fn scratch(&self) -> Result<NamedTempFile, Error> {
        Ok(tempfile::Builder::new().prefix(".dino-").tempfile_in(&self.scratch)?)
    }
}
