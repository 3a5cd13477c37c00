//! The patches of good pictures, in memory: what a picture's patches are compared with.
//!
//! A bank follows a collection picture by picture. Adding one compares its patches with those that are there, once, and that says all
//! that the threshold needs (`leave_one_out`). Pictures that are known to be anomalous are no part of what is compared with; they are
//! kept for the threshold.

use std::collections::{HashMap, HashSet};

use ndarray::Array2;

use super::coreset::{Covered, Selection};
use super::leave_one_out::{Best, Cover, Scored, farther};
use super::scan::{Hit, NONE, Options, Owners, distance, scan};
use super::{PatchSet, Rows, coreset, leave_one_out};
use crate::cancel::Cancelled;
use crate::segment::ColourBasis;
use crate::transform::PatchGrid;

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
    /// By their numbers.
    pictures: HashMap<u32, Picture>,
    /// Numbers of the pictures by their ids.
    numbers: HashMap<String, u32>,
    /// Of the anomalous ones, how many have no place for their patches.
    without_patches: usize,
    /// Numbers of the pictures that the distances of those are to.
    referred: HashSet<u32>,
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
    id: String,
    /// Which version of the picture this is.
    stamp: u64,
    grid: PatchGrid,
    scored: Scored,
    /// Whether its patches are kept, or those of them that were chosen.
    has_patches: bool,
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
            numbers: HashMap::new(),
            without_patches: 0,
            referred: HashSet::new(),
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

    /// Number of all patches that are here, those of anomalous pictures too.
    pub fn patches(&self) -> usize {
        self.normal.rows.len() + self.anomalous.rows.len()
    }

    /// Memory of the patches in bytes.
    pub fn bytes(&self) -> usize {
        let scored: usize = self.pictures.values().map(|picture| picture.scored.bytes()).sum();
        [&self.normal, &self.anomalous].map(|block| block.rows.bytes() + 8 * block.owners.len()).iter().sum::<usize>() + scored
    }

    /// Whether a picture can be removed: a good one cannot once only some of the patches are kept, since what it stood for would be
    /// missing. Where an anomalous one had no place for its patches, its distances cannot be asked for anew: then neither a good one can
    /// that they are to, nor an anomalous one whose place it would get.
    pub fn can_remove(&self, id: &str) -> bool {
        let Some(number) = self.numbers.get(id) else { return true };
        let Some(picture) = self.pictures.get(number) else { return true };
        if picture.scored.is_anomalous {
            self.without_patches == 0 || !picture.has_patches
        } else {
            self.radius == 0.0 && !self.referred.contains(number)
        }
    }

    /// The version of a picture that is here.
    pub fn stamp(&self, id: &str) -> Option<u64> {
        self.picture(id).map(|picture| picture.stamp)
    }

    /// Ids of all pictures.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.numbers.keys().map(String::as_str)
    }

    /// What a [`ColourBasis`] is fitted on: patches that pictures are compared with, without those of rotations, as floats `[patches, dim]`;
    /// and whether each lies at the border of its picture.
    pub fn sample(&self) -> (Array2<f32>, Vec<bool>) {
        let Block { rows, owners, patches } = &self.normal;
        let own: Vec<usize> = (0..rows.len()).filter(|&row| patches[row] != ROTATED).collect();
        let chosen: Vec<usize> = ColourBasis::rows(own.len()).map(|at| own[at]).collect();
        let is_border = |&row: &usize| self.pictures.get(&owners[row]).is_some_and(|picture| picture.grid.is_border(patches[row] as usize));
        let borders = chosen.iter().map(is_border).collect();
        (Array2::from_shape_fn((chosen.len(), rows.dim()), |(at, axis)| f32::from(rows.codes(chosen[at])[axis])), borders)
    }

    fn picture(&self, id: &str) -> Option<&Picture> {
        self.pictures.get(self.numbers.get(id)?)
    }

    /// For each of `queries` the nearest stored patch; `None` where there is none.
    ///
    /// # Errors
    /// [`Cancelled`].
    pub fn nearest(&self, queries: &Rows) -> Result<Vec<Option<Nearest<'_>>>, Cancelled> {
        let nearest = |hit: Hit| {
            let owner = self.normal.owners.get(hit.row as usize)?;
            Some(Nearest { similarity: hit.cosine, id: &self.pictures.get(owner)?.id })
        };
        Ok(scan(queries, &self.normal.rows, Options::default())?.of_queries.into_iter().map(nearest).collect())
    }

    /// The score above which a picture is anomalous: the largest that a good picture would have if it were new; or, where some are known
    /// to be anomalous, between theirs and those of the good ones. `None` with fewer than two good pictures.
    ///
    /// `top` is the share of the patches that make a score; with `masked` those of the background count as 0.
    ///
    /// # Errors
    /// [`Cancelled`].
    pub fn threshold(&self, top: f64, masked: bool) -> Result<Option<f32>, Cancelled> {
        leave_one_out::threshold(self.pictures.values().map(|picture| &picture.scored), top, masked)
    }

    /// Adds a picture that is not here yet. `stamp` tells versions of it apart.
    ///
    /// # Errors
    /// [`Cancelled`]: then what is here has to be made anew.
    pub fn add(&mut self, id: &str, stamp: u64, is_anomalous: bool, set: &PatchSet) -> Result<(), Cancelled> {
        let (own, all) = (set.grid.len(), set.rows.len());
        let keeps_all = self.radius == 0.0;
        let both = Options { of_rows: !is_anomalous, ..Options::default() };
        // Rotations of an anomalous picture say nothing.
        let asked = if is_anomalous { &set.rows.select(0..own) } else { &set.rows };
        let found = scan(asked, &self.normal.rows, both)?;
        let best = found.of_queries[..own].iter().map(|hit| self.normal.nearest(*hit)).collect();
        let mut scored = Scored { is_anomalous, best, foreground: set.foreground.clone(), covers: Vec::new() };
        if is_anomalous {
            // Beyond the bound its distances stay what they are now.
            let has_patches = self.anomalous.rows.len() + own <= self.most;
            let kept = if has_patches { own } else { 0 };
            if !has_patches {
                self.without_patches += 1;
                self.referred.extend(scored.referred());
            }
            let number = self.enter(Picture { id: id.to_owned(), stamp, grid: set.grid, scored, has_patches });
            self.anomalous.extend(&set.rows, 0..kept, own, number);
            return Ok(());
        }
        let of_rows = Options { of_rows: true, ..Options::default() };
        let Selection { chosen, covered } = if keeps_all {
            Selection { chosen: (0..all).collect(), covered: Vec::new() }
        } else {
            coreset::separate(&set.rows, &found.of_queries, self.radius)?
        };
        let of_own = covered.iter().filter(|covered| covered.row < own && covered.by < own);
        scored.covers = of_own.map(|&Covered { row, by, cosine }| Cover { patch: row as u32, by: by as u32, cosine }).collect();
        let rows = if keeps_all { &set.rows } else { &set.rows.select(chosen.iter().copied()) };
        let of_chosen = if keeps_all { &found.of_rows } else { &scan(rows, &self.normal.rows, of_rows)?.of_rows };
        let of_anomalous = scan(rows, &self.anomalous.rows, of_rows)?.of_rows;
        let number = self.enter(Picture { id: id.to_owned(), stamp, grid: set.grid, scored, has_patches: true });
        for (block, cosines) in [(&self.normal, of_chosen), (&self.anomalous, &of_anomalous)] {
            block.offer(&mut self.pictures, cosines, |best, cosine| best.offer(cosine, number));
        }
        if !keeps_all {
            let limit = 1.0 - self.radius;
            self.normal.offer(&mut self.pictures, &found.of_rows, |best, cosine| best.offer_unkept(cosine, number, limit));
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
    /// Where one of them [cannot be removed](Self::can_remove).
    pub fn remove<'a>(&mut self, ids: impl IntoIterator<Item = &'a str>) -> Result<(), Cancelled> {
        let mut gone = HashSet::new();
        for id in ids {
            assert!(self.can_remove(id), "what a removed picture stood for is not here");
            gone.extend(self.numbers.remove(id));
        }
        if gone.is_empty() {
            return Ok(());
        }
        self.pictures.retain(|number, _| !gone.contains(number));
        let without_patches = self.pictures.values().filter(|picture| !picture.has_patches);
        self.without_patches = without_patches.clone().count();
        self.referred = without_patches.flat_map(|picture| picture.scored.referred()).collect();
        for block in [&mut self.normal, &mut self.anomalous] {
            block.retain(|owner| !gone.contains(&owner));
        }
        // Patches whose nearest was one of a removed picture ask again.
        let Self { normal, anomalous, pictures, .. } = self;
        for block in [&*normal, &*anomalous] {
            block.ask_again(pictures, normal, |best| gone.contains(&best.of), |_, now| now)?;
        }
        Ok(())
    }

    /// Brings the number of patches below its bound, where it is above.
    fn thin(&mut self) -> Result<(), Cancelled> {
        if self.normal.rows.len() <= self.most {
            return Ok(());
        }
        let (Selection { chosen, covered }, radius) = coreset::thinned(&self.normal.rows, self.radius, self.most)?;
        let left = self.normal.select(&chosen);
        let all = std::mem::replace(&mut self.normal, left);
        self.radius = radius;
        let Self { normal, anomalous, pictures, .. } = self;
        // Without a picture, what was nearest in another would be kept, or something no farther from it than the radius.
        let limit = 1.0 - radius;
        let at_most_a_radius_farther = |before: Best, mut now: Best| {
            now.offer(farther(before.cosine, limit), before.of);
            now
        };
        // Also of those that are not kept: their distances are known from here on, if not their patches.
        all.ask_again(pictures, normal, |_| true, at_most_a_radius_farther)?;
        anomalous.ask_again(pictures, normal, |_| true, |_, now| now)?;
        all.note_covered(pictures, &covered, limit);
        Ok(())
    }

    fn enter(&mut self, picture: Picture) -> u32 {
        let number = self.next;
        self.next += 1;
        self.numbers.insert(picture.id.clone(), number);
        self.pictures.insert(number, picture);
        number
    }
}

