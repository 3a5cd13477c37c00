//! Parts of collections that the first database does not know, as after a restore from a backup that is older than they are.
//!
//! They are not served, and neither is a new collection of their name: what is left of a collection would be taken for it, or for nothing.

use std::collections::HashMap;

use sqlx::{Connection, PgConnection};

use super::super::super::{CollectionName, Error};
use super::{Shards, all, leftovers};

/// A part.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    /// The collection that it belongs to.
    collection: String,
    /// What it is called.
    part: String,
    /// Whether the first database has had it.
    is_made: bool,
    place: usize,
}

impl Lost {
    pub(super) fn is_of(&self, collection: &CollectionName) -> bool {
        self.collection == collection.as_str()
    }
}

impl Shards {
    /// Parts of this collection, or of all, that the first database does not know.
    pub(super) async fn lost(&self, collection: Option<&CollectionName>) -> Result<Vec<Lost>, Error> {
        let mut lost = self.parts_elsewhere(collection).await?;
        if lost.is_empty() {
            return Ok(lost);
        }
        // A part is noted before it is made, and until it is deleted or the first database has its collection.
        let known: HashMap<String, bool> = self.all[0]
            .run(async |connection| {
                let sql = "SELECT parts, false FROM dino_collections WHERE parts IS NOT NULL \
                           UNION ALL SELECT name, NOT is_deleted FROM dino_leftovers";
                Ok(sqlx::query_as(sql).fetch_all(connection).await?)
            })
            .await?
            .into_iter()
            .collect();
        // A note that one is being made is older than a part that was made.
        lost.retain(|one| known.get(&one.part).is_none_or(|is_being_made| *is_being_made && one.is_made));
        if !lost.is_empty() {
            // One that was deleted since the first look was known until then.
            let still = self.parts_elsewhere(collection).await?;
            lost.retain(|one| still.iter().any(|other| (other.place, &other.part) == (one.place, &one.part)));
        }
        Ok(lost)
    }

    async fn parts_elsewhere(&self, collection: Option<&CollectionName>) -> Result<Vec<Lost>, Error> {
        let name = collection.map(CollectionName::as_str);
        let look = async |connection: &mut PgConnection| {
            let sql = "SELECT coalesce(parts, name), name, is_made FROM dino_collections \
                       WHERE $1::text IS NULL OR coalesce(parts, name) = $1";
            Ok(sqlx::query_as::<_, (String, String, bool)>(sql).bind(name).fetch_all(connection).await?)
        };
        let found = all(self.all[1..].iter().map(|shard| shard.run(look))).await?;
        let lost = |(place, parts): (usize, Vec<_>)| {
            parts.into_iter().map(move |(collection, part, is_made)| Lost { collection, part, is_made, place: place + 1 })
        };
        Ok(found.into_iter().enumerate().flat_map(lost).collect())
    }

    /// What is wrong where there is such a part, and what to do.
    pub(super) fn explain(&self, lost: &Lost) -> Error {
        let (first, other) = (self.all[0].label(), self.all[lost.place].label());
        let Lost { collection, part, .. } = lost;
        Error::Unsuitable(format!(
            "{other} holds a part of the collection {collection} ({part}), and {first} does not know it, as after a restore from an \
             older backup: restore {first} from a newer one, or give up what is left: delete the collection, or restore its snapshot \
             in its place"
        ))
    }

    /// Says in the log which there are.
    pub(super) async fn report_lost(&self) -> Result<(), Error> {
        for lost in self.lost(None).await? {
            tracing::error!(collection = lost.collection, "{}", self.explain(&lost));
        }
        Ok(())
    }

    /// Notes them as parts to delete; whether there were any.
    pub(super) async fn give_up(&self, collection: &CollectionName) -> Result<bool, Error> {
        let lost = self.lost(Some(collection)).await?;
        if lost.is_empty() {
            return Ok(false);
        }
        self.all[0]
            .run(async |connection| {
                let mut transaction = connection.begin().await?;
                for one in &lost {
                    leftovers::note(&mut transaction, &one.part, true).await?;
                }
                Ok(transaction.commit().await?)
            })
            .await?;
        Ok(true)
    }
}
