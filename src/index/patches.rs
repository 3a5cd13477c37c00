//! The patches of a collection in memory, brought up to date with what is stored.
//!
//! A store keeps all patches of all items. A [`Bank`] holds what pictures are compared with, and is made of them: it asks which versions
//! of which items there are, and reads those alone that it does not know. So one collection may be written through several servers, and
//! each of them compares with what was acknowledged before it was asked.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Collection, Error, Item, StoredPatches};
use dino_vision::anomaly::Bank;
use dino_vision::cancel::{self, Cancelled};
use dino_vision::in_context::{LabelledPatches, Plane};
use dino_vision::segment::ColourBasis;

/// Label of an item that is known to be good, as items without a label are taken to be.
pub const NORMAL: &str = "normal";
/// Label of an item that is known to be anomalous: other pictures are not compared with it, and it refines the threshold.
pub const ANOMALOUS: &str = "anomalous";

/// Items whose patches are read at once: those of a picture with its rotations have some megabytes.
const READ: usize = 8;
/// Thresholds that are kept: most requests ask for the same one.
const MOST_THRESHOLDS: usize = 16;

/// The bank of one collection.
#[derive(Clone, Debug)]
pub struct PatchBank {
    /// Number of the collection: one that is made again under its name has another.
    pub number: u64,
    /// Its patches.
    pub bank: Bank,
    /// Those of pictures that came with a mask.
    pub labelled: LabelledPatches,
    /// Items whose patches could not be read, with their stamps: they are asked for again once they were written anew.
    unreadable: HashMap<String, u64>,
    /// Of just these patches, once it was asked for.
    colours: OnceLock<Option<Arc<ColourBasis>>>,
    /// Those of just these patches that were asked for.
    thresholds: Arc<Mutex<Thresholds>>,
}

/// Thresholds by the share of the patches that makes a score (its bits) and whether the background is left out.
type Thresholds = HashMap<(u64, bool), Arc<Threshold>>;

/// A threshold that was asked for, once it is known. Held while it is computed, which may be cancelled: then the next one that asks computes
/// it.
type Threshold = Mutex<Option<Option<f32>>>;

impl PatchBank {
    /// An empty bank for a collection of patches; `None` for one of pictures.
    pub fn of(collection: &dyn Collection) -> Option<Self> {
        let options = collection.spec().patches()?;
        Some(Self::empty(collection.number(), collection.spec().dim, options.max_patches))
    }

    /// An empty bank for patches `[dim]` of the collection of this number, of which it keeps `most`.
    pub fn empty(number: u64, dim: usize, most: usize) -> Self {
        Self {
            number,
            bank: Bank::new(dim, most),
            labelled: LabelledPatches::new(most),
            unreadable: HashMap::new(),
            colours: OnceLock::new(),
            thresholds: Arc::default(),
        }
    }

    /// The basis of colours of these patches, of at most 20,000 of them; `None` where they do not differ. It is fitted once for
    /// all, so a request that is cancelled meanwhile does not end it.
    pub fn colour_basis(&self) -> Option<Arc<ColourBasis>> {
        let fit = || {
            let (patches, is_border) = self.bank.sample();
            ColourBasis::fit(patches.view(), &is_border).map(Arc::new)
        };
        self.colours.get_or_init(|| cancel::scope(CancellationToken::new(), fit)).clone()
    }

    /// The [threshold](Bank::threshold) of these patches, computed once for all that ask for the same.
    ///
    /// # Errors
    /// [`Cancelled`].
    pub fn threshold(&self, top: f64, masked: bool) -> Result<Option<f32>, Cancelled> {
        let threshold = self.asked(top, masked);
        let mut known = threshold.lock();
        if let Some(known) = *known {
            return Ok(known);
        }
        let found = self.bank.threshold(top, masked)?;
        *known = Some(found);
        Ok(found)
    }

    /// The place of a threshold, known or not.
    fn asked(&self, top: f64, masked: bool) -> Arc<Threshold> {
        let asked = (top.to_bits(), masked);
        let mut thresholds = self.thresholds.lock();
        if thresholds.len() >= MOST_THRESHOLDS && !thresholds.contains_key(&asked) {
            thresholds.clear();
        }
        Arc::clone(thresholds.entry(asked).or_default())
    }

