//! Connected parts of a set of patches.

/// Splits the set cells of a grid into parts that are connected side by side, in reading order of their first cell.
/// Each part is a set on the same grid.
pub(super) fn components(cells: &[bool], columns: usize) -> Vec<Vec<bool>> {
    let mut left = cells.to_vec();
    let mut parts = Vec::new();
    for start in 0..left.len() {
        if !left[start] {
            continue;
        }
        let mut part = vec![false; cells.len()];
        let mut border = vec![start];
        left[start] = false;
        while let Some(cell) = border.pop() {
            part[cell] = true;
            let column = cell % columns;
            let neighbours = [
                cell.checked_sub(columns),
                Some(cell + columns).filter(|below| *below < cells.len()),
                (column > 0).then(|| cell - 1),
                (column + 1 < columns).then_some(cell + 1),
            ];
            for neighbour in neighbours.into_iter().flatten() {
                if std::mem::take(&mut left[neighbour]) {
                    border.push(neighbour);
                }
            }
        }
        parts.push(part);
    }
    parts
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
