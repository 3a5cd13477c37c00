//! The outlines of a mask as polygons, in COCO's form.

/// `[x, y]`, in pixels; a pixel reaches from its number to the next.
pub(super) type Point = [u32; 2];

/// Steps along the grid lines: east, south, west, north. One step further is a turn to the right.
const STEPS: [[isize; 2]; 4] = [[1, 0], [0, 1], [-1, 0], [0, -1]];

/// One closed outline per connected part, as COCO writes it: `[x1, y1, x2, y2, …]`, clockwise, corners only, without
/// repeating the first. COCO has no holes, so an outline goes around them as well: to each leads a cut of no width, there and
/// back. Filled, by any rule, it is the mask, pixel for pixel.
///
/// `cells` are the flags of a grid whose lines lie at `xs` and `ys`; both ascend, and cells between equal lines are not seen.
pub(super) fn polygons(cells: &[bool], xs: &[u32], ys: &[u32]) -> Vec<Vec<u32>> {
    let (cells, xs, ys) = grid_of(cells, xs, ys);
    let columns = xs.len().saturating_sub(1);
    let (labels, count) = super::components::labels(&cells, columns, false);
    let mut outlines = vec![Vec::new(); count as usize];
    let mut holes = vec![Vec::new(); count as usize];
    for (cell, ring) in rings(&cells, columns, &xs, &ys) {
        let part = labels[cell] as usize - 1;
        if is_clockwise(&ring) {
            outlines[part] = ring;
        } else {
            holes[part].push(ring);
        }
    }
    outlines.into_iter().zip(holes).map(|(outline, holes)| with_holes(outline, holes).into_flattened()).collect()
}

/// The cells between lines that differ, and these lines.
pub(super) fn grid_of(cells: &[bool], xs: &[u32], ys: &[u32]) -> (Vec<bool>, Vec<u32>, Vec<u32>) {
    let seen = |lines: &[u32]| (0..lines.len().saturating_sub(1)).filter(|at| lines[*at] < lines[at + 1]).collect::<Vec<_>>();
    let (columns, rows) = (seen(xs), seen(ys));
    let cells: Vec<bool> =
        (0..rows.len() * columns.len()).map(|at| cells[rows[at / columns.len()] * (xs.len() - 1) + columns[at % columns.len()]]).collect();
    let lines = |kept: &[usize], lines: &[u32]| kept.iter().map(|at| lines[*at]).chain(lines.last().copied()).collect::<Vec<_>>();
    let (xs, ys) = (lines(&columns, xs), lines(&rows, ys));
    (cells, xs, ys)
}

/// All outlines, the set cells to their right, each with one of the cells along it. At corners where set cells touch, an
/// outline stays with its cell.
pub(super) fn rings(cells: &[bool], columns: usize, xs: &[u32], ys: &[u32]) -> Vec<(usize, Vec<Point>)> {
    let rows = ys.len().saturating_sub(1);
    let is_set = |x: isize, y: isize| {
        let inside = (0..columns as isize).contains(&x) && (0..rows as isize).contains(&y);
        inside && cells[y as usize * columns + x as usize]
    };
    // The cells to the right and to the left of a step that starts at a crossing of the lines.
    let sides = |[x, y]: [isize; 2], step: usize| match step {
        0 => (is_set(x, y), is_set(x, y - 1)),
        1 => (is_set(x - 1, y), is_set(x, y)),
        2 => (is_set(x - 1, y - 1), is_set(x - 1, y)),
        _ => (is_set(x, y - 1), is_set(x - 1, y - 1)),
    };
    let is_edge = |at: [isize; 2], step: usize| matches!(sides(at, step), (true, false));

    let mut rings = Vec::new();
    // Every outline has steps to the east: they are the upper sides of their cells.
    let mut done = vec![false; cells.len()];
    for cell in 0..cells.len() {
        let start = [(cell % columns) as isize, (cell / columns) as isize];
        if done[cell] || !is_edge(start, 0) {
            continue;
        }
        let (mut at, mut step, mut ring) = (start, 0, Vec::new());
        loop {
            if step == 0 {
                done[at[1] as usize * columns + at[0] as usize] = true;
            }
            at = [at[0] + STEPS[step][0], at[1] + STEPS[step][1]];
            let turned = [step + 1, step, step + 3].map(|step| step % 4).into_iter().find(|step| is_edge(at, *step));
            // A closed line goes on everywhere.
            let next = turned.unwrap_or(step);
            if next != step {
                ring.push([xs[at[0] as usize], ys[at[1] as usize]]);
            }
            step = next;
            if (at, step) == (start, 0) {
                break;
            }
        }
        rings.push((cell, ring));
    }
    rings
}

/// Twice the area is positive, y pointing down.
pub(super) fn is_clockwise(ring: &[Point]) -> bool {
    let next = ring.iter().cycle().skip(1);
    let cross = |(a, b): (&Point, &Point)| i64::from(a[0]) * i64::from(b[1]) - i64::from(b[0]) * i64::from(a[1]);
    ring.iter().zip(next).map(cross).sum::<i64>() > 0
}

