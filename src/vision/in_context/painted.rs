//! From the votes of patches to masks of pixels.

use super::Votes;
use crate::anomaly::bilinear;
use crate::cancel::{self, Cancelled};
use crate::segment::Mask;
use crate::transform::PatchGrid;

/// A label that has pixels of a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Painted {
    /// Number of the label among those of the votes.
    pub label: usize,
    /// Mean share of the label over its pixels.
    pub score: f32,
}

/// A picture whose pixels have labels.
#[derive(Clone, Debug)]
pub struct Painting {
    /// The labels that have pixels, the one with the most first.
    pub found: Vec<Painted>,
    /// Of each pixel the number of its label plus 1; 0 is background.
    labels: Vec<u32>,
    size: (u32, u32),
}

impl Painting {
    /// The pixels of a label, on a grid of the picture's pixels: a byte for each, so that not all masks should be in memory at once.
    pub fn mask(&self, label: usize) -> Mask {
        let cells = self.labels.iter().map(|&own| own as usize == label + 1).collect();
        Mask::new(cells, PatchGrid { rows: self.size.1 as usize, columns: self.size.0 as usize }, self.size)
    }
}

/// The pixels of a picture of `size` (width, height) by their labels: a pixel is of the label with the largest share there, if that is
/// larger than the background's and than `threshold`. Shares are enlarged to pixels bilinearly.
///
/// # Errors
/// [`Cancelled`].
///
/// # Panics
/// Where the shares, or those of others, are not as many as the grid has patches.
pub fn painted(votes: &Votes, grid: PatchGrid, size: (u32, u32), threshold: f32) -> Result<Painting, Cancelled> {
    let pixels = size.0 as usize * size.1 as usize;
    let background = |patch: usize| 1.0 - votes.shares.iter().map(|shares| shares[patch]).sum::<f32>() - votes.others[patch];
    let background: Vec<f32> = (0..grid.len()).map(background).collect();
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
    let painted = |number: usize| Painted { label: number - 1, score: (sums[number] / counts[number] as f64) as f32 };
    Ok(Painting { found: found.into_iter().map(painted).collect(), labels, size })
}

#[cfg(test)]
mod tests {
    use super::{Painting, painted};
    use crate::in_context::Votes;
    use crate::transform::PatchGrid;

    #[test]
    fn the_largest_share_has_the_pixel() {
        let votes = Votes {
            labels: vec!["a".into(), "b".into(), "c".into()],
            shares: vec![vec![0.9, 0.1, 0.2, 0.0], vec![0.1, 0.8, 0.2, 0.0], vec![0.0, 0.0, 0.1, 0.1]],
            others: vec![0.0; 4],
        };
        let grid = PatchGrid { rows: 1, columns: 4 };
        let labels = |painting: &Painting| painting.found.iter().map(|painted| painted.label).collect::<Vec<_>>();
        let painting = painted(&votes, grid, (40, 10), 0.0).unwrap();
        assert_eq!(labels(&painting), [1, 0]);
        assert_eq!((painting.mask(0).bbox(), painting.mask(1).bbox()[0]), ([0, 0, 10, 10], 10));
        assert_eq!(painting.mask(2).area(), 0);
        assert!(painting.found.iter().all(|painted| (0.4..=0.9).contains(&painted.score)), "{:?}", painting.found);
        assert_eq!(labels(&painted(&votes, grid, (40, 10), 0.85).unwrap()), [0]);
        let nothing = Votes { labels: vec![], shares: vec![], others: vec![0.0; 4] };
        assert!(painted(&nothing, grid, (40, 10), 0.0).unwrap().found.is_empty());
        // What labels have that are not listed is no background: the others are painted there as far as they go.
        let rest = Votes { labels: vec!["a".into()], shares: vec![vec![0.3; 4]], others: vec![0.2, 0.2, 0.6, 0.6] };
        assert_eq!(painted(&rest, grid, (40, 10), 0.0).unwrap().mask(0).bbox(), [20, 0, 20, 10]);
    }
}
