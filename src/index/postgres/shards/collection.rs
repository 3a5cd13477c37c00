//! The items of one collection, over all databases.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use sqlx::{PgConnection, Postgres, QueryBuilder};

use super::super::super::item::{NewItem, StoredItem, prepare};
use super::super::super::page::check_page;
use super::super::super::recall::RecallCounter;
use super::super::super::store::{Visit, VisitVector};
use super::super::super::{
    Collection, CollectionName, Damaged, Error, Filter, Info, Neighbour, Page, Recall, Sample, Search, Spec, StoredPatches, Version,
};
use super::super::collection::PostgresCollection;
use super::super::filter::push_where;
use super::super::record::Record;
use super::super::write::insert_inside;
use super::Shards;
use super::each::each;
use super::placement::{parted, place};
use super::{export, merge};

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
    /// Asks for something; an error says which database does not answer.
    pub(super) fn ask<T>(&self, ask: impl FnOnce(&PostgresCollection) -> Result<T, Error>) -> Result<T, Error> {
        self.shards.all[self.place].named(ask(&self.items))
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

    /// Asks all parts at the same time.
    fn ask<T: Send>(&self, ask: impl Fn(&PostgresCollection) -> Result<T, Error> + Sync) -> Result<Vec<T>, Error> {
        self.read(|parts| each(parts, |part| part.ask(&ask)))
    }

    /// Asks the part that the item of this id is in.
    fn ask_for<T>(&self, id: &str, ask: impl Fn(&PostgresCollection) -> Result<T, Error>) -> Result<T, Error> {
        self.read(|parts| parts[place(id, parts.len())].ask(&ask))
    }

    /// Does `work` in the databases at `places`, and commits it in all of them once it is done: before that, an error leaves nothing of
    /// it. They are taken in their order, so that two writers of the same items never wait for each other in two databases, where
    /// neither database would see it.
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
            let (count, mut outcome) = (open.len(), Ok(()));
            for (shard, transaction) in open {
                // After one that failed the others are committed all the same: the caller is told to send it again.
                let committed = shard.named(transaction.commit().await).map_err(|error| match error {
                    Error::Sql(source) if count > 1 => {
                        Error::PartUnreachable { database: shard.label().to_owned(), reason: source.to_string() }
                    }
                    other => other,
                });
                outcome = outcome.and(committed);
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
        let mut infos = self.ask(PostgresCollection::info)?.into_iter();
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
        Ok(merge::page(self.ask(|part| part.page(after, limit))?, limit))
    }

    fn sources(&self) -> Result<HashMap<String, Option<String>>, Error> {
        Ok(self.ask(PostgresCollection::sources)?.into_iter().flatten().collect())
    }

    fn search(&self, query: &[f32], options: &Search<'_>) -> Result<Vec<Neighbour>, Error> {
        let mut found: Vec<Neighbour> = self.ask(|part| part.search(query, options))?.into_iter().flatten().collect();
        found.sort_unstable();
        found.truncate(options.k);
        Ok(found)
    }

    fn label_counts(&self, labels: &BTreeSet<&str>) -> Result<HashMap<String, usize>, Error> {
        let mut counts = HashMap::new();
        for (label, count) in self.ask(|part| part.label_counts(labels))?.into_iter().flatten() {
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
        Ok(merge::version(&self.ask(PostgresCollection::version)?))
    }

    fn sample(&self, most: usize) -> Result<Sample, Error> {
        self.read(|parts| {
            // Before the items: what is written in between makes the mark an old one, and the next request looks again.
            let versions = each(parts, |part| part.ask(PostgresCollection::version))?;
            let shares = merge::shares(&versions.iter().map(|version| version.count).collect::<Vec<_>>(), most);
            let samples = each(parts, |part| part.ask(|items| items.sample(shares[part.place])))?;
            let dim = self.spec().dim;
            let rows = |Sample { items, vectors, .. }: Sample| {
                let vectors: Vec<Vec<f32>> = vectors.chunks_exact(dim).map(<[f32]>::to_vec).collect();
                items.into_iter().zip(vectors).collect::<Vec<_>>()
            };
            let (items, vectors): (Vec<_>, Vec<_>) = merge::interleave(samples.into_iter().map(rows).collect()).into_iter().unzip();
            Ok(Sample { version: merge::version(&versions), items, vectors: vectors.concat() })
        })
    }

    fn stamps(&self) -> Result<Vec<(String, u64)>, Error> {
        Ok(merge::interleave(self.ask(PostgresCollection::stamps)?))
    }

    fn patches(&self, ids: &[&str]) -> Result<Vec<StoredPatches>, Error> {
        let mut places: Vec<Vec<&str>> = self.parts.iter().map(|_| Vec::new()).collect();
        for id in ids {
            places[place(id, self.parts.len())].push(id);
        }
        let of =
            |part: &Part| part.ask(|items| if places[part.place].is_empty() { Ok(Vec::new()) } else { items.patches(&places[part.place]) });
        let found: Vec<StoredPatches> = self.read(|parts| each(parts, of))?.into_iter().flatten().collect();
        // The ids come older ones first, and so do the items.
        let order: HashMap<&str, usize> = ids.iter().enumerate().map(|(place, id)| (*id, place)).collect();
        let mut found = found;
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
        each(&self.parts, |part| part.ask(PostgresCollection::build_if_due)).map(drop)
    }
}
