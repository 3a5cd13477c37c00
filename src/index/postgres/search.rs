//! Nearest items: an exact scan, or the index where there is one and the search need not be exact.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres, QueryBuilder, Row};

use super::super::item::{Item, set_of};
use super::super::{Error, Filter, Neighbour, Search};
use super::escape::{from_stored, object_from_stored};
use super::filter::push_where;
use super::record::Record;
use dino_vision::duplicates::Fingerprint;

/// Columns of an [`Item`].
pub(super) const ITEM: &str = "id, labels, metadata, source, fingerprint";
/// Whether there is a stored picture.
pub(super) const PICTURED: &str = "picture IS NOT NULL AS pictured";
/// Widest search that pgvector's index takes. Where that is too narrow for `k`, it goes on by itself.
const MAX_EF: usize = 1000;

/// What a search reads of a row.
trait Found: Sized {
    fn columns() -> String;
    fn read(row: &PgRow) -> Result<Self, Error>;
}

/// An item that a search found, before it is read.
#[derive(Clone, Debug)]
pub(super) struct Ranked {
    /// As the database gives it: items whose rounded similarity is the same have an order.
    similarity: f64,
    /// In its stored form.
    id: String,
}

impl Ranked {
    /// Nearest first, then by id, as the database orders.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        other.similarity.total_cmp(&self.similarity).then_with(|| self.id.cmp(&other.id))
    }
}

impl Found for Ranked {
    fn columns() -> String {
        "id".to_owned()
    }

    fn read(row: &PgRow) -> Result<Self, Error> {
        Ok(Self { similarity: row.try_get("similarity")?, id: row.try_get("id")? })
    }
}

impl Found for Neighbour {
    fn columns() -> String {
        format!("{ITEM}, {PICTURED}")
    }

    fn read(row: &PgRow) -> Result<Self, Error> {
        let similarity: f64 = row.try_get("similarity")?;
        // Rounding may take the product of two unit vectors a little out of its range.
        let similarity = (similarity as f32).clamp(-1.0, 1.0);
        Ok(Self { item: Arc::new(item(row)?), similarity, has_picture: row.try_get("pictured")? })
    }
}

/// The neighbours of a normalised query `[dim]`, nearest first.
pub(super) async fn search(
    connection: &mut PgConnection,
    record: &Record,
    query: &[f32],
    options: &Search<'_>,
) -> Result<Vec<Neighbour>, Error> {
    let mut found: Vec<Neighbour> = find(connection, record, query, options).await?;
    found.sort_unstable();
    Ok(found)
}

/// Which items these are, in the order of the database.
pub(super) async fn rank(
    connection: &mut PgConnection,
    record: &Record,
    query: &[f32],
    options: &Search<'_>,
) -> Result<Vec<Ranked>, Error> {
    find(connection, record, query, options).await
}

/// Ranked items as they are now.
#[derive(Default)]
pub(super) struct Reread {
    /// Without those that are gone, do not pass the filter any more, or cannot be read.
    pub(super) found: Vec<Neighbour>,
    /// Those that cannot be read.
    pub(super) unreadable: usize,
    /// Those whose similarity is the one by which they were ranked.
    pub(super) unchanged: usize,
}

/// Reads ranked items.
pub(super) async fn read_ranked(
    connection: &mut PgConnection,
    record: &Record,
    query: &[f32],
    filter: Option<&Filter>,
    ranked: &[&Ranked],
) -> Result<Reread, Error> {
    let mut sql = select::<Neighbour>(record, query, filter);
    let ids: Vec<&str> = ranked.iter().map(|one| one.id.as_str()).collect();
    sql.push(if filter.is_some() { " AND id = ANY(" } else { " WHERE id = ANY(" }).push_bind(ids).push(")");
    let rows = sql.build().fetch_all(connection).await?;
    let before: HashMap<&str, f64> = ranked.iter().map(|one| (one.id.as_str(), one.similarity)).collect();
    let mut unchanged = 0;
    for row in &rows {
        let now: f64 = row.try_get("similarity")?;
        unchanged += usize::from(before.get(row.try_get::<&str, _>("id")?).is_some_and(|before| before.to_bits() == now.to_bits()));
    }
    let found = readable(&rows, Neighbour::read)?;
    Ok(Reread { unreadable: rows.len() - found.len(), found, unchanged })
}

