//! Average precision of ranked lists, as the public evaluations of retrieval and of copy detection take it.
//!
//! ```
//! use std::collections::HashSet;
//!
//! use dino_train::evaluate::ranking::{average_precision, order, places};
//!
//! let found = order(ndarray::array![0.2, 0.9, 0.5].view(), 3);
//! assert_eq!(found, [1, 2, 0]);
//! let relevant = places(&found, &HashSet::from([1, 2]), &HashSet::new());
//! assert_eq!((relevant.as_slice(), average_precision(&relevant, 2)), ([0, 1].as_slice(), 1.0));
//! ```

use std::collections::HashSet;
use std::hash::BuildHasher;

use ndarray::ArrayView1;

/// The `most` items that are most alike, most alike first; equals keep their order.
pub fn order(similarities: ArrayView1<'_, f32>, most: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..similarities.len()).collect();
    order.sort_by(|a, b| similarities[*b].total_cmp(&similarities[*a]));
    order.truncate(most);
    order
}

/// Places of the relevant items in a ranked list, from 0, as if the ignored ones were not in it.
pub fn places<S: BuildHasher>(order: &[usize], relevant: &HashSet<usize, S>, ignored: &HashSet<usize, S>) -> Vec<usize> {
    let (mut places, mut left_out) = (Vec::new(), 0);
    for (at, item) in order.iter().enumerate() {
        if relevant.contains(item) {
            places.push(at - left_out);
        }
        left_out += usize::from(ignored.contains(item));
    }
    places
}

/// Area below precision over recall, by trapezoids, of a list in which relevant items stand at these places, from 0 and in order;
/// `relevant` of them there are. NaN where there are none.
pub fn average_precision(places: &[usize], relevant: usize) -> f64 {
    let area = |(before, &place): (usize, &usize)| {
        let left = if place == 0 { 1.0 } else { before as f64 / place as f64 };
        f64::midpoint(left, (before + 1) as f64 / (place + 1) as f64)
    };
    places.iter().enumerate().map(area).sum::<f64>() / relevant as f64
}

/// Share of the first `count` items that are relevant. A list counts as far as its last relevant item at most.
pub fn precision_at(places: &[usize], count: usize) -> f64 {
    let count = places.last().map_or(count, |last| count.min(last + 1));
    places.iter().filter(|place| **place < count).count() as f64 / count as f64
}
