//! Patches of two pictures that are each other's nearest.

use crate::anomaly::{Rows, scan};
use crate::cancel::Cancelled;
use crate::transform::PatchGrid;

/// The patches of one picture.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Row by row of the grid.
    pub rows: &'a Rows,
    /// Covers the whole picture.
    pub grid: PatchGrid,
    /// Width and height of the picture in pixels.
    pub size: (u32, u32),
}

/// Which matches are wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Each patch has to be the nearest of the other; otherwise every patch of the first picture has its nearest.
    pub mutual: bool,
    /// Least cosine, -1 to 1.
    pub min_similarity: f32,
}

/// A place in each of two pictures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Match {
    /// `[x, y]` in pixels of the first picture, from its upper left corner: the middle of a patch.
    pub from: [f32; 2],
    /// `[x, y]` in pixels of the second picture.
    pub to: [f32; 2],
    /// Cosine of the two patches, -1 to 1.
    pub similarity: f32,
}

/// Matches the patches of two pictures, the most similar first, equal ones in reading order of the first picture.
///
/// A match is mutual where no patch of either picture is more similar to the other one's. Of several patches that are equally near to
/// one, the first counts. In the second picture a match lies where a parabola through the similarities of the patch and its two neighbours
/// has its peak, in x and in y: at most half a patch from the patch's middle. Each of the two is the mean of two pairs of patches that are
/// moved alike, one in the second picture, the other in the first the opposite way: so a picture that is matched with itself is not moved,
/// though one neighbour of a patch is more like it than the other. At the border of either grid a match stays in the middle.
///
/// # Errors
/// [`Cancelled`].
///
/// # Panics
/// Where a side has not as many rows as its grid has patches, or the rows differ in dimension.
pub fn matches(first: Side<'_>, second: Side<'_>, options: Options) -> Result<Vec<Match>, Cancelled> {
    for side in [first, second] {
        assert_eq!(side.rows.len(), side.grid.len(), "one row per patch");
    }
    assert_eq!(first.rows.dim(), second.rows.dim(), "patches of one model");
    let found = scan::scan(first.rows, second.rows, scan::Options { of_rows: options.mutual, ..scan::Options::default() })?;
    let mut taken = vec![false; second.rows.len()];
    let mut matched = Vec::new();
    for (patch, hit) in found.of_queries.iter().enumerate() {
        let Some(is_taken) = taken.get_mut(hit.row as usize) else { continue };
        if hit.cosine < options.min_similarity {
            continue;
        }
        // The same product, so that equality is exact.
        if options.mutual && (hit.cosine < found.of_rows[hit.row as usize] || std::mem::replace(is_taken, true)) {
            continue;
        }
        matched.push((patch, *hit));
    }
    matched.sort_by(|(_, a), (_, b)| b.cosine.total_cmp(&a.cosine));
    let place = |(patch, hit): (usize, scan::Hit)| Match {
        from: first.place(patch, [0.0; 2]),
        to: second.place(hit.row as usize, offsets(first, patch, second, hit)),
        similarity: hit.cosine,
    };
    Ok(matched.into_iter().map(place).collect())
}

impl Side<'_> {
    /// The middle of a patch, moved by shares of a patch in x and y.
    fn place(&self, patch: usize, [across, down]: [f32; 2]) -> [f32; 2] {
        let PatchGrid { rows, columns } = self.grid;
        let along = |at: usize, offset: f32, cells: usize, side: u32| {
            ((at as f64 + 0.5 + f64::from(offset)) * f64::from(side) / cells as f64) as f32
        };
        [along(patch % columns, across, columns, self.size.0), along(patch / columns, down, rows, self.size.1)]
    }
}

/// How far in x and y, in patches, the peak of the similarities is from the middle of the patch that was found for `patch`.
fn offsets(first: Side<'_>, patch: usize, second: Side<'_>, hit: scan::Hit) -> [f32; 2] {
    let found = hit.row as usize;
    let along = |(before, after): (usize, usize), (found_before, found_after): (usize, usize)| {
        let cosine = |patch: usize, found: usize| first.rows.cosine_with(patch, second.rows, found);
        let back = f32::midpoint(cosine(patch, found_before), cosine(after, found));
        let forth = f32::midpoint(cosine(patch, found_after), cosine(before, found));
        peak(back, hit.cosine, forth)
    };
    let axis = |neighbours: fn(PatchGrid, usize) -> Option<(usize, usize)>| {
        neighbours(first.grid, patch).zip(neighbours(second.grid, found)).map_or(0.0, |(own, others)| along(own, others))
    };
    [axis(beside), axis(above_and_below)]
}

/// The patches to the left and to the right; none at the border.
fn beside(grid: PatchGrid, patch: usize) -> Option<(usize, usize)> {
    let column = patch % grid.columns;
    (column > 0 && column + 1 < grid.columns).then(|| (patch - 1, patch + 1))
}

/// The patches above and below; none at the border.
fn above_and_below(grid: PatchGrid, patch: usize) -> Option<(usize, usize)> {
    let row = patch / grid.columns;
    (row > 0 && row + 1 < grid.rows).then(|| (patch - grid.columns, patch + grid.columns))
}