impl Picture {
    /// What is known of a patch; none for one of a rotation.
    fn best(&mut self, patch: u32) -> Option<&mut Best> {
        self.scored.best.get_mut(patch as usize)
    }
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

    fn select(&self, kept: &[usize]) -> Self {
        Self {
            rows: self.rows.select(kept.iter().copied()),
            owners: kept.iter().map(|&row| self.owners[row]).collect(),
            patches: kept.iter().map(|&row| self.patches[row]).collect(),
        }
    }

    fn retain(&mut self, stays: impl Fn(u32) -> bool) {
        let kept: Vec<usize> = (0..self.owners.len()).filter(|&row| stays(self.owners[row])).collect();
        *self = self.select(&kept);
    }

    /// The row that was found, as what is nearest to another.
    fn nearest(&self, hit: Hit) -> Best {
        Best { cosine: hit.cosine, of: self.owners.get(hit.row as usize).copied().unwrap_or(u32::MAX) }
    }

    /// Tells each row's picture the cosine of the nearest patch of another picture. Rows of one picture follow one another.
    fn offer(&self, pictures: &mut HashMap<u32, Picture>, cosines: &[f32], tell: impl Fn(&mut Best, f32)) {
        let mut first = 0;
        for run in self.owners.chunk_by(|a, b| a == b) {
            let rows = first..first + run.len();
            first = rows.end;
            let Some(picture) = pictures.get_mut(&run[0]) else { continue };
            for row in rows {
                if let Some(best) = picture.best(self.patches[row]) {
                    tell(best, cosines[row]);
                }
            }
        }
    }

