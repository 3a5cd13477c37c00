//! How similar a picture's nearest item has to be for the collection to know anything like it, measured by leaving items out.

use ndarray::ArrayView2;

use super::{Collection, Error, Sample, Search, Version};
use dino_vision::cancel;

/// Most items that are asked for their nearest other item.
const MOST_ASKED: usize = 200;
/// Most comparisons of all of them together, where every item is compared with: searching a large collection without a graph 200
/// times takes minutes.
const MOST_COMPARED: usize = 20_000_000;
/// Fewest items that are asked, whatever the size of the collection.
const FEWEST_ASKED: usize = 20;
/// One item in so many has a nearest other item that is less similar.
const REFUSED_ONE_IN: usize = 20;
/// Largest measured value: a collection of near-copies would refuse every other picture.
const LARGEST: f32 = 0.9;
/// The value where no two items can be compared.
const UNMEASURED: f32 = 0.5;

/// The least similarity of a collection at some moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MinSimilarity {
    /// Cosine, 0 to 0.9: of the pictures that the collection holds, 5 % would be below it if they were new to it.
    pub value: f32,
    /// What the collection held.
    version: Version,
}

impl MinSimilarity {
    /// Asks up to 200 items for their nearest other item, and takes the 5 % quantile of the similarities.
    ///
    /// The items are those of [`Collection::sample`], so that the same content always gives the same value. 0.5 where fewer than two
    /// items can be compared.
    ///
    /// # Errors
    /// As for [`Collection::search`].
    pub fn measure(collection: &dyn Collection) -> Result<Self, Error> {
        let asked = asked(collection.info()?.index.scanned);
        let sample = collection.sample(asked)?;
        let nearest = if sample.items.len() == sample.version.count {
            nearest_in_sample(&sample, collection.spec().dim)
        } else {
            nearest_by_search(collection, &sample)?
        };
        Ok(Self { value: quantile(nearest), version: sample.version })
    }

    /// Whether it is that of just what the collection holds now.
    pub fn is_exact(&self, now: Version) -> bool {
        self.version == now
    }

    /// Whether it need not be measured anew for what the collection holds now: it is the same or, of 200 items and more, about as many.
    pub fn holds_for(&self, now: Version) -> bool {
        let (before, after) = (self.version.count, now.count);
        let is_large = before.min(after) >= MOST_ASKED;
        self.is_exact(now) || (is_large && self.version.collection == now.collection && before.abs_diff(after) < before.div_ceil(10))
    }
}

/// How many items to ask of a collection in which each search compares `scanned` items one by one.
fn asked(scanned: usize) -> usize {
    (MOST_COMPARED / scanned.max(1)).clamp(FEWEST_ASKED, MOST_ASKED)
}

/// For each item of a sample that is the whole collection, the similarity of the nearest other one.
fn nearest_in_sample(sample: &Sample, dim: usize) -> Vec<f32> {
    let Ok(vectors) = ArrayView2::from_shape((sample.items.len(), dim), &sample.vectors) else { return Vec::new() };
    let similarities = vectors.dot(&vectors.t());
    let nearest = similarities.rows().into_iter().enumerate().filter_map(|(own, row)| {
        let others = row.iter().enumerate().filter(|&(at, _)| at != own);
        others.map(|(_, &similarity)| similarity).max_by(f32::total_cmp)
    });
    nearest.collect()
}

/// For each item of a sample the similarity of the nearest other item of the collection.
fn nearest_by_search(collection: &dyn Collection, sample: &Sample) -> Result<Vec<f32>, Error> {
    let dim = collection.spec().dim;
    // The item itself is the nearest, or, of several copies, among the first.
    let search = Search { k: 2, ..Search::default() };
    let mut nearest = Vec::with_capacity(sample.items.len());
    for ((item, _), vector) in sample.items.iter().zip(sample.vectors.chunks_exact(dim)) {
        cancel::check()?;
        let found = collection.search(vector, &search)?;
        nearest.extend(found.iter().find(|hit| hit.item.id != item.id).map(|hit| hit.similarity));
    }
    Ok(nearest)
}

fn quantile(mut nearest: Vec<f32>) -> f32 {
    if nearest.is_empty() {
        return UNMEASURED;
    }
    let at = nearest.len() / REFUSED_ONE_IN;
    let (_, value, _) = nearest.select_nth_unstable_by(at, f32::total_cmp);
    value.clamp(0.0, LARGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_twenty_lies_below() {
        let is = |nearest: Vec<f32>, expected: f32| assert!((quantile(nearest) - expected).abs() < 1e-6, "{expected}");
        is((0..200u8).map(|at| f32::from(at) / 250.0).rev().collect(), 0.04);
        is(vec![0.7, 0.3], 0.3);
        is(vec![1.0; 50], LARGEST);
        is(vec![-0.5; 50], 0.0);
        is(Vec::new(), UNMEASURED);
    }

    #[test]
    fn large_collections_are_measured_anew_after_a_tenth_of_change() {
        let version = |count, content| Version { collection: 1, content, count };
        let measured = MinSimilarity { value: 0.5, version: version(1000, 7) };
        assert!(measured.holds_for(version(1000, 7)) && measured.holds_for(version(1099, 8)) && measured.holds_for(version(901, 8)));
        assert!(!measured.holds_for(version(1100, 8)) && !measured.holds_for(version(900, 8)) && !measured.holds_for(version(100, 8)));
        assert!(!measured.holds_for(Version { collection: 2, ..version(1000, 7) }), "made again");
        let small = MinSimilarity { value: 0.5, version: version(199, 7) };
        assert!(small.holds_for(version(199, 7)) && !small.holds_for(version(199, 8)) && !small.holds_for(version(200, 8)));
    }

    #[test]
    fn fewer_are_asked_where_each_search_takes_long() {
        assert_eq!([0, 1000, 100_000, 400_000, 10_000_000].map(asked), [200, 200, 200, 50, 20]);
    }
}
