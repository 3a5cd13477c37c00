//! The items of one collection.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures::TryStreamExt;
use sqlx::{AssertSqlSafe, PgConnection, Postgres, QueryBuilder, Row};

use super::super::item::{NewItem, StoredItem, prepare};
use super::super::page::{PageBuilder, check_page};
use super::super::recall::RecallCounter;
use super::super::store::{Visit, VisitVector, no_item};
use super::super::{
    Attached, Collection, CollectionName, Damaged, Error, Filter, Info, Neighbour, Page, Recall, Sample, Search, Spec, StoredPatches,
    Version,
};
use super::approximate::Builder;
use super::database::Database;
use super::escape::{from_stored, to_stored};
use super::filter::{label_forms, push_where};
use super::patches::{patches, stamps};
use super::record::Record;
use super::sample::{sample, version};
use super::search::{ITEM, item, search};
use super::write;
use dino_vision::cancel::{self, Cancelled};
use dino_vision::unicode::nfc;

/// A collection of a [`PostgresStore`](super::PostgresStore), as of the moment when it was looked up.
pub struct PostgresCollection {
    database: Arc<Database>,
    builder: Arc<Builder>,
    record: Record,
    /// Whether other databases hold the rest of it.
    is_part: bool,
}

impl PostgresCollection {
    pub(super) fn new(database: Arc<Database>, builder: Arc<Builder>, record: Record) -> Self {
        Self { database, builder, record, is_part: false }
    }

    /// What this database holds of a collection that several hold.
    pub(super) fn part(database: Arc<Database>, builder: Arc<Builder>, record: Record) -> Self {
        Self { database, builder, record, is_part: true }
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// Notes that so many items were written.
    pub(super) fn note(&self, items: usize) {
        self.builder.note(&self.record, items);
    }

    /// Reads from the collection's table; where that was replaced meanwhile by another of the same model, from that one, unless it is a
    /// part: then all parts have to be replaced together. Ends when the request is cancelled.
    pub(super) async fn read<T>(&self, work: impl AsyncFn(&mut PgConnection, &Record) -> Result<T, Error>) -> Result<T, Error> {
        let token = cancel::current();
        let read = async |connection: &mut PgConnection| match work(&mut *connection, &self.record)
            .await
            .map_err(|error| self.record.explain(error))
        {
            Err(Error::NoCollection(name)) if !self.is_part => match Record::find(&mut *connection, &self.record.name).await? {
                Some(successor) if successor.number != self.record.number => {
                    successor.spec.check_same(&self.record.name, &self.record.spec)?;
                    work(connection, &successor).await.map_err(|error| successor.explain(error))
                }
                _ => Err(Error::NoCollection(name)),
            },
            outcome => outcome,
        };
        let read = async |connection: &mut PgConnection| {
            let read = token.run_until_cancelled(read(connection)).await;
            read.unwrap_or_else(|| Err(Cancelled.into()))
        };
        self.database.run_async(read).await
    }

    /// [`read`](Self::read) for a thread that may block.
    fn ask<T>(&self, work: impl AsyncFn(&mut PgConnection, &Record) -> Result<T, Error>) -> Result<T, Error> {
        self.block_on(self.read(work))
    }

    fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.database.runtime().block_on(work)
    }

    /// Source of each item, by id.
    pub(super) async fn read_sources(&self) -> Result<HashMap<String, Option<String>>, Error> {
        let read = async |connection: &mut PgConnection| {
            let sql = format!("SELECT id, source FROM {}", self.record.table());
            let mut rows = sqlx::query_as::<_, (String, Option<String>)>(AssertSqlSafe(sql)).fetch(connection);
            let mut sources = HashMap::new();
            while let Some((id, source)) = rows.try_next().await.map_err(|error| self.record.explain(error.into()))? {
                sources.insert(from_stored(id), source.map(from_stored));
            }
            Ok(sources)
        };
        self.database.run_long(read).await
    }

    /// [`Collection::build_if_due`] for a thread that waits for several.
    pub(super) async fn build_index_if_due(&self) -> Result<(), Error> {
        self.builder.build_if_due(&self.record).await
    }

    /// Writes to the collection's table, and never to that of a successor.
    fn write<T>(&self, work: impl AsyncFn(&mut PgConnection, &str) -> Result<T, Error>) -> Result<T, Error> {
        let table = self.record.table();
        self.database.run(async |connection| work(connection, &table).await.map_err(|error| self.record.explain(error)))
    }
}

impl Collection for PostgresCollection {
    fn name(&self) -> &CollectionName {
        &self.record.name
    }

