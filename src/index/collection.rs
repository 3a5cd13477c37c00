//! One collection: durable writes, undisturbed reads.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::commit;
use super::disk::{Change, Disk, Record, Row, Spec};
use super::dump::Dumps;
use super::info::{IndexState, Info, Page};
use super::item::{Item, MAX_THUMBNAIL, NewItem, StoredItem, normalise};
use super::rows::{Layout, Rows};
use super::search::{Neighbour, Predicate, Search, search};
use super::{CollectionName, Error, Options};

/// Most items of one page.
pub const MAX_PAGE: usize = 1000;

/// A named set of items with vectors of one model.
pub struct Collection {
    pub(super) name: CollectionName,
    pub(super) record: Record,
    pub(super) disk: Arc<Disk>,
    pub(super) dumps: Arc<Dumps>,
    pub(super) options: Options,
    pub(super) layout: ArcSwap<Layout>,
    /// Held while the layout is changed.
    pub(super) writing: Mutex<()>,
    /// Held while a graph is built.
    pub(super) building: Mutex<()>,
    /// Whether a thread was started to build one.
    pub(super) build_started: AtomicBool,
}

impl Collection {
    /// Reads a collection into memory, with its saved graph where there is one that fits.
    pub(super) fn load(name: CollectionName, record: Record, disk: Arc<Disk>, dumps: Arc<Dumps>, options: Options) -> Result<Self, Error> {
        let mut found = Vec::new();
        disk.visit(&record, None, |row| {
            found.push(row);
            true
        })?;
        found.sort_unstable_by_key(|row| row.sequence);
        let mut rows = Rows::with_capacity(record.spec.dim, found.len());
        for Row { sequence, stored } in found {
            rows.push(sequence, Arc::new(stored.item), &stored.vector);
        }
        let rows = Arc::new(rows);
        let layout = match dumps.lay_out(record.number, &rows, options.exact_below) {
            Ok(Some(layout)) => layout,
            Ok(None) => Layout::plain(rows),
            Err(reason) => {
                tracing::warn!(collection = %name, "the saved index is not used: {reason}");
                Layout::plain(rows)
            }
        };
        Ok(Self {
            name,
            record,
            disk,
            dumps,
            options,
            layout: ArcSwap::from_pointee(layout),
            writing: Mutex::new(()),
            building: Mutex::new(()),
            build_started: AtomicBool::new(false),
        })
    }

    /// The collection's name.
    pub fn name(&self) -> &CollectionName {
        &self.name
    }

    /// Dimension and model.
    pub fn spec(&self) -> &Spec {
        &self.record.spec
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.layout.load().len()
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is known of the collection right now.
    pub fn info(&self) -> Info {
        let layout = self.layout.load();
        let indexed = layout.0.iter().filter(|segment| segment.graph.is_some()).map(|segment| segment.live).sum();
        let count = layout.len();
        let index = IndexState {
            kind: if layout.0.iter().any(|segment| segment.graph.is_some()) { "hnsw" } else { "exact" },
            indexed,
            scanned: count - indexed,
            building: self.building.is_locked(),
        };
        Info { name: self.name.clone(), spec: self.record.spec.clone(), count, created: self.record.created, index }
    }

    /// Refuses vectors of another model.
    ///
    /// # Errors
    /// [`Error::Conflict`] where `fingerprint` is not that of the collection.
    pub fn check_model(&self, fingerprint: &str) -> Result<(), Error> {
        let own = &self.record.spec.model.fingerprint;
        if own == fingerprint {
            return Ok(());
        }
        let short = |hash: &str| hash.chars().take(12).collect::<String>();
        Err(Error::Conflict(format!(
            "collection {} holds vectors of the model {}…, not of {}…: use that model, or another collection",
            self.name,
            short(own),
            short(fingerprint),
        )))
    }

    /// Stores `items`: all of them or, after an error, none. They are durable and visible when this returns.
    ///
    /// An item whose id exists is replaced as a whole. Where one call has an id twice, the last one wins.
    ///
    /// # Errors
    /// [`Error::InvalidItem`] and [`Error::InvalidVector`] name the item; [`Error::NoCollection`] where the
    /// collection was deleted in the meantime.
    pub fn upsert(self: &Arc<Self>, items: Vec<NewItem>) -> Result<(), Error> {
        let items = prepare(items, self.record.spec.dim)?;
        if items.is_empty() {
            return Ok(());
        }
        commit::write(self, Change::Upsert(items))?;
        self.build_in_background();
        Ok(())
    }

    /// Deletes one item.
    ///
    /// # Errors
    /// [`Error::NoItem`] where it does not exist.
    pub fn delete(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let deleted = commit::write(self, Change::Delete(vec![id.to_owned()]))?;
        self.build_in_background();
        if deleted == 0 { Err(self.no_item(id)) } else { Ok(()) }
    }

    /// Deletes every item that passes `filter`, all at once, and returns their number.
    ///
    /// # Errors
    /// Those of the store.
    pub fn delete_where(self: &Arc<Self>, filter: Predicate<'_>) -> Result<usize, Error> {
        let deleted = commit::write_after_look(self, |layout| {
            Change::Delete(layout.items().filter(|item| filter(item)).map(|item| item.id.clone()).collect())
        })?;
        self.build_in_background();
        Ok(deleted)
    }

    /// One item with its vector.
    ///
    /// # Errors
    /// [`Error::NoItem`] where it does not exist.
    pub fn get(&self, id: &str) -> Result<StoredItem, Error> {
        Ok(self.disk.get(&self.record, id)?.ok_or_else(|| self.no_item(id))?.stored)
    }

    /// The stored picture of an item: a JPEG, or the file that it was made of.
    ///
    /// # Errors
    /// [`Error::NoItem`] where the item or its picture does not exist.
    pub fn thumbnail(&self, id: &str) -> Result<Vec<u8>, Error> {
        self.disk.thumbnail(&self.record, id)?.ok_or_else(|| self.no_item(id))
    }

    /// Whether each of these items has a stored picture; one that does not exist has none.
    ///
    /// # Errors
    /// Those of the store.
    pub fn have_thumbnails<'a>(&self, ids: impl Iterator<Item = &'a str>) -> Result<Vec<bool>, Error> {
        self.disk.have_thumbnails(&self.record, ids)
    }

