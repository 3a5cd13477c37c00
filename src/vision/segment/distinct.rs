//! Which of several masks are objects of their own: none twice, and none that is only what the others leave.

use super::Mask;

/// Two masks whose intersection is more than this share of their union are one object.
const SAME: f64 = 0.9;

/// The masks that were taken so far, on the cells that all masks of the picture share.
pub(super) struct Distinct {
    lattice: Lattice,
    taken: Vec<Taken>,
    union: Vec<bool>,
}

struct Taken {
    cells: Vec<bool>,
    area: u64,
    /// `[x, y, width, height]`.
    bbox: [u32; 4],
}

impl Distinct {
    /// Nothing taken, of the picture whose masks these are.
    pub(super) fn new<'a>(masks: impl IntoIterator<Item = &'a Mask>) -> Self {
        let lattice = Lattice::of(masks);
        let union = vec![false; lattice.len()];
        Self { lattice, taken: Vec::new(), union }
    }

    /// Takes a mask, unless it is empty, the same as an earlier one, or the complement of an earlier one or of all of them. Returns
    /// its share of what the earlier ones left, 0 for the first.
    pub(super) fn take(&mut self, mask: &Mask) -> Option<f64> {
        let new = Taken { area: mask.area(), bbox: mask.bbox(), cells: self.lattice.cells(mask) };
        let all = self.lattice.area(|_| true);
        let same = |earlier: &Taken| {
            let least = u64::min(new.area, earlier.area);
            is_same(new.area, earlier.area, u64::min(least, shared(new.bbox, earlier.bbox)))
                && is_same(new.area, earlier.area, self.lattice.area(|cell| new.cells[cell] && earlier.cells[cell]))
        };
        let complement = |area: u64, cells: &[bool]| {
            let rest = all - area;
            is_same(new.area, rest, u64::min(new.area, rest))
                && is_same(new.area, rest, self.lattice.area(|cell| new.cells[cell] && !cells[cell]))
        };
        let covered = self.lattice.area(|cell| self.union[cell]);
        let known = !self.taken.is_empty()
            && (complement(covered, &self.union)
                || self.taken.iter().any(|earlier| same(earlier) || complement(earlier.area, &earlier.cells)));
        if new.area == 0 || known {
            return None;
        }
        let added = self.lattice.area(|cell| new.cells[cell] && !self.union[cell]);
        let share = if self.taken.is_empty() { 0.0 } else { added as f64 / (all - covered).max(1) as f64 };
        self.union.iter_mut().zip(&new.cells).for_each(|(union, new)| *union |= new);
        self.taken.push(new);
        Some(share)
    }
}

/// Whether sets of these sizes that have `common` pixels in common are the same for a reader.
fn is_same(a: u64, b: u64, common: u64) -> bool {
    common as f64 > SAME * (a + b - common) as f64
}

/// Pixels that two boxes share.
fn shared(a: [u32; 4], b: [u32; 4]) -> u64 {
    let side = |axis: usize| u32::min(a[axis] + a[axis + 2], b[axis] + b[axis + 2]).saturating_sub(a[axis].max(b[axis]));
    u64::from(side(0)) * u64::from(side(1))
}

/// Rectangles of pixels that no mask divides: refined masks have finer cells than those that could not be refined.
struct Lattice {
    /// First pixel and number of pixels of each column, then of each row.
    columns: Vec<(u32, u64)>,
    rows: Vec<(u32, u64)>,
}

impl Lattice {
    fn of<'a>(masks: impl IntoIterator<Item = &'a Mask>) -> Self {
        let (mut grids, mut columns, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for mask in masks {
            if !grids.contains(&mask.grid()) {
                grids.push(mask.grid());
                columns.extend(mask.column_edges());
                rows.extend(mask.row_edges());
            }
        }
        let segments = |mut edges: Vec<u32>| {
            edges.sort_unstable();
            edges.dedup();
            edges.windows(2).map(|pair| (pair[0], u64::from(pair[1] - pair[0]))).collect()
        };
        Self { columns: segments(columns), rows: segments(rows) }
    }

    fn len(&self) -> usize {
        self.columns.len() * self.rows.len()
    }

    fn cells(&self, mask: &Mask) -> Vec<bool> {
        self.rows.iter().flat_map(|&(y, _)| self.columns.iter().map(move |&(x, _)| mask.contains(x, y))).collect()
    }

    /// Pixels of the cells that are chosen.
    fn area(&self, chosen: impl Fn(usize) -> bool) -> u64 {
        let mut area = 0;
        for (row, (_, height)) in self.rows.iter().enumerate() {
            let first = row * self.columns.len();
            let widths = self.columns.iter().enumerate().filter(|(column, _)| chosen(first + column)).map(|(_, (_, width))| width);
            area += height * widths.sum::<u64>();
        }
        area
    }
}

#[cfg(test)]
mod tests {
    use super::{Distinct, Mask};
    use crate::transform::PatchGrid;

    fn mask(cells: &str, columns: usize, size: (u32, u32)) -> Mask {
        let cells: Vec<bool> = cells.bytes().map(|cell| cell == b'#').collect();
        Mask::new(cells.clone(), PatchGrid { rows: cells.len() / columns, columns }, size)
    }

    /// Which of the masks are taken, one after the other.
    fn taken(masks: &[Mask]) -> Vec<bool> {
        let mut distinct = Distinct::new(masks);
        masks.iter().map(|mask| distinct.take(mask).is_some()).collect()
    }

    #[test]
    fn the_same_and_the_complement_are_no_further_objects() {
        let of = |cells: &str| mask(cells, 4, (40, 20));
        assert_eq!(taken(&[of("##......"), of("##......"), of("..######")]), [true, false, false]);
        // Of two together; and one that is most of what is left, but no more than that.
        assert_eq!(taken(&[of("#......."), of(".#......"), of("..######"), of("..####..")]), [true, true, false, true]);
        assert_eq!(taken(&[of("........"), of("########"), of("#.......")]), [false, true, true]);
    }

    #[test]
    fn nine_tenths_is_where_one_object_begins() {
        let line = |from: usize, to: usize| {
            let cells: String = (0..40).map(|at| if (from..to).contains(&at) { '#' } else { '.' }).collect();
            mask(&cells, 40, (40, 1))
        };
        assert_eq!(taken(&[line(0, 20), line(0, 18)]), [true, true]);
        assert_eq!(taken(&[line(0, 20), line(0, 19)]), [true, false]);
        assert_eq!(taken(&[line(0, 20), line(1, 21)]), [true, false]);
        assert_eq!(taken(&[line(0, 20), line(21, 40)]), [true, false]);
        assert_eq!(taken(&[line(0, 20), line(22, 40)]), [true, true]);
    }

    #[test]
    fn masks_on_different_grids_are_compared_by_their_pixels() {
        let (coarse, fine) = (mask("#.", 2, (8, 2)), mask("####........####", 8, (8, 2)));
        assert_eq!(taken(&[coarse.clone(), mask("####....####....", 8, (8, 2)), fine]), [true, false, true]);
        assert_eq!(taken(&[coarse, mask("....####....####", 8, (8, 2))]), [true, false]);
    }
}
