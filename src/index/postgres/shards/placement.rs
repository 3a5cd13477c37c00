//! Which database an id belongs to.

use sha2::{Digest, Sha256};

use super::super::super::item::NewItem;

/// Place of the database, of `count`, that the item of this id is in: the same for all servers and versions.
///
/// Jump consistent hashing (Lamping and Veach 2014) of the first eight bytes of the id's SHA-256. With one more database, only ids that
/// move to it change their place.
pub(super) fn place(id: &str, count: usize) -> usize {
    let hash = Sha256::digest(id.as_bytes());
    let mut key = hash.iter().take(8).fold(0_u64, |key, &byte| key << 8 | u64::from(byte));
    let (mut place, mut next) = (0, 0_u64);
    while next < count as u64 {
        place = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        next = ((place + 1) as f64 * ((1_u64 << 31) as f64 / ((key >> 33) + 1) as f64)) as u64;
    }
    place as usize
}

/// The items of each of `count` databases.
pub(super) fn parted(items: Vec<NewItem>, count: usize) -> Vec<Vec<NewItem>> {
    let mut parts: Vec<Vec<NewItem>> = (0..count).map(|_| Vec::new()).collect();
    for new in items {
        parts[place(&new.item.id, count)].push(new);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_even_and_move_to_new_databases_alone() {
        let ids: Vec<_> = (0..3000).map(|i| format!("{i}.jpg")).collect();
        for count in 1..10 {
            let mut sizes = vec![0; count];
            for id in &ids {
                let (before, after) = (place(id, count), place(id, count + 1));
                assert!(after == before || after == count, "{id}");
                sizes[before] += 1;
            }
            let even = ids.len() / count;
            assert!(sizes.iter().all(|&size| size > even * 4 / 5 && size < even * 6 / 5), "{sizes:?}");
        }
    }

    /// Other places than these would lose every stored item.
    #[test]
    fn places_never_change() {
        assert_eq!(["", "a", "b", "cat/1.jpg", "ä", "\0"].map(|id| place(id, 5)), GOLDEN);
    }

    const GOLDEN: [usize; 6] = [2, 1, 3, 1, 3, 0];
}
