//! The votes of labels for patches, within a bound on memory.

use std::collections::BTreeMap;

/// Most labels whose shares are kept: as many masks of a picture can be asked for.
const MAX_LABELS: usize = 1000;
/// Most shares of all labels together, four bytes each.
const MAX_SHARES: usize = 1 << 24;

/// What neighbours say of the patches of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Votes {
    /// Labels with at least one vote, in their order. Of more than a thousand (of fewer, where there are more than 16,777 patches) those
    /// with the most votes.
    pub labels: Vec<String>,
    /// For each label its share of each patch, 0 to 1. What is left of 1 by them and by `others` is background.
    pub shares: Vec<Vec<f32>>,
    /// The share of each patch that labels have which are not among these.
    pub others: Vec<f32>,
}

/// Votes as they are told: once where there are few labels, and else once more for those that were chosen.
pub(super) struct Tally<'a> {
    patches: usize,
    most: usize,
    labels: BTreeMap<&'a str, OfLabel>,
    /// The votes for other labels than those that were chosen; none before that.
    others: Option<Vec<f32>>,
}

/// The votes for one label.
#[derive(Default)]
struct OfLabel {
    sum: f64,
    /// Of each patch; none once there are too many labels to keep them of all.
    shares: Vec<f32>,
}

impl<'a> Tally<'a> {
    /// No votes yet for so many patches.
    pub(super) fn new(patches: usize) -> Self {
        Self { patches, most: (MAX_SHARES / patches.max(1)).clamp(1, MAX_LABELS), labels: BTreeMap::new(), others: None }
    }

    /// Counts a vote.
    pub(super) fn add(&mut self, patch: usize, label: &'a str, vote: f32) {
        if let Some(others) = &mut self.others {
            let shares = self.labels.get_mut(label).map_or(others, |of_label| &mut of_label.shares);
            shares[patch] += vote;
            return;
        }
        let is_over = self.labels.len() > self.most;
        let of_label = self.labels.entry(label).or_default();
        of_label.sum += f64::from(vote);
        if is_over {
            return;
        }
        of_label.shares.resize(self.patches, 0.0);
        of_label.shares[patch] += vote;
        if self.labels.len() > self.most {
            self.labels.values_mut().for_each(|of_label| of_label.shares = Vec::new());
        }
    }

    /// Where there were too many labels to keep the shares of all: a tally for those with the most votes, which has to be told all votes
    /// once more.
    pub(super) fn of_chosen(&self) -> Option<Self> {
        if self.labels.len() <= self.most || self.others.is_some() {
            return None;
        }
        let mut ranked: Vec<(&'a str, f64)> = self.labels.iter().map(|(&label, of_label)| (label, of_label.sum)).collect();
        // Of equal ones the first by name: the sort is stable.
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        ranked.truncate(self.most);
        let nothing = || vec![0.0; self.patches];
        let labels = ranked.into_iter().map(|(label, sum)| (label, OfLabel { sum, shares: nothing() })).collect();
        Some(Self { patches: self.patches, most: self.most, labels, others: Some(nothing()) })
    }

    /// What was counted.
    pub(super) fn votes(self) -> Votes {
        let (labels, shares) = self.labels.into_iter().map(|(label, of_label)| (label.to_owned(), of_label.shares)).unzip();
        Votes { labels, shares, others: self.others.unwrap_or_else(|| vec![0.0; self.patches]) }
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_LABELS, MAX_SHARES, Tally, Votes};

    /// Votes of patch, label and share, told as often as the tally asks for.
    fn counted(patches: usize, votes: &[(usize, &str, f32)]) -> Votes {
        let mut tally = Tally::new(patches);
        for &(patch, label, vote) in votes {
            tally.add(patch, label, vote);
        }
        if let Some(chosen) = tally.of_chosen() {
            tally = chosen;
            for &(patch, label, vote) in votes {
                tally.add(patch, label, vote);
            }
        }
        tally.votes()
    }

    #[test]
    fn few_labels_are_all_kept() {
        let votes = counted(2, &[(0, "b", 0.5), (1, "a", 0.25), (1, "b", 0.5), (1, "b", 0.25)]);
        let shares = vec![vec![0.0, 0.25], vec![0.5, 0.75]];
        assert_eq!(votes, Votes { labels: vec!["a".into(), "b".into()], shares, others: vec![0.0; 2] });
    }

    #[test]
    fn of_many_labels_those_with_the_most_votes_are_kept() {
        let names: Vec<String> = (0..MAX_LABELS + 5).map(|number| format!("{number:04}")).collect();
        let mut votes: Vec<(usize, &str, f32)> = names.iter().map(|name| (0, name.as_str(), 0.001)).collect();
        // The last one has more than the others, which are equal.
        votes.push((1, names[MAX_LABELS + 4].as_str(), 0.5));
        let found = counted(2, &votes);
        assert_eq!((found.labels.len(), found.shares.len()), (MAX_LABELS, MAX_LABELS));
        assert_eq!((&found.labels[..MAX_LABELS - 1], found.labels.last()), (&names[..MAX_LABELS - 1], names.last()));
        assert_eq!(found.shares.last(), Some(&vec![0.001, 0.5]));
        assert!((found.others[0] - 0.005).abs() < 1e-6 && found.others[1].abs() < 1e-9, "{:?}", found.others);
    }

    #[test]
    fn memory_is_bounded_whatever_the_number_of_labels_and_patches() {
        for patches in [1, 900, 3600, 65_536, 262_144] {
            let names: Vec<String> = (0..200).map(|number| number.to_string()).collect();
            let (mut tally, mut most) = (Tally::new(patches), 0_usize);
            for name in &names {
                tally.add(patches - 1, name, 1.0);
                most = most.max(tally.labels.values().map(|of_label| of_label.shares.len()).sum());
            }
            let chosen = tally.of_chosen();
            assert_eq!(chosen.is_some(), patches == 262_144, "{patches}");
            most = most.max(chosen.map_or(0, |chosen| chosen.labels.len() * patches));
            assert!(most <= MAX_SHARES, "{most} for {patches}");
        }
    }
}
