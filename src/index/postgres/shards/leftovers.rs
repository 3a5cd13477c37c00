//! Parts that belong to no collection. Their names are written down in the first database before the parts are made, and again in the
//! commit that deletes or replaces their collection. So they are deleted also after a server was killed in between.
//!
//! A first database that was restored from a backup may have a note of parts that were being made then and have long been a collection. Those
//! are marked as made in the other databases, and stay.

use std::sync::Arc;

use sqlx::{Connection, PgConnection};

use super::super::super::{CollectionName, Error};
use super::super::error::is_passing;
use super::super::record::Record;
use super::{Shard, Shards, all};

/// Shared by the servers that make parts, exclusive to one that deletes those without a collection. Any number will do that nothing else in
/// the database uses.
const LOCK: i64 = 0x6469_6e6f_0002;
/// Where another transaction holds a lock, the attempt ends: servers that make parts wait meanwhile.
const BEGIN_BRIEFLY: &str = "BEGIN; SET LOCAL lock_timeout = '1s'";

/// Keeps others from deleting the parts that this transaction makes, of all databases: one that restarts forgets the locks of those that
/// were connected, while they may go on elsewhere.
pub(super) async fn note_maker(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::query("SELECT pg_advisory_xact_lock_shared($1)").bind(LOCK).execute(connection).await?;
    Ok(())
}

/// Notes parts: those of a collection that is deleted, or else some that are about to be made.
pub(super) async fn note(connection: &mut PgConnection, parts: &str, is_deleted: bool) -> Result<(), Error> {
    let sql = "INSERT INTO dino_leftovers (name, is_deleted) VALUES ($1, $2) \
               ON CONFLICT (name) DO UPDATE SET is_deleted = dino_leftovers.is_deleted OR excluded.is_deleted";
    let note = sqlx::query(sql);
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
                Err(error) if is_passing(&error) => Ok(false),
                outcome => outcome,
            }
        });
    }

    /// Deletes them; false where some are left, since a server that makes parts may be making those.
    async fn clear(&self) -> Result<bool, Error> {
        self.arrange().await?;
        let Some((first, others)) = self.all.split_first() else { return Ok(true) };
        self.mark_made(first, others).await?;
        let count = async |connection: &mut PgConnection| {
            Ok(sqlx::query_scalar("SELECT count(*) FROM dino_leftovers").fetch_one(connection).await?)
        };
        let count: i64 = first.run(count).await?;
        let is_done = count == 0 || self.delete_noted(first, others).await?;
        self.drop_orphaned_tables();
        Ok(is_done)
    }

    /// Marks the parts of collections in the other databases.
    async fn mark_made(&self, first: &Shard, others: &[Shard]) -> Result<(), Error> {
        let made: Vec<String> = first
            .run(async |connection| {
                let sql = "SELECT parts FROM dino_collections WHERE parts IS NOT NULL";
                Ok(sqlx::query_scalar(sql).fetch_all(connection).await?)
            })
            .await?;
        let mark = async |connection: &mut PgConnection| {
            let mut transaction = connection.begin_with(BEGIN_BRIEFLY).await?;
            let mark = sqlx::query("UPDATE dino_collections SET is_made = true WHERE name = ANY($1) AND NOT is_made");
            mark.bind(&made).execute(&mut *transaction).await?;
            Ok(transaction.commit().await?)
        };
        all(others.iter().map(|shard| shard.run(mark))).await.map(drop)
    }

    /// Deletes parts that are noted, but not those that were made; false where notes are left.
    async fn delete_noted(&self, first: &Shard, others: &[Shard]) -> Result<bool, Error> {
        // Each holds its lock until the end.
        let mut alone = all(self.all.iter().map(|shard| async move { shard.named(shard.database.open_background().await) })).await?;
        let lock = async |connection: &mut PgConnection| {
            let lock = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)").bind(LOCK);
            Ok(lock.fetch_one(connection).await?)
        };
        let locks = self.all.iter().zip(&mut alone).map(|(shard, open)| async move { shard.named(open.step(lock).await) });
        let is_alone = all(locks).await?.into_iter().all(|is_locked: bool| is_locked);
        let look = async |connection: &mut PgConnection| {
            Ok(sqlx::query_as("SELECT name, is_deleted FROM dino_leftovers").fetch_all(connection).await?)
        };
        let noted: Vec<(String, bool)> = first.run(look).await?;
        let count = noted.len();
        let (deleted, unfinished): (Vec<_>, Vec<_>) = noted.into_iter().partition(|(_, is_deleted)| *is_deleted);
        let names = |noted: Vec<(String, bool)>| noted.into_iter().map(|(name, _)| name).collect::<Vec<String>>();
        let (deleted, unfinished) = (names(deleted), if is_alone { names(unfinished) } else { Vec::new() });
        let delete = async |connection: &mut PgConnection| {
            let mut transaction = connection.begin_with(BEGIN_BRIEFLY).await?;
            let delete = sqlx::query("DELETE FROM dino_collections WHERE name = ANY($1) OR name = ANY($2) AND NOT is_made");
            delete.bind(&deleted).bind(&unfinished).execute(&mut *transaction).await?;
            Ok(transaction.commit().await?)
        };
        all(others.iter().map(|shard| shard.run(delete))).await?;
        let forgotten = [deleted, unfinished].concat();
        let forget = async |connection: &mut PgConnection| {
            sqlx::query("DELETE FROM dino_leftovers WHERE name = ANY($1)").bind(&forgotten).execute(connection).await?;
            Ok(())
        };
        first.run(forget).await?;
        for (shard, open) in self.all.iter().zip(alone) {
            shard.named(open.commit().await)?;
        }
        Ok(forgotten.len() == count)
    }
}
