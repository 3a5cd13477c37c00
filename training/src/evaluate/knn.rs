//! The k-NN evaluation of the DINO paper (section 4.1, after Wu et al. 2018): each picture of the validation set is
//! classified by a weighted vote of its nearest neighbours in the training set.
//!
//! ```
//! use dino_train::evaluate::knn::{Error, Features, evaluate};
//! use ndarray::array;
//!
//! let train = Features::new("train", array![[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]], vec![0, 1, 1])?;
//! let val = Features::new("val", array![[1.0, 0.1]], vec![0])?;
//! let top1: Vec<_> = evaluate(&train, &val, &[1, 3], 0.07)?.0.iter().map(|(k, figures)| (*k, figures.top1)).collect();
//! assert_eq!(top1, [(1, 100.0), (3, 100.0)]);
//!
//! let other = Features::new("val", array![[1.0, 0.0, 0.0]], vec![0])?;
//! assert_eq!(evaluate(&train, &other, &[1], 0.07), Err(Error::Dimensions { train: 2, val: 3 }));
//! # Ok::<(), Error>(())
//! ```

use std::collections::{BTreeSet, BinaryHeap};

use dino_vision::unit_rows;
use dino_vision::vote::vote;
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

use super::figures::Figures;

/// Queries whose similarities are computed together: one task.
const QUERIES: usize = 32;
/// Rows of the gallery per matrix product; with [`QUERIES`] they make a block of half a megabyte.
const ROWS: usize = 4096;

/// Places that the "top 5" figure looks at.
const PLACES: usize = 5;

/// Normalised features with their classes.
#[derive(Clone, Debug)]
pub struct Features {
    vectors: Array2<f32>,
    classes: Vec<u32>,
    /// Each class once, in order.
    distinct: Vec<u32>,
}

/// Why an evaluation is not possible.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// There is nothing to evaluate.
    #[error("{0} has no features")]
    Empty(&'static str),
    /// Features and classes do not belong together.
    #[error("{name} has {rows} features, but {classes} labels")]
    Labels {
        /// Which set.
        name: &'static str,
        /// Number of features.
        rows: usize,
        /// Number of labels.
        classes: usize,
    },
    /// The two sets come from different models.
    #[error("train has {train} numbers per feature, and val {val}: they come from different models")]
    Dimensions {
        /// Dimension of the gallery.
        train: usize,
        /// Dimension of the queries.
        val: usize,
    },
    /// A feature has no direction.
    #[error("feature {row} of {name} is zero or not finite, it cannot be compared")]
    Feature {
        /// Which set.
        name: &'static str,
        /// Its row.
        row: usize,
    },
    /// No neighbour has no vote.
    #[error("k is at least 1")]
    ZeroK,
}

impl Features {
    /// Features `[n, dim]` of any length and the class of each; `name` is for errors.
    ///
    /// # Errors
    /// [`Error::Labels`], [`Error::Feature`], and [`Error::Empty`].
    pub fn new(name: &'static str, mut vectors: Array2<f32>, classes: Vec<u32>) -> Result<Self, Error> {
        if vectors.nrows() != classes.len() {
            return Err(Error::Labels { name, rows: vectors.nrows(), classes: classes.len() });
        }
        if vectors.is_empty() {
            return Err(Error::Empty(name));
        }
        unit_rows::scale(&mut vectors).map_err(|row| Error::Feature { name, row })?;
        let distinct = classes.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        Ok(Self { vectors, classes, distinct })
    }

    /// Number of features.
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Never: an empty set cannot be made.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }
}

/// Figures by k, in the order that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Report(pub Vec<(usize, Figures)>);

