//! The patches of items, and which versions of items there are.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::super::{Error, StoredPatches};
use super::escape::{from_stored, to_stored};
use super::record::Record;
use super::search::{ITEM, item, readable};
use dino_vision::anomaly::PatchSet;

/// The transaction that wrote a row: each version of it has another one.
const STAMP: &str = "xmin::text::bigint AS stamp";

/// Id and stamp of every item, older ones first.
pub(super) async fn stamps(connection: &mut PgConnection, record: &Record) -> Result<Vec<(String, u64)>, Error> {
    let sql = format!("SELECT id, {STAMP} FROM {} ORDER BY age(xmin) DESC, id", record.table());
    let rows: Vec<(String, i64)> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(connection).await?;
    Ok(rows.into_iter().map(|(id, stamp)| (from_stored(id), stamp.cast_unsigned())).collect())
}

/// The patches of items. Those that do not exist are left out; those that cannot be read too, and named in the log.
pub(super) async fn patches(connection: &mut PgConnection, record: &Record, ids: &[&str]) -> Result<Vec<StoredPatches>, Error> {
    if record.spec.patches().is_none() {
        return Ok(Vec::new());
    }
    let ids: Vec<_> = ids.iter().map(|id| to_stored(id)).collect();
    let sql = format!(
        "SELECT {ITEM}, {STAMP}, patches FROM {} WHERE id = ANY($1) AND patches IS NOT NULL ORDER BY age(xmin) DESC, id",
        record.table()
    );
    let read = |row: &PgRow| {
        let item = item(row)?;
        let patches = PatchSet::from_bytes(row.try_get("patches")?, record.spec.dim);
        let patches = patches.map_err(|reason| Error::DamagedItem { id: item.id.clone(), reason })?;
        Ok(StoredPatches { stamp: row.try_get::<i64, _>("stamp")?.cast_unsigned(), item, patches })
    };
    readable(&sqlx::query(AssertSqlSafe(sql)).bind(ids).fetch_all(connection).await?, read)
}
