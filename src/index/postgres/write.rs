//! Storing items: few statements for many of them.

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::super::item::NewItem;
use super::super::{Error, Spec};
use super::escape::{object_to_stored, to_stored};

/// Most items of one statement.
const MOST_ITEMS: usize = 500;
/// Most bytes of stored pictures in one statement, beyond the first.
const MOST_BYTES: usize = 32 << 20;

/// Stores items with normalised vectors `[dim]` and distinct ids, all of them or none.
pub(super) async fn insert(connection: &mut PgConnection, table: &str, spec: &Spec, items: &[NewItem]) -> Result<(), Error> {
    let mut transaction = connection.begin().await?;
    insert_inside(&mut transaction, table, spec, items).await?;
    transaction.commit().await?;
    Ok(())
}

/// The same inside of a transaction.
pub(super) async fn insert_inside(connection: &mut PgConnection, table: &str, spec: &Spec, items: &[NewItem]) -> Result<(), Error> {
    // Sorted, so that two transactions with the same ids lock them in the same order, which rules out a deadlock.
    let mut items: Vec<&NewItem> = items.iter().collect();
    items.sort_unstable_by(|a, b| a.item.id.cmp(&b.item.id));
    let mut rest = items.as_slice();
    while !rest.is_empty() {
        let (part, later) = rest.split_at(statement_length(rest));
        insert_part(connection, table, spec, part).await?;
        rest = later;
    }
    Ok(())
}

/// How many of `items`, at least one, go into the next statement.
fn statement_length(items: &[&NewItem]) -> usize {
    let mut bytes = 0;
    let fits = |new: &&&NewItem| {
        bytes += new.attached();
        bytes <= MOST_BYTES
    };
    items.iter().take(MOST_ITEMS).take_while(fits).count().max(1)
}

async fn insert_part(connection: &mut PgConnection, table: &str, spec: &Spec, items: &[&NewItem]) -> Result<(), Error> {
    // The tables of other collections have no such column.
    let has_patches = spec.patches().is_some();
    let [column, update] = if has_patches { [", patches", ", patches = excluded.patches"] } else { [""; 2] };
    let sql = format!(
        "INSERT INTO {table} (id, labels, metadata, source, embedding, picture, fingerprint{column}) \
         SELECT id, ARRAY(SELECT jsonb_array_elements_text(labels)), metadata, source, \
                ($6::real[])[(place - 1) * $7 + 1 : place * $7]::vector, picture, fingerprint{column} \
         FROM unnest($1::text[], $2::jsonb[], $3::jsonb[], $4::text[], $5::bytea[], $8::bytea[], $9::bytea[]) WITH ORDINALITY \
              AS new (id, labels, metadata, source, picture, patches, fingerprint, ordinality), \
              LATERAL (SELECT ordinality::integer) AS at (place) \
         ORDER BY place \
         ON CONFLICT (id) DO UPDATE SET labels = excluded.labels, metadata = excluded.metadata, source = excluded.source, \
              embedding = excluded.embedding, picture = excluded.picture, fingerprint = excluded.fingerprint{update}"
    );
    let ids: Vec<_> = items.iter().map(|new| to_stored(&new.item.id)).collect();
    let labels: Vec<_> = items.iter().map(|new| Json(new.item.labels.iter().map(|label| to_stored(label)).collect::<Vec<_>>())).collect();
    let metadata: Vec<_> = items.iter().map(|new| Json(object_to_stored(&new.item.metadata))).collect();
    let sources: Vec<_> = items.iter().map(|new| new.item.source.as_deref().map(to_stored)).collect();
    let pictures: Vec<_> = items.iter().map(|new| new.thumbnail.as_deref()).collect();
    let patches: Vec<_> = items.iter().map(|new| new.patches.as_deref()).collect();
    let fingerprints: Vec<_> = items.iter().map(|new| new.item.fingerprint.as_ref().map(|fingerprint| fingerprint.to_bytes())).collect();
    let vectors: Vec<f32> = items.iter().flat_map(|new| new.vector.iter().copied()).collect();
    sqlx::query(AssertSqlSafe(sql))
        .bind(ids)
        .bind(labels)
        .bind(metadata)
        .bind(sources)
        .bind(pictures)
        .bind(vectors)
        .bind(spec.dim as i32)
        .bind(patches)
        .bind(fingerprints)
        .execute(connection)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_bounded_by_number_and_size() {
        let new = |bytes: usize| NewItem { thumbnail: Some(vec![0; bytes]), ..NewItem::default() };
        let length = |items: &[NewItem]| statement_length(&items.iter().collect::<Vec<_>>());
        assert_eq!(length(&vec![new(0); MOST_ITEMS + 1]), MOST_ITEMS);
        assert_eq!(length(&vec![new(MOST_BYTES / 2); 5]), 2);
        assert_eq!(length(&[new(MOST_BYTES + 1), new(1)]), 1);
    }
}
