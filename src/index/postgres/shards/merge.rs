//! One answer of those of all databases.

use dino_vision::splitmix::splitmix64;

use super::super::super::info::{DamagedItems, IndexState, MOST_NAMED};
use super::super::super::page::PageBuilder;
use super::super::super::{Info, Item, Page, Version};

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

/// A page of up to `limit` items from the page of each part that comes after the same id, and that `limit` is the limit of too.
pub(super) fn page(parts: Vec<Page>, limit: usize) -> Page {
    // A part that has further items may have some that come before those of another part, but none before its own last one.
    let known_to = parts.iter().filter_map(|page| page.next.clone()).min();
    let mut items: Vec<Item> = parts.into_iter().flat_map(|page| page.items).collect();
    items.retain(|item| known_to.as_ref().is_none_or(|last| item.id <= *last));
    items.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    let mut page = PageBuilder::new(limit);
    for item in items {
        if !page.add(item) {
            return page.end();
        }
    }
    Page { next: known_to, ..page.end() }
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

    fn part(ids: &[&str], next: Option<&str>) -> Page {
        let items = ids.iter().map(|id| Item { id: (*id).to_owned(), ..Item::default() }).collect();
        Page { items, next: next.map(str::to_owned) }
    }

    fn ids(page: &Page) -> Vec<&str> {
        page.items.iter().map(|item| item.id.as_str()).collect()
    }

    #[test]
    fn pages_leave_nothing_out_and_end_where_a_part_may_have_more() {
        let all = page(vec![part(&["a", "d"], None), part(&["b"], None), part(&[], None)], 10);
        assert_eq!((ids(&all), &all.next), (vec!["a", "b", "d"], &None));
        let cut = page(vec![part(&["a", "d"], None), part(&["b", "c"], None)], 2);
        assert_eq!((ids(&cut), cut.next.as_deref()), (vec!["a", "b"], Some("b")));
        // The second part has something between `b` and `d`, perhaps.
        let open = page(vec![part(&["a", "d"], None), part(&["b"], Some("b"))], 10);
        assert_eq!((ids(&open), open.next.as_deref()), (vec!["a", "b"], Some("b")));
        // It was read to `c`, which is damaged.
        let damaged = page(vec![part(&["d"], None), part(&[], Some("c"))], 10);
        assert_eq!((ids(&damaged), damaged.next.as_deref()), (vec![], Some("c")));
        let full = page(vec![part(&["a", "b"], Some("b")), part(&["c", "d"], Some("d"))], 2);
        assert_eq!((ids(&full), full.next.as_deref()), (vec!["a", "b"], Some("b")));
    }

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