    /// The bank, to change.
    fn changed(this: &mut Arc<Self>) -> &mut Self {
        let own = Arc::make_mut(this);
        own.colours = OnceLock::new();
        // Another map: a copy of the bank shares the one that was here.
        own.thresholds = Arc::default();
        own
    }

    /// Memory of the patches in bytes.
    pub fn bytes(&self) -> usize {
        self.bank.bytes() + self.labelled.bytes()
    }

    /// Number of patches that are kept, those with a mask twice.
    pub fn patches(&self) -> usize {
        self.bank.patches() + self.labelled.len()
    }

    fn add(&mut self, StoredPatches { stamp, item, patches }: StoredPatches) -> Result<(), Cancelled> {
        self.bank.add(&item.id, stamp, is_anomalous(&item), &patches)?;
        if let Some(coverage) = &patches.coverage {
            // Of a picture without a source nothing else is known to be a mask.
            let source = item.source.unwrap_or_else(|| item.id.clone());
            let plane = Plane { id: item.id, labels: item.labels, coverage: coverage.clone() };
            self.labelled.add(&source, plane, &patches);
        }
        Ok(())
    }

    /// Whether the bank is then as if these items had never been there.
    fn can_remove(&self, gone: &HashSet<&str>) -> bool {
        gone.iter().all(|id| self.bank.can_remove(id)) && self.labelled.can_remove(|id| gone.contains(id))
    }

    fn remove(&mut self, gone: &HashSet<&str>) -> Result<(), Cancelled> {
        self.labelled.remove(|id| gone.contains(id));
        self.bank.remove(gone.iter().copied())
    }

    fn clear(this: &mut Arc<Self>, collection: &dyn Collection) {
        let most = collection.spec().patches().map_or(0, |options| options.max_patches);
        *this = Arc::new(Self::empty(this.number, collection.spec().dim, most));
    }

    /// Removes what is not stored any more, and adds what is new, older items before newer ones. Other holders of the bank keep theirs
    /// as it is.
    ///
    /// Where the bank holds only some of the patches, it is made anew after an item was deleted or replaced for whose sake others were left
    /// out: what that stood for would be missing. Returns whether all items were read, for that or since none was known.
    ///
    /// # Errors
    /// Those of the collection. Then some of it is done, and the next call goes on, or begins anew.
    pub fn refresh(this: &mut Arc<Self>, collection: &dyn Collection) -> Result<bool, Error> {
        let stored = collection.stamps()?;
        let stamps: HashMap<&str, u64> = stored.iter().map(|(id, stamp)| (id.as_str(), *stamp)).collect();
        let is_gone = |id: &&str| stamps.get(id).copied() != this.bank.stamp(id);
        let gone: Vec<String> = this.bank.ids().filter(is_gone).map(str::to_owned).collect();
        if !gone.is_empty() {
            let gone: HashSet<&str> = gone.iter().map(String::as_str).collect();
            if !this.can_remove(&gone) || Self::changed(this).remove(&gone).is_err() {
                Self::clear(this, collection);
            }
        }
        if this.unreadable.iter().any(|(id, stamp)| stamps.get(id.as_str()) != Some(stamp)) {
            Arc::make_mut(this).unreadable.retain(|id, stamp| stamps.get(id.as_str()) == Some(stamp));
        }
        let is_missing = |id: &&str| this.bank.stamp(id).is_none() && !this.unreadable.contains_key(*id);
        let missing: Vec<&str> = stored.iter().map(|(id, _)| id.as_str()).filter(is_missing).collect();
        let reads_all = !missing.is_empty() && missing.len() == stored.len();
        for ids in missing.chunks(READ) {
            cancel::check()?;
            for found in collection.patches(ids)? {
                let added = Self::changed(this).add(found);
                added.inspect_err(|_| Self::clear(this, collection))?;
            }
            for &id in ids {
                if this.bank.stamp(id).is_none() {
                    Arc::make_mut(this).unreadable.insert(id.to_owned(), stamps[id]);
                }
            }
        }
        Ok(reads_all)
    }
}

fn is_anomalous(item: &Item) -> bool {
    item.labels.iter().any(|label| label == ANOMALOUS)
}

#[cfg(test)]
mod tests {
    use dino_vision::anomaly::{PatchSet, Rows};
    use dino_vision::transform::PatchGrid;
    use tempfile::TempDir;

    use super::*;
    use crate::index::{EmbeddedStore, IndexOptions, Kind, ModelTag, NewItem, PatchOptions, Spec, Store};

