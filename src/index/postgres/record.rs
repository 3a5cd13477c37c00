//! Collections by name, and the table of each.

use std::collections::{HashMap, HashSet};

use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, QueryBuilder, Row};

use super::super::info::DamagedItems;
use super::super::{CollectionName, Error, IndexState, Info, Kind, ModelTag, Spec};
use super::damage;
use super::database::ATTEMPTS;
use super::error::{is_locked, is_missing_table};

/// Largest vectors that are kept in the rows of the table itself, so that a scan need not look them up elsewhere: a row has
/// to fit a page of 8 KiB, with the id and what points to the rest.
const MAX_INLINE_DIM: usize = 1536;

/// Most tables that one statement counts: each is locked by it, and the database has room for some thousand locks.
const MOST_COUNTED: usize = 500;

/// Columns of a [`Record`].
const SELECT: &str = "SELECT name, number, dim, fingerprint, precision, created, kind, parts, \
     EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('dino_items_' || number || '_hnsw') AND indisvalid) AS indexed, \
     EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('dino_items_' || number || '_damaged') AND indisvalid) AS names_damaged, \
     EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('dino_items_' || number) AND attname = 'fingerprint') AS has_fingerprints \
     FROM dino_collections";

/// A collection as the database knows it.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) name: CollectionName,
    /// A collection that is deleted and made again has another one.
    pub(super) number: i64,
    pub(super) spec: Spec,
    /// Seconds since 1970.
    pub(super) created: u64,
    /// Whether there is a finished index over its vectors.
    pub(super) indexed: bool,
    /// Whether there is a finished index over its damaged items.
    pub(super) names_damaged: bool,
    /// Whether its table has a column for what copies are known by.
    pub(super) has_fingerprints: bool,
    /// In the first of several databases, what its parts are called in the others; in those, what the collection is called.
    pub(super) parts: Option<CollectionName>,
}

/// A collection that was deleted.
pub(super) struct Removed {
    /// In the first of several databases, what its parts are called in the others.
    pub(super) parts: Option<CollectionName>,
}

fn name_of(name: String) -> sqlx::Result<CollectionName> {
    name.parse().map_err(|error: Error| sqlx::Error::Decode(error.into()))
}

impl FromRow<'_, PgRow> for Record {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let parts: Option<String> = row.try_get("parts")?;
        let kind: Option<Json<Kind>> = row.try_get("kind")?;
        let model = ModelTag { fingerprint: row.try_get("fingerprint")?, precision: row.try_get("precision")? };
        Ok(Self {
            name: name_of(row.try_get("name")?)?,
            number: row.try_get("number")?,
            spec: Spec { dim: row.try_get::<i32, _>("dim")? as usize, model, kind: kind.map_or(Kind::Pictures, |Json(kind)| kind) },
            created: row.try_get::<i64, _>("created")? as u64,
            indexed: row.try_get("indexed")?,
            names_damaged: row.try_get("names_damaged")?,
            has_fingerprints: row.try_get("has_fingerprints")?,
            parts: parts.map(name_of).transpose()?,
        })
    }
}

impl Record {
    /// All collections, by name.
    pub(super) async fn all(connection: &mut PgConnection) -> Result<Vec<Self>, Error> {
        let mut sql = QueryBuilder::new(SELECT);
        Ok(sql.push(" ORDER BY name").build_query_as().fetch_all(connection).await?)
    }

    /// The collection of that name, if there is one.
    pub(super) async fn find(connection: &mut PgConnection, name: &CollectionName) -> Result<Option<Self>, Error> {
        let mut sql = QueryBuilder::new(SELECT);
        let found: Option<Self> =
            sql.push(" WHERE name = ").push_bind(name.as_str()).build_query_as().fetch_optional(&mut *connection).await?;
        if let Some(record) = found.as_ref().filter(|record| !record.has_fingerprints) {
            // A server of an earlier version has made it since the tables were brought to this one.
            let sql = format!("ALTER TABLE IF EXISTS {} ADD COLUMN IF NOT EXISTS fingerprint bytea", record.table());
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
        }
        Ok(found)
    }