/// Classifies `val` by its neighbours in `train`, once for each of `ks`.
///
/// A `k` above the size of `train` takes all of it. Neighbours of equal similarity are ordered by their row, and sums
/// have a fixed order: the same features give the same figures.
///
/// # Errors
/// [`Error::Dimensions`] and [`Error::ZeroK`].
pub fn evaluate(train: &Features, val: &Features, ks: &[usize], temperature: f64) -> Result<Report, Error> {
    let (train_dim, val_dim) = (train.vectors.ncols(), val.vectors.ncols());
    if train_dim != val_dim {
        return Err(Error::Dimensions { train: train_dim, val: val_dim });
    }
    if ks.contains(&0) {
        return Err(Error::ZeroK);
    }
    let most = ks.iter().copied().max().unwrap_or(0).min(train.len());
    // For each query and k: whether its class won, and whether it is among the first five.
    let outcomes: Vec<Vec<(bool, bool)>> = val
        .classes
        .par_chunks(QUERIES)
        .enumerate()
        .flat_map_iter(|(chunk, classes)| {
            let start = chunk * QUERIES;
            let queries = val.vectors.slice(s![start..start + classes.len(), ..]);
            let neighbours = nearest(&train.vectors, &queries, most);
            let outcome = |(neighbours, class): (Vec<Neighbour>, &u32)| -> Vec<(bool, bool)> {
                ks.iter().map(|&k| place(train, &neighbours[..k.min(most)], *class, temperature)).collect()
            };
            neighbours.into_iter().zip(classes).map(outcome).collect::<Vec<_>>()
        })
        .collect();
    let figures = |(at, &k): (usize, &usize)| (k, Figures::count(&val.classes, outcomes.iter().map(|query| query[at])));
    Ok(Report(ks.iter().enumerate().map(figures).collect()))
}

/// Whether `class` wins the vote, and whether it is among its first five.
///
/// Five places are filled up as the public code does it: classes of the gallery without a vote come after those with one,
/// in their own order. With fewer than five neighbours that would only flatter, so there a place needs a vote.
fn place(train: &Features, neighbours: &[Neighbour], class: u32, temperature: f64) -> (bool, bool) {
    let voters = neighbours.iter().map(|neighbour| {
        let class = &train.classes[neighbour.row()];
        (std::slice::from_ref(class), neighbour.similarity())
    });
    let votes = vote(voters, temperature);
    let place = votes.iter().position(|vote| vote.label == class).or_else(|| {
        let index = train.distinct.binary_search(&class).ok().filter(|_| neighbours.len() >= PLACES)?;
        let without_vote_before = index - votes.iter().filter(|vote| vote.label < class).count();
        Some(votes.len() + without_vote_before)
    });
    (place == Some(0), place.is_some_and(|place| place < PLACES))
}

/// The `k` nearest rows of `gallery` for each of `queries`, nearest first.
fn nearest(gallery: &Array2<f32>, queries: &ArrayView2<'_, f32>, k: usize) -> Vec<Vec<Neighbour>> {
    let mut heaps: Vec<BinaryHeap<Neighbour>> = vec![BinaryHeap::with_capacity(k); queries.nrows()];
    for start in (0..gallery.nrows()).step_by(ROWS) {
        let block = gallery.slice(s![start..(start + ROWS).min(gallery.nrows()), ..]);
        let similarities = queries.dot(&block.t());
        for (heap, similarities) in heaps.iter_mut().zip(similarities.rows()) {
            for (row, &similarity) in (start..).zip(similarities) {
                let neighbour = Neighbour::new(similarity, row);
                if heap.len() < k {
                    heap.push(neighbour);
                } else if let Some(mut farthest) = heap.peek_mut()
                    && neighbour < *farthest
                {
                    *farthest = neighbour;
                }
            }
        }
    }
    heaps.into_iter().map(BinaryHeap::into_sorted_vec).collect()
}

/// A similarity and a row in one number that is smaller the nearer the row is, and for equal similarities the smaller
/// the row: millions of these are compared per picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Neighbour(u64);

impl Neighbour {
    fn new(similarity: f32, row: usize) -> Self {
        // The bits of floats are ordered as integers once negative ones are turned around.
        let bits = similarity.to_bits();
        let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        Self(u64::from(!ascending) << 32 | row as u64)
    }

    fn row(self) -> usize {
        self.0 as u32 as usize
    }