async fn find<T: Found>(connection: &mut PgConnection, record: &Record, query: &[f32], options: &Search<'_>) -> Result<Vec<T>, Error> {
    if record.indexed && !options.exact {
        let ef = options.ef.max(options.k).clamp(1, MAX_EF);
        let settings = format!("SET LOCAL hnsw.ef_search = {ef}; SET LOCAL hnsw.iterative_scan = strict_order");
        let found = nearest(connection, record, query, options, &settings, "").await?;
        // Where few items pass, the index gives up before it has looked at all of them.
        if found.len() == options.k {
            return Ok(found);
        }
    }
    // Bitmap scans stay allowed: the index over ids supports them, the one over vectors does not.
    nearest(connection, record, query, options, "SET LOCAL enable_indexscan = off", ", id").await
}

async fn nearest<T: Found>(
    connection: &mut PgConnection,
    record: &Record,
    query: &[f32],
    options: &Search<'_>,
    settings: &str,
    then_by: &str,
) -> Result<Vec<T>, Error> {
    let begin = AssertSqlSafe(format!("BEGIN READ ONLY; {settings}"));
    let mut transaction = connection.begin_with(begin).await?;
    let mut sql = select::<T>(record, query, options.filter);
    sql.push(" ORDER BY embedding <#> ").push_bind(query).push(format!("::real[]::vector{then_by} LIMIT "));
    sql.push_bind(i64::try_from(options.k).unwrap_or(i64::MAX));
    let rows = sql.build().fetch_all(&mut *transaction).await?;
    transaction.commit().await?;
    readable(&rows, T::read)
}

/// Items that pass a filter, with their similarity.
fn select<T: Found>(record: &Record, query: &[f32], filter: Option<&Filter>) -> QueryBuilder<Postgres> {
    // Of vectors of length 1 the product is the cosine; the operator gives its negative.
    let mut sql = QueryBuilder::new(format!("SELECT {}, -(embedding <#> ", T::columns()));
    sql.push_bind(query).push(format!("::real[]::vector) AS similarity FROM {}", record.table()));
    push_where(&mut sql, filter);
    sql
}

/// What `read` makes of rows. An item that cannot be read is named in the log and left out, so that its neighbours are not.
pub(super) fn readable<T>(rows: &[PgRow], read: impl Fn(&PgRow) -> Result<T, Error>) -> Result<Vec<T>, Error> {
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        match read(row) {
            Err(Error::DamagedItem { id, reason }) => tracing::error!(id, "an item is damaged and left out: {reason}"),
            outcome => found.push(outcome?),
        }
    }
    Ok(found)
}

/// Reads the columns of [`ITEM`].
pub(super) fn item(row: &PgRow) -> Result<Item, Error> {
    let labels: Vec<String> = row.try_get("labels")?;
    let Json(metadata) = match row.try_get("metadata") {
        Err(sqlx::Error::ColumnDecode { source, .. }) => {
            return Err(Error::DamagedItem { id: from_stored(row.try_get("id")?), reason: source.to_string() });
        }
        metadata => metadata?,
    };
    let source: Option<String> = row.try_get("source")?;
    let fingerprint: Option<Vec<u8>> = row.try_get("fingerprint")?;
    Ok(Item {
        id: from_stored(row.try_get("id")?),
        labels: set_of(labels.into_iter().map(from_stored).collect()),
        metadata: object_from_stored(metadata),
        source: source.map(from_stored),
        fingerprint: fingerprint.and_then(|bytes| Fingerprint::from_bytes(&bytes)).map(Box::new),
    })
}
