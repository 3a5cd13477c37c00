//! What a narrow number format costs, measured on pictures.

use std::path::{Path, PathBuf};

use dino_server::bulk::{self, Embedder, Worker, Workload, tree};
use dino_server::embedding::Pooling;
use dino_server::index::vote::{DEFAULT_K, DEFAULT_TEMPERATURE, vote, winner};
use dino_server::model::{Device, Model, Precision, SessionOptions};
use ndarray::{Array1, Array2, ArrayView1, Axis};
use serde::Serialize;

use super::Error;

/// Most pictures that are embedded: figures hardly change beyond, and the exporter stays quick.
const MOST: usize = 512;
/// Neighbours whose overlap is measured.
const NEIGHBOURS: usize = 10;
/// Fewer pictures than this have the same neighbours in any order.
const FEWEST: usize = 2 * NEIGHBOURS + 1;

/// The difference that a precision makes, on embeddings (CLS, or a ResNet's pooled features) from which the mean of the
/// exact ones was subtracted: without that, the part that all pictures share would hide what tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// Pictures that were embedded.
    pub pictures: usize,
    /// Lowest cosine between a picture's narrow and exact embedding.
    pub cosine_min: f64,
    /// Their mean.
    pub cosine_mean: f64,
    /// Share of the ten nearest neighbours that are the same.
    pub top10_overlap: f64,
    /// Share of the pictures that the vote of their neighbours (k = 20, T = 0.07) puts into the same class; absent where
    /// the pictures are not in folders of at least two classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub knn_agreement: Option<f64>,
}

/// Pictures to measure with.
pub(super) struct Pictures {
    folder: PathBuf,
    entries: Vec<tree::Entry>,
}

impl Pictures {
    /// Lists a folder of pictures, at most [`MOST`] of them, evenly spread.
    pub(super) fn list(folder: &Path) -> Result<Self, Error> {
        let mut entries = tree::list(folder)?.entries;
        let count = entries.len();
        if count > MOST {
            entries = (0..MOST).map(|index| entries[index * count / MOST].clone()).collect();
        }
        Ok(Self { folder: folder.to_owned(), entries })
    }

    /// The embedding of each picture; `None` for a file that is no picture.
    pub(super) fn embed(&self, model: &Path, precision: Precision) -> Result<Vec<Option<Vec<f32>>>, Error> {
        let options = SessionOptions { device: Device::Cpu, precision, ..SessionOptions::default() };
        let mut embedder = Embedder::open(&Model::open(model)?, Pooling::Cls, &options, Workload::default())?;
        let work = |worker: &mut Worker<'_>, index: usize| {
            let bytes = bulk::read(&self.entries[index].path)?;
            worker.embed(&bytes).map(|(_, vector)| vector)
        };
        let mut vectors = Vec::new();
        embedder.each(self.entries.len(), work, |_, results| {
            for result in results {
                vectors.push(match result {
                    Ok(vector) => Some(vector),
                    Err(error) if error.is_of_file() => None,
                    Err(error) => return Err(error),
                });
            }
            Ok(())
        })?;
        Ok(vectors)
    }

    /// Compares two answers of [`Self::embed`].
    pub(super) fn compare(&self, exact: &[Option<Vec<f32>>], narrow: &[Option<Vec<f32>>]) -> Result<Cost, Error> {
        let both = exact.iter().zip(narrow).zip(&self.entries);
        let both: Vec<_> = both.filter_map(|((exact, narrow), entry)| Some((exact.as_ref()?, narrow.as_ref()?, entry))).collect();
        if both.len() < FEWEST {
            return Err(Error::Pictures { folder: self.folder.clone(), found: both.len(), needed: FEWEST });
        }
        let classes: Vec<_> = both.iter().map(|(.., entry)| entry.class.as_deref()).collect();
        let matrix = |vectors: Vec<&[f32]>| {
            let dim = vectors[0].len();
            let numbers = vectors.concat().into_iter().map(f64::from).collect();
            Array2::from_shape_vec((both.len(), dim), numbers).expect("a model's embeddings have one length")
        };
        let exact = matrix(both.iter().map(|(exact, ..)| exact.as_slice()).collect());
        let narrow = matrix(both.iter().map(|(_, narrow, _)| narrow.as_slice()).collect());
        Ok(compare(exact, narrow, &classes))
    }
}