    /// Makes the table of a new collection, which has no name yet.
    pub(super) async fn make(connection: &mut PgConnection, name: &CollectionName, spec: &Spec) -> Result<Self, Error> {
        let (number, created): (i64, i64) =
            sqlx::query_as("SELECT nextval('dino_numbers'), extract(epoch FROM now())::bigint").fetch_one(&mut *connection).await?;
        let (name, spec, created) = (name.clone(), spec.clone(), created as u64);
        let record = Self { name, number, spec, created, indexed: false, names_damaged: true, has_fingerprints: true, parts: None };
        let (table, dim) = (record.table(), record.spec.dim);
        let storage = if dim <= MAX_INLINE_DIM { "PLAIN" } else { "EXTERNAL" };
        // Bytes of vectors are not compressed: that would take time and save nothing.
        let [patches, stored] =
            if record.spec.patches().is_some() { [", patches bytea", ", ALTER patches SET STORAGE EXTERNAL"] } else { [""; 2] };
        let sql = format!(
            "CREATE TABLE {table} (id text COLLATE \"C\" PRIMARY KEY, labels text[] NOT NULL, metadata jsonb NOT NULL, source text, \
             embedding vector({dim}) NOT NULL, picture bytea, fingerprint bytea{patches}); \
             ALTER TABLE {table} ALTER embedding SET STORAGE {storage}, ALTER picture SET STORAGE EXTERNAL{stored}; \
             CREATE INDEX {table}_labels ON {table} USING gin (labels); CREATE INDEX {} {}",
            record.damaged_index(),
            damage::index_over(&record)
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
        Ok(record)
    }

    /// Gives a new collection its name; false where that is taken.
    pub(super) async fn insert(&self, connection: &mut PgConnection) -> Result<bool, Error> {
        let Spec { dim, model, kind } = &self.spec;
        let inserted = sqlx::query(
            "INSERT INTO dino_collections (name, number, dim, fingerprint, precision, created, kind, parts) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(self.name.as_str())
        .bind(self.number)
        .bind(*dim as i32)
        .bind(&model.fingerprint)
        .bind(&model.precision)
        .bind(self.created as i64)
        .bind((*kind != Kind::Pictures).then_some(Json(*kind)))
        .bind(self.parts.as_ref().map(CollectionName::as_str))
        .execute(connection)
        .await?;
        Ok(inserted.rows_affected() == 1)
    }

    /// Deletes a collection's name, and with it the collection; `None` where there is none. Its table is left to [`drop_orphans`]:
    /// transactions that read it would have to end first, and until then no other one would be let in.
    pub(super) async fn remove(connection: &mut PgConnection, name: &CollectionName) -> Result<Option<Removed>, Error> {
        let removed = sqlx::query_scalar::<_, Option<String>>("DELETE FROM dino_collections WHERE name = $1 RETURNING parts");
        let removed = removed.bind(name.as_str()).fetch_optional(connection).await?;
        removed.map(|parts| Ok(Removed { parts: parts.map(name_of).transpose()? })).transpose()
    }

    /// Name of the table of its items: digits of ours, never a string of a client.
    pub(super) fn table(&self) -> String {
        table(self.number)
    }

    /// Name of the index over its vectors.
    pub(super) fn index(&self) -> String {
        format!("{}_hnsw", self.table())
    }

    /// Name of the index over its damaged items.
    pub(super) fn damaged_index(&self) -> String {
        format!("{}_damaged", self.table())
    }

    /// What is known of it right now.
    pub(super) async fn info(&self, connection: &mut PgConnection) -> Result<Info, Error> {
        let counts = count(connection, std::slice::from_ref(self)).await.map_err(|error| self.explain(error))?;
        let building = being_indexed(connection).await?;
        Ok(self.info_of(counts.get(&self.number).cloned().unwrap_or_default(), building.contains(&self.table())))
    }

    /// All collections and what is known of them right now, by name.
    pub(super) async fn list(connection: &mut PgConnection) -> Result<Vec<(Self, Info)>, Error> {
        let numbers = |records: &[Self]| records.iter().map(|record| record.number).collect::<Vec<_>>();
        let mut records = Self::all(connection).await?;
        for _ in 1..ATTEMPTS {
            let (before, count) = (numbers(&records), records.len());
            let listed = Self::list_of(connection, records).await?;
            if listed.len() == count {
                return Ok(listed);
            }
            // Some were deleted since, or replaced: those have another table by now. Or their tables are lost.
            records = Self::all(connection).await?;
            if numbers(&records) == before {
                return Ok(listed);
            }
        }
        Self::list_of(connection, records).await
    }

    /// What is known of these collections right now; those whose tables were dropped since are left out.
    async fn list_of(connection: &mut PgConnection, records: Vec<Self>) -> Result<Vec<(Self, Info)>, Error> {
        let building = being_indexed(connection).await?;
        let mut counts = HashMap::new();
        for part in records.chunks(MOST_COUNTED) {
            match count(connection, part).await {
                // The others are counted one by one.
                Err(error) if is_missing_table(&error) => {
                    for record in part {
                        match count(connection, std::slice::from_ref(record)).await {
                            Err(error) if is_missing_table(&error) => {}
                            counted => counts.extend(counted?),
                        }
                    }
                }
                counted => counts.extend(counted?),
            }
        }
        let known = records.into_iter().filter_map(|record| {
            let info = record.info_of(counts.remove(&record.number)?, building.contains(&record.table()));
            Some((record, info))
        });
        Ok(known.collect())
    }

    fn info_of(&self, Counts { count, damaged }: Counts, building: bool) -> Info {
        let (kind, indexed) = if self.indexed { ("hnsw", count) } else { ("exact", 0) };
        let index = IndexState { kind, indexed, scanned: count - indexed, building };
        Info {
            name: self.name.clone(),
            number: self.number.cast_unsigned(),
            spec: self.spec.clone(),
            count,
            created: self.created,
            index,
            damaged,
        }
    }

    /// A missing table means that the collection was deleted.
    pub(super) fn explain(&self, error: Error) -> Error {
        if is_missing_table(&error) { Error::NoCollection(self.name.to_string()) } else { error }
    }
}

/// The items of a collection.
#[derive(Clone, Default)]
struct Counts {
    /// Those that can be read.
    count: usize,
    damaged: Option<DamagedItems>,
}

/// Numbers of items by number of the collection.
async fn count(connection: &mut PgConnection, records: &[Record]) -> Result<HashMap<i64, Counts>, Error> {
    let part = |record: &Record| {
        format!("SELECT {}::bigint, (SELECT count(*) FROM {}), {}", record.number, record.table(), damage::columns(record))
    };
    let parts: Vec<_> = records.iter().map(part).collect();
    let counts: Vec<(i64, i64, i64, Vec<String>)> = sqlx::query_as(AssertSqlSafe(parts.join(" UNION ALL "))).fetch_all(connection).await?;
    let counts = counts.into_iter().map(|(number, all, damaged, ids)| {
        let count = all.saturating_sub(damaged) as usize;
        (number, Counts { count, damaged: damage::damaged(damaged, ids) })
    });
    Ok(counts.collect())
}

/// Tables whose index is being built.
async fn being_indexed(connection: &mut PgConnection) -> Result<HashSet<String>, Error> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_stat_progress_create_index JOIN pg_class ON pg_class.oid = relid WHERE datname = current_database()",
    )
    .fetch_all(connection)
    .await?;
    Ok(tables.into_iter().collect())
}

/// Deletes the tables of deleted collections; false where a transaction still uses one.
pub(super) async fn drop_orphans(connection: &mut PgConnection) -> Result<bool, Error> {
    // A collection gets its name in the transaction that makes its table: what can be seen without one has lost it.
    let orphans: Vec<i64> = sqlx::query_scalar(
        "SELECT number FROM (SELECT substr(relname::text, 12)::bigint AS number FROM pg_class WHERE relkind = 'r' \
         AND relnamespace = to_regnamespace(quote_ident(current_schema())) AND relname ~ '^dino_items_[0-9]+$') AS tables \
         WHERE number NOT IN (SELECT number FROM dino_collections)",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut all = true;
    for number in orphans {
        // The limit is for later statements on the table, which would have to wait for this one.
        let sql = format!("SET lock_timeout = '1s'; DROP TABLE IF EXISTS {}", table(number));
        match sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await.map_err(Error::from) {
            Err(error) if is_locked(&error) => all = false,
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
    Ok(all)
}

fn table(number: i64) -> String {
    format!("dino_items_{number}")
}
