//! A picture of the latent space: t-SNE (van der Maaten and Hinton 2008; Barnes-Hut form, van der Maaten 2014) by the `bhtsne` crate.
//!
//! Nearest neighbours are found exactly, and the start is given: the same features give the same picture.
//!
//! ```
//! use dino_vision::tsne::{Options, map};
//! use ndarray::{Array2, Axis, s};
//!
//! // Two groups of ten pictures, in two directions of the latent space.
//! let noise = |row: usize, column: usize| 0.1 * ((row * 7 + column * 3) % 10) as f32;
//! let features = Array2::from_shape_fn((20, 8), |(row, column)| f32::from(u8::from(column == row / 10)) + noise(row, column) / 10.0);
//! let places = map(features, &Options::default())?;
//!
//! let middle = |rows: std::ops::Range<usize>| places.slice(s![rows, ..]).mean_axis(Axis(0)).unwrap();
//! let first = middle(0..10);
//! let distance = |to: &ndarray::Array1<f32>| (&first - to).mapv(|x| x * x).sum();
//! assert!(distance(&middle(0..5)) < distance(&middle(10..20)));
//! # Ok::<(), dino_vision::tsne::Error>(())
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use bhtsne::{Neighbor, tSNE};
use ndarray::{Array1, Array2, Axis};
use rayon::prelude::*;

use crate::cancel::{self, Cancelled};
use crate::lanczos::{largest, start};
use crate::unit_rows;

/// How a map is made.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Effective number of neighbours; lowered to a third of the pictures where they are few.
    pub perplexity: f32,
    /// Steps of gradient descent.
    pub steps: usize,
    /// Where the points start, `[n, 2]` in units of the start's spread; without it at the first two principal components, which
    /// keeps more of the large-scale structure.
    pub start: Option<Array2<f64>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { perplexity: 30.0, steps: 1000, start: None }
    }
}

/// Why there is no map.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Too few to have neighbours.
    #[error("{0} pictures are too few for a map: at least {FEWEST} are needed")]
    TooFew(usize),
    /// A feature has no direction.
    #[error("the feature of picture {0} is zero or not finite, it cannot be placed")]
    Feature(usize),
    /// The perplexity is no positive number.
    #[error("the perplexity must be at least 1, not {0}")]
    Perplexity(f32),
    /// The start is one of other points.
    #[error("the start has {0} places for {1} pictures")]
    Start(usize, usize),
    /// The principal components cannot be found.
    #[error("the features have no principal components; start from random places")]
    Components,
    /// The request was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The system gives no thread.
    #[error("no thread can be started for the map: {0}")]
    Thread(String),
}

/// Fewest points of a map.
pub const FEWEST: usize = 5;
/// Spread of the start, as in the reference implementations.
const START: f64 = 1e-4;
/// Accuracy of the Barnes-Hut approximation: the authors' value.
const THETA: f64 = 0.5;

/// Features `[n, F]` of any length to places `[n, 2]`; neighbours are those of the k-NN vote, by cosine.
///
/// # Errors
/// See [`Error`].
pub fn map(mut features: Array2<f32>, options: &Options) -> Result<Array2<f32>, Error> {
    let count = features.nrows();
    if count < FEWEST {
        return Err(Error::TooFew(count));
    }
    if options.perplexity.is_nan() || options.perplexity < 1.0 {
        return Err(Error::Perplexity(options.perplexity));
    }
    unit_rows::scale(&mut features).map_err(Error::Feature)?;
    let perplexity = options.perplexity.min((count - 1) as f32 / 3.0);
    let neighbours = neighbours(&features, (3.0 * perplexity) as usize);
    cancel::check()?;
    let start = match &options.start {
        Some(places) if places.dim() == (count, 2) => places.iter().map(|place| place * START).collect(),
        Some(places) => return Err(Error::Start(places.nrows(), count)),
        None => principal_components(&features)?,
    };
    // The usual rate; with few points it would throw them about.
    let rate = (count as f64 / 48.0).max(50.0_f64.min(count as f64));
    // The crate asks for the points only where it looks for neighbours itself.
    let points = vec![(); count];
    let token = cancel::current();
    // The crate sums over threads in whatever order they finish, and a map turns on the last bit: with one thread there is one order.
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(|error| Error::Thread(error.to_string()))?;
    let descend = || {
        let mut tsne = tSNE::<f64, (), 2>::new(&points);
        // The crate has no other way to stop a descent. Nothing of it is looked at afterwards.
        tsne.epoch_callback(|_, _| {
            if token.is_cancelled() {
                resume_unwind(Box::new(Cancelled));
            }
        });
        tsne.perplexity(f64::from(perplexity))
            .learning_rate(rate)
            .epochs(options.steps)
            .initial_embedding(start)
            .barnes_hut_with_neighbors(THETA, &neighbours)
            .embedding()
    };
    let places = match catch_unwind(AssertUnwindSafe(|| one.install(descend))) {
        Ok(places) => places,
        Err(payload) if payload.is::<Cancelled>() => return Err(Cancelled.into()),
        Err(panic) => resume_unwind(panic),
    };
    let places = places.into_iter().map(|place| place as f32).collect();
    Ok(Array2::from_shape_vec((count, 2), places).expect("two numbers for each point"))
}

