//! The items of one collection, over all databases.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use sqlx::{Connection as _, PgConnection, Postgres, QueryBuilder};

use super::super::super::item::{NewItem, StoredItem, prepare};
use super::super::super::page::check_page;
use super::super::super::recall::RecallCounter;
use super::super::super::store::{Visit, VisitVector};
use super::super::super::{
    Collection, CollectionName, Damaged, Error, Filter, Info, Neighbour, Page, Recall, Sample, Search, Spec, StoredPatches, Version,
};
use super::super::collection::{PostgresCollection, label_counts};
use super::super::filter::push_where;
use super::super::patches::{patches, stamps};
use super::super::record::Record;
use super::super::sample::{sample, version};
use super::super::write::insert_inside;
use super::placement::{parted, place};
use super::{Shard, Shards, all, export, merge, page, search};

/// A collection of a [`ShardedStore`](super::ShardedStore), as of the moment when it was looked up.
pub(super) struct ShardedCollection {
    shards: Arc<Shards>,
    parts: Parts,
}

/// What each database holds of a collection, in their order.
pub(super) type Parts = Vec<Part>;

/// What one database holds of a collection.
pub(super) struct Part {
    shards: Arc<Shards>,
    place: usize,
    items: PostgresCollection,
}

impl Part {
    /// Place of its database, from 0.
    pub(super) fn place(&self) -> usize {
        self.place
    }

    /// Asks for something; an error says which database does not answer.
    pub(super) fn ask<T>(&self, ask: impl FnOnce(&PostgresCollection) -> Result<T, Error>) -> Result<T, Error> {
        self.shard().named(ask(&self.items))
    }

    /// As [`ask`](Self::ask), with a connection, for a thread that waits for several parts.
    pub(super) async fn read<T>(&self, work: impl AsyncFn(&mut PgConnection, &Record) -> Result<T, Error>) -> Result<T, Error> {
        self.shard().named(self.items.read(work).await)
    }

    fn shard(&self) -> &Shard {
        &self.shards.all[self.place]
    }
}

impl ShardedCollection {
    pub(super) fn new(shards: Arc<Shards>, records: Vec<Record>) -> Self {
        let parts = parts(&shards, records);
        Self { shards, parts }
    }

    fn record(&self) -> &Record {
        self.parts[0].items.record()
    }

    fn number_of(parts: &Parts) -> u64 {
        merge::number(parts.iter().map(|part| part.items.number()))
    }

    /// Reads from the parts; where they were replaced meanwhile by others of the same model, from those.
    fn read<T>(&self, work: impl Fn(&Parts) -> Result<T, Error>) -> Result<T, Error> {
        match work(&self.parts) {
            Err(Error::NoCollection(name)) => match self.shards.runtime.block_on(self.shards.find(self.name()))? {
                Some(successor) if successor[0].number != self.record().number => {
                    successor[0].spec.check_same(self.name(), self.spec())?;
                    work(&parts(&self.shards, successor))
                }
                _ => Err(Error::NoCollection(name)),
            },
            outcome => outcome,
        }
    }

    /// Reads from all parts at the same time.
    fn ask<T>(&self, ask: impl AsyncFn(&mut PgConnection, &Record) -> Result<T, Error>) -> Result<Vec<T>, Error> {
        self.read(|parts| self.block_on(all(parts.iter().map(|part| part.read(&ask)))))
    }

    fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.shards.runtime.block_on(work)
    }

    /// Asks the part that the item of this id is in.
    fn ask_for<T>(&self, id: &str, ask: impl Fn(&PostgresCollection) -> Result<T, Error>) -> Result<T, Error> {
        self.read(|parts| parts[place(id, parts.len())].ask(&ask))
    }

    /// Does `work` in the databases at `places`, and commits it in all of them once it is done and all of them still answer: before that, an
    /// error leaves nothing of it. They are taken in their order, so that two writers of the same items never wait for each other in two
    /// databases, where neither database would see it.
    fn write<T>(
        &self,
        places: impl Iterator<Item = usize>,
        work: impl AsyncFn(usize, &mut PgConnection, &str) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        self.shards.runtime.block_on(async {
            let (mut open, mut done) = (Vec::new(), Vec::new());
            for place in places {
                let (shard, record) = (&self.shards.all[place], self.parts[place].items.record());
                let table = record.table();
                let mut transaction = shard.named(shard.database.open().await)?;
                let step =
                    async |connection: &mut PgConnection| work(place, connection, &table).await.map_err(|error| record.explain(error));
                done.push(shard.named(transaction.step_again(step).await)?);
                open.push((shard, transaction));
            }
            let (count, mut is_committed, mut outcome) = (open.len(), false, Ok(()));
            if count > 1 {
                // The first may have waited for long for the last.
                let pings = open.iter_mut().map(|(shard, transaction)| async move {
                    shard.named(transaction.step(async |connection| Ok(connection.ping().await?)).await)
                });
                all(pings).await?;
            }
            for (shard, transaction) in open {
                let committed = shard.named(transaction.commit().await).map_err(|error| match error {
                    Error::Sql(_) | Error::Slow { .. } if count > 1 => {
                        Error::PartUnreachable { database: shard.label().to_owned(), reason: error.to_string() }
                    }
                    other => other,
                });
                if is_committed {
                    // After one that failed the others are committed all the same: the caller is told to send it again.
                    outcome = outcome.and(committed);
                } else {
                    committed?;
                    is_committed = true;
                }
            }
            outcome.map(|()| done)
        })
    }
}

fn parts(shards: &Arc<Shards>, records: Vec<Record>) -> Parts {
    let part = |(place, record): (usize, Record)| {
        let shard = &shards.all[place];
        let items = PostgresCollection::part(Arc::clone(&shard.database), Arc::clone(&shard.builder), record);
        Part { shards: Arc::clone(shards), place, items }
    };
    records.into_iter().enumerate().map(part).collect()
}

impl Collection for ShardedCollection {
    fn name(&self) -> &CollectionName {
        &self.record().name
    }

    fn spec(&self) -> &Spec {
        &self.record().spec
    }

    fn number(&self) -> u64 {
        Self::number_of(&self.parts)
    }

    fn info(&self) -> Result<Info, Error> {
        let mut infos = self.ask(async |connection, record| record.info(connection).await)?.into_iter();
        let first = infos.next().ok_or_else(|| Error::NoCollection(self.name().to_string()))?;
        Ok(merge::info(first, infos.collect()))
    }

    fn upsert(&self, items: Vec<NewItem>) -> Result<(), Error> {
        let spec = self.spec();
        let items = parted(prepare(items, spec)?, self.parts.len());
        let places = || (0..items.len()).filter(|&place| !items[place].is_empty());
        self.write(places(), async |place, connection, table| insert_inside(connection, table, spec, &items[place]).await)?;
        for place in places() {
            self.parts[place].items.note(items[place].len());
        }
        Ok(())
    }

    fn delete(&self, id: &str) -> Result<(), Error> {
        self.parts[place(id, self.parts.len())].ask(|part| part.delete(id))
    }

    fn delete_where(&self, filter: &Filter) -> Result<usize, Error> {
        let deleted = self.write(0..self.parts.len(), async |_, connection, table| {
            let mut sql = QueryBuilder::<Postgres>::new(format!("DELETE FROM {table}"));
            push_where(&mut sql, Some(filter));
            Ok(sql.build().execute(connection).await?.rows_affected())
        })?;
        Ok(deleted.into_iter().sum::<u64>() as usize)
    }

    fn get(&self, id: &str) -> Result<StoredItem, Error> {
        self.ask_for(id, |part| part.get(id))
    }

    fn thumbnail(&self, id: &str) -> Result<Vec<u8>, Error> {
        self.ask_for(id, |part| part.thumbnail(id))
    }

    fn page(&self, after: Option<&str>, limit: usize) -> Result<Page, Error> {
        check_page(limit)?;
        self.read(|parts| self.block_on(page::page(parts, after, limit)))
    }

    fn sources(&self) -> Result<HashMap<String, Option<String>>, Error> {
        let sources = async |part: &Part| part.shard().named(part.items.read_sources().await);
        let sources = self.read(|parts| self.block_on(all(parts.iter().map(&sources))))?;
        Ok(sources.into_iter().flatten().collect())
    }

    fn search(&self, query: &[f32], options: &Search<'_>) -> Result<Vec<Neighbour>, Error> {
        let query = options.prepare(query, self.spec().dim)?;
        self.read(|parts| self.block_on(search::search(parts, &query, options)))
    }