/// Joins each hole, from its leftmost corner straight to the left, to the outline or to a hole that has been joined.
fn with_holes(mut outline: Vec<Point>, mut holes: Vec<Vec<Point>>) -> Vec<Point> {
    let leftmost = |hole: &[Point]| hole.iter().enumerate().min_by_key(|(_, point)| **point).map_or(0, |(at, _)| at);
    for hole in &mut holes {
        let first = leftmost(hole);
        hole.rotate_left(first);
    }
    holes.sort_unstable_by_key(|hole| hole[0]);
    for hole in holes {
        let [x, y] = hole[0];
        // Of the upright edges beside the row below the corner, the nearest.
        let edge = |at: usize| (outline[at], outline[(at + 1) % outline.len()]);
        let beside = |at: &usize| {
            let ([ax, ay], [bx, by]) = edge(*at);
            ax == bx && ax < x && ay.min(by) <= y && y < ay.max(by)
        };
        let Some(at) = (0..outline.len()).filter(beside).max_by_key(|at| outline[*at][0]) else { continue };
        let corner = [outline[at][0], y];
        let detour = [corner].into_iter().chain(hole.iter().copied()).chain([hole[0], corner]);
        let mut longer: Vec<Point> = outline[..=at].iter().copied().chain(detour).chain(outline[at + 1..].iter().copied()).collect();
        longer.dedup();
        if longer.len() > 1 && longer.first() == longer.last() {
            longer.pop();
        }
        outline = longer;
    }
    outline
}

#[cfg(test)]
pub(super) mod tests {
    use super::polygons;

    /// The edges of cells that are a pixel each.
    pub(in crate::segment) fn lines(count: usize) -> Vec<u32> {
        (0..=count as u32).collect()
    }

    /// The cells that are drawn as `#`, and the number of columns.
    pub(in crate::segment) fn parse(rows: &[&str]) -> (Vec<bool>, usize) {
        (rows.concat().bytes().map(|cell| cell == b'#').collect(), rows[0].len())
    }

    /// The pixels of polygons, by how often a ray to the left crosses their upright edges.
    fn fill(polygons: &[Vec<u32>], columns: usize, rows: usize) -> Vec<bool> {
        let crosses = |polygon: &Vec<u32>, x: usize, y: usize| {
            let points = polygon.as_chunks::<2>().0;
            let next = points.iter().cycle().skip(1);
            let edge = |(a, b): (&[u32; 2], &[u32; 2])| {
                a[0] == b[0] && a[0] as usize <= x && (a[1].min(b[1]) as usize..a[1].max(b[1]) as usize).contains(&y)
            };
            points.iter().zip(next).filter(|(a, b)| edge((*a, *b))).count()
        };
        let inside = |x, y| polygons.iter().map(|polygon| crosses(polygon, x, y)).sum::<usize>() % 2 == 1;
        (0..rows * columns).map(|cell| inside(cell % columns, cell / columns)).collect()
    }

    #[test]
    fn corners_go_clockwise_and_parts_that_touch_by_corners_are_two() {
        let (cells, columns) = parse(&["##.", "..#"]);
        assert_eq!(polygons(&cells, &lines(columns), &lines(2)), [vec![2, 0, 2, 1, 0, 1, 0, 0], vec![3, 1, 3, 2, 2, 2, 2, 1]]);
        assert_eq!(polygons(&cells, &[0, 5, 5, 9], &[0, 4, 7]), [vec![5, 0, 5, 4, 0, 4, 0, 0], vec![9, 4, 9, 7, 5, 7, 5, 4]]);
        assert_eq!(polygons(&[false; 6], &lines(3), &lines(2)), [[0; 0]; 0]);
    }

    #[test]
    fn a_hole_is_reached_by_a_cut() {
        let (cells, columns) = parse(&["###", "#.#", "###"]);
        let found = polygons(&cells, &lines(columns), &lines(3));
        assert_eq!(found.len(), 1);
        // Four corners each, the cut's end on the outline there and back, and the hole's first corner again.
        assert_eq!(found[0].len(), 2 * (4 + 4 + 2 + 1));
        assert_eq!(fill(&found, columns, 3), cells);
    }

    #[test]
    fn filling_gives_the_mask_back() {
        let mut random = 12_345_u32;
        let mut next = || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            random >> 16
        };
        for round in 0..400 {
            let (columns, rows) = (1 + next() as usize % 12, 1 + next() as usize % 12);
            let share = 1 + next() % 9;
            let cells: Vec<bool> = (0..columns * rows).map(|_| next() % 10 < share).collect();
            let found = polygons(&cells, &lines(columns), &lines(rows));
            assert_eq!(fill(&found, columns, rows), cells, "round {round}: {found:?}");
            assert_eq!(found.len(), crate::segment::components::labels(&cells, columns, false).1 as usize);
        }
    }
}
