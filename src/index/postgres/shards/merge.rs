//! One answer of those of all databases.

use dino_vision::splitmix::splitmix64;

use super::super::super::info::{DamagedItems, IndexState, MOST_NAMED};
use super::super::super::{Info, Version};

/// A number for the collection whose parts have these: another one where one of them is another.
pub(super) fn number(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, |all, number| splitmix64(all ^ number))
}

/// What is known of a collection, from what is known of its first part and of the others.
pub(super) fn info(first: Info, others: Vec<Info>) -> Info {
    let number = number(std::iter::once(&first).chain(&others).map(|info| info.number));
    let all = others.into_iter().fold(first, |mut all, part| {
        let (ours, theirs) = (all.index, part.index);
        all.count += part.count;
        all.index = IndexState {
            // One part with an index makes answers approximate.
            kind: if ours.indexed > 0 { ours.kind } else { theirs.kind },
            indexed: ours.indexed + theirs.indexed,
            scanned: ours.scanned + theirs.scanned,
            building: ours.building || theirs.building,
        };
        all.damaged = damaged(all.damaged, part.damaged);
        all
    });
    Info { number, ..all }
}

fn damaged(ours: Option<DamagedItems>, theirs: Option<DamagedItems>) -> Option<DamagedItems> {
    match (ours, theirs) {
        (Some(mut ours), Some(theirs)) => {
            ours.count += theirs.count;
            ours.ids.extend(theirs.ids);
            ours.ids.sort_unstable();
            ours.ids.truncate(MOST_NAMED);
            Some(ours)
        }
        (ours, theirs) => ours.or(theirs),
    }
}

/// What a collection holds, from what its parts hold.
pub(super) fn version(parts: &[Version]) -> Version {
    Version {
        collection: number(parts.iter().map(|part| part.collection)),
        content: number(parts.iter().map(|part| part.content)),
        count: parts.iter().map(|part| part.count).sum(),
    }
}

/// How many of `most` items each part gives, for as even a share of all as there is.
pub(super) fn shares(counts: &[usize], most: usize) -> Vec<usize> {
    let all: usize = counts.iter().sum();
    let wanted = most.min(all);
    // What rounding down leaves of one part goes to the next.
    let (mut seen, mut given) = (0, 0);
    let share = |count: &usize| {
        seen += count;
        let until = (seen as u128 * wanted as u128 / all.max(1) as u128) as usize;
        let share = until - given;
        given = until;
        share
    };
    counts.iter().map(share).collect()
}

/// Lists in which older items come first, as one list of that kind: the databases have no clock in common, so equal shares of each list are
/// taken to be of the same age.
pub(super) fn interleave<T>(lists: Vec<Vec<T>>) -> Vec<T> {
    let ranked = |list: Vec<T>| {
        let length = list.len() as f64;
        list.into_iter().enumerate().map(move |(place, one)| ((place as f64 + 0.5) / length, one))
    };
    let mut all: Vec<(f64, T)> = lists.into_iter().flat_map(ranked).collect();
    all.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    all.into_iter().map(|(_, one)| one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        assert_eq!(shares(&[100, 200, 0, 300], 60), [10, 20, 0, 30]);
        assert_eq!(shares(&[1, 1, 1], 2).iter().sum::<usize>(), 2);
        assert_eq!(shares(&[5, 7], 100), [5, 7]);
        assert_eq!(shares(&[0, 0], 10), [0, 0]);
        for most in 0..40 {
            let shares = shares(&[3, 0, 11, 20], most);
            assert_eq!(shares.iter().sum::<usize>(), most.min(34));
            assert!(shares.iter().zip([3, 0, 11, 20]).all(|(share, count)| *share <= count), "{shares:?}");
        }
    }

    #[test]
    fn lists_keep_their_order() {
        assert_eq!(interleave(vec![vec![1, 2, 3, 4], vec![10, 20], vec![]]), [1, 10, 2, 3, 20, 4]);
    }
}