    const GRID: PatchGrid = PatchGrid { rows: 5, columns: 6 };

    /// A collection of patches of four numbers, of which 100 are compared with: those of three pictures.
    struct Stored {
        collection: Arc<dyn Collection>,
        _store: EmbeddedStore,
        _folder: TempDir,
    }

    impl Stored {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = EmbeddedStore::open(folder.path(), IndexOptions::default()).unwrap();
            let kind = Kind::Patches(PatchOptions { max_patches: 100, layer: None, size: 64 });
            let spec = Spec { dim: 4, model: ModelTag { fingerprint: "x".into(), precision: None }, kind };
            let (collection, _) = Store::create(&store, &"p".parse().unwrap(), spec).unwrap();
            Self { collection, _store: store, _folder: folder }
        }

        /// Stores a picture whose patches lie around a direction, with a mask of all of it or without.
        fn add(&self, number: usize, along: [f32; 4], labels: &[&str], has_mask: bool) {
            let rows = rows(number, along);
            let coverage = has_mask.then(|| vec![255; GRID.len()]);
            let set = PatchSet { grid: GRID, foreground: vec![true; GRID.len()], coverage, rows };
            let labels = labels.iter().map(|&label| label.to_owned()).collect();
            let item = Item { id: number.to_string(), labels, source: Some(format!("source {number}")), ..Item::default() };
            let new = NewItem { item, vector: set.mean(), thumbnail: None, patches: Some(set.to_bytes()) };
            self.collection.upsert(vec![new]).unwrap();
        }

        fn delete(&self, numbers: impl IntoIterator<Item = usize>) {
            numbers.into_iter().for_each(|number| self.collection.delete(&number.to_string()).unwrap());
        }

        fn empty(&self) -> Arc<PatchBank> {
            Arc::new(PatchBank::of(&*self.collection).unwrap())
        }