    fn spec(&self) -> &Spec {
        &self.record.spec
    }

    fn number(&self) -> u64 {
        self.record.number.cast_unsigned()
    }

    fn info(&self) -> Result<Info, Error> {
        self.ask(async |connection, record| record.info(connection).await)
    }

    fn upsert(&self, items: Vec<NewItem>) -> Result<(), Error> {
        let spec = &self.record.spec;
        let items = prepare(items, spec)?;
        if items.is_empty() {
            return Ok(());
        }
        self.write(async |connection, table| write::insert(connection, table, spec, &items).await)?;
        self.note(items.len());
        Ok(())
    }

    fn delete(&self, id: &str) -> Result<(), Error> {
        let stored = to_stored(id);
        let deleted = self.write(async |connection, table| {
            let sql = format!("DELETE FROM {table} WHERE id = $1");
            Ok(sqlx::query(AssertSqlSafe(sql)).bind(&*stored).execute(connection).await?.rows_affected())
        })?;
        if deleted == 0 { Err(no_item(&self.record.name, id)) } else { Ok(()) }
    }

    fn delete_where(&self, filter: &Filter) -> Result<usize, Error> {
        let deleted = self.write(async |connection, table| {
            let mut sql = QueryBuilder::<Postgres>::new(format!("DELETE FROM {table}"));
            push_where(&mut sql, Some(filter));
            Ok(sql.build().execute(connection).await?.rows_affected())
        })?;
        Ok(deleted as usize)
    }

    fn get(&self, id: &str) -> Result<StoredItem, Error> {
        let stored = to_stored(id);
        let found = self.ask(async |connection, record| {
            let sql = format!("SELECT {ITEM}, embedding::real[] AS vector FROM {} WHERE id = $1", record.table());
            let row = sqlx::query(AssertSqlSafe(sql)).bind(&*stored).fetch_optional(connection).await?;
            row.map(|row| Ok(StoredItem { item: item(&row)?, vector: row.try_get("vector")? })).transpose()
        })?;
        found.ok_or_else(|| no_item(&self.record.name, id))
    }

    fn thumbnail(&self, id: &str) -> Result<Vec<u8>, Error> {
        let stored = to_stored(id);
        let found: Option<Vec<u8>> = self.ask(async |connection, record| {
            let sql = format!("SELECT picture FROM {} WHERE id = $1", record.table());
            Ok(sqlx::query_scalar(AssertSqlSafe(sql)).bind(&*stored).fetch_optional(connection).await?.flatten())
        })?;
        found.ok_or_else(|| no_item(&self.record.name, id))
    }

    fn page(&self, after: Option<&str>, limit: usize) -> Result<Page, Error> {
        check_page(limit)?;
        // Ids have at least one byte, so that all of them come after the empty one.
        let after = to_stored(after.unwrap_or_default());
        self.ask(async |connection, record| {
            let sql = format!("SELECT {ITEM} FROM {} WHERE id > $1 ORDER BY id LIMIT $2", record.table());
            let mut rows = sqlx::query(AssertSqlSafe(sql)).bind(&*after).bind(limit as i64 + 1).fetch(connection);
            let (mut page, mut read, mut last) = (PageBuilder::new(limit), 0, None);
            // Row by row: memory holds what is on the page, not all that was asked for.
            while let Some(row) = rows.try_next().await? {
                read += 1;
                if read > limit {
                    last = Some(from_stored(row.try_get("id")?));
                }
                match item(&row) {
                    Err(Error::DamagedItem { id, reason }) => tracing::error!(id, "an item is damaged and left out: {reason}"),
                    item => {
                        if !page.add(item?) {
                            return Ok(page.end());
                        }
                    }
                }
            }
            let mut page = page.end();
            // One more than asked for was read, and one of them left out: there may be further ones.
            page.next = last.or(page.next);
            Ok(page)
        })
    }

    fn sources(&self) -> Result<HashMap<String, Option<String>>, Error> {
        self.block_on(self.read_sources())
    }

    fn search(&self, query: &[f32], options: &Search<'_>) -> Result<Vec<Neighbour>, Error> {
        let query = options.prepare(query, self.record.spec.dim)?;
        self.ask(async |connection, record| search(connection, record, &query, options).await)
    }

    fn label_counts(&self, labels: &BTreeSet<&str>) -> Result<HashMap<String, usize>, Error> {
        self.ask(async |connection, record| label_counts(connection, record, labels).await)
    }

