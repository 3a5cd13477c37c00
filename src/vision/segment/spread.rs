//! Some of many rows, spread over all of them.

use crate::splitmix::splitmix64;

/// Numbers of at most `most` of `count` rows, ascending: one of each stretch of about the same length, at a place that is different in
/// each. Even steps would fall on the same few columns of a picture's patches each time.
pub(super) fn spread(count: usize, most: usize) -> impl Iterator<Item = usize> {
    let chosen = count.min(most);
    (0..chosen).map(move |at| {
        let start = |at: usize| (at as u128 * count as u128 / chosen as u128) as usize;
        let (first, end) = (start(at), start(at + 1));
        first + (splitmix64(at as u64) % (end - first) as u64) as usize
    })
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn all_are_taken_where_there_are_few_and_of_many_as_many_as_wanted() {
        assert_eq!(spread(5, 7).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(spread(0, 7).count(), 0);
        for (count, most) in [(8, 7), (1000, 7), (1 << 40, 100)] {
            let rows: Vec<usize> = spread(count, most).collect();
            assert!(rows.len() == most && rows.is_sorted_by(|a, b| a < b) && rows[most - 1] < count, "{rows:?}");
        }
    }

    /// Pictures of 30 x 30 patches, of which 13 % lie at the border, in all numbers that even steps are bad for.
    #[test]
    fn every_column_of_patches_has_its_share() {
        for pictures in [40, 334, 400, 1000, 2000] {
            let mut columns = [0_u32; 30];
            spread(900 * pictures, 20_000).for_each(|row| columns[row % 30] += 1);
            let mean = columns.iter().sum::<u32>() / 30;
            assert!(columns.iter().all(|&count| count * 10 > mean * 7 && count * 10 < mean * 13), "{pictures}: {columns:?}");
        }
    }
}