        /// Brings a bank up to date, and compares it with one that is made anew.
        #[track_caller]
        fn refresh(&self, bank: &mut Arc<PatchBank>) {
            PatchBank::refresh(bank, &*self.collection).unwrap();
            let mut anew = self.empty();
            PatchBank::refresh(&mut anew, &*self.collection).unwrap();
            let shown = |bank: &PatchBank| {
                let votes = bank.labelled.vote(&rows(100, [1.0, 1.0, 1.0, 1.0]), 20, 0.07).unwrap();
                (bank.bank.len(), bank.patches(), bank.threshold(0.01, false).unwrap(), bank.labelled.len(), votes)
            };
            assert_eq!(shown(bank), shown(&anew));
        }
    }

    fn rows(number: usize, along: [f32; 4]) -> Rows {
        let mut rows = Rows::new(4);
        for patch in 0..GRID.len() {
            let noise = |at: usize| (((number * 1000 + patch) * 4 + at) as f32 * 12.9898).sin() * 43758.547 % 1.0;
            rows.push((0..4).map(|at| along[at] + 0.1 * noise(at)));
        }
        rows
    }

    const GOOD: [f32; 4] = [1.0, 0.0, 0.0, 0.0];

    /// Where few masks are left of more than the bound, all of their patches vote again.
    #[test]
    fn patches_that_were_left_out_for_masks_that_are_gone_come_back() {
        let stored = Stored::new();
        (0..2).for_each(|number| stored.add(number, GOOD, &[], false));
        // The last three have no place among the anomalous ones: of those nothing has to be made anew.
        for number in 10..16 {
            stored.add(number, [1.0, 0.0, 3.0, 0.0], &[ANOMALOUS, &format!("label {number}")], true);
        }
        let mut bank = stored.empty();
        stored.refresh(&mut bank);
        assert!(bank.labelled.len() <= 100 && bank.bank.patches() == 150, "{}", bank.labelled.len());
        stored.delete(13..16);
        stored.refresh(&mut bank);
        assert_eq!(bank.labelled.len(), 90);
    }

    /// A picture whose distances cannot be asked for anew does not keep those to one that is gone.
    #[test]
    fn the_threshold_is_what_a_restart_would_give() {
        let stored = Stored::new();
        (0..2).for_each(|number| stored.add(number, GOOD, &[], false));
        stored.add(2, [1.0, 0.9, 0.0, 0.0], &[NORMAL], false);
        (10..13).for_each(|number| stored.add(number, [1.0, 0.0, 3.0, 0.0], &[ANOMALOUS], false));
        // Beyond the bound, and like a good one.
        (13..16).for_each(|number| stored.add(number, [1.0, 0.9, 0.0, 0.0], &[ANOMALOUS], false));
        let mut bank = stored.empty();
        stored.refresh(&mut bank);
        let before = bank.threshold(0.01, false).unwrap();
        stored.delete([2]);
        stored.refresh(&mut bank);
        assert_ne!(bank.threshold(0.01, false).unwrap(), before);
        // Of those that have a place, when they leave it; and a good one that comes.
        stored.delete([10, 12]);
        stored.refresh(&mut bank);
        stored.add(3, [1.0, 0.2, 0.0, 0.0], &[], false);
        stored.refresh(&mut bank);
    }

    #[test]
    fn a_refresh_says_whether_all_was_read() {
        let stored = Stored::new();
        (0..3).for_each(|number| stored.add(number, GOOD, &[], false));
        let (mut bank, refresh) = (stored.empty(), |bank: &mut Arc<PatchBank>| PatchBank::refresh(bank, &*stored.collection).unwrap());
        assert_eq!([refresh(&mut bank), refresh(&mut bank)], [true, false]);
        stored.add(3, GOOD, &[], false);
        // That is more than the bound: what is deleted now was kept in place of others.
        assert!(!refresh(&mut bank) && bank.bank.len() < 100);
        stored.delete([1]);
        assert!(refresh(&mut bank) && bank.bank.len() == 90);
        stored.delete([0]);
        assert!(!refresh(&mut bank) && bank.bank.len() == 60);
    }

    /// Questions without a threshold of their own would walk all pictures each time.
    #[test]
    fn a_threshold_is_computed_once_for_the_same_patches() {
        let stored = Stored::new();
        (0..3).for_each(|number| stored.add(number, GOOD, &[], false));
        let mut bank = stored.empty();
        PatchBank::refresh(&mut bank, &*stored.collection).unwrap();
        let cancelled = CancellationToken::new();
        cancelled.cancel();
        let ask = |bank: &PatchBank, top: f64| cancel::scope(cancelled.clone(), || bank.threshold(top, false));
        assert_eq!(ask(&bank, 0.5), Err(Cancelled));
        let found = bank.threshold(0.5, false).unwrap();
        assert!(found.is_some() && ask(&bank, 0.5) == Ok(found) && ask(&bank, 0.1) == Err(Cancelled));
        // Other patches have another one, and what still holds the earlier ones keeps theirs.
        let earlier = Arc::clone(&bank);
        stored.delete([1]);
        PatchBank::refresh(&mut bank, &*stored.collection).unwrap();
        assert_eq!((ask(&bank, 0.5), ask(&earlier, 0.5)), (Err(Cancelled), Ok(found)));
        for top in 1..40 {
            bank.threshold(f64::from(top) / 40.0, false).unwrap();
        }
        assert!(bank.thresholds.lock().len() <= MOST_THRESHOLDS);
        // Who asks while it is computed waits for that.
        let threshold = bank.asked(0.33, false);
        let (mut known, asks) = (threshold.lock(), Arc::clone(&bank));
        let asking = std::thread::spawn(move || asks.threshold(0.33, false));
        *known = Some(Some(7.0));
        drop(known);
        assert_eq!(asking.join().unwrap(), Ok(Some(7.0)));
    }

    /// The first request for a basis may be cancelled while it is fitted.
    #[test]
    fn a_cancelled_request_leaves_a_whole_basis() {
        let mut bank = PatchBank::empty(1, 4, 1000);
        let grid = PatchGrid { rows: 6, columns: 6 };
        let mut rows = Rows::new(4);
        for at in 0..36_u8 {
            let [x, y] = [at % 6, at / 6].map(f32::from);
            rows.push([x, y, (x - 2.5) * (y - 2.5), 3.0].into_iter());
        }
        bank.bank.add("a", 1, false, &PatchSet { grid, foreground: vec![true; 36], coverage: None, rows }).unwrap();
        let cancelled = CancellationToken::new();
        cancelled.cancel();
        let other = bank.clone();
        let found = cancel::scope(cancelled, || bank.colour_basis()).unwrap();
        assert_eq!(found, other.colour_basis().unwrap());
    }
}
