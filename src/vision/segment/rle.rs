//! COCO's run-length encoding of masks.

use serde::Serialize;

/// A mask as COCO's tools (`pycocotools.mask`) read it. Runs go down the columns, and the first counts zeros.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Rle {
    /// `[height, width]`.
    pub size: [u32; 2],
    /// The compressed runs: printable ASCII.
    pub counts: String,
}

impl Rle {
    pub(super) fn new(width: u32, height: u32, runs: &[u32]) -> Self {
        Self { size: [height, width], counts: compress(runs) }
    }
}

impl Rle {
    /// The runs, as `rleFrString` of COCO's `maskApi.c` reads them; or what is wrong with them, in words.
    pub(super) fn runs(&self) -> Result<Vec<u32>, &'static str> {
        let mut runs: Vec<u32> = Vec::new();
        let mut bytes = self.counts.bytes();
        while let Some(mut byte) = bytes.next() {
            let (mut run, mut shift) = (0_i64, 0);
            loop {
                let group =
                    byte.checked_sub(b'0').filter(|group| *group < 0x40).ok_or("`counts` has characters that are none of theirs")?;
                run |= i64::from(group & 0x1F) << shift;
                shift += 5;
                if group & 0x20 == 0 {
                    if group & 0x10 != 0 {
                        run |= -1 << shift;
                    }
                    break;
                }
                if shift > 35 {
                    return Err("a run is too long");
                }
                byte = bytes.next().ok_or("`counts` is cut")?;
            }
            if runs.len() > 2 {
                run += i64::from(runs[runs.len() - 2]);
            }
            runs.push(u32::try_from(run).map_err(|_| "a run is too long, or below 0")?);
        }
        Ok(runs)
    }
}

/// `rleToString` of COCO's `maskApi.c`: from the fourth on, runs are differences to the one before the last; each is
/// written in groups of five bits, lowest first, as characters from `0` on, with a sixth bit for "more follows".
fn compress(runs: &[u32]) -> String {
    let mut text = String::new();
    for (at, run) in runs.iter().enumerate() {
        let mut rest = i64::from(*run);
        if at > 2 {
            rest -= i64::from(runs[at - 2]);
        }
        loop {
            let group = (rest & 0x1F) as u8;
            rest >>= 5;
            // The group's own highest bit is the sign of what is left.
            let more = if group & 0x10 == 0 { rest != 0 } else { rest != -1 };
            text.push(char::from(b'0' + group + if more { 0x20 } else { 0 }));
            if !more {
                break;
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Rle, compress};
    use crate::segment::Mask;
    use crate::transform::PatchGrid;

    fn counts(cells: &str, columns: usize, size: (u32, u32)) -> String {
        let cells: Vec<bool> = cells.bytes().map(|cell| cell == b'#').collect();
        let grid = PatchGrid { rows: cells.len() / columns, columns };
        let rle = Mask::new(cells, grid, size).rle();
        assert_eq!(rle.size, [size.1, size.0]);
        rle.counts
    }

    /// What pycocotools 2.0.11 makes of the same masks.
    #[test]
    fn counts_are_those_of_pycocotools() {
        assert_eq!(counts("........", 4, (64, 32)), "PP2");
        assert_eq!(counts("########", 4, (64, 32)), "0PP2");
        assert_eq!(counts("#..#.##.#..#", 4, (7, 7)), "02320NO12000NO120N");
        let corner = format!("0`0`{}P`1", "0".repeat(30));
        assert_eq!(counts("#.......", 4, (64, 32)), corner);
        let upper_right = format!("Toe0??{}", "0".repeat(498));
        assert_eq!(counts("...#....", 4, (1000, 30)), upper_right);
    }

    fn expand(text: &str) -> Vec<u32> {
        Rle { size: [0, 0], counts: text.into() }.runs().unwrap()
    }

    #[test]
    fn runs_survive_compression() {
        for runs in [vec![0, 1], vec![5], vec![0, 50_000_000], vec![1, 15, 16, 17, 31, 32, 33, 1023, 1, 50_000_000, 1]] {
            assert_eq!(expand(&compress(&runs)), runs);
        }
    }

    #[test]
    fn runs_go_down_the_columns_of_the_mask() {
        let cells: Vec<bool> = "#..#.##.#..#".bytes().map(|cell| cell == b'#').collect();
        let mask = Mask::new(cells, PatchGrid { rows: 3, columns: 4 }, (50, 33));
        let runs = expand(&mask.rle().counts);
        let pixels: Vec<bool> = runs.iter().enumerate().flat_map(|(at, run)| vec![at % 2 == 1; *run as usize]).collect();
        assert_eq!(pixels.len(), 50 * 33);
        for (at, set) in pixels.iter().enumerate() {
            assert_eq!(*set, mask.contains((at / 33) as u32, (at % 33) as u32));
        }
        assert_eq!(pixels.iter().filter(|set| **set).count() as u64, mask.area());
    }
}