    /// Tells pictures whose patches cover one of another picture, and which of their patches are covered by another of their own where no
    /// other picture's is nearer than `limit`.
    fn note_covered(&self, pictures: &mut HashMap<u32, Picture>, covered: &[Covered], limit: f32) {
        for &Covered { row, by, cosine } in covered {
            let (patch, by_patch) = (self.patches[row], self.patches[by]);
            let Some(picture) = pictures.get_mut(&self.owners[by]) else { continue };
            let Some(of_cover) = picture.best(by_patch) else { continue };
            if self.owners[row] != self.owners[by] {
                of_cover.offer_unkept(cosine, self.owners[row], limit);
            } else if picture.best(patch).is_some_and(|best| best.cosine < limit) {
                picture.scored.covers.push(Cover { patch, by: by_patch, cosine });
            }
        }
    }

    /// Looks up the nearest patch of another picture in `normal` for those rows whose earlier one is `which`; `decide` chooses between the
    /// earlier one and what was found.
    fn ask_again(
        &self,
        pictures: &mut HashMap<u32, Picture>,
        normal: &Self,
        which: impl Fn(&Best) -> bool,
        decide: impl Fn(Best, Best) -> Best,
    ) -> Result<(), Cancelled> {
        let mut known = |row: usize| pictures.get_mut(&self.owners[row])?.best(self.patches[row]).copied();
        let asked: Vec<usize> = (0..self.owners.len()).filter(|&row| known(row).is_some_and(|best| which(&best))).collect();
        let queries: Vec<u32> = asked.iter().map(|&row| self.owners[row]).collect();
        let owners = Owners { queries: &queries, rows: &normal.owners };
        let rows = self.rows.select(asked.iter().copied());
        let found = scan(&rows, &normal.rows, Options { owners: Some(owners), of_rows: false })?;
        for (row, hit) in asked.into_iter().zip(found.of_queries) {
            if let Some(best) = pictures.get_mut(&self.owners[row]).and_then(|picture| picture.best(self.patches[row])) {
                *best = decide(*best, normal.nearest(hit));
            }
        }
        Ok(())
    }
}

impl Best {
    /// A patch of the picture `of` has this cosine.
    fn offer(&mut self, cosine: f32, of: u32) {
        if cosine > self.cosine && cosine > NONE {
            *self = Self { cosine, of };
        }
    }

    /// A patch of the picture `of` has this cosine, and is not kept. Where no other picture has a patch as near as `limit`, the first that
    /// comes would be kept without this picture; of one that is farther away, something at least as near to it as `limit`.
    fn offer_unkept(&mut self, cosine: f32, of: u32, limit: f32) {
        if self.cosine < limit {
            self.offer(if cosine >= limit { cosine } else { farther(cosine, limit) }, of);
        }
    }
}

impl Nearest<'_> {
    /// 1 minus the cosine, 0 to 2.
    pub fn distance(&self) -> f32 {
        distance(self.similarity)
    }
}
