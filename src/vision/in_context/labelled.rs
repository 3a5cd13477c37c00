//! The patches of pictures that have a mask, and their vote.

use std::sync::Arc;

use super::nearest::each_nearest;
use super::votes::{Tally, Votes};
use crate::anomaly::PatchSet;
use crate::byte_rows::Rows;
use crate::cancel::{self, Cancelled};
use crate::splitmix::splitmix64;

/// What one mask says of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Plane {
    /// The item that it came with.
    pub id: String,
    /// What it shows; each has an equal share.
    pub labels: Vec<String>,
    /// The share of each patch that it covers, 0 to 255.
    pub coverage: Vec<u8>,
}

/// A picture with all masks that were given for it.
#[derive(Clone, Debug)]
struct Picture {
    /// What tells pictures apart: hash of the file.
    source: String,
    /// Hash of the source, which makes the ranks of its patches.
    seed: u64,
    rows: Rows,
    /// Number in the picture's grid of each row.
    patches: Vec<u32>,
    planes: Vec<Plane>,
}

/// Patches with labels, bounded. A clone shares the pictures that neither changes.
#[derive(Clone, Debug)]
pub struct LabelledPatches {
    most: usize,
    /// Patches whose [`rank`] is below it are kept, and of each picture the one with the least.
    limit: u64,
    pictures: Vec<Arc<Picture>>,
}

impl LabelledPatches {
    /// None yet; it keeps at most `most` patches.
    pub fn new(most: usize) -> Self {
        Self { most, limit: u64::MAX, pictures: Vec::new() }
    }

