//! One collection: durable writes, undisturbed reads.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::commit::{Target, WriteQueue};
use super::delete_where::delete_where;
use super::disk::{Change, Disk, Record, Written};
use super::graph_files::GraphFiles;
use super::indexing::{BuildClaim, Builder};
use super::info::DamagedItems;
use super::item::{Damaged, NewItem, StoredItem, prepare};
use super::layout::Layout;
use super::load::load;
use super::page::{PageBuilder, check_page};
use super::recall::recall;
use super::rows::Rows;
use super::sample::{sample, version};
use super::scan_all::scan_all;
use super::search::search;
use super::{
    Collection, CollectionName, Error, Filter, IndexOptions, IndexState, Info, Neighbour, Page, Recall, Sample, Search, Spec,
    StoredPatches, VectorFormat, Version, Visit, VisitVector, no_item,
};
use dino_vision::cancel;

/// What the collections of a store share.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) disk: Arc<Disk>,
    pub(super) writes: Arc<WriteQueue>,
    pub(super) graph_files: Arc<GraphFiles>,
    pub(super) builder: Arc<Builder>,
    pub(super) options: IndexOptions,
}

/// A collection of an [`EmbeddedStore`](super::EmbeddedStore).
pub struct EmbeddedCollection {
    /// Itself, for writes and threads that outlive a call.
    me: Weak<Self>,
    pub(super) name: CollectionName,
    pub(super) record: Record,
    pub(super) disk: Arc<Disk>,
    pub(super) writes: Arc<WriteQueue>,
    pub(super) graph_files: Arc<GraphFiles>,
    pub(super) options: IndexOptions,
    pub(super) layout: ArcSwap<Layout>,
    /// Held while the layout is changed.
    pub(super) writing: Mutex<()>,
    /// Builds the graphs of the store.
    pub(super) builder: Arc<Builder>,
    /// Held by the thread that builds graphs as long as one is due.
    pub(super) claim: BuildClaim,
    /// Whether a graph is being built right now.
    pub(super) building: AtomicBool,
    /// Whether the collection was deleted or replaced.
    pub(super) is_gone: AtomicBool,
    /// Ids of stored items that cannot be read.
    damaged: Mutex<BTreeSet<String>>,
}

impl EmbeddedCollection {
    /// A collection that holds what `layout` says.
    pub(super) fn new(name: CollectionName, record: Record, layout: Layout, parts: &Parts) -> Arc<Self> {
        let Parts { disk, writes, graph_files, builder, options } = parts;
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            name,
            record,
            disk: Arc::clone(disk),
            writes: Arc::clone(writes),
            graph_files: Arc::clone(graph_files),
            options: *options,
            layout: ArcSwap::from_pointee(layout),
            writing: Mutex::new(()),
            builder: Arc::clone(builder),
            claim: BuildClaim::default(),
            building: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
            damaged: Mutex::default(),
        })
    }

    /// Reads a collection into memory, with its saved graph where there is one that fits.
    pub(super) fn load(name: CollectionName, record: Record, parts: &Parts) -> Result<Arc<Self>, Error> {
        let (layout, damaged) = load(&name, &record, &parts.disk, &parts.graph_files, &parts.options)?;
        for Damaged { id, reason } in &damaged {
            tracing::error!(collection = %name, id, "an item is damaged and left out: {reason}");
        }
        let collection = Self::new(name, record, layout, parts);
        collection.damaged.lock().extend(damaged.into_iter().map(|item| item.id));
        Ok(collection)
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.layout.load().len()
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes a change durable, then visible, and returns the number of items that it replaced or deleted.
    fn write(&self, change: Change) -> Result<usize, Error> {
        self.writes.write(&self.disk, self.me(), change)
    }

    /// Items that were stored again or deleted are not damaged any more.
    fn forget_damage<'a>(&self, ids: impl Iterator<Item = &'a str>) {
        let mut damaged = self.damaged.lock();
        if !damaged.is_empty() {
            for id in ids {
                damaged.remove(id);
            }
        }
    }

    /// Itself.
    pub(super) fn me(&self) -> Arc<Self> {
        self.me.upgrade().expect("the caller holds it")
    }
}

impl Target for EmbeddedCollection {
    fn stored_as(&self) -> (&CollectionName, &Record) {
        (&self.name, &self.record)
    }

    fn publish(&self, change: Change, written: &Written) -> usize {
        let items = match change {
            Change::Upsert(items) => items,
            Change::Delete(ids) => {
                self.forget_damage(ids.iter().map(String::as_str));
                Vec::new()
            }
        };
        self.forget_damage(items.iter().map(|new| new.item.id.as_str()));
        let mut rows = Rows::with_capacity(self.record.spec.dim, items.len(), self.options.vectors);
        for (&sequence, new) in written.new.iter().zip(items) {
            rows.push(sequence, Arc::new(new.item), &new.vector);
        }
        let _writing = self.writing.lock();
        self.layout.store(Arc::new(self.layout.load().changed(&written.replaced, rows, self.options.exact_below)));
        written.replaced.len()
    }
}

impl Collection for EmbeddedCollection {
    fn name(&self) -> &CollectionName {
        &self.name
    }

    fn spec(&self) -> &Spec {
        &self.record.spec
    }

    fn number(&self) -> u64 {
        self.record.number
    }

