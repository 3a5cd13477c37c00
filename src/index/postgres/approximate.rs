//! When a collection gets an HNSW index, and how it is built beside running searches and writes.
//!
//! Small collections have none: they are scanned, and exact. Once there is one, the database keeps it up to date. The tables of
//! deleted collections are deleted here too.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use sqlx::{AssertSqlSafe, PgConnection};

use super::super::{Error, IndexOptions};
use super::background::{OnDrop, Repeated, spawn};
use super::damage;
use super::database::Database;
use super::error::is_passing;
use super::record::{Record, drop_orphans};

/// Most dimensions of pgvector's HNSW index over `vector`. Larger ones are always scanned.
const MAX_DIM: usize = 2000;
/// Neighbours of a node, and width of the search while it is inserted: pgvector's defaults are 16 and 64. The wider search
/// costs time to build alone.
const PARAMETERS: &str = "m = 16, ef_construction = 128";
/// First half of the lock that is held while a collection's index is built; the second is the collection.
const LOCK: i32 = 0x6469_6e6f;
/// What the thread does, for its errors in the log.
const BUILDING: &str = "building an index";
/// Part of the threshold that this server writes to a collection before it counts its items again.
const LOOKS: usize = 8;

/// Builds indexes, and deletes tables of deleted collections.
pub(super) struct Builder {
    database: Arc<Database>,
    options: IndexOptions,
    /// Items written to each collection, by number, since its size was last looked at.
    written: Mutex<HashMap<i64, usize>>,
    /// Numbers of the collections that a thread checks.
    looked_at: Mutex<HashSet<i64>>,
    /// Builds those that were due at the start.
    completing: Arc<Repeated>,
    /// Deletes tables.
    dropping: Arc<Repeated>,
}

impl Builder {
    pub(super) fn new(database: Arc<Database>, options: IndexOptions) -> Self {
        Self {
            database,
            options,
            written: Mutex::default(),
            looked_at: Mutex::default(),
            completing: Arc::default(),
            dropping: Arc::default(),
        }
    }

    /// Notes that so many items were written, and starts a thread now and then that builds an index where one is due.
    pub(super) fn note(self: &Arc<Self>, record: &Record, items: usize) {
        if record.indexed || record.spec.dim > MAX_DIM || !self.options.build_in_background {
            return;
        }
        {
            let mut written = self.written.lock();
            let since = written.entry(record.number).or_default();
            *since += items;
            if *since <= self.options.exact_below / LOOKS {
                return;
            }
            *since = 0;
        }
        if !self.looked_at.lock().insert(record.number) {
            return;
        }
        let (builder, record) = (Arc::clone(self), record.clone());
        let number = record.number;
        let started = spawn(BUILDING, move || {
            let _end = OnDrop(|| {
                builder.looked_at.lock().remove(&record.number);
            });
            builder.block_on(builder.build_if_due(&record))
        });
        if !started {
            self.looked_at.lock().remove(&number);
        }
    }

    /// Makes a thread delete the tables of deleted collections once no transaction uses them any more: the one that runs already, where
    /// there is one.
    pub(super) fn drop_orphaned_tables(self: &Arc<Self>) {
        let builder = Arc::clone(self);
        self.dropping.ask("deleting tables of deleted collections", move || {
            match builder.block_on(builder.database.run_in_background(async |connection| drop_orphans(connection).await)) {
                Err(error) if is_passing(&error) => Ok(false),
                outcome => outcome,
            }
        });
    }

    /// Starts a thread that builds the indexes that collections of earlier versions lack, and then every HNSW index that is due, which
    /// may take hours. A collection whose index cannot be built holds up no other one. `records` asks for the collections, until the
    /// database answers.
    pub(super) fn complete_all(self: &Arc<Self>, records: impl AsyncFn() -> Result<Vec<Record>, Error> + Send + 'static) {
        let builder = Arc::clone(self);
        let work = async move || {
            let records = match records().await {
                Err(error) if is_passing(&error) => return Ok(false),
                records => records?,
            };
            for record in records.iter().filter(|record| !record.names_damaged) {
                log_failure(record, builder.build(record, &record.damaged_index(), &damage::index_over(record)).await);
            }
            for record in &records {
                log_failure(record, builder.build_if_due(record).await);
            }
            Ok(true)
        };
        let builder = Arc::clone(self);
        self.completing.ask(BUILDING, move || builder.block_on(work()));
    }

    /// Builds an index where the collection has outgrown exact search and has none.
    pub(super) async fn build_if_due(&self, record: &Record) -> Result<(), Error> {
        if record.spec.dim > MAX_DIM || !self.has_outgrown(record).await? {
            return Ok(());
        }
        let definition = format!("ON {} USING hnsw (embedding vector_ip_ops) WITH ({PARAMETERS})", record.table());
        self.build(record, &record.index(), &definition).await
    }

    fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.database.runtime().block_on(work)
    }

    /// Builds an index of a collection, unless it is there or another server builds one.
    async fn build(&self, record: &Record, index: &str, definition: &str) -> Result<(), Error> {
        let start = Instant::now();
        let build = async |connection: &mut PgConnection| {
            // One builder is enough; the lock goes with the connection.
            let lock = sqlx::query_scalar("SELECT pg_try_advisory_lock($1, $2)").bind(LOCK).bind(record.number as i32);
            Ok(lock.fetch_one(&mut *connection).await?
                && build(connection, index, definition).await.map_err(|error| record.explain(error))?)
        };
        if self.database.run_build(build).await? {
            let (database, seconds) = (&**self.database.label(), start.elapsed().as_secs_f32());
            tracing::info!(collection = %record.name, database, index, seconds, "index built");
        }
        Ok(())
    }

    async fn has_outgrown(&self, record: &Record) -> Result<bool, Error> {
        // One more is counted.
        let most = i64::try_from(self.options.exact_below).unwrap_or(i64::MAX).min(i64::MAX - 1);
        let sql = format!("SELECT count(*) >= $1 AND count(*) > 0 FROM (SELECT FROM {} LIMIT $1 + 1) AS first", record.table());
        let count = async |connection: &mut PgConnection| {
            let outgrown = sqlx::query_scalar(AssertSqlSafe(sql.clone())).bind(most).fetch_one(connection).await;
            outgrown.map_err(|error| record.explain(error.into()))
        };
        self.database.run_async(count).await
    }
}

/// Says in the log where the index of a collection was not built.
fn log_failure(record: &Record, outcome: Result<(), Error>) {
    match outcome {
        // It was deleted meanwhile.
        Ok(()) | Err(Error::NoCollection(_)) => {}
        Err(error) => tracing::error!(collection = %record.name, "{BUILDING}: {error}"),
    }
}

/// Builds an index; false where it is there.
async fn build(connection: &mut PgConnection, index: &str, definition: &str) -> Result<bool, Error> {
    let valid: Option<bool> = sqlx::query_scalar("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)")
        .bind(index)
        .fetch_optional(&mut *connection)
        .await?;
    if valid == Some(true) {
        return Ok(false);
    }
    // An unfinished index of a build that broke off is not used, and its name is taken.
    for sql in [format!("DROP INDEX CONCURRENTLY IF EXISTS {index}"), format!("CREATE INDEX CONCURRENTLY {index} {definition}")] {
        sqlx::query(AssertSqlSafe(sql)).execute(&mut *connection).await?;
    }
    Ok(true)
}
