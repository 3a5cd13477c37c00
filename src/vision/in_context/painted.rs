//! From the votes of patches to masks of pixels.

use super::Votes;
use crate::anomaly::bilinear;
use crate::cancel::{self, Cancelled};
use crate::segment::Mask;
use crate::transform::PatchGrid;

/// The pixels of one label.
#[derive(Clone, Debug, PartialEq)]
pub struct Painted {
    /// Number of the label among those of the votes.
    pub label: usize,
    /// On a grid of the picture's pixels.
    pub mask: Mask,
    /// Mean share of the label over the mask.
    pub score: f32,
}

/// One mask for each label that has pixels of a picture of `size` (width, height): a pixel is of the label with the largest share there, if
/// that is larger than the background's and than `threshold`. Shares are enlarged to pixels bilinearly. The largest mask comes first, of at
/// most `most`.
///
/// # Errors
/// [`Cancelled`].
///
/// # Panics
/// Where the shares are not as many as the grid has patches.
pub fn painted(votes: &Votes, grid: PatchGrid, size: (u32, u32), threshold: f32, most: usize) -> Result<Vec<Painted>, Cancelled> {
    let pixels = size.0 as usize * size.1 as usize;
    let background: Vec<f32> = (0..grid.len()).map(|patch| 1.0 - votes.shares.iter().map(|shares| shares[patch]).sum::<f32>()).collect();
    let mut largest: Vec<f32> = bilinear(&background, grid, size).values.iter().map(|share| share.max(threshold)).collect();
    // 0 is background.
    let mut labels = vec![0_u32; pixels];
    for (number, shares) in (1..).zip(&votes.shares) {
        cancel::check()?;
        let of_label = bilinear(shares, grid, size).values;
        for ((best, label), share) in largest.iter_mut().zip(&mut labels).zip(of_label) {
            if share > *best {
                (*best, *label) = (share, number);
            }
        }
    }
    let (mut counts, mut sums) = (vec![0_u64; votes.labels.len() + 1], vec![0.0_f64; votes.labels.len() + 1]);
    for (label, share) in labels.iter().zip(&largest) {
        counts[*label as usize] += 1;
        sums[*label as usize] += f64::from(*share);
    }
    let mut found: Vec<usize> = (1..counts.len()).filter(|&number| counts[number] > 0).collect();
    found.sort_by_key(|&number| std::cmp::Reverse(counts[number]));
    found.truncate(most);
    let mask = |number: usize| {
        cancel::check()?;
        let cells = labels.iter().map(|label| *label as usize == number).collect();
        let mask = Mask::new(cells, PatchGrid { rows: size.1 as usize, columns: size.0 as usize }, size);
        Ok(Painted { label: number - 1, mask, score: (sums[number] / counts[number] as f64) as f32 })
    };
    found.into_iter().map(mask).collect()
}

#[cfg(test)]
mod tests {
    use super::painted;
    use crate::in_context::Votes;
    use crate::transform::PatchGrid;

    #[test]
    fn the_largest_share_has_the_pixel() {
        let votes = Votes {
            labels: vec!["a".into(), "b".into(), "c".into()],
            shares: vec![vec![0.9, 0.1, 0.2, 0.0], vec![0.1, 0.8, 0.2, 0.0], vec![0.0, 0.0, 0.1, 0.1]],
        };
        let grid = PatchGrid { rows: 1, columns: 4 };
        let found = painted(&votes, grid, (40, 10), 0.0, 9).unwrap();
        assert_eq!(found.iter().map(|painted| painted.label).collect::<Vec<_>>(), [1, 0]);
        assert_eq!((found[1].mask.bbox(), found[0].mask.bbox()[0]), ([0, 0, 10, 10], 10));
        assert!(found.iter().all(|painted| (0.4..=0.9).contains(&painted.score)), "{found:?}");
        assert_eq!(painted(&votes, grid, (40, 10), 0.0, 1).unwrap(), found[..1]);
        let sure = painted(&votes, grid, (40, 10), 0.85, 9).unwrap();
        assert_eq!(sure.iter().map(|painted| painted.label).collect::<Vec<_>>(), [0]);
        assert!(painted(&Votes { labels: vec![], shares: vec![] }, grid, (40, 10), 0.0, 9).unwrap().is_empty());
    }
}