/// The `k` nearest others of each row, nearest first, by Euclidean distance between rows of length 1. Incomplete where the
/// request was cancelled.
fn neighbours(features: &Array2<f32>, k: usize) -> Vec<Vec<Neighbor<f64>>> {
    let k = k.clamp(1, features.nrows() - 1);
    let token = cancel::current();
    (0..features.nrows())
        .into_par_iter()
        .map(|row| {
            if token.is_cancelled() {
                return Vec::new();
            }
            let similarities = features.dot(&features.row(row));
            let mut others: Vec<usize> = (0..features.nrows()).filter(|other| *other != row).collect();
            // Equally near ones are ordered by their row.
            let nearer = |a: &usize, b: &usize| similarities[*b].total_cmp(&similarities[*a]).then(a.cmp(b));
            others.select_nth_unstable_by(k - 1, nearer);
            others.truncate(k);
            others.sort_unstable_by(nearer);
            let distance = |index: usize| f64::from((2.0 - 2.0 * similarities[index]).max(0.0)).sqrt();
            others.into_iter().map(|index| Neighbor { index, distance: distance(index) }).collect()
        })
        .collect()
}

/// Each row along the two directions of most variance, the first scaled to the spread of a start.
fn principal_components(features: &Array2<f32>) -> Result<Vec<f64>, Error> {
    let mean = features.mean_axis(Axis(0)).ok_or(Error::Components)?;
    let centred = features - &mean;
    let covariance = centred.t().dot(&centred);
    let dim = covariance.nrows();
    let along = |fixed: &[&[f64]]| {
        largest(fixed, start(dim), |direction, image| {
            let direction: Array1<f32> = direction.iter().map(|&x| x as f32).collect();
            image.iter_mut().zip(covariance.dot(&direction)).for_each(|(image, product)| *image = f64::from(product));
        })
    };
    let first = along(&[]);
    cancel::check()?;
    let first = first.ok_or(Error::Components)?.vector;
    // Features of one dimension have no second.
    let second = along(&[&first]).map_or_else(|| vec![0.0; dim], |pair| pair.vector);
    // A direction's sign is arbitrary: its largest number is made positive.
    let directed = |direction: &[f64]| {
        let largest = direction.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or(1.0);
        direction.iter().map(|&x| (x * largest.signum()) as f32).collect::<Array1<f32>>()
    };
    let [x, y] = [first, second].map(|direction| centred.dot(&directed(&direction)));
    let spread = (x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32).sqrt();
    // Rows have length 1: less is rounding.
    if spread.is_nan() || spread < 1e-5 {
        return Err(Error::Components);
    }
    Ok(x.iter().zip(&y).flat_map(|(x, y)| [x, y]).map(|value| f64::from(value / spread) * START).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three groups around three directions.
    fn groups() -> Array2<f32> {
        Array2::from_shape_fn((60, 6), |(row, column)| {
            let noise = ((row * 31 + column * 17) as f32).sin() * 0.1;
            noise + if column == row % 3 { 1.0 } else { 0.0 }
        })
    }

    #[test]
    fn groups_stay_together_and_the_map_is_the_same_each_time() {
        let scattered = Array2::from_shape_fn((60, 2), |(row, axis)| ((row * 7 + axis * 13) as f64).sin());
        for start in [None, Some(scattered)] {
            let options = Options { perplexity: 10.0, steps: 400, start };
            let places = map(groups(), &options).unwrap();
            assert_eq!(places, map(groups(), &options).unwrap());
            let nearest = |row: usize| {
                let distance = |other: usize| (&places.row(row) - &places.row(other)).mapv(|d| d * d).sum();
                (0..60).filter(|&other| other != row).min_by(|&a, &b| distance(a).total_cmp(&distance(b))).unwrap()
            };
            let alike = (0..60).filter(|&row| nearest(row) % 3 == row % 3).count();
            assert!(alike >= 58, "{alike} of 60 lie beside one of their own group");
        }
    }

    #[test]
    fn few_and_broken_features_are_refused_and_equal_ones_are_not() {
        assert_eq!(map(Array2::ones((4, 3)), &Options::default()), Err(Error::TooFew(4)));
        let mut broken = groups();
        broken[[7, 0]] = f32::NAN;
        assert_eq!(map(broken, &Options::default()), Err(Error::Feature(7)));
        assert!(matches!(map(groups(), &Options { perplexity: 0.0, ..Options::default() }), Err(Error::Perplexity(_))));
        assert_eq!(map(Array2::ones((9, 3)), &Options::default()), Err(Error::Components));
        let start = Some(Array2::from_shape_fn((9, 2), |(row, axis)| (row * 2 + axis) as f64 / 9.0 - 1.0));
        assert!(matches!(map(groups(), &Options { start: start.clone(), ..Options::default() }), Err(Error::Start(9, 60))));
        let equal = map(Array2::ones((9, 3)), &Options { start, ..Options::default() }).unwrap();
        assert!(equal.iter().all(|place| place.is_finite()));
        let five = map(groups().slice_move(ndarray::s![..5, ..]), &Options::default()).unwrap();
        assert!(five.iter().all(|place| place.is_finite()));
    }
}
