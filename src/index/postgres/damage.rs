//! Items that cannot be read, found by an index over just those.
//!
//! This program writes none, another one may. The index holds next to nothing and is kept by the database, so that asking what is
//! damaged reads neither the other items nor a mark that could be out of date.

use super::super::info::{DamagedItems, MOST_NAMED};
use super::escape::from_stored;
use super::record::Record;

/// What the reader of JSON refuses in a row: metadata that is no object, more than 127 objects and lists inside of each other, and
/// numbers that are no finite double. Every index and query needs the very same words, or the database scans the table.
const DAMAGED: &str = "jsonb_typeof(metadata) <> 'object' \
     OR jsonb_path_exists(metadata, 'strict $.**{127} ? (@.type() == \"object\" || @.type() == \"array\")') \
     OR jsonb_path_exists(metadata, 'strict $.** ? (@.type() == \"number\" \
        && (@ >= 1.797693134862315807937e308 || @ <= -1.797693134862315807937e308))')";

/// What the index is made of, for the end of `CREATE INDEX`.
pub(super) fn index_over(record: &Record) -> String {
    format!("ON {} (id) WHERE {DAMAGED}", record.table())
}

/// Columns of a statement that says, in one row, which items of a collection are damaged: their number, and the ids of the first.
pub(super) fn columns(record: &Record) -> String {
    // Without the index all rows would be read. A table that an earlier version made has none until the thread of the start has built
    // it; where that fails, until a later start. Until then no damaged item is named, and all of them are counted as items.
    if !record.names_damaged {
        return "0::bigint, '{}'::text[]".to_owned();
    }
    let table = record.table();
    format!(
        "(SELECT count(*) FROM {table} WHERE {DAMAGED}), \
         ARRAY(SELECT id FROM {table} WHERE {DAMAGED} ORDER BY id LIMIT {MOST_NAMED})::text[]"
    )
}

/// What these columns say.
pub(super) fn damaged(count: i64, ids: Vec<String>) -> Option<DamagedItems> {
    (count > 0).then(|| DamagedItems { count: count as usize, ids: ids.into_iter().map(from_stored).collect() })
}
