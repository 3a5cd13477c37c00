//! What a narrow number format costs, measured on pictures.

use dino_vision::model::manifest::Cost;
use dino_vision::vote::{DEFAULT_K, DEFAULT_TEMPERATURE, vote, winner};
use ndarray::{Array1, Array2, ArrayView1, Axis};

/// Neighbours whose overlap is measured.
const NEIGHBOURS: usize = 10;
/// Fewer pictures than this have the same neighbours in any order.
pub(super) const FEWEST: usize = 2 * NEIGHBOURS + 1;

/// Compares embeddings `[n, dim]` row by row.
pub(super) fn compare(mut exact: Array2<f64>, mut narrow: Array2<f64>, classes: &[Option<&str>]) -> Cost {
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