/// Compares embeddings `[n, dim]` row by row.
fn compare(mut exact: Array2<f64>, mut narrow: Array2<f64>, classes: &[Option<&str>]) -> Cost {
    let mean = exact.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(exact.ncols()));
    for vectors in [&mut exact, &mut narrow] {
        for mut vector in vectors.rows_mut() {
            vector -= &mean;
            let length = vector.dot(&vector).sqrt().max(f64::MIN_POSITIVE);
            vector /= length;
        }
    }
    let cosines = (&exact * &narrow).sum_axis(Axis(1));
    let (before, after) = (neighbours(&exact), neighbours(&narrow));
    let pairs = || before.iter().zip(&after);
    let count = classes.len() as f64;
    let shared = pairs().map(|(before, after)| {
        let first = |list: &[(usize, f64)]| list.iter().take(NEIGHBOURS).map(|(row, _)| *row).collect::<Vec<_>>();
        let after = first(after);
        first(before).iter().filter(|row| after.contains(row)).count()
    });
    let agree = pairs().filter(|(before, after)| voted(before, classes) == voted(after, classes)).count();
    let known = classes.iter().all(Option::is_some) && classes.iter().any(|class| *class != classes[0]);
    Cost {
        pictures: classes.len(),
        cosine_min: rounded(cosines.iter().copied().fold(f64::INFINITY, f64::min)),
        cosine_mean: rounded(cosines.sum() / count),
        top10_overlap: rounded(shared.sum::<usize>() as f64 / (NEIGHBOURS as f64 * count)),
        knn_agreement: known.then(|| rounded(agree as f64 / count)),
    }
}

/// Seven decimals: more would be noise in the manifest.
fn rounded(figure: f64) -> f64 {
    (figure * 1e7).round() / 1e7
}

/// The nearest other rows of each row of normalised vectors, with their similarities.
fn neighbours(vectors: &Array2<f64>) -> Vec<Vec<(usize, f64)>> {
    let similarities = vectors.dot(&vectors.t());
    let nearest = |(own, row): (usize, ArrayView1<'_, f64>)| {
        let mut others: Vec<_> = row.iter().copied().enumerate().filter(|(index, _)| *index != own).collect();
        others.sort_by(|a, b| b.1.total_cmp(&a.1));
        others.truncate(DEFAULT_K);
        others
    };
    similarities.outer_iter().enumerate().map(nearest).collect()
}

/// The class that a picture's neighbours vote for.
fn voted<'a>(neighbours: &[(usize, f64)], classes: &[Option<&'a str>]) -> Option<&'a str> {
    let labels: Vec<_> =
        neighbours.iter().map(|(row, similarity)| (classes[*row].into_iter().collect::<Vec<_>>(), *similarity as f32)).collect();
    let votes = vote(labels.iter().map(|(labels, similarity)| (labels.as_slice(), *similarity)), DEFAULT_TEMPERATURE);
    winner(&votes, 0.0).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three classes of ten around three directions, on top of a part that all share.
    fn vectors() -> (Array2<f64>, Vec<Option<&'static str>>) {
        let vectors = Array2::from_shape_fn((30, 4), |(row, column)| {
            let noise = ((row * 31 + column * 17) % 23) as f64 / 23.0;
            100.0 + noise + if row / 10 == column { 5.0 } else { 0.0 }
        });
        (vectors, (0..30).map(|row| Some(["a", "b", "c"][row / 10])).collect())
    }

    #[test]
    fn the_same_embeddings_cost_nothing() {
        let (exact, classes) = vectors();
        let cost = compare(exact.clone(), exact, &classes);
        assert!((cost.cosine_min - 1.0).abs() < 1e-12 && (cost.cosine_mean - 1.0).abs() < 1e-12, "{cost:?}");
        assert_eq!((cost.pictures, cost.knn_agreement), (30, Some(1.0)));
        assert!((cost.top10_overlap - 1.0).abs() < 1e-12);
    }

    #[test]
    fn one_swapped_picture_shows_in_every_figure() {
        let (exact, classes) = vectors();
        let mut narrow = exact.clone();
        narrow.row_mut(0).assign(&exact.row(15));
        let cost = compare(exact, narrow, &classes);
        // The shared part is a hundred times as strong as the rest: without centring this cosine would be 0.998.
        assert!(cost.cosine_min < 0.0, "{cost:?}");
        assert!(cost.cosine_mean < 0.97 && cost.top10_overlap < 0.99, "{cost:?}");
        assert!(cost.knn_agreement.unwrap() < 1.0, "{cost:?}");
    }

    #[test]
    fn without_classes_there_is_no_agreement() {
        let (exact, _) = vectors();
        assert_eq!(compare(exact.clone(), exact, &[None; 30]).knn_agreement, None);
    }
}
