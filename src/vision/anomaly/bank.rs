//! The patches of good pictures, in memory: what a picture's patches are compared with.
//!
//! A bank follows a collection picture by picture. Adding one compares its patches with those that are there, once, and that says all
//! that the threshold needs (`leave_one_out`). Pictures that are known to be anomalous are no part of what is compared with; they are
//! kept for the threshold.

use std::collections::HashMap;

use super::leave_one_out::{Best, Scored};
use super::scan::{Hit, NONE, Options, Owners, distance, scan};
use super::{PatchSet, Rows, coreset, leave_one_out};
use crate::cancel::Cancelled;

/// A row that is no patch of the picture itself, but of a rotation of it.
const ROTATED: u32 = u32::MAX;

/// The patches of a collection.
#[derive(Clone, Debug)]
pub struct Bank {
    most: usize,
    /// 0 as long as all patches are kept; then what the chosen ones are apart.
    radius: f32,
    normal: Block,
    anomalous: Block,
    pictures: HashMap<String, Picture>,
    /// Ids by the numbers of pictures.
    ids: HashMap<u32, String>,
    next: u32,
}

/// Rows, and what each is of.
#[derive(Clone, Debug)]
struct Block {
    rows: Rows,
    /// Number of the picture of each row.
    owners: Vec<u32>,
    /// Which of its patches it is, or [`ROTATED`].
    patches: Vec<u32>,
}

#[derive(Clone, Debug)]
struct Picture {
    number: u32,
    /// Which version of the picture this is.
    stamp: u64,
    scored: Scored,
}

/// The stored patch that is nearest to one of a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nearest<'a> {
    /// Cosine of the two, -1 to 1.
    pub similarity: f32,
    /// The picture that the stored patch is of.
    pub id: &'a str,
}

impl Bank {
    /// An empty bank for patches `[dim]`, of which it keeps `most`.
    pub fn new(dim: usize, most: usize) -> Self {
        Self {
            most,
            radius: 0.0,
            normal: Block::new(dim),
            anomalous: Block::new(dim),
            pictures: HashMap::new(),
            ids: HashMap::new(),
            next: 0,
        }
    }

    /// Number of patches that pictures are compared with.
    pub fn len(&self) -> usize {
        self.normal.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.normal.rows.is_empty()
    }

    /// Memory of the patches in bytes.
    pub fn bytes(&self) -> usize {
        let scored: usize = self.pictures.values().map(|picture| picture.scored.bytes()).sum();
        [&self.normal, &self.anomalous].map(|block| block.rows.bytes() + 8 * block.owners.len()).iter().sum::<usize>() + scored
    }

    /// Whether only some of the patches are kept. Then a picture cannot be removed: what it stood for would be missing.
    pub fn is_thinned(&self) -> bool {
        self.radius > 0.0
    }

    /// The version of a picture that is here.
    pub fn stamp(&self, id: &str) -> Option<u64> {
        self.pictures.get(id).map(|picture| picture.stamp)
    }

