//! The outlines of a mask as simple rings, holes apart: what geometry libraries take as valid polygons.

use super::polygons::{Point, grid_of, is_clockwise, rings};

/// One connected part of a mask: `[x1, y1, x2, y2, …]` in pixels, corners only, without repeating the first.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct OutlinePart {
    /// Clockwise, y pointing down.
    pub outer: Vec<u32>,
    /// Counter-clockwise. They lie inside of `outer` and may touch it or each other in single points.
    pub holes: Vec<Vec<u32>>,
}

/// The parts of a mask, connected side by side. No ring visits a point twice, so that none crosses or touches itself: where a hole comes
/// to a corner with itself or with the outline, it is several rings. Filled, holes left out, they are the mask, pixel for pixel.
///
/// `cells` are the flags of a grid whose lines lie at `xs` and `ys`; both ascend, and cells between equal lines are not seen.
pub(super) fn parts(cells: &[bool], xs: &[u32], ys: &[u32]) -> Vec<OutlinePart> {
    let (cells, xs, ys) = grid_of(cells, xs, ys);
    let (labels, count) = super::components::labels(&cells, xs.len().saturating_sub(1), false);
    let mut parts = vec![OutlinePart { outer: Vec::new(), holes: Vec::new() }; count as usize];
    for (cell, ring) in rings(&cells, xs.len().saturating_sub(1), &xs, &ys) {
        let part = &mut parts[labels[cell] as usize - 1];
        for ring in simple(ring) {
            // A part that is connected side by side has one outline; what else goes clockwise would be another part.
            if is_clockwise(&ring) {
                part.outer = ring.into_flattened();
            } else {
                part.holes.push(ring.into_flattened());
            }
        }
    }
    parts
}

/// Splits a ring at the points that it visits twice.
fn simple(ring: Vec<Point>) -> Vec<Vec<Point>> {
    let (mut rings, mut path) = (Vec::new(), Vec::<Point>::new());
    let mut places = std::collections::HashMap::<Point, usize>::new();
    for point in ring {
        if let Some(&first) = places.get(&point) {
            // What lies between both visits is a ring of its own.
            let own: Vec<Point> = path.drain(first..).collect();
            for point in &own {
                places.remove(point);
            }
            rings.push(own);
        }
        places.insert(point, path.len());
        path.push(point);
    }
    rings.push(path);
    rings
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{OutlinePart, parts};
    use crate::segment::polygons::tests::{lines, parse};

    /// The points that a ring's sides go through, corners included; fails where it visits one twice, or a side is no side.
    fn walk(ring: &[u32]) -> Vec<[u32; 2]> {
        let corners = ring.as_chunks::<2>().0;
        assert!(corners.len() >= 4 && corners.len().is_multiple_of(2) && ring.len().is_multiple_of(2), "{ring:?}");
        let mut points = Vec::new();
        for (at, &[x, y]) in corners.iter().enumerate() {
            let [u, v] = corners[(at + 1) % corners.len()];
            let [before_x, _] = corners[(at + corners.len() - 1) % corners.len()];
            assert!((x == u) != (y == v), "a side is upright or level: {ring:?}");
            assert_eq!(x == u, before_x != x, "corners only: {ring:?}");
            let (mut here, step) =
                ([i64::from(x), i64::from(y)], [(i64::from(u) - i64::from(x)).signum(), (i64::from(v) - i64::from(y)).signum()]);
            while here != [i64::from(u), i64::from(v)] {
                points.push(here.map(|at| at as u32));
                here = [here[0] + step[0], here[1] + step[1]];
            }
        }
        let different: HashSet<_> = points.iter().copied().collect();
        assert_eq!(different.len(), points.len(), "a point is visited twice: {ring:?}");
        points
    }

    /// The pixels of a ring, by how often a ray to the left crosses its upright sides.
    fn fill(ring: &[u32], columns: usize, rows: usize) -> Vec<bool> {
        let corners = ring.as_chunks::<2>().0;
        let crosses = |x: usize, y: usize| {
            let edge = |at: usize| {
                let ([ax, ay], [bx, by]) = (corners[at], corners[(at + 1) % corners.len()]);
                ax == bx && ax as usize <= x && (ay.min(by) as usize..ay.max(by) as usize).contains(&y)
            };
            (0..corners.len()).filter(|at| edge(*at)).count()
        };
        (0..rows * columns).map(|cell| crosses(cell % columns, cell / columns) % 2 == 1).collect()
    }

    /// Checks every ring, and gives the mask of all parts.
    fn filled(parts: &[OutlinePart], columns: usize, rows: usize) -> Vec<bool> {
        let mut mask = vec![false; columns * rows];
        for OutlinePart { outer, holes } in parts {
            let border: HashSet<_> = walk(outer).into_iter().collect();
            let mut part = fill(outer, columns, rows);
            for hole in holes {
                let points = walk(hole);
                assert!(points.iter().filter(|point| border.contains(*point)).count() <= hole.len() / 2, "corners alone may touch");
                for (cell, is_hole) in fill(hole, columns, rows).into_iter().enumerate() {
                    assert!(!is_hole || std::mem::take(&mut part[cell]), "holes lie inside of the part and not in each other");
                }
            }
            for (cell, is_set) in part.into_iter().enumerate() {
                assert!(!(is_set && std::mem::replace(&mut mask[cell], is_set)), "parts do not overlap");
            }
        }
        mask
    }

    #[test]
    fn holes_are_apart_and_rings_that_come_to_a_corner_twice_are_several() {
        let of = |rows: &[&str]| {
            let (cells, columns) = parse(rows);
            let found = parts(&cells, &lines(columns), &lines(rows.len()));
            assert_eq!(filled(&found, columns, rows.len()), cells);
            found.iter().map(|part| part.holes.len()).collect::<Vec<_>>()
        };
        assert_eq!(of(&["###", "#.#", "###"]), [1]);
        // Two holes that touch at a corner; a hole that touches the outline at one.
        assert_eq!(of(&["####", "#.##", "##.#", "####"]), [2]);
        assert_eq!(of(&["###.", "#.##", "####"]), [1]);
        assert_eq!(of(&["##.", "#.#", "###"]), [1]);
        assert_eq!(of(&["#.", ".#"]), [0, 0]);
        assert_eq!(of(&["...", "..."]), [0; 0]);
        assert_eq!(of(&["#####", "#...#", "#.#.#", "#...#", "#####"]), [1, 0]);
    }

    #[test]
    fn filling_gives_the_mask_back() {
        let mut random = 54_321_u32;
        let mut next = || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            random >> 16
        };
        for round in 0..600 {
            let (columns, rows) = (1 + next() as usize % 14, 1 + next() as usize % 14);
            let share = 1 + next() % 9;
            let cells: Vec<bool> = (0..columns * rows).map(|_| next() % 10 < share).collect();
            let found = parts(&cells, &lines(columns), &lines(rows));
            assert_eq!(filled(&found, columns, rows), cells, "round {round}: {found:?}");
        }
    }

    #[test]
    fn cells_that_no_pixel_has_are_left_out() {
        let (cells, _) = parse(&["##.", "..#"]);
        let found = parts(&cells, &[0, 5, 5, 9], &[0, 4, 7]);
        assert_eq!(
            found.iter().map(|part| part.outer.clone()).collect::<Vec<_>>(),
            [vec![5, 0, 5, 4, 0, 4, 0, 0], vec![9, 4, 9, 7, 5, 7, 5, 4]]
        );
    }
}