    /// Up to `limit` (1 to [`MAX_PAGE`]) items whose id comes after `after`.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for another `limit`.
    pub fn page(&self, after: Option<&str>, limit: usize) -> Result<Page, Error> {
        if limit == 0 || limit > MAX_PAGE {
            return Err(Error::InvalidParameter(format!("a page has 1 to {MAX_PAGE} items, not {limit}")));
        }
        let mut page = Page { items: Vec::new(), next: None };
        self.disk.visit(&self.record, after, |row| {
            if page.items.len() == limit {
                page.next = page.items.last().map(|item: &Item| item.id.clone());
                return false;
            }
            page.items.push(row.stored.item);
            true
        })?;
        Ok(page)
    }

    /// Id and source of every item, for an import that skips what it has.
    pub fn sources(&self) -> HashMap<String, Option<String>> {
        self.layout.load().items().map(|item| (item.id.clone(), item.source.clone())).collect()
    }

    /// The nearest items to `query` `[dim]` (of any length), nearest first, equal ones by id.
    ///
    /// As many as asked for come back where that many exist and pass the filter, on every path. Without a graph the
    /// answer is exact; with one see [`recall`](Self::recall).
    ///
    /// # Errors
    /// [`Error::InvalidVector`] for a query that cannot be compared, [`Error::InvalidParameter`] for `k` = 0.
    pub fn search(&self, query: &[f32], options: &Search<'_>) -> Result<Vec<Neighbour>, Error> {
        if options.k == 0 {
            return Err(Error::InvalidParameter("k is at least 1".to_owned()));
        }
        let mut query = query.to_vec();
        normalise(&mut query, self.record.spec.dim, || "query".to_owned())?;
        Ok(search(&self.layout.load(), &query, options))
    }

    fn no_item(&self, id: &str) -> Error {
        Error::NoItem { collection: self.name.to_string(), id: id.chars().take(super::item::MAX_TEXT).collect() }
    }
}

/// Checks and normalises items, and keeps the last one of each id.
pub(super) fn prepare(items: Vec<NewItem>, dim: usize) -> Result<Vec<NewItem>, Error> {
    let mut last: HashMap<String, usize> = HashMap::with_capacity(items.len());
    let mut prepared: Vec<NewItem> = Vec::with_capacity(items.len());
    for mut new in items {
        new.item.check()?;
        normalise(&mut new.vector, dim, || format!("item {:?}", new.item.id))?;
        if new.thumbnail.as_ref().is_some_and(|jpeg| jpeg.len() > MAX_THUMBNAIL) {
            let reason = format!("a stored picture has at most {MAX_THUMBNAIL} bytes");
            return Err(Error::InvalidItem { id: new.item.id, reason });
        }
        if let Some(&at) = last.get(&new.item.id) {
            prepared[at] = new;
        } else {
            last.insert(new.item.id.clone(), prepared.len());
            prepared.push(new);
        }
    }
    Ok(prepared)
}