    fn info(&self) -> Result<Info, Error> {
        let layout = self.layout.load();
        let indexed = layout.0.iter().filter(|segment| segment.graph.is_some()).map(|segment| segment.live).sum();
        let count = layout.len();
        let index = IndexState {
            kind: match self.options.vectors {
                VectorFormat::Int8 => "int8",
                VectorFormat::F32 if layout.0.iter().any(|segment| segment.graph.is_some()) => "hnsw",
                VectorFormat::F32 => "exact",
            },
            indexed,
            scanned: count - indexed,
            building: self.building.load(Ordering::Relaxed),
        };
        let damaged = DamagedItems::of(&self.damaged.lock());
        Ok(Info {
            name: self.name.clone(),
            number: self.record.number,
            spec: self.record.spec.clone(),
            count,
            created: self.record.created,
            index,
            damaged,
        })
    }

    fn upsert(&self, items: Vec<NewItem>) -> Result<(), Error> {
        let items = prepare(items, &self.record.spec)?;
        if items.is_empty() {
            return Ok(());
        }
        self.write(Change::Upsert(items))?;
        self.build_in_background();
        Ok(())
    }

    fn delete(&self, id: &str) -> Result<(), Error> {
        let deleted = self.write(Change::Delete(vec![id.to_owned()]))?;
        self.build_in_background();
        if deleted == 0 { Err(no_item(&self.name, id)) } else { Ok(()) }
    }

    fn delete_where(&self, filter: &Filter) -> Result<usize, Error> {
        let deleted = delete_where(self, filter)?;
        self.build_in_background();
        Ok(deleted)
    }

    fn get(&self, id: &str) -> Result<StoredItem, Error> {
        Ok(self.disk.get(&self.record, id)?.ok_or_else(|| no_item(&self.name, id))?.stored)
    }

    fn thumbnail(&self, id: &str) -> Result<Vec<u8>, Error> {
        self.disk.thumbnail(&self.record, id)?.ok_or_else(|| no_item(&self.name, id))
    }

    fn page(&self, after: Option<&str>, limit: usize) -> Result<Page, Error> {
        check_page(limit)?;
        let mut page = PageBuilder::new(limit);
        self.disk.visit(&self.record, after, |row| page.add(row.stored.item))?;
        Ok(page.end())
    }

    fn sources(&self) -> Result<HashMap<String, Option<String>>, Error> {
        Ok(self.layout.load().items().map(|item| (item.id.clone(), item.source.clone())).collect())
    }

    fn search(&self, query: &[f32], options: &Search<'_>) -> Result<Vec<Neighbour>, Error> {
        let query = options.prepare(query, self.record.spec.dim)?;
        let mut found = search(&self.layout.load(), &query, options, &|rows| self.disk.vectors(&self.record, rows))?;
        let pictured = self.disk.have_thumbnails(&self.record, found.iter().map(|neighbour| neighbour.item.id.as_str()))?;
        for (neighbour, has_picture) in found.iter_mut().zip(pictured) {
            neighbour.has_picture = has_picture;
        }
        Ok(found)
    }

    fn label_counts(&self, labels: &BTreeSet<&str>) -> Result<HashMap<String, usize>, Error> {
        let mut counts: HashMap<String, usize> = labels.iter().map(|&label| (label.to_owned(), 0)).collect();
        for (at, item) in self.layout.load().items().enumerate() {
            if at.is_multiple_of(4096) {
                cancel::check()?;
            }
            for label in &item.labels {
                if let Some(count) = counts.get_mut(label) {
                    *count += 1;
                }
            }
        }
        Ok(counts)
    }

    fn recall(&self, k: usize, ef: usize, queries: usize) -> Result<Recall, Error> {
        recall(&self.layout.load(), k, ef, queries, &|rows| self.disk.vectors(&self.record, rows))
    }

    fn version(&self) -> Result<Version, Error> {
        Ok(version(&self.record, &self.layout.load()))
    }

    fn sample(&self, most: usize) -> Result<Sample, Error> {
        let layout = self.layout.load();
        let rows = sample(&layout, most);
        let wanted: Vec<(&str, u64)> = rows.iter().map(|(item, sequence)| (item.id.as_str(), *sequence)).collect();
        let found = self.disk.vectors(&self.record, &wanted)?;
        let pictured = self.disk.have_thumbnails(&self.record, rows.iter().map(|(item, _)| item.id.as_str()))?;
        let mut sample = Sample { version: version(&self.record, &layout), items: Vec::new(), vectors: Vec::new() };
        for (((item, _), vector), pictured) in rows.into_iter().zip(found).zip(pictured) {
            // What was replaced or deleted meanwhile is left out.
            if let Some(vector) = vector {
                sample.items.push((item, pictured));
                sample.vectors.extend(vector);
            }
        }
        Ok(sample)
    }

    fn stamps(&self) -> Result<Vec<(String, u64)>, Error> {
        let layout = self.layout.load();
        let mut stamps = Vec::with_capacity(layout.len());
        for segment in &layout.0 {
            let rows = &segment.rows;
            stamps.extend(segment.live_rows().map(|row| (rows.items[row].id.clone(), rows.sequences[row])));
        }
        stamps.sort_unstable_by_key(|&(_, sequence)| sequence);
        Ok(stamps)
    }

    fn patches(&self, ids: &[&str]) -> Result<Vec<StoredPatches>, Error> {
        self.disk.patches(&self.record, ids)
    }

    fn scan(&self, filter: Option<&Filter>, visit: &mut VisitVector<'_>) -> Result<Version, Error> {
        let layout = self.layout.load_full();
        scan_all(&layout, filter, &|rows| self.disk.vectors(&self.record, rows), visit)?;
        Ok(version(&self.record, &layout))
    }

    fn export(&self, visit: &mut Visit<'_>) -> Result<Vec<Damaged>, Error> {
        self.disk.export(&self.record, visit)
    }

    fn build_if_due(&self) -> Result<(), Error> {
        if self.options.build_in_background {
            self.build_in_background();
        } else if self.build_is_due() {
            self.build_index()?;
        }
        Ok(())
    }
}