    /// Number of patches.
    pub fn len(&self) -> usize {
        self.pictures.iter().map(|picture| picture.rows.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pictures.is_empty()
    }

    /// Memory in bytes.
    pub fn bytes(&self) -> usize {
        let of_picture = |picture: &Arc<Picture>| {
            let planes: usize = picture.planes.iter().map(|plane| plane.coverage.len()).sum();
            picture.rows.bytes() + 4 * picture.patches.len() + planes
        };
        self.pictures.iter().map(of_picture).sum()
    }

    /// Adds the mask of an item. Items of the same `source` are masks of one picture, whose patches are kept once: each says what its labels
    /// cover, and background is what none of them covers.
    pub fn add(&mut self, source: &str, plane: Plane, set: &PatchSet) {
        if let Some(known) = self.pictures.iter_mut().find(|picture| picture.source == source && has_same_patches(picture, set)) {
            Arc::make_mut(known).planes.push(plane);
            return;
        }
        let own = set.grid.len().min(set.rows.len());
        let patches = (0..own as u32).collect();
        let seed = source.bytes().fold(0, |seed, byte| splitmix64(seed ^ u64::from(byte)));
        let rows = set.rows.select(0..own);
        let mut picture = Picture { source: source.to_owned(), seed, rows, patches, planes: vec![plane] };
        picture.thin(self.limit);
        self.pictures.push(Arc::new(picture));
        self.thin();
    }

    /// Brings the number of patches to its bound, where it is above.
    fn thin(&mut self) {
        while self.len() > self.most && self.limit > 0 {
            self.limit /= 2;
            self.pictures.iter_mut().for_each(|picture| Arc::make_mut(picture).thin(self.limit));
        }
        // One patch of each picture is still too many where there are more pictures than the bound: some have none.
        let excess = self.len().saturating_sub(self.most);
        if excess == 0 {
            return;
        }
        let mut last: Vec<(u64, usize)> =
            self.pictures.iter().enumerate().filter_map(|(at, picture)| Some((picture.least()?, at))).collect();
        last.sort_unstable();
        for (_, at) in last.into_iter().rev().take(excess) {
            Arc::make_mut(&mut self.pictures[at]).keep(|_| false);
        }
    }

    /// Whether the masks of these items can be removed: where only some of the patches are kept, others would have a place now.
    pub fn can_remove(&self, is_gone: impl Fn(&str) -> bool) -> bool {
        self.limit == u64::MAX || !self.pictures.iter().flat_map(|picture| &picture.planes).any(|plane| is_gone(&plane.id))
    }

    /// Removes the masks of these items, and pictures without one. Patches that were left out for the sake of them stay so, see
    /// [`can_remove`](Self::can_remove).
    pub fn remove(&mut self, is_gone: impl Fn(&str) -> bool) {
        for picture in &mut self.pictures {
            if picture.planes.iter().any(|plane| is_gone(&plane.id)) {
                Arc::make_mut(picture).planes.retain(|plane| !is_gone(&plane.id));
            }
        }
        self.pictures.retain(|picture| !picture.planes.is_empty());
    }

    /// The vote of the `k` nearest patches of each of `queries`: weights are exp(cosine / temperature), of which a label gets the share of
    /// the stored patch that its mask covers.
    ///
    /// # Errors
    /// [`Cancelled`].
    pub fn vote(&self, queries: &Rows, k: usize, temperature: f64) -> Result<Votes, Cancelled> {
        let mut tally = Tally::new(queries.len());
        self.each_vote(queries, k, temperature, |patch, label, vote| tally.add(patch, label, vote))?;
        if let Some(chosen) = tally.of_chosen() {
            tally = chosen;
            self.each_vote(queries, k, temperature, |patch, label, vote| tally.add(patch, label, vote))?;
        }
        Ok(tally.votes())
    }

    /// Tells which of `queries` a label gets a vote for, and how large that is.
    fn each_vote<'a>(
        &'a self,
        queries: &Rows,
        k: usize,
        temperature: f64,
        mut tell: impl FnMut(usize, &'a str, f32),
    ) -> Result<(), Cancelled> {
        debug_assert!(temperature > 0.0 && k > 0);
        let parts: Vec<&Rows> = self.pictures.iter().map(|picture| &picture.rows).collect();
        each_nearest(queries, &parts, k, |query, neighbours| {
            let Some(first) = neighbours.first() else { return Ok(()) };
            let weight = |cosine: f32| (f64::from(cosine - first.cosine) / temperature).exp();
            let total: f64 = neighbours.iter().map(|neighbour| weight(neighbour.cosine)).sum();
            for neighbour in neighbours {
                // A picture may have thousands of masks.
                cancel::check()?;
                let picture = &self.pictures[neighbour.part];
                let patch = picture.patches[neighbour.row] as usize;
                for (label, covered) in picture.shares(patch) {
                    tell(query, label, (weight(neighbour.cosine) / total * f64::from(covered)) as f32);
                }
            }
            Ok(())
        })
    }
}

/// Whether a picture of the same source was seen as this one: its patches are then the same.
fn has_same_patches(picture: &Picture, set: &PatchSet) -> bool {
    let own = set.grid.len().min(set.rows.len());
    picture.planes.iter().all(|plane| plane.coverage.len() == own)
        && (0..picture.rows.len()).all(|row| picture.rows.codes(row) == set.rows.codes(picture.patches[row] as usize))
}

/// The place of a patch in an order that is another one in each picture, and has no pattern: patches at even steps would be those of a few
/// columns.
fn rank(seed: u64, patch: u32) -> u64 {
    splitmix64(seed ^ u64::from(patch))
}

impl Picture {
    /// The least rank of its patches.
    fn least(&self) -> Option<u64> {
        self.patches.iter().map(|&patch| rank(self.seed, patch)).min()
    }

    /// Keeps the patches whose rank is below `limit`, and the one with the least.
    fn thin(&mut self, limit: u64) {
        let (seed, least) = (self.seed, self.least());
        self.keep(|patch| rank(seed, patch) < limit || Some(rank(seed, patch)) == least);
    }

    fn keep(&mut self, is_kept: impl Fn(u32) -> bool) {
        let kept: Vec<usize> = (0..self.patches.len()).filter(|&row| is_kept(self.patches[row])).collect();
        self.rows = self.rows.select(kept.iter().copied());
        self.patches = kept.iter().map(|&row| self.patches[row]).collect();
    }

