//! A page of the items of all databases: first their ids, then the items, few at a time until the page is full.

use sqlx::{AssertSqlSafe, PgConnection};

use super::super::super::page::PageBuilder;
use super::super::super::{Error, Item, Page};
use super::super::escape::{from_stored, to_stored};
use super::super::record::Record;
use super::super::search::{ITEM, item, readable};
use super::all;
use super::collection::Part;
use super::search::placed;

/// Items of all databases that are read at once: each may have 64 KiB of metadata.
const AT_ONCE: usize = 100;

/// Up to `limit` items, by id.
pub(super) async fn page(parts: &[Part], after: Option<&str>, limit: usize) -> Result<Page, Error> {
    // Ids have at least one byte, so that all of them come after the empty one.
    let after = to_stored(after.unwrap_or_default());
    let list = async |connection: &mut PgConnection, record: &Record| {
        let sql = format!("SELECT id FROM {} WHERE id > $1 ORDER BY id LIMIT $2", record.table());
        Ok(sqlx::query_scalar(AssertSqlSafe(sql)).bind(&*after).bind(limit as i64 + 1).fetch_all(connection).await?)
    };
    // In the form that is stored, which has the same order.
    let mut ids: Vec<(String, usize)> = placed(all(parts.iter().map(|part| part.read(&list))).await?);
    ids.sort_unstable();
    ids.truncate(limit + 1);
    let mut page = PageBuilder::new(limit);
    for few in ids.chunks(AT_ONCE) {
        let mut items: Vec<Item> = all(parts.iter().map(|part| items(part, few))).await?.into_iter().flatten().collect();
        items.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        for item in items {
            if !page.add(item) {
                return Ok(page.end());
            }
        }
    }
    let page = page.end();
    // One more than asked for was listed, and one of them left out: there may be further ones.
    let last = ids.into_iter().nth(limit).map(|(id, _)| from_stored(id));
    Ok(Page { next: last.or(page.next), ..page })
}

/// Those of the items that are in this part.
async fn items(part: &Part, ids: &[(String, usize)]) -> Result<Vec<Item>, Error> {
    let own: Vec<&str> = ids.iter().filter(|(_, place)| *place == part.place()).map(|(id, _)| id.as_str()).collect();
    if own.is_empty() {
        return Ok(Vec::new());
    }
    let read = async |connection: &mut PgConnection, record: &Record| {
        let sql = format!("SELECT {ITEM} FROM {} WHERE id = ANY($1)", record.table());
        readable(&sqlx::query(AssertSqlSafe(sql)).bind(&own).fetch_all(connection).await?, item)
    };
    part.read(read).await
}
