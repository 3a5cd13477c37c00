//! The weighted k-nearest-neighbour vote of the DINO paper (Caron et al. 2021, section 4.1, after Wu et al. 2018).
//!
//! Each of the k nearest neighbours votes for its class with the weight exp(similarity / T). The server and the
//! trainer's evaluation use the same code.
//!
//! ```
//! use dino_vision::vote::{DEFAULT_TEMPERATURE, vote, winner};
//!
//! let (cat, dog) = (["cat"].as_slice(), ["dog"].as_slice());
//! let scores = vote([(cat, 0.9), (dog, 0.8), (dog, 0.7)], DEFAULT_TEMPERATURE);
//! assert_eq!(winner(&scores, 0.5), Some(&"cat"));
//! assert_eq!(winner(&scores, 0.9), None); // too little agreement
//! ```

use std::collections::BTreeMap;

use serde::Serialize;

/// The paper's number of neighbours.
pub const DEFAULT_K: usize = 20;
/// The paper's temperature T.
pub const DEFAULT_TEMPERATURE: f64 = 0.07;

/// The share of one class in the vote.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
#[schemars(rename = "ClassScore")]
pub struct ClassScore<L> {
    /// The class.
    pub label: L,
    /// Sum of the class's weights over the sum of all weights, in (0, 1].
    pub score: f64,
}

/// Class shares of `neighbours`, best first; shares sum to 1.
///
/// - Only classes with a vote are listed, so that "top 5" never holds a class without a vote.
/// - A neighbour with several labels gives each of them an equal part of its weight; one without labels does not vote.
/// - Equal shares are ordered by label, and weights are added in the order of `neighbours`, so that the answer is
///   the same each time.
/// - The largest similarity is subtracted before the exponential. That changes no share, and no temperature above 0
///   can overflow.
///
/// `temperature` must be above 0 and similarities finite; the callers check what comes from outside.
pub fn vote<'a, L: Ord + Clone + 'a>(neighbours: impl IntoIterator<Item = (&'a [L], f32)>, temperature: f64) -> Vec<ClassScore<L>> {
    balanced_vote(neighbours, temperature, |_| 1)
}

/// As [`vote`], with each class's weight divided by `size`, the number of items that it has.
///
/// Near the border of a large class and a small one most neighbours are of the large one, for that reason alone; divided
/// by the sizes, the weights are those of classes that are equally likely beforehand.
pub fn balanced_vote<'a, L: Ord + Clone + 'a>(
    neighbours: impl IntoIterator<Item = (&'a [L], f32)>,
    temperature: f64,
    size: impl Fn(&L) -> usize,
) -> Vec<ClassScore<L>> {
    debug_assert!(temperature > 0.0);
    let voters: Vec<_> = neighbours.into_iter().filter(|(labels, _)| !labels.is_empty()).collect();
    let similarities = voters.iter().map(|(_, similarity)| f64::from(*similarity));
    let nearest = similarities.fold(f64::NEG_INFINITY, f64::max);

    let mut weights: BTreeMap<&L, f64> = BTreeMap::new();
    let mut total = 0.0;
    for (labels, similarity) in voters {
        let weight = ((f64::from(similarity) - nearest) / temperature).exp();
        for label in labels {
            // A class that has lost its last item since the search is as small as one can be.
            let share = weight / (labels.len() * size(label).max(1)) as f64;
            *weights.entry(label).or_default() += share;
            total += share;
        }
    }
    let mut scores: Vec<_> =
        weights.into_iter().map(|(label, weight)| ClassScore { label: label.clone(), score: weight / total }).collect();
    // Stable, and the map is ordered by label: ties keep that order.
    scores.sort_by(|a, b| b.score.total_cmp(&a.score));
    scores
}

/// The best class of [`vote`]'s answer, or `None` (abstention) where there is none or its share is under `min_score`.
pub fn winner<L>(scores: &[ClassScore<L>], min_score: f64) -> Option<&L> {
    scores.first().filter(|best| best.score >= min_score).map(|best| &best.label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(neighbours: &[(&[&'static str], f32)], temperature: f64) -> Vec<(&'static str, f64)> {
        vote(neighbours.iter().copied(), temperature).into_iter().map(|class| (class.label, class.score)).collect()
    }

    #[test]
    fn weights_are_those_of_the_paper() {
        let shares = shares(&[(&["cat"], 0.9), (&["dog"], 0.8), (&["dog"], 0.7)], 0.07);
        let weight = |similarity: f32| (f64::from(similarity) / 0.07).exp();
        let total = weight(0.9) + weight(0.8) + weight(0.7);
        assert_eq!(shares[0].0, "cat");
        assert!((shares[0].1 - weight(0.9) / total).abs() < 1e-12);
        assert!((shares[1].1 - (weight(0.8) + weight(0.7)) / total).abs() < 1e-12);
    }

    #[test]
    fn shares_sum_to_one_at_any_temperature() {
        for temperature in [1e-300, 1e-6, 0.07, 1.0, 1e6] {
            let shares = shares(&[(&["a"], 0.5), (&["b", "c"], -1.0), (&["a"], 1.0), (&["d"], 0.99)], temperature);
            let sum: f64 = shares.iter().map(|share| share.1).sum();
            assert!((sum - 1.0).abs() < 1e-12, "{temperature}: {shares:?}");
            assert!(shares.iter().all(|share| share.1.is_finite()));
        }
    }

    #[test]
    fn a_small_class_is_not_outvoted_by_a_large_one_for_its_size() {
        let neighbours: [(&[&str], f32); 4] = [(&["rare"], 0.8), (&["common"], 0.8), (&["common"], 0.8), (&["common"], 0.8)];
        assert_eq!(vote(neighbours, 0.07)[0].label, "common");
        let sizes = |label: &&str| if *label == "rare" { 10 } else { 90 };
        let balanced = balanced_vote(neighbours, 0.07, sizes);
        assert_eq!(balanced[0].label, "rare");
        // 1/10 against 3/90.
        assert!((balanced[0].score - 0.75).abs() < 1e-12 && (balanced[1].score - 0.25).abs() < 1e-12, "{balanced:?}");
    }

    #[test]
    fn ties_go_to_the_first_label_and_labels_share_a_vote() {
        assert_eq!(shares(&[(&["b"], 0.5), (&["a"], 0.5)], 0.07), [("a", 0.5), ("b", 0.5)]);
        assert_eq!(shares(&[(&["b", "c"], 0.5), (&["a"], 0.5)], 0.07), [("a", 0.5), ("b", 0.25), ("c", 0.25)]);
    }

    #[test]
    fn no_class_wins_without_votes_or_under_the_minimum() {
        assert!(shares(&[], 0.07).is_empty());
        assert!(shares(&[(&[], 0.9)], 0.07).is_empty());
        let scores = vote([(["a"].as_slice(), 0.5), (["b"].as_slice(), 0.5)], 0.07);
        assert_eq!(winner(&scores, 0.5), Some(&"a"));
        assert_eq!(winner(&scores, 0.51), None);
        assert_eq!(winner::<&str>(&[], 0.0), None);
    }
}
