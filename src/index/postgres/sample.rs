//! A sample of a collection, and the mark of what it holds.

use std::sync::Arc;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::super::sample::newest_of;
use super::super::{Error, Sample, Version};
use super::record::Record;
use super::search::{ITEM, PICTURED, item, readable};

/// Ids and the transactions that wrote them, as one number.
pub(super) async fn version(connection: &mut PgConnection, record: &Record) -> Result<Version, Error> {
    let sql = format!("SELECT count(*), coalesce(bit_xor(hashtextextended(id, xmin::text::bigint)), 0) FROM {}", record.table());
    let (count, content): (i64, i64) = sqlx::query_as(AssertSqlSafe(sql)).fetch_one(connection).await?;
    Ok(Version { collection: record.number.cast_unsigned(), content: content.cast_unsigned(), count: count as usize })
}

/// At most `most` items, older before newer: those of the newest transactions, and others by a hash of their id.
pub(super) async fn sample(connection: &mut PgConnection, record: &Record, most: usize) -> Result<Sample, Error> {
    // Before the items: what is written in between makes the mark an old one, and the next request looks again.
    let version = version(connection, record).await?;
    let newest = newest_of(most);
    let sql = format!(
        "WITH newest AS MATERIALIZED (SELECT id FROM {table} ORDER BY age(xmin), id DESC LIMIT $1), \
              others AS (SELECT id FROM {table} WHERE id NOT IN (SELECT id FROM newest) ORDER BY hashtextextended(id, 0), id LIMIT $2) \
         SELECT {ITEM}, embedding::real[] AS vector, {PICTURED} FROM {table} \
         WHERE id IN (SELECT id FROM newest UNION ALL SELECT id FROM others) ORDER BY age(xmin) DESC, id",
        table = record.table()
    );
    let query = sqlx::query(AssertSqlSafe(sql)).bind(newest as i64).bind((most - newest) as i64);
    let (mut items, mut vectors) = (Vec::new(), Vec::new());
    let read = |row: &PgRow| Ok((Arc::new(item(row)?), row.try_get("pictured")?, row.try_get::<Vec<f32>, _>("vector")?));
    for (item, pictured, vector) in readable(&query.fetch_all(connection).await?, read)? {
        items.push((item, pictured));
        vectors.extend(vector);
    }
    Ok(Sample { version, items, vectors })
}