    /// Ids of all pictures.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.pictures.keys().map(String::as_str)
    }

    /// For each of `queries` the nearest stored patch; `None` where there is none.
    ///
    /// # Errors
    /// [`Cancelled`].
    pub fn nearest(&self, queries: &Rows) -> Result<Vec<Option<Nearest<'_>>>, Cancelled> {
        let nearest = |hit: Hit| {
            let owner = self.normal.owners.get(hit.row as usize)?;
            Some(Nearest { similarity: hit.cosine, id: self.ids.get(owner)? })
        };
        Ok(scan(queries, &self.normal.rows, Options::default())?.of_queries.into_iter().map(nearest).collect())
    }

    /// The score above which a picture is anomalous: the largest that a good picture would have if it were new; or, where some are known
    /// to be anomalous, between theirs and those of the good ones. `None` with fewer than two good pictures.
    ///
    /// `top` is the share of the patches that make a score; with `masked` those of the background count as 0.
    pub fn threshold(&self, top: f64, masked: bool) -> Option<f32> {
        leave_one_out::threshold(self.pictures.values().map(|picture| &picture.scored), top, masked)
    }

    /// Adds a picture that is not here yet. `stamp` tells versions of it apart. After an error nothing has changed.
    ///
    /// # Errors
    /// [`Cancelled`].
    pub fn add(&mut self, id: &str, stamp: u64, is_anomalous: bool, set: &PatchSet) -> Result<(), Cancelled> {
        let (own, all) = (set.grid.len(), set.rows.len());
        let keeps_all = self.radius == 0.0;
        let both = Options { of_rows: keeps_all && !is_anomalous, ..Options::default() };
        let found = scan(&set.rows, &self.normal.rows, both)?;
        let best = found.of_queries[..own].iter().map(|hit| self.best(*hit)).collect();
        let scored = Scored { is_anomalous, best, foreground: set.foreground.clone() };
        if is_anomalous {
            // Beyond the bound its distances stay what they are now.
            let kept = if self.anomalous.rows.len() + own <= self.most { own } else { 0 };
            let number = self.enter(id, stamp, scored);
            self.anomalous.extend(&set.rows, 0..kept, own, number);
            return Ok(());
        }
        let (chosen, of_rows) = if keeps_all {
            ((0..all).collect(), found.of_rows)
        } else {
            let chosen = coreset::separate(&set.rows, &found.of_queries, self.radius)?;
            let rows = set.rows.select(chosen.iter().copied());
            (chosen, scan(&rows, &self.normal.rows, Options { of_rows: true, ..Options::default() })?.of_rows)
        };
        let rows = set.rows.select(chosen.iter().copied());
        let of_anomalous = scan(&rows, &self.anomalous.rows, Options { of_rows: true, ..Options::default() })?.of_rows;
        let number = self.enter(id, stamp, scored);
        for (block, cosines) in [(&self.normal, of_rows), (&self.anomalous, of_anomalous)] {
            for ((owner, patch), cosine) in block.owners.iter().zip(&block.patches).zip(cosines) {
                if let Some(best) = best_of(&mut self.pictures, &self.ids, *owner, *patch) {
                    best.offer(Best { cosine, of: number });
                }
            }
        }
        self.normal.extend(&set.rows, chosen, own, number);
        self.thin()
    }

    /// Removes pictures; those that are not here are none of them.
    ///
    /// # Errors
    /// [`Cancelled`]: then they are removed, and what remains has to be made anew.
    ///
    /// # Panics
    /// Where the bank [is thinned](Self::is_thinned).
    pub fn remove<'a>(&mut self, ids: impl IntoIterator<Item = &'a str>) -> Result<(), Cancelled> {
        assert!(!self.is_thinned(), "what a removed picture stood for is not here");
        let gone: Vec<u32> = ids.into_iter().filter_map(|id| self.pictures.remove(id)).map(|picture| picture.number).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let gone: std::collections::HashSet<u32> = gone.into_iter().collect();
        self.ids.retain(|number, _| !gone.contains(number));
        for block in [&mut self.normal, &mut self.anomalous] {
            block.retain(|owner| !gone.contains(&owner));
        }
        // Patches whose nearest was one of a removed picture ask again.
        self.ask_again(|best| gone.contains(&best.of))
    }

    /// Brings the number of patches below its bound, where it is above.
    fn thin(&mut self) -> Result<(), Cancelled> {
        if self.normal.rows.len() <= self.most {
            return Ok(());
        }
        let (kept, radius) = coreset::thinned(&self.normal.rows, self.radius, self.most)?;
        let mut left = Block::new(self.normal.rows.dim());
        left.rows = self.normal.rows.select(kept.iter().copied());
        left.owners = kept.iter().map(|&row| self.normal.owners[row]).collect();
        left.patches = kept.iter().map(|&row| self.normal.patches[row]).collect();
        let all = std::mem::replace(&mut self.normal, left);
        self.radius = radius;
        // Also of those that are not kept: their distances are known from here on, if not their patches.
        self.ask_again_in(&all, |_| true)?;
        let anomalous = std::mem::replace(&mut self.anomalous, Block::new(all.rows.dim()));
        let asked = self.ask_again_in(&anomalous, |_| true);
        self.anomalous = anomalous;
        asked
    }

    fn ask_again(&mut self, which: impl Fn(&Best) -> bool) -> Result<(), Cancelled> {
        for is_normal in [true, false] {
            let block = if is_normal { self.normal.clone() } else { self.anomalous.clone() };
            self.ask_again_in(&block, &which)?;
        }
        Ok(())
    }

    /// Looks up the nearest patch of another picture for those patches of `block` whose earlier one is `which`.
    fn ask_again_in(&mut self, block: &Block, which: impl Fn(&Best) -> bool) -> Result<(), Cancelled> {
        let places = block.owners.iter().zip(&block.patches).enumerate();
        let asked: Vec<usize> = places
            .filter(|(_, (owner, patch))| best_of(&mut self.pictures, &self.ids, **owner, **patch).is_some_and(|best| which(best)))
            .map(|(row, _)| row)
            .collect();
        let queries: Vec<u32> = asked.iter().map(|&row| block.owners[row]).collect();
        let rows = block.rows.select(asked.iter().copied());
        let owners = Owners { queries: &queries, rows: &self.normal.owners };
        let found = scan(&rows, &self.normal.rows, Options { owners: Some(owners), of_rows: false })?;
        for (row, hit) in asked.into_iter().zip(found.of_queries) {
            let known = self.best(hit);
            if let Some(best) = best_of(&mut self.pictures, &self.ids, block.owners[row], block.patches[row]) {
                *best = known;
            }
        }
        Ok(())
    }

    fn best(&self, hit: Hit) -> Best {
        Best { cosine: hit.cosine, of: self.normal.owners.get(hit.row as usize).copied().unwrap_or(u32::MAX) }
    }

    fn enter(&mut self, id: &str, stamp: u64, scored: Scored) -> u32 {
        let number = self.next;
        self.next += 1;
        self.ids.insert(number, id.to_owned());
        self.pictures.insert(id.to_owned(), Picture { number, stamp, scored });
        number
    }
}

