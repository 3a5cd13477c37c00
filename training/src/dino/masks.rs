//! Which patches the student does not see (iBOT, Zhou et al. 2022): blocks, as `BEiT` draws them, with DINOv2's distribution of shares.
//!
//! ```
//! use dino_train::data::loader::generator;
//! use dino_train::dino::masks::{Masking, Masks};
//!
//! let masking = Masking { probability: 0.5, low: 0.1, high: 0.5 };
//! let drawn = masking.draw(4, (14, 14), &mut generator(0, 0, 0, 0));
//! let masked: Vec<usize> = drawn.iter().map(|crop| crop.iter().filter(|hidden| **hidden).count()).collect();
//! assert_eq!(masked.iter().filter(|patches| **patches > 0).count(), 2, "half of the crops");
//! assert!(masked.iter().all(|patches| *patches <= 14 * 14 / 2));
//!
//! let masks = Masks::new(&drawn, &candle_core::Device::Cpu)?;
//! assert_eq!(masks.places.len(), masked.iter().sum::<usize>());
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{Device, Result, Tensor};
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

/// Least patches of a block.
const SMALLEST: f64 = 4.0;
/// Flattest block: height by width; the steepest is its inverse.
const FLATTEST: f64 = 0.3;
/// Blocks that are tried before a picture is left as it is.
const TRIES: usize = 10;

/// How many patches are masked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Masking {
    /// Share of the global crops that are masked at all.
    pub probability: f64,
    /// Least share of a masked crop's patches.
    pub low: f64,
    /// Largest share of a masked crop's patches.
    pub high: f64,
}

impl Masking {
    /// Masks of `crops` crops of `rows` x `columns` patches, row by row. Shares of the masked ones are spread evenly between the bounds.
    pub fn draw(&self, crops: usize, (rows, columns): (usize, usize), random: &mut impl Rng) -> Vec<Vec<bool>> {
        let masked = (crops as f64 * self.probability) as usize;
        let bound = |i: usize| self.low + (self.high - self.low) * i as f64 / masked.max(1) as f64;
        let mut masks: Vec<Vec<bool>> = (0..masked)
            .map(|i| {
                let share = uniform(random, bound(i), bound(i + 1));
                blocks((rows, columns), ((rows * columns) as f64 * share) as usize, random)
            })
            .collect();
        masks.resize(crops, vec![false; rows * columns]);
        masks.shuffle(random);
        masks
    }
}

/// A mask of about `wanted` patches out of blocks.
fn blocks((rows, columns): (usize, usize), wanted: usize, random: &mut impl Rng) -> Vec<bool> {
    let (mut mask, mut count) = (vec![false; rows * columns], 0);
    // At most half of the patches in one block.
    let largest = (rows * columns) / 2;
    while count < wanted {
        let added = (0..TRIES).find_map(|_| block(&mut mask, (rows, columns), (wanted - count).min(largest), random));
        match added {
            Some(added) => count += added,
            None => break,
        }
    }
    mask
}

/// Adds a block of at most `most` new patches; says how many where one was found.
fn block(mask: &mut [bool], (rows, columns): (usize, usize), most: usize, random: &mut impl Rng) -> Option<usize> {
    let area = uniform(random, SMALLEST, most as f64);
    let aspect = uniform(random, FLATTEST.ln(), -FLATTEST.ln()).exp();
    let (height, width) = ((area * aspect).sqrt().round() as usize, (area / aspect).sqrt().round() as usize);
    if width >= columns || height >= rows {
        return None;
    }
    let (top, left) = (random.random_range(0..=rows - height), random.random_range(0..=columns - width));
    let places = || (top..top + height).flat_map(|row| (left..left + width).map(move |column| row * columns + column));
    let new = places().filter(|&place| !mask[place]).count();
    if new == 0 || new > most {
        return None;
    }
    places().collect::<Vec<_>>().into_iter().for_each(|place| mask[place] = true);
    Some(new)
}

/// Between two bounds in any order.
fn uniform(random: &mut impl Rng, from: f64, to: f64) -> f64 {
    from + (to - from) * random.random::<f64>()
}

/// The masks of a batch's global crops.
#[derive(Clone, Debug)]
pub struct Masks {
    /// 1 where a patch is masked, 0 elsewhere, `[crops, patches]`.
    pub tensor: Tensor,
    /// Crop and patch of each masked one, crop by crop.
    pub places: Vec<(usize, usize)>,
    /// What each masked patch counts in the loss: all of a crop's add up to 1 / crops.
    pub weights: Vec<f32>,
}

impl Masks {
    /// Of crops with as many patches each.
    ///
    /// # Errors
    /// When the crops do not have as many patches each, or the device fails.
    pub fn new(crops: &[Vec<bool>], device: &Device) -> Result<Self> {
        let patches = crops.first().map_or(0, Vec::len);
        let values: Vec<f32> = crops.iter().flatten().map(|masked| f32::from(u8::from(*masked))).collect();
        let (mut places, mut weights) = (Vec::new(), Vec::new());
        for (crop, mask) in crops.iter().enumerate() {
            let before = places.len();
            places.extend((0..patches).filter(|&patch| mask[patch]).map(|patch| (crop, patch)));
            let count = places.len() - before;
            weights.resize(places.len(), 1.0 / (count.max(1) * crops.len()) as f32);
        }
        Ok(Self { tensor: Tensor::from_vec(values, (crops.len(), patches), device)?, places, weights })
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn shares_are_spread_between_the_bounds_over_half_of_the_crops() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let masking = Masking { probability: 0.5, low: 0.1, high: 0.5 };
        let masks = masking.draw(64, (14, 14), &mut random);
        let mut shares: Vec<f64> = masks.iter().map(|mask| mask.iter().filter(|masked| **masked).count() as f64 / 196.0).collect();
        shares.sort_by(f64::total_cmp);
        assert!(shares[..32].iter().all(|share| *share == 0.0));
        let masked = &shares[32..];
        assert!(masked[0] > 0.03 && masked[31] < 0.51 && masked[31] > 0.4, "{masked:?}");
        let mean = masked.iter().sum::<f64>() / 32.0;
        assert!((mean - 0.3).abs() < 0.05, "{mean}");
        assert!(!masks[..32].iter().all(|mask| mask.iter().any(|masked| *masked)), "in any order");
    }

    #[test]
    fn small_grids_and_bounds_without_room_are_masked_as_far_as_they_go() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        for (grid, high) in [((1, 1), 1.0), ((2, 2), 0.5), ((6, 6), 1.0), ((3, 5), 0.0)] {
            let masking = Masking { probability: 1.0, low: 0.0, high };
            let masks = masking.draw(8, grid, &mut random);
            assert_eq!((masks.len(), masks[0].len()), (8, grid.0 * grid.1));
        }
        let none = Masking { probability: 0.0, low: 0.1, high: 0.5 }.draw(4, (4, 4), &mut random);
        assert!(none.iter().flatten().all(|masked| !masked));
    }

    #[test]
    fn each_masked_crop_counts_alike() {
        let crops = [vec![true, false, true], vec![false; 3], vec![false, true, false]];
        let masks = Masks::new(&crops, &Device::Cpu).unwrap();
        assert_eq!(masks.places, [(0, 0), (0, 2), (2, 1)]);
        assert_eq!(masks.weights, [1.0 / 6.0, 1.0 / 6.0, 1.0 / 3.0]);
        assert_eq!(masks.tensor.to_vec2::<f32>().unwrap()[0], [1.0, 0.0, 1.0]);
    }
}
