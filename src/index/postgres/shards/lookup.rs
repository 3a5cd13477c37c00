//! Collections by name.

use std::collections::HashMap;

use tokio::sync::SemaphorePermit;

use super::super::super::{CollectionName, Error, Info};
use super::super::record::Record;
use super::{Shards, all, merge};

/// A collection of which a database answers without a part.
struct Parted<'a> {
    /// What its parts are called.
    parts: CollectionName,
    /// The first of these databases.
    database: &'a str,
}

impl Shards {
    /// A permit for work that holds connections to all databases for long.
    pub(super) async fn whole(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.all[0].database.wait_for(&self.whole).await
    }

    /// The collections, as the first database knows them.
    pub(super) async fn records(&self) -> Result<Vec<Record>, Error> {
        self.arrange().await?;
        self.all[0].run(async |connection| Record::all(connection).await).await
    }

    /// The collections as the database at `place` knows them, by their own names.
    pub(super) async fn records_at(&self, place: usize) -> Result<Vec<Record>, Error> {
        let first = self.records().await?;
        if place == 0 {
            return Ok(first);
        }
        let names: HashMap<_, _> = first.into_iter().filter_map(|record| Some((record.parts?, record.name))).collect();
        let parts = self.all[place].run(async |connection| Record::all(connection).await).await?;
        Ok(parts.into_iter().filter_map(|part| Some(Record { name: names.get(&part.name)?.clone(), ..part })).collect())
    }

    /// What the databases know of a collection, in their order; `None` where it does not exist.
    pub(super) async fn find(&self, name: &CollectionName) -> Result<Option<Vec<Record>>, Error> {
        self.arrange().await?;
        let mut before = None;
        loop {
            let Some(first) = self.all[0].run(async |connection| Record::find(connection, name).await).await? else {
                return self.lost(Some(name)).await?.first().map_or(Ok(None), |lost| Err(self.explain(lost)));
            };
            let parts = first.parts.clone().ok_or_else(|| {
                let reason = "was made by a server that knew the first database alone: delete it, and make it again";
                Error::Unsuitable(format!("the collection {name} {reason}"))
            })?;
            let find = self.all[1..].iter().map(|shard| shard.run(async |connection| Record::find(connection, &parts).await));
            let others = all(find).await?;
            let Some(missing) = others.iter().position(Option::is_none) else {
                let others = others.into_iter().flatten().map(|record| Record { name: name.clone(), ..record });
                return Ok(Some(std::iter::once(first).chain(others).collect()));
            };
            if before.as_ref() == Some(&parts) {
                // The first database is the one that is behind where the others have parts that it does not know.
                if let Some(lost) = self.lost(Some(name)).await?.first() {
                    return Err(self.explain(lost));
                }
                return Err(no_part(self.all[missing + 1].label(), name));
            }
            // Another server deleted or replaced it after the first database was asked: that one knows by now.
            before = Some(parts);
        }
    }

    /// What is known of all collections.
    pub(super) async fn list(&self) -> Result<Vec<Info>, Error> {
        self.arrange().await?;
        let (found, parted) = self.look().await?;
        if parted.is_empty() {
            return Ok(found);
        }
        // Between two answers of one look a collection may have been made, deleted or replaced: a second look knows it, all of them at once.
        let (mut found, still) = self.look().await?;
        let lost = if still.is_empty() { Vec::new() } else { self.lost(None).await? };
        for (name, Parted { parts, database }) in still {
            let is_same = parted.get(&name).is_some_and(|before| before.parts == parts);
            let now = match lost.iter().find(|lost| lost.is_of(&name)) {
                _ if !is_same => self.info(&name).await,
                Some(lost) => Err(self.explain(lost)),
                None => Err(no_part(database, &name)),
            };
            match now {
                Ok(now) => found.extend(now),
                Err(error) => tracing::error!(collection = %name, "left out of the list of collections: {error}"),
            }
        }
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    /// What is known of the collections of which all databases answer with a part, and those of which one does not.
    async fn look(&self) -> Result<(Vec<Info>, HashMap<CollectionName, Parted<'_>>), Error> {
        let looks = self.all.iter().map(|shard| shard.run(async |connection| Record::list(connection).await));
        let mut listed = all(looks).await?.into_iter();
        let first = listed.next().unwrap_or_default();
        let mut others: Vec<HashMap<CollectionName, Info>> =
            listed.map(|infos| infos.into_iter().map(|(record, info)| (record.name, info)).collect()).collect();
        let (mut found, mut parted) = (Vec::with_capacity(first.len()), HashMap::new());
        for (record, info) in first {
            let Some(parts) = record.parts else { continue };
            let rest: Vec<Option<Info>> = others.iter_mut().map(|infos| infos.remove(&parts)).collect();
            if let Some(missing) = rest.iter().position(Option::is_none) {
                parted.insert(record.name, Parted { parts, database: self.all[missing + 1].label() });
            } else {
                found.push(merge::info(info, rest.into_iter().flatten().collect()));
            }
        }
        Ok((found, parted))
    }

    /// What is known of a collection right now; `None` where it does not exist.
    async fn info(&self, name: &CollectionName) -> Result<Option<Info>, Error> {
        let Some(records) = self.find(name).await? else { return Ok(None) };
        let asked = self.all.iter().zip(&records).map(|(shard, record)| shard.run(async |connection| record.info(connection).await));
        match all(asked).await {
            Ok(infos) => {
                let mut infos = infos.into_iter();
                Ok(infos.next().map(|first| merge::info(first, infos.collect())))
            }
            Err(Error::NoCollection(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn no_part(database: &str, collection: &CollectionName) -> Error {
    Error::Unsuitable(format!(
        "{database} holds no part of the collection {collection}: restore that database from its backup, or delete the collection"
    ))
}