    fn similarity(self) -> f32 {
        let ascending = !((self.0 >> 32) as u32);
        f32::from_bits(if ascending >> 31 == 1 { ascending & !(1 << 31) } else { !ascending })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(rows: &[([f32; 2], u32)]) -> Features {
        let vectors = Array2::from_shape_fn((rows.len(), 2), |(row, column)| rows[row].0[column]);
        Features::new("train", vectors, rows.iter().map(|row| row.1).collect()).unwrap()
    }

    #[test]
    fn neighbours_keep_similarity_and_row_and_are_ordered() {
        let similarities = [1.0, 0.5, 1e-30, 0.0, -0.0, -1e-30, -0.5, -1.0];
        let neighbours: Vec<_> = similarities.iter().map(|&similarity| Neighbour::new(similarity, 7)).collect();
        assert!(neighbours.is_sorted_by(|a, b| a < b));
        for (neighbour, similarity) in neighbours.iter().zip(similarities) {
            assert_eq!((neighbour.similarity().to_bits(), neighbour.row()), (similarity.to_bits(), 7));
        }
        assert!(Neighbour::new(0.5, 3) < Neighbour::new(0.5, 4));
    }

    /// With k = 1 a single class has a vote: the four other places of "top 5" stay empty.
    #[test]
    fn top5_below_five_neighbours_counts_no_class_without_a_vote() {
        let train = features(&[([1.0, 0.0], 0), ([0.9, 0.1], 1), ([0.0, 1.0], 2), ([-1.0, 0.0], 3)]);
        let val = features(&[([1.0, 0.0], 1), ([0.0, 1.0], 2)]);
        let Report(figures) = evaluate(&train, &val, &[1, 2, 200], 0.07).unwrap();
        assert_eq!(figures[0], (1, Figures { top1: 50.0, top5: 50.0, mean_class: 50.0 }));
        assert!((figures[1].1.top5 - 100.0).abs() < 1e-9);
        assert_eq!(figures[2].0, 200);
    }

    /// Six classes, five neighbours, all of class 5: classes 0 to 3 fill the places, 4 does not, and 9 is nowhere.
    #[test]
    fn top5_is_filled_up_in_the_order_of_classes() {
        let mut rows = vec![([1.0, 0.0], 5); 5];
        rows.extend((0..5).map(|class| ([-1.0, 0.0], class)));
        let train = features(&rows);
        for (class, expected) in [(5, 100.0), (0, 100.0), (3, 100.0), (4, 0.0), (9, 0.0)] {
            let Report(figures) = evaluate(&train, &features(&[([1.0, 0.0], class)]), &[5], 0.07).unwrap();
            assert!((figures[0].1.top5 - expected).abs() < 1e-9, "class {class}");
        }
    }

    #[test]
    fn the_mean_over_classes_weighs_them_equally() {
        let train = features(&[([1.0, 0.0], 0), ([0.0, 1.0], 1)]);
        // Three of class 0 right, one of class 1 wrong; class 9 is unknown to train.
        let val = features(&[([1.0, 0.1], 0), ([1.0, 0.2], 0), ([1.0, 0.3], 0), ([1.0, 0.4], 1), ([0.0, 1.0], 9)]);
        let Report(figures) = evaluate(&train, &val, &[1], 0.07).unwrap();
        assert!((figures[0].1.top1 - 60.0).abs() < 1e-9);
        assert!((figures[0].1.mean_class - 100.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn blocks_do_not_change_the_neighbours() {
        let gallery = Array2::from_shape_fn((3 * ROWS + 5, 3), |(row, column)| ((row * 31 + column * 17) as f32).sin());
        let queries = Array2::from_shape_fn((4, 3), |(row, column)| ((row * 7 + column) as f32).cos());
        let found = nearest(&gallery, &queries.view(), 50);
        let all = queries.dot(&gallery.t());
        for (found, similarities) in found.iter().zip(all.rows()) {
            let mut expected: Vec<_> = similarities.iter().enumerate().map(|(row, &s)| Neighbour::new(s, row)).collect();
            expected.sort_unstable();
            let rows = |neighbours: &[Neighbour]| neighbours.iter().map(|n| n.row()).collect::<Vec<_>>();
            assert_eq!(rows(found), rows(&expected[..50]));
        }
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let vectors = |x: f32| Array2::from_shape_vec((1, 2), vec![x, 0.0]).unwrap();
        assert_eq!(Features::new("val", vectors(0.0), vec![0]).unwrap_err(), Error::Feature { name: "val", row: 0 });
        assert!(Features::new("val", vectors(f32::NAN), vec![0]).is_err());
        assert!(Features::new("val", vectors(1.0), vec![0, 1]).is_err());
        assert_eq!(Features::new("val", Array2::zeros((0, 2)), vec![]).unwrap_err(), Error::Empty("val"));
        let train = features(&[([1.0, 0.0], 0)]);
        let three = Features::new("val", Array2::ones((1, 3)), vec![0]).unwrap();
        assert_eq!(evaluate(&train, &three, &[1], 0.07), Err(Error::Dimensions { train: 2, val: 3 }));
        assert_eq!(evaluate(&train, &train, &[0], 0.07), Err(Error::ZeroK));
    }
}
