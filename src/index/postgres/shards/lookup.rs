//! Collections by name.

use std::collections::HashMap;

use futures::future::join;
use tokio::sync::SemaphorePermit;

use super::super::super::{CollectionName, Error, Info};
use super::super::record::Record;
use super::{Shards, all, merge};

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
                let database = self.all[missing + 1].label();
                return Err(Error::Unsuitable(format!(
                    "{database} holds no part of the collection {name}: restore that database from its backup, or delete the collection"
                )));
            }
            // Another server deleted or replaced it after the first database was asked: that one knows by now.
            before = Some(parts);
        }
    }

    /// What is known of all collections.
    pub(super) async fn list(&self) -> Result<Vec<Info>, Error> {
        self.arrange().await?;
        let first = self.all[0].run(async |connection| {
            let records = Record::all(connection).await?;
            let infos = Record::list_of(connection, &records).await?;
            Ok((records, infos))
        });
        let others = all(self.all[1..].iter().map(|shard| shard.run(async |connection| Record::list(connection).await)));
        let (first, others) = join(first, others).await;
        let ((records, infos), others) = (first?, others?);
        let parts: HashMap<i64, CollectionName> = records.into_iter().filter_map(|record| Some((record.number, record.parts?))).collect();
        let mut others: Vec<HashMap<CollectionName, Info>> =
            others.into_iter().map(|infos| infos.into_iter().map(|info| (info.name.clone(), info)).collect()).collect();
        let mut found = Vec::with_capacity(infos.len());
        for info in infos {
            let Some(parts) = parts.get(&info.number.cast_signed()) else { continue };
            let rest: Option<Vec<Info>> = others.iter_mut().map(|infos| infos.remove(parts)).collect();
            match rest {
                Some(rest) => found.push(merge::info(info, rest)),
                // It was made, deleted or replaced meanwhile.
                None => match self.info(&info.name).await {
                    Ok(now) => found.extend(now),
                    Err(error) => tracing::error!(collection = %info.name, "left out of the list of collections: {error}"),
                },
            }
        }
        Ok(found)
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
