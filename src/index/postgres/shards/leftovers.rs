//! Parts that belong to no collection. Their names are written down in the first database before the parts are made, and again in the
//! commit that deletes or replaces their collection. So they are deleted also after a server was killed in between.

use std::sync::Arc;

use sqlx::PgConnection;

use super::super::super::{CollectionName, Error};
use super::super::record::Record;
use super::{Shards, all};

/// Shared by the servers that make parts, exclusive to one that deletes those without a collection. Any number will do that nothing else in
/// the database uses.
const LOCK: i64 = 0x6469_6e6f_0002;

/// Keeps others from deleting the parts that this transaction makes.
pub(super) async fn note_maker(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::query("SELECT pg_advisory_xact_lock_shared($1)").bind(LOCK).execute(connection).await?;
    Ok(())
}

/// Notes parts: those of a collection that is deleted, or else some that are about to be made.
pub(super) async fn note(connection: &mut PgConnection, parts: &str, is_deleted: bool) -> Result<(), Error> {
    let note = sqlx::query("INSERT INTO dino_leftovers (name, is_deleted) VALUES ($1, $2) ON CONFLICT DO NOTHING");
    note.bind(parts).bind(is_deleted).execute(connection).await?;
    Ok(())
}

/// Takes a note back; whether there was one.
pub(super) async fn unnote(connection: &mut PgConnection, parts: &CollectionName) -> Result<bool, Error> {
    let deleted = sqlx::query("DELETE FROM dino_leftovers WHERE name = $1").bind(parts.as_str()).execute(connection).await?;
    Ok(deleted.rows_affected() == 1)
}

/// Deletes a collection in the first database, and notes its parts; false where there is none.
pub(super) async fn remove(connection: &mut PgConnection, name: &CollectionName) -> Result<bool, Error> {
    let removed = Record::remove(connection, name).await?;
    if let Some(parts) = removed.as_ref().and_then(|removed| removed.parts.as_ref()) {
        note(connection, parts.as_str(), true).await?;
    }
    Ok(removed.is_some())
}

impl Shards {
    /// Makes a thread delete them, and their tables.
    pub(super) fn clear_leftovers(self: &Arc<Self>) {
        let shards = Arc::clone(self);
        self.leftovers.ask("deleting parts of deleted collections", move || {
            match shards.runtime.block_on(shards.clear()) {
                // It is asked again later.
                Err(Error::PartUnreachable { .. } | Error::Slow { .. } | Error::Busy) => Ok(false),
                outcome => outcome,
            }
        });
    }

    /// Deletes them; false where some are left, since a server that makes parts may be making those.
    async fn clear(&self) -> Result<bool, Error> {
        self.arrange().await?;
        let Some((first, others)) = self.all.split_first() else { return Ok(true) };
        let mut transaction = first.named(first.database.open_background().await)?;
        let look = async |connection: &mut PgConnection| {
            let lock = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)").bind(LOCK);
            let is_alone: bool = lock.fetch_one(&mut *connection).await?;
            let noted: Vec<(String, bool)> = sqlx::query_as("SELECT name, is_deleted FROM dino_leftovers").fetch_all(connection).await?;
            Ok((is_alone, noted))
        };
        let (is_alone, noted) = first.named(transaction.step(look).await)?;
        let count = noted.len();
        let names: Vec<String> = noted.into_iter().filter(|(_, is_deleted)| is_alone || *is_deleted).map(|(name, _)| name).collect();
        if !names.is_empty() {
            let delete = async |connection: &mut PgConnection| {
                sqlx::query("DELETE FROM dino_collections WHERE name = ANY($1)").bind(&names).execute(connection).await?;
                Ok(())
            };
            all(others.iter().map(|shard| shard.run(delete))).await?;
            let forget = async |connection: &mut PgConnection| {
                sqlx::query("DELETE FROM dino_leftovers WHERE name = ANY($1)").bind(&names).execute(connection).await?;
                Ok(())
            };
            first.named(transaction.step(forget).await)?;
        }
        first.named(transaction.commit().await)?;
        self.drop_orphaned_tables();
        Ok(names.len() == count)
    }
}
