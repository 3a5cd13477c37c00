//! The patches of a collection in memory, brought up to date with what is stored.
//!
//! A store keeps all patches of all items. A [`Bank`] holds what pictures are compared with, and is made of them: it asks which versions
//! of which items there are, and reads those alone that it does not know. So one collection may be written through several servers, and
//! each of them compares with what was acknowledged before it was asked.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

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
}

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

    /// The bank, to change.
    fn changed(this: &mut Arc<Self>) -> &mut Self {
        let own = Arc::make_mut(this);
        own.colours = OnceLock::new();
        own
    }

    /// Memory of the patches in bytes.
    pub fn bytes(&self) -> usize {
        self.bank.bytes() + self.labelled.bytes()
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
    /// Where the bank holds only some of the patches, it is made anew after a good item was deleted or replaced: what that stood for would
    /// be missing.
    ///
    /// # Errors
    /// Those of the collection. Then some of it is done, and the next call goes on, or begins anew.
    pub fn refresh(this: &mut Arc<Self>, collection: &dyn Collection) -> Result<(), Error> {
        let stored = collection.stamps()?;
        let stamps: HashMap<&str, u64> = stored.iter().map(|(id, stamp)| (id.as_str(), *stamp)).collect();
        let is_gone = |id: &&str| stamps.get(id).copied() != this.bank.stamp(id);
        let gone: Vec<String> = this.bank.ids().filter(is_gone).map(str::to_owned).collect();
        if !gone.is_empty() {
            let can_remove = gone.iter().all(|id| this.bank.can_remove(id));
            if !can_remove || Self::changed(this).remove(&gone.iter().map(String::as_str).collect()).is_err() {
                Self::clear(this, collection);
            }
        }
        if this.unreadable.iter().any(|(id, stamp)| stamps.get(id.as_str()) != Some(stamp)) {
            Arc::make_mut(this).unreadable.retain(|id, stamp| stamps.get(id.as_str()) == Some(stamp));
        }
        let is_missing = |id: &&str| this.bank.stamp(id).is_none() && !this.unreadable.contains_key(*id);
        let missing: Vec<&str> = stored.iter().map(|(id, _)| id.as_str()).filter(is_missing).collect();
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
        Ok(())
    }
}

fn is_anomalous(item: &Item) -> bool {
    item.labels.iter().any(|label| label == ANOMALOUS)
}

#[cfg(test)]
mod tests {
    use dino_vision::anomaly::{PatchSet, Rows};
    use dino_vision::transform::PatchGrid;

    use super::*;

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
