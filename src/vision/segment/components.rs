//! Connected parts of a set of patches.

use std::mem;

/// Splits the set cells of a grid into parts that are connected side by side, in reading order of their first cell.
/// Each part is a set on the same grid.
pub(super) fn components(cells: &[bool], columns: usize) -> Vec<Vec<bool>> {
    let (labels, count) = labels(cells, columns, false);
    (1..=count).map(|part| labels.iter().map(|label| *label == part).collect()).collect()
}

/// The part of the set cells that is connected with `seed`; empty where the seed itself is not set.
pub(super) fn component(cells: &[bool], columns: usize, seed: usize) -> Vec<bool> {
    let mut left = cells.to_vec();
    let mut part = vec![false; cells.len()];
    take(&mut left, columns, seed, false, |cell| part[cell] = true);
    part
}

/// The number of each cell's part, from 1, in reading order of their first cells; 0 for cells that are not set. Then how
/// many parts there are. With `corners` cells that touch at a corner are connected too.
pub(crate) fn labels(cells: &[bool], columns: usize, corners: bool) -> (Vec<u32>, u32) {
    let mut left = cells.to_vec();
    let mut labels = vec![0; cells.len()];
    let mut count = 0;
    for start in 0..left.len() {
        if left[start] {
            count += 1;
            take(&mut left, columns, start, corners, |cell| labels[cell] = count);
        }
    }
    (labels, count)
}

/// Takes the part around `start` out of `left`.
fn take(left: &mut [bool], columns: usize, start: usize, corners: bool, mut visit: impl FnMut(usize)) {
    let mut border = Vec::new();
    if mem::take(&mut left[start]) {
        border.push(start);
    }
    while let Some(cell) = border.pop() {
        visit(cell);
        let (row, column) = (cell / columns, cell % columns);
        for row in row.saturating_sub(1)..=row + 1 {
            for column in column.saturating_sub(1)..=(column + 1).min(columns - 1) {
                let next = row * columns + column;
                let is_beside = corners || row == cell / columns || column == cell % columns;
                if is_beside && left.get_mut(next).is_some_and(mem::take) {
                    border.push(next);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::components;

    fn parts(rows: &[&str]) -> Vec<String> {
        let cells: Vec<bool> = rows.concat().bytes().map(|cell| cell == b'#').collect();
        let show = |part: Vec<bool>| part.into_iter().map(|cell| if cell { '#' } else { '.' }).collect();
        components(&cells, rows[0].len()).into_iter().map(show).collect()
    }

    #[test]
    fn parts_touch_by_sides_not_by_corners_nor_around_the_edge() {
        assert_eq!(parts(&["##.", "..#", "#.#"]), ["##.......", ".....#..#", "......#.."]);
        assert_eq!(parts(&["..#", "#.."]), ["..#...", "...#.."]);
        assert_eq!(parts(&["###", "#.#", "###"]), ["####.####"]);
        assert_eq!(parts(&["...", "..."]), [""; 0]);
    }
}
