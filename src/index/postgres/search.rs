//! Nearest items: an exact scan, or the index where there is one and the search need not be exact.

use std::sync::Arc;

use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres, QueryBuilder, Row};

use super::super::item::{Item, set_of};
use super::super::{Error, Neighbour, Search};
use super::escape::{from_stored, object_from_stored};
use super::filter::push_where;
use dino_vision::duplicates::Fingerprint;

/// Columns of an [`Item`].
pub(super) const ITEM: &str = "id, labels, metadata, source, fingerprint";
/// Whether there is a stored picture.
pub(super) const PICTURED: &str = "picture IS NOT NULL AS pictured";
/// Widest search that pgvector's index takes. Where that is too narrow for `k`, it goes on by itself.
const MAX_EF: usize = 1000;

/// The neighbours of a normalised query `[dim]`, nearest first.
pub(super) async fn search(
    connection: &mut PgConnection,
    table: &str,
    query: &[f32],
    options: &Search<'_>,
    indexed: bool,
) -> Result<Vec<Neighbour>, Error> {
    if indexed && !options.exact {
        let ef = options.ef.max(options.k).clamp(1, MAX_EF);
        let settings = format!("SET LOCAL hnsw.ef_search = {ef}; SET LOCAL hnsw.iterative_scan = strict_order");
        let found = nearest(connection, table, query, options, &settings, "").await?;
        // Where few items pass, the index gives up before it has looked at all of them.
        if found.len() == options.k {
            return Ok(found);
        }
    }
    // Bitmap scans stay allowed: the index over ids supports them, the one over vectors does not.
    nearest(connection, table, query, options, "SET LOCAL enable_indexscan = off", ", id").await
}

async fn nearest(
    connection: &mut PgConnection,
    table: &str,
    query: &[f32],
    options: &Search<'_>,
    settings: &str,
    then_by: &str,
) -> Result<Vec<Neighbour>, Error> {
    let begin = AssertSqlSafe(format!("BEGIN READ ONLY; {settings}"));
    let mut transaction = connection.begin_with(begin).await?;
    // Of vectors of length 1 the product is the cosine; the operator gives its negative.
    let mut sql = QueryBuilder::<Postgres>::new(format!("SELECT {ITEM}, -(embedding <#> "));
    sql.push_bind(query).push(format!("::real[]::vector) AS similarity, {PICTURED} FROM {table}"));
    push_where(&mut sql, options.filter);
    sql.push(" ORDER BY embedding <#> ").push_bind(query).push(format!("::real[]::vector{then_by} LIMIT "));
    sql.push_bind(i64::try_from(options.k).unwrap_or(i64::MAX));
    let rows = sql.build().fetch_all(&mut *transaction).await?;
    transaction.commit().await?;
    let mut found = readable(&rows, neighbour)?;
    found.sort_unstable();
    Ok(found)
}

fn neighbour(row: &PgRow) -> Result<Neighbour, Error> {
    let similarity: f64 = row.try_get("similarity")?;
    // Rounding may take the product of two unit vectors a little out of its range.
    Ok(Neighbour { item: Arc::new(item(row)?), similarity: (similarity as f32).clamp(-1.0, 1.0), has_picture: row.try_get("pictured")? })
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