    fn label_counts(&self, labels: &BTreeSet<&str>) -> Result<HashMap<String, usize>, Error> {
        let mut counts = HashMap::new();
        let parts = self.ask(async |connection, record| label_counts(connection, record, labels).await)?;
        for (label, count) in parts.into_iter().flatten() {
            *counts.entry(label).or_default() += count;
        }
        Ok(counts)
    }

    fn recall(&self, k: usize, ef: usize, queries: usize) -> Result<Recall, Error> {
        let sample = self.sample(queries)?;
        let mut counter = RecallCounter::default();
        for query in sample.vectors.chunks_exact(self.spec().dim) {
            let options = Search { k, ef, ..Search::default() };
            counter.add(&self.search(query, &Search { exact: true, ..options })?, &self.search(query, &options)?);
        }
        Ok(counter.recall(k, ef))
    }

    fn version(&self) -> Result<Version, Error> {
        Ok(merge::version(&self.ask(async |connection, record| version(connection, record).await)?))
    }

    fn sample(&self, most: usize) -> Result<Sample, Error> {
        let (versions, samples) = self.read(|parts| {
            self.block_on(async {
                // Before the items: what is written in between makes the mark an old one, and the next request looks again.
                let mark = async |connection: &mut PgConnection, record: &Record| version(connection, record).await;
                let versions = all(parts.iter().map(|part| part.read(&mark))).await?;
                let shares = merge::shares(&versions.iter().map(|version| version.count).collect::<Vec<_>>(), most);
                let samples = parts
                    .iter()
                    .zip(shares)
                    .map(async |(part, share)| part.read(async |connection, record| sample(connection, record, share).await).await);
                Ok((versions, all(samples).await?))
            })
        })?;
        let dim = self.spec().dim;
        let rows = |Sample { items, vectors, .. }: Sample| {
            let vectors: Vec<Vec<f32>> = vectors.chunks_exact(dim).map(<[f32]>::to_vec).collect();
            items.into_iter().zip(vectors).collect::<Vec<_>>()
        };
        let (items, vectors): (Vec<_>, Vec<_>) = merge::interleave(samples.into_iter().map(rows).collect()).into_iter().unzip();
        Ok(Sample { version: merge::version(&versions), items, vectors: vectors.concat() })
    }

    fn stamps(&self) -> Result<Vec<(String, u64)>, Error> {
        Ok(merge::interleave(self.ask(async |connection, record| stamps(connection, record).await)?))
    }

    fn patches(&self, ids: &[&str]) -> Result<Vec<StoredPatches>, Error> {
        let mut places: Vec<Vec<&str>> = self.parts.iter().map(|_| Vec::new()).collect();
        for id in ids {
            places[place(id, self.parts.len())].push(id);
        }
        let read = async |part: &Part| {
            let own = &places[part.place];
            if own.is_empty() {
                return Ok(Vec::new());
            }
            part.read(async |connection, record| patches(connection, record, own).await).await
        };
        let found = self.read(|parts| self.block_on(all(parts.iter().map(&read))))?;
        let mut found: Vec<StoredPatches> = found.into_iter().flatten().collect();
        // The ids come older ones first, and so do the items.
        let order: HashMap<&str, usize> = ids.iter().enumerate().map(|(place, id)| (*id, place)).collect();
        found.sort_by_key(|patches| order.get(patches.item.id.as_str()).copied());
        Ok(found)
    }

    fn scan(&self, filter: Option<&Filter>, visit: &mut VisitVector<'_>) -> Result<Version, Error> {
        let mut versions = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            versions.push(part.ask(|items| items.scan(filter, visit))?);
        }
        Ok(merge::version(&versions))
    }

    fn export(&self, visit: &mut Visit<'_>) -> Result<Vec<Damaged>, Error> {
        let _whole = self.shards.runtime.block_on(self.shards.whole())?;
        export::in_order(&self.parts, visit)
    }

    fn build_if_due(&self) -> Result<(), Error> {
        let build = async |part: &Part| part.shard().named(part.items.build_index_if_due().await);
        self.block_on(all(self.parts.iter().map(build))).map(drop)
    }
}