/// Where the parabola through the values at -1, 0 and 1 has its peak, within half a step; 0 where it has none.
fn peak(before: f32, here: f32, after: f32) -> f32 {
    let bend = before - 2.0 * here + after;
    let at = 0.5 * (before - after) / bend;
    if bend < 0.0 && at.is_finite() { at.clamp(-0.5, 0.5) } else { 0.0 }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "the same products give the same numbers")]
mod tests {
    use super::{Match, Options, Side, matches, peak};
    use crate::anomaly::{Rows, scan::tests::scattered};
    use crate::transform::PatchGrid;

    const ALL: Options = Options { mutual: true, min_similarity: -1.0 };

    fn side(rows: &Rows, columns: usize) -> Side<'_> {
        let grid = PatchGrid { rows: rows.len() / columns, columns };
        Side { rows, grid, size: (10 * columns as u32, 20 * grid.rows as u32) }
    }

    #[test]
    fn matches_are_those_of_comparing_every_pair() {
        for (a, b, columns, seed) in [(600, 1170, 30, 1), (35, 21, 7, 2), (1, 1, 1, 3), (1100, 24, 4, 4)] {
            let (first, second) = (scattered(a, 24, seed), scattered(b, 24, seed + 50));
            let cosine = |at: usize, other: usize| {
                let product: i32 = first.codes(at).iter().zip(second.codes(other)).map(|(&x, &y)| i32::from(x) * i32::from(y)).sum();
                product as f32 * first.scales()[at] * second.scales()[other]
            };
            let nearest = |count: usize, cosine: &dyn Fn(usize) -> f32| {
                (0..count).max_by(|&x, &y| cosine(x).total_cmp(&cosine(y)).then(y.cmp(&x))).unwrap()
            };
            let expected = |mutual: bool| {
                let mut pairs: Vec<(usize, usize, f32)> = (0..a)
                    .map(|at| (at, nearest(b, &|other| cosine(at, other))))
                    .filter(|&(at, other)| !mutual || nearest(a, &|at| cosine(at, other)) == at)
                    .map(|(at, other)| (at, other, cosine(at, other)))
                    .collect();
                pairs.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.0.cmp(&b.0)));
                pairs
            };
            let (from, to) = (side(&first, columns), side(&second, columns));
            for mutual in [true, false] {
                let found = matches(from, to, Options { mutual, ..ALL }).unwrap();
                let wanted = expected(mutual);
                assert_eq!(found.len(), wanted.len(), "{a} {b} {mutual}");
                for (found, (at, other, cosine)) in found.iter().zip(wanted) {
                    assert!(found.from == from.place(at, [0.0; 2]) && found.similarity == cosine, "{found:?} {at} {other} {cosine}");
                    let [x, y] = to.place(other, [0.0; 2]);
                    assert!((found.to[0] - x).abs() <= 5.0 && (found.to[1] - y).abs() <= 10.0, "{found:?} {at} {other}");
                }
            }
            let least = expected(true)[0].2;
            assert_eq!(matches(from, to, Options { min_similarity: least, ..ALL }).unwrap().len(), 1);
        }
    }

    #[test]
    fn one_patch_is_matched_once_where_several_are_alike() {
        let mut rows = Rows::new(2);
        for vector in [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]] {
            rows.push(vector.into_iter());
        }
        let found = matches(side(&rows, 4), side(&rows, 4), Options { min_similarity: 0.5, ..ALL }).unwrap();
        assert_eq!(found.len(), 2);
        assert!((found[0].from[0], found[1].from[0]) == (5.0, 25.0), "{found:?}");
    }

    #[test]
    fn a_parabola_is_found_where_it_lies_and_never_beyond_half_a_patch() {
        for step in -50_i16..=50 {
            let at = f32::from(step) / 100.0;
            let value = |x: f32| 0.9 - 0.3 * (x - at).powi(2);
            assert!((peak(value(-1.0), value(0.0), value(1.0)) - at).abs() < 1e-4, "{at}");
        }
        for (before, here, after) in [(0.5, 0.5, 0.5), (0.1, 0.0, 0.3), (f32::NAN, 1.0, 0.0), (0.3, 0.2, 0.1)] {
            assert!(peak(before, here, after).abs() < 1e-9, "{before} {here} {after}");
        }
        assert!((peak(0.9, 0.5, 0.0) - -0.5).abs() < 1e-9);
        let rows = scattered(400, 16, 9);
        let to = side(&rows, 20);
        for (at, Match { to: [x, y], .. }) in matches(to, to, ALL).unwrap().into_iter().enumerate() {
            let (column, row) = ((x / 10.0).floor() * 10.0 + 5.0, (y / 20.0).floor() * 20.0 + 10.0);
            assert!((x - column).abs() <= 5.0 && (y - row).abs() <= 10.0, "{at}");
        }
    }

    #[test]
    fn a_picture_that_is_matched_with_itself_is_not_moved() {
        let mut rows = Rows::new(3);
        // Neighbours are alike, and those to the left more so.
        (0..30).map(|at| (at % 6, at / 6)).for_each(|(x, y): (i16, i16)| {
            rows.push([f32::from(x * x), 10.0, f32::from(y * y * y) / 3.0].into_iter());
        });
        let found = matches(side(&rows, 6), side(&rows, 6), ALL).unwrap();
        assert_eq!(found.len(), 30);
        for Match { from, to, .. } in found {
            assert!((from[0] - to[0]).abs() < 1e-3 && (from[1] - to[1]).abs() < 1e-3, "{from:?} {to:?}");
        }
    }
}