    /// The shares of a patch that labels cover. Masks that overlap share what they cover.
    fn shares(&self, patch: usize) -> impl Iterator<Item = (&str, f32)> {
        let covered = move |plane: &Plane| f32::from(plane.coverage.get(patch).copied().unwrap_or_default()) / 255.0;
        let sum: f32 = self.planes.iter().map(covered).sum();
        let by = sum.max(1.0);
        self.planes.iter().filter(move |plane| covered(plane) > 0.0).flat_map(move |plane| {
            let each = covered(plane) / by / plane.labels.len().max(1) as f32;
            plane.labels.iter().map(move |label| (label.as_str(), each))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio_util::sync::CancellationToken;

    use super::{LabelledPatches, Plane};
    use crate::anomaly::{PatchSet, Rows};
    use crate::cancel::{Cancelled, scope};
    use crate::transform::PatchGrid;

    fn set(vectors: &[[f32; 2]]) -> PatchSet {
        let mut rows = Rows::new(2);
        for vector in vectors {
            rows.push(vector.iter().copied());
        }
        let grid = PatchGrid { rows: 1, columns: vectors.len() };
        PatchSet { grid, foreground: vec![true; vectors.len()], coverage: None, rows }
    }

    fn plane(id: &str, label: &str, coverage: &[u8]) -> Plane {
        Plane { id: id.into(), labels: vec![label.into()], coverage: coverage.to_vec() }
    }

    const CAT: [f32; 2] = [1.0, 0.0];
    const GRASS: [f32; 2] = [0.0, 1.0];

    fn share(patches: &LabelledPatches, label: &str, vector: [f32; 2], k: usize, temperature: f64) -> f32 {
        let votes = patches.vote(&set(&[vector]).rows, k, temperature).unwrap();
        votes.labels.iter().position(|own| own == label).map_or(0.0, |at| votes.shares[at][0])
    }

    #[test]
    fn votes_are_weighted_and_share_what_a_mask_covers() {
        let mut patches = LabelledPatches::new(100);
        patches.add("one", plane("1", "cat", &[255, 0, 51]), &set(&[CAT, GRASS, [1.0, 1.0]]));
        assert!((share(&patches, "cat", CAT, 1, 0.07) - 1.0).abs() < 1e-6);
        assert!(share(&patches, "cat", GRASS, 1, 0.07) < 1e-6);
        assert!((share(&patches, "cat", [1.0, 1.0], 1, 0.07) - 0.2).abs() < 1e-6);
        let half = (-(1.0 - f64::from(0.5_f32.sqrt())) / 0.5).exp();
        let expected = (1.0 + 0.2 * half) / (1.0 + half);
        assert!((f64::from(share(&patches, "cat", CAT, 2, 0.5)) - expected).abs() < 1e-3);
    }

    #[test]
    fn masks_of_one_picture_are_one_picture() {
        let mut patches = LabelledPatches::new(100);
        let picture = set(&[CAT, GRASS, [-1.0, 0.0]]);
        patches.add("one", plane("1", "cat", &[255, 0, 0]), &picture);
        patches.add("one", plane("2", "dog", &[0, 0, 255]), &picture);
        assert_eq!(patches.len(), 3);
        assert!((share(&patches, "cat", CAT, 1, 0.07) - 1.0).abs() < 1e-6 && share(&patches, "dog", CAT, 1, 0.07) < 1e-6);
        assert!((share(&patches, "dog", [-1.0, 0.0], 1, 0.07) - 1.0).abs() < 1e-6);
        // Another picture, or the same file seen at another size.
        patches.add("one", plane("3", "cat", &[0, 255]), &set(&[CAT, GRASS]));
        patches.add("two", plane("4", "cat", &[0, 255, 0]), &picture);
        assert_eq!(patches.len(), 8);
        patches.remove(|id| ["1", "3", "4"].contains(&id));
        assert_eq!(patches.len(), 3);
        assert!(share(&patches, "cat", CAT, 1, 0.07) < 1e-6 && share(&patches, "dog", [-1.0, 0.0], 1, 0.07) > 0.99);
        patches.remove(|_| true);
        assert!(patches.is_empty() && patches.vote(&picture.rows, 3, 0.07).unwrap().labels.is_empty());
    }

    #[test]
    fn thousands_of_labels_keep_their_most_voted_and_the_background() {
        let mut patches = LabelledPatches::new(10_000);
        let labels = (0..1200).map(|number| format!("l{number}")).collect();
        patches.add("many", Plane { id: "many".into(), labels, coverage: vec![204] }, &set(&[CAT]));
        patches.add("one", plane("one", "grass", &[255]), &set(&[GRASS]));
        let votes = patches.vote(&set(&[CAT, GRASS]).rows, 1, 0.07).unwrap();
        assert_eq!((votes.labels.len(), votes.shares.len(), votes.others.len()), (1000, 1000, 2));
        let grass = votes.labels.iter().position(|label| label == "grass").unwrap();
        assert!((votes.shares[grass][1] - 1.0).abs() < 1e-6);
        // What the others have is no background.
        let all: f32 = votes.shares.iter().map(|shares| shares[0]).sum::<f32>() + votes.others[0];
        assert!((all - 0.8).abs() < 1e-3 && votes.others[0] > 0.1 && votes.others[1].abs() < 1e-9, "{all} {:?}", votes.others);
    }

    #[test]
    fn a_vote_ends_when_it_is_cancelled() {
        let mut patches = LabelledPatches::new(100);
        patches.add("one", plane("1", "cat", &[255]), &set(&[CAT]));
        let (cancelled, queries) = (CancellationToken::new(), set(&[CAT]).rows);
        // While votes are told, when the nearest are found already.
        let told = scope(cancelled.clone(), || patches.each_vote(&queries, 1, 0.07, |_, _, _| cancelled.cancel()));
        assert_eq!(told, Ok(()));
        patches.add("two", plane("2", "cat", &[255]), &set(&[CAT]));
        let (cancelled, mut votes) = (CancellationToken::new(), 0);
        let told = scope(cancelled.clone(), || {
            patches.each_vote(&queries, 2, 0.07, |_, _, _| {
                votes += 1;
                cancelled.cancel();
            })
        });
        assert_eq!((told, votes), (Err(Cancelled), 1));
    }

    #[test]
    fn below_the_bound_masks_are_removed_in_place_and_beyond_it_all_are_added_anew() {
        let is_gone = |id: &str| id == "3";
        assert!(thinned(0..5, 5 * 900).can_remove(is_gone));
        let patches = thinned(0..5, 3 * 900);
        assert!(!patches.can_remove(is_gone) && patches.can_remove(|id| id == "none"));
    }

    /// Patches of `pictures` pictures of 30 x 30, with room for `most`.
    fn thinned(pictures: impl IntoIterator<Item = usize>, most: usize) -> LabelledPatches {
        let mut patches = LabelledPatches::new(most);
        let vectors: Vec<[f32; 2]> = (0..900_u16).map(|at| [f32::from(at % 30), f32::from(at / 30)]).collect();
        let set = set(&vectors);
        for number in pictures {
            patches.add(&number.to_string(), plane(&number.to_string(), "x", &[255; 900]), &set);
            assert!(patches.len() <= most, "{} of {most}", patches.len());
        }
        patches
    }

    #[test]
    fn the_bound_is_kept_and_every_picture_has_a_patch_as_long_as_it_can() {
        for (pictures, most) in [(5, 2000), (40, 1000), (70, 70), (70, 80)] {
            let patches = thinned(0..pictures, most);
            assert!(patches.pictures.iter().all(|picture| !picture.patches.is_empty()), "{pictures} within {most}");
        }
        // More pictures than patches: some have none, and their masks say nothing.
        let mut patches = thinned(0..25, 10);
        assert_eq!((patches.len(), patches.pictures.len()), (10, 25));
        assert!((share(&patches, "x", CAT, 3, 0.07) - 1.0).abs() < 1e-6);
        patches.add("24", plane("more", "y", &[0; 900]), &set(&[CAT; 900]));
        assert!(patches.len() <= 10);
        patches.remove(|_| true);
        assert!(patches.is_empty());
        assert!(thinned(0..3, 0).vote(&set(&[CAT]).rows, 3, 0.07).unwrap().labels.is_empty());
    }

    #[test]
    fn kept_patches_are_the_same_in_any_order_and_of_all_columns() {
        let kept = |patches: &LabelledPatches| -> BTreeMap<String, Vec<u32>> {
            patches.pictures.iter().map(|picture| (picture.source.clone(), picture.patches.clone())).collect()
        };
        let patches = thinned(0..40, 9000);
        assert_eq!(kept(&patches), kept(&thinned((0..40).rev(), 9000)));
        assert!(patches.len() > 9000 / 3);
        let mut columns = [0_usize; 30];
        patches.pictures.iter().flat_map(|picture| &picture.patches).for_each(|patch| columns[*patch as usize % 30] += 1);
        let mean = patches.len() / 30;
        assert!(columns.iter().all(|&count| count * 10 > mean * 7 && count * 10 < mean * 13), "{columns:?}");
        // Other patches in each picture.
        assert_ne!(patches.pictures[0].patches, patches.pictures[1].patches);
    }
}
