//! Regions of a picture: patches above a threshold that touch, also at their corners.

use crate::segment::{Mask, components};
use crate::transform::PatchGrid;

/// A region of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// Its patches, over the picture.
    pub mask: Mask,
    /// The largest distance in it.
    pub score: f32,
}

/// The `most` regions of patches whose distances lie above `threshold`, the one with the largest distance first. `size` is (width,
/// height) of the picture.
///
/// # Panics
/// If the distances are not as many as the grid has patches.
pub fn regions(distances: &[f32], grid: PatchGrid, size: (u32, u32), threshold: f32, most: usize) -> Vec<Region> {
    let above: Vec<bool> = distances.iter().map(|&distance| distance > threshold).collect();
    let (labels, count) = labels(&above, grid.columns);
    let mut peaks: Vec<(u32, f32)> = (1..=count).map(|label| (label, 0.0)).collect();
    for (label, &distance) in labels.iter().zip(distances).filter(|(label, _)| **label > 0) {
        let peak = &mut peaks[*label as usize - 1].1;
        *peak = peak.max(distance);
    }
    peaks.sort_by(|a, b| b.1.total_cmp(&a.1));
    peaks.truncate(most);
    let region = |(label, score)| Region { mask: Mask::new(labels.iter().map(|&own| own == label).collect(), grid, size), score };
    peaks.into_iter().map(region).collect()
}

/// The number of each cell's region, from 1, in reading order of their first cells; 0 for cells that are not set. Then how many
/// regions there are. Cells touch at sides and corners.
pub fn labels(cells: &[bool], width: usize) -> (Vec<u32>, u32) {
    components::labels(cells, width, true)
}

#[cfg(test)]
mod tests {
    use super::{labels, regions};
    use crate::transform::PatchGrid;

    #[test]
    fn cells_that_touch_at_a_corner_are_one_region() {
        let cells: Vec<bool> = "#..#.#...#..####".bytes().map(|cell| cell == b'#').collect();
        let (found, count) = labels(&cells, 4);
        assert_eq!((found, count), (vec![1, 0, 0, 2, 0, 1, 0, 0, 0, 1, 0, 0, 1, 1, 1, 1], 2));
        let distances: Vec<f32> = cells.iter().enumerate().map(|(at, set)| if *set { 1.0 + at as f32 } else { 0.5 }).collect();
        let found = regions(&distances, PatchGrid { rows: 4, columns: 4 }, (8, 4), 0.5, 1);
        assert_eq!((found.len(), found[0].mask.area(), found[0].mask.bbox()), (1, 14, [0, 0, 8, 4]));
        assert!((found[0].score - 16.0).abs() < 1e-6);
    }
}
