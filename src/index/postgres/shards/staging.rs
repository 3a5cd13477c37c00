//! Making a collection: parts in all databases, which the commit of the first one makes a collection.

use std::time::Duration;

use futures::future::try_join_all;
use sqlx::Connection;
use uuid::Uuid;

use super::super::super::item::NewItem;
use super::super::super::{CollectionName, Error, OnExisting, Spec};
use super::super::database::ATTEMPTS;
use super::super::open::Open;
use super::super::record::Record;
use super::super::write::insert_inside;
use super::placement::parted;
use super::{Shards, all, leftovers};

/// Parts that are being made, in transactions that are open. Where it is dropped, nothing of them stays but a note for
/// [`Shards::clear_leftovers`].
pub(super) struct Staging<'a> {
    shards: &'a Shards,
    name: CollectionName,
    /// What the parts are called.
    parts: CollectionName,
    /// In the order of the databases.
    open: Vec<Open<'a>>,
    records: Vec<Record>,
}

impl<'a> Staging<'a> {
    /// Makes empty parts. Where there is a limit, each step may take so long on each database. A permit of [`Shards::whole`] is held.
    pub(super) async fn begin(shards: &'a Shards, name: &CollectionName, spec: &Spec, limit: Option<Duration>) -> Result<Self, Error> {
        shards.arrange().await?;
        let parts: CollectionName = Uuid::now_v7().simple().to_string().parse()?;
        // The connections of all of them are there before anything is made.
        let mut open = all(shards.all.iter().map(|shard| async move { shard.named(shard.database.open_long(limit).await) })).await?;
        let notes = shards.all.iter().zip(&mut open).map(|(shard, transaction)| async move {
            shard.named(transaction.step(async |connection| leftovers::note_maker(connection).await).await)
        });
        all(notes).await?;
        // In a transaction of its own, so that it stays where this server is killed.
        shards.all[0].run(async |connection| leftovers::note(connection, parts.as_str(), false).await).await?;
        let make = shards.all.iter().zip(&mut open).enumerate().map(|(place, (shard, transaction))| {
            // The first names the parts of the others, and these name the collection.
            let [own, other] = if place == 0 { [name, &parts] } else { [&parts, name] };
            async move {
                let record = shard.named(transaction.step(async |connection| Record::make(connection, own, spec).await).await)?;
                Ok(Record { parts: Some(other.clone()), ..record })
            }
        });
        let records = all(make).await?;
        Ok(Self { shards, name: name.clone(), parts, open, records })
    }

    /// Stores items with normalised vectors `[dim]` and distinct ids.
    pub(super) async fn store(&mut self, spec: &Spec, items: Vec<NewItem>) -> Result<(), Error> {
        let items = parted(items, self.open.len());
        let parts = self.shards.all.iter().zip(&mut self.open).zip(&self.records).zip(&items).filter(|(_, items)| !items.is_empty());
        let stores = parts.map(|(((shard, open), record), items)| async move {
            shard.named(open.step(async |connection| insert_inside(connection, &record.table(), spec, items).await).await)
        });
        // After an error all of the transactions end, with their connections.
        try_join_all(stores).await.map(drop)
    }

    /// Makes it a collection, in place of one of its name where `existing` says so; `None` where another one has the name.
    pub(super) async fn finish(mut self, existing: OnExisting) -> Result<Option<Vec<Record>>, Error> {
        let mut places = self.shards.all.iter().zip(&mut self.open).zip(&self.records);
        let Some(((first, transaction), record)) = places.next() else { return Ok(None) };
        let (name, parts) = (&self.name, &self.parts);
        let has_name = first.named(
            transaction
                .step(async |connection| {
                    let is_noted = leftovers::unnote(connection, parts).await?;
                    for _ in 0..ATTEMPTS {
                        if is_noted && record.insert(connection).await? {
                            return Ok(true);
                        }
                        if !is_noted || existing != OnExisting::Replace {
                            return Ok(false);
                        }
                        // Again where another server puts one of that name in place of what is removed.
                        leftovers::remove(connection, name).await?;
                    }
                    Ok(false)
                })
                .await,
        )?;
        if !has_name {
            return Ok(None);
        }
        all(places.map(|((shard, transaction), record)| async move {
            shard.named(transaction.step(async |connection| record.insert(connection).await).await)
        }))
        .await?;
        // The first database comes last: what it names is in all others.
        for (shard, transaction) in self.shards.all.iter().zip(self.open).rev() {
            shard.named(transaction.commit().await)?;
        }
        Ok(Some(self.records.into_iter().map(|record| Record { name: self.name.clone(), ..record }).collect()))
    }
}

impl Shards {
    /// Deletes a collection; false where it does not exist. Every database has to answer before: it is to delete its part.
    pub(super) async fn remove(&self, name: &CollectionName) -> Result<bool, Error> {
        self.arrange().await?;
        all(self.all.iter().map(|shard| shard.run(async |_| Ok(())))).await?;
        let existed = self.all[0]
            .run(async |connection| {
                let mut transaction = connection.begin().await?;
                let existed = leftovers::remove(&mut transaction, name).await?;
                transaction.commit().await?;
                Ok(existed)
            })
            .await?;
        match self.give_up(name).await {
            // It is deleted; what is left is noticed again at the next start.
            Err(error) if existed => {
                tracing::error!(collection = %name, "what an older backup left of it stays for now: {error}");
                Ok(true)
            }
            gave_up => Ok(gave_up? || existed),
        }
    }
}