    fn recall(&self, k: usize, ef: usize, queries: usize) -> Result<Recall, Error> {
        self.ask(async |connection, record| {
            let sql = format!("SELECT embedding::real[] FROM {} ORDER BY hashtextextended(id, 0) LIMIT $1", record.table());
            let sample: Vec<Vec<f32>> = sqlx::query_scalar(AssertSqlSafe(sql)).bind(queries as i64).fetch_all(&mut *connection).await?;
            let mut counter = RecallCounter::default();
            for query in &sample {
                let options = Search { k, ef, ..Search::default() };
                let exact = search(connection, record, query, &Search { exact: true, ..options }).await?;
                let fast = search(connection, record, query, &options).await?;
                counter.add(&exact, &fast);
            }
            Ok(counter.recall(k, ef))
        })
    }

    fn version(&self) -> Result<Version, Error> {
        self.ask(async |connection, record| version(connection, record).await)
    }

    fn sample(&self, most: usize) -> Result<Sample, Error> {
        self.ask(async |connection, record| sample(connection, record, most).await)
    }

    fn stamps(&self) -> Result<Vec<(String, u64)>, Error> {
        self.ask(async |connection, record| stamps(connection, record).await)
    }

    fn patches(&self, ids: &[&str]) -> Result<Vec<StoredPatches>, Error> {
        self.ask(async |connection, record| patches(connection, record, ids).await)
    }

    fn scan(&self, filter: Option<&Filter>, visit: &mut VisitVector<'_>) -> Result<Version, Error> {
        let token = cancel::current();
        let work = async |connection: &mut PgConnection| {
            // Before the items: what is written in between makes the mark an old one, and the next request looks again.
            let version = version(connection, &self.record).await.map_err(|error| self.record.explain(error))?;
            let mut sql = QueryBuilder::<Postgres>::new(format!("SELECT {ITEM}, embedding::real[] AS vector FROM {}", self.record.table()));
            push_where(&mut sql, filter);
            let mut rows = sql.build().fetch(connection);
            while let Some(row) = rows.try_next().await.map_err(|error| self.record.explain(error.into()))? {
                if token.is_cancelled() {
                    return Err(Cancelled.into());
                }
                match item(&row) {
                    Err(Error::DamagedItem { id, reason }) => tracing::error!(id, "an item is damaged and left out: {reason}"),
                    item => visit(&item?, &row.try_get::<Vec<f32>, _>("vector")?)?,
                }
            }
            Ok(version)
        };
        self.block_on(self.database.run_long(work))
    }

    fn export(&self, visit: &mut Visit<'_>) -> Result<Vec<Damaged>, Error> {
        let work = async |connection: &mut PgConnection| {
            let column = if self.record.spec.patches().is_some() { "patches" } else { "NULL::bytea AS patches" };
            let sql = format!("SELECT {ITEM}, embedding::real[] AS vector, picture, {column} FROM {} ORDER BY id", self.record.table());
            let mut damaged = Vec::new();
            // One statement sees one moment.
            let mut rows = sqlx::query(AssertSqlSafe(sql)).fetch(connection);
            while let Some(row) = rows.try_next().await.map_err(|error| self.record.explain(error.into()))? {
                let item = match item(&row) {
                    Err(Error::DamagedItem { id, reason }) => {
                        damaged.push(Damaged { id, reason });
                        continue;
                    }
                    item => item?,
                };
                let attached = Attached { picture: row.try_get("picture")?, patches: row.try_get("patches")? };
                visit(&StoredItem { item, vector: row.try_get("vector")? }, attached)?;
            }
            Ok(damaged)
        };
        self.block_on(self.database.run_long(work))
    }

    fn build_if_due(&self) -> Result<(), Error> {
        self.block_on(self.build_index_if_due())
    }
}

/// Number of items that have each of these labels.
pub(super) async fn label_counts(
    connection: &mut PgConnection,
    record: &Record,
    labels: &BTreeSet<&str>,
) -> Result<HashMap<String, usize>, Error> {
    let sql = format!(
        "SELECT label, count(*) FROM {}, unnest(labels) AS one (label) WHERE labels && $1 AND label = ANY($1) GROUP BY label",
        record.table()
    );
    let labels = label_forms(labels.iter().copied());
    let counts: Vec<(String, i64)> = sqlx::query_as(AssertSqlSafe(sql)).bind(labels).fetch_all(connection).await?;
    let mut by_label = HashMap::new();
    for (label, count) in counts {
        *by_label.entry(nfc(&from_stored(label)).into_owned()).or_default() += count as usize;
    }
    Ok(by_label)
}