/// What is known of a patch, unless it is one of a rotation.
fn best_of<'a>(pictures: &'a mut HashMap<String, Picture>, ids: &HashMap<u32, String>, owner: u32, patch: u32) -> Option<&'a mut Best> {
    pictures.get_mut(ids.get(&owner)?)?.scored.best.get_mut(patch as usize)
}

impl Block {
    fn new(dim: usize) -> Self {
        Self { rows: Rows::new(dim), owners: Vec::new(), patches: Vec::new() }
    }

    /// Adds rows of a picture whose own patches are the first `own` ones.
    fn extend(&mut self, rows: &Rows, chosen: impl IntoIterator<Item = usize>, own: usize, owner: u32) {
        for row in chosen {
            self.rows.push_from(rows, row);
            self.owners.push(owner);
            self.patches.push(if row < own { row as u32 } else { ROTATED });
        }
    }

    fn retain(&mut self, stays: impl Fn(u32) -> bool) {
        let kept: Vec<usize> = (0..self.owners.len()).filter(|&row| stays(self.owners[row])).collect();
        *self = Self {
            rows: self.rows.select(kept.iter().copied()),
            owners: kept.iter().map(|&row| self.owners[row]).collect(),
            patches: kept.iter().map(|&row| self.patches[row]).collect(),
        };
    }
}

impl Best {
    fn offer(&mut self, other: Self) {
        if other.cosine > self.cosine && other.cosine > NONE {
            *self = other;
        }
    }
}

impl Nearest<'_> {
    /// 1 minus the cosine, 0 to 2.
    pub fn distance(&self) -> f32 {
        distance(self.similarity)
    }
}
