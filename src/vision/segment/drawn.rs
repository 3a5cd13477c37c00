//! A mask that was drawn over a picture, and how much of each patch it covers.

use super::{Mask, Rle};
use crate::media::{self, DecodeError, Limits};
use crate::transform::PatchGrid;

/// Pixels that are brighter than this in any channel belong to a mask that comes as a picture.
const HALF: u8 = 127;
/// Most runs of a mask, which take a megabyte: an object's outline crosses a column of pixels some times, not thousands of times.
const MOST_RUNS: usize = 1 << 18;
/// Most characters of a run in COCO's compressed form.
const RUN_LENGTH: usize = 7;

/// A set of pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrawnMask {
    width: u32,
    height: u32,
    /// Lengths of runs down the columns, the first outside of the mask.
    runs: Vec<u32>,
}

/// Why a mask cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DrawnMaskError {
    /// It is no picture.
    #[error(transparent)]
    Picture(#[from] DecodeError),
    /// It is larger than pictures may be.
    #[error("a mask of {width} x {height} pixels is too large, at most {most} pixels are read", width = size.1, height = size.0)]
    TooLarge {
        /// `[height, width]`.
        size: (u32, u32),
        /// Pixels.
        most: u64,
    },
    /// Its runs are not those of COCO.
    #[error("its runs are no COCO run lengths of its size: {0}")]
    Runs(&'static str),
    /// It is no outline, but noise.
    #[error("it has more than {MOST_RUNS} runs: smooth it, or fill its holes")]
    TooManyRuns,
    /// It belongs to another picture.
    #[error("it has {} x {} pixels, and its picture, upright, {} x {}: draw it over the picture as it is seen", own.0, own.1, picture.0, picture.1)]
    Size {
        /// (width, height).
        own: (u32, u32),
        /// (width, height).
        picture: (u32, u32),
    },
    /// No pixel is set.
    #[error("no pixel of it is set: pixels of the mask are white (above 127), not 1")]
    Empty,
}

impl DrawnMask {
    /// The mask that COCO's compressed runs describe.
    ///
    /// # Errors
    /// [`DrawnMaskError::TooLarge`], [`DrawnMaskError::TooManyRuns`] and [`DrawnMaskError::Runs`].
    pub fn from_rle(rle: &Rle, limits: &Limits) -> Result<Self, DrawnMaskError> {
        let [height, width] = rle.size;
        let pixels = u64::from(width) * u64::from(height);
        // Runs are counted in 32 bits.
        let most = limits.max_pixels.min(u64::from(u32::MAX));
        if pixels > most || width.max(height) > limits.max_side {
            return Err(DrawnMaskError::TooLarge { size: (height, width), most });
        }
        if rle.counts.len() > RUN_LENGTH * MOST_RUNS {
            return Err(DrawnMaskError::TooManyRuns);
        }
        let runs = rle.runs().map_err(DrawnMaskError::Runs)?;
        if runs.len() > MOST_RUNS {
            return Err(DrawnMaskError::TooManyRuns);
        }
        if runs.iter().map(|&run| u64::from(run)).sum::<u64>() != pixels || pixels == 0 {
            return Err(DrawnMaskError::Runs("they do not add up to height times width"));
        }
        Ok(Self { width, height, runs })
    }

    /// The mask that a picture shows, white on black or on nothing: a pixel belongs to it where any of its channels is above 127.
    ///
    /// # Errors
    /// [`DrawnMaskError::Picture`] and [`DrawnMaskError::TooManyRuns`].
    pub fn from_picture(bytes: &[u8], limits: &Limits) -> Result<Self, DrawnMaskError> {
        let picture = media::decode_mask(bytes, limits)?;
        let (width, height) = picture.dimensions();
        let (mut runs, mut is_set, mut length) = (Vec::new(), false, 0);
        for x in 0..width {
            if runs.len() > MOST_RUNS {
                return Err(DrawnMaskError::TooManyRuns);
            }
            for y in 0..height {
                let here = picture.get_pixel(x, y).0.iter().any(|&value| value > HALF);
                if here != is_set {
                    runs.push(length);
                    (is_set, length) = (here, 0);
                }
                length += 1;
            }
        }
        runs.push(length);
        Ok(Self { width, height, runs })
    }

    /// Refuses a mask without a pixel, and one of another size than its picture `(width, height)`.
    ///
    /// # Errors
    /// [`DrawnMaskError::Size`] and [`DrawnMaskError::Empty`].
    pub fn check(&self, picture: (u32, u32)) -> Result<(), DrawnMaskError> {
        if (self.width, self.height) != picture {
            return Err(DrawnMaskError::Size { own: (self.width, self.height), picture });
        }
        if self.area() == 0 { Err(DrawnMaskError::Empty) } else { Ok(()) }
    }

    /// Pixels of the mask.
    pub fn area(&self) -> u64 {
        self.runs.iter().skip(1).step_by(2).map(|&run| u64::from(run)).sum()
    }

    /// The share of each patch that the mask covers, 0 to 1, row by row; the grid covers the whole picture.
    pub fn coverage(&self, grid: PatchGrid) -> Vec<f32> {
        let PatchGrid { rows, columns } = grid;
        let (width, height) = (f64::from(self.width), f64::from(self.height));
        let mut covered = vec![0.0_f64; grid.len()];
        // Of one column of pixels, what each row of patches holds in pixels.
        let mut of_column = vec![0.0_f64; rows];
        let mut flush = |x: u32, of_column: &mut [f64]| {
            for (column, share) in overlaps(f64::from(x), f64::from(x) + 1.0, columns, width) {
                of_column.iter().enumerate().for_each(|(row, pixels)| covered[row * columns + column] += pixels * share);
            }
            of_column.fill(0.0);
        };
        let (mut x, mut y) = (0, 0);
        for (number, &run) in self.runs.iter().enumerate() {
            let mut left = run;
            while left > 0 {
                let piece = left.min(self.height - y);
                if number % 2 == 1 {
                    for (row, pixels) in overlaps(f64::from(y), f64::from(y + piece), rows, height) {
                        of_column[row] += pixels;
                    }
                }
                (left, y) = (left - piece, y + piece);
                if y == self.height {
                    flush(x, &mut of_column);
                    (x, y) = (x + 1, 0);
                }
            }
        }
        let of_patch = width / columns as f64 * (height / rows as f64);
        covered.into_iter().map(|pixels| (pixels / of_patch).clamp(0.0, 1.0) as f32).collect()
    }
}

/// The cells, of `count` along `side` pixels, that the pixels from `start` to `end` lie in, with the pixels in each.
fn overlaps(start: f64, end: f64, count: usize, side: f64) -> impl Iterator<Item = (usize, f64)> {
    let length = side / count as f64;
    let first = ((start / length) as usize).min(count.saturating_sub(1));
    (first..count).map_while(move |cell| {
        let (left, right) = (cell as f64 * length, (cell + 1) as f64 * length);
        (left < end).then(|| (cell, (right.min(end) - left.max(start)).max(0.0)))
    })
}

impl From<&Mask> for DrawnMask {
    fn from(mask: &Mask) -> Self {
        let Rle { size: [height, width], .. } = mask.rle();
        Self { width, height, runs: mask.runs() }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{GrayImage, ImageFormat, Luma, Rgba, RgbaImage};

    use super::{DrawnMask, DrawnMaskError};
    use crate::media::Limits;
    use crate::segment::{Mask, Rle};
    use crate::transform::PatchGrid;

    fn picture(width: u32, height: u32, is_set: impl Fn(u32, u32) -> bool) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        let picture = GrayImage::from_fn(width, height, |x, y| Luma([if is_set(x, y) { 200 } else { 100 }]));
        picture.write_to(&mut file, ImageFormat::Png).unwrap();
        file.into_inner()
    }

    #[test]
    fn coverage_is_the_share_of_a_patch_that_is_set() {
        let is_set = |x: u32, y: u32| (x * 7 + y * 13) % 5 < 2;
        for (width, height, rows, columns) in [(12, 8, 4, 3), (12, 8, 3, 5), (5, 3, 8, 11), (1, 1, 1, 1), (7, 9, 9, 7)] {
            let mask = DrawnMask::from_picture(&picture(width, height, is_set), &Limits::default()).unwrap();
            let found = mask.coverage(PatchGrid { rows, columns });
            // Every pixel and every patch in so many parts that both are whole.
            let (across, down) = (width as usize * columns, height as usize * rows);
            let mut expected = vec![0.0; rows * columns];
            for (x, y) in (0..across).flat_map(|x| (0..down).map(move |y| (x, y))) {
                let pixel = is_set((x / columns) as u32, (y / rows) as u32);
                expected[y / height as usize * columns + x / width as usize] += if pixel { 1.0 / (width * height) as f32 } else { 0.0 };
            }
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-4, "{width} {height} {rows} {columns}: {found} {expected}");
            }
        }
    }

    #[test]
    fn what_is_transparent_does_not_belong_to_the_mask() {
        let drawn = |x: u32, y: u32| x == 3 && y > 1;
        let picture = RgbaImage::from_fn(7, 5, |x, y| if drawn(x, y) { Rgba([255; 4]) } else { Rgba([255, 255, 255, 0]) });
        let mut file = Cursor::new(Vec::new());
        picture.write_to(&mut file, ImageFormat::Png).unwrap();
        let mask = DrawnMask::from_picture(file.get_ref(), &Limits::default()).unwrap();
        assert_eq!((mask.area(), mask.coverage(PatchGrid { rows: 5, columns: 7 })[4 * 7 + 3]), (3, 1.0));
    }

    #[test]
    fn noise_is_refused_before_it_takes_memory() {
        let noise = picture(1000, 1000, |x, y| (x + y).is_multiple_of(2));
        assert_eq!(DrawnMask::from_picture(&noise, &Limits::default()), Err(DrawnMaskError::TooManyRuns));
        for counts in ["1".repeat(1_000_000), "1".repeat(20_000_000)] {
            let rle = Rle { size: [1000, 1000], counts };
            assert_eq!(DrawnMask::from_rle(&rle, &Limits::default()), Err(DrawnMaskError::TooManyRuns));
        }
    }

    #[test]
    fn runs_and_pictures_are_the_same_mask() {
        let cells: Vec<bool> = (0..12).map(|cell| cell * 5 % 7 < 3).collect();
        let mask = Mask::new(cells, PatchGrid { rows: 3, columns: 4 }, (50, 33));
        let of_runs = DrawnMask::from_rle(&mask.rle(), &Limits::default()).unwrap();
        assert_eq!(of_runs, DrawnMask::from_picture(&mask.png().unwrap(), &Limits::default()).unwrap());
        assert_eq!((of_runs.area(), &of_runs), (mask.area(), &DrawnMask::from(&mask)));
        assert!(of_runs.check((50, 33)).is_ok());
        assert_eq!(of_runs.check((33, 50)), Err(DrawnMaskError::Size { own: (50, 33), picture: (33, 50) }));
        let empty = Mask::new(vec![false; 12], PatchGrid { rows: 3, columns: 4 }, (50, 33)).rle();
        assert_eq!(DrawnMask::from_rle(&empty, &Limits::default()).unwrap().check((50, 33)), Err(DrawnMaskError::Empty));
    }

    #[test]
    fn what_is_no_mask_is_refused() {
        let read = |size: [u32; 2], counts: &str| DrawnMask::from_rle(&Rle { size, counts: counts.into() }, &Limits::with_max_pixels(100));
        assert!(read([2, 2], "13").is_ok());
        for (size, counts) in [
            ([0, 0], ""),
            ([2, 2], ""),
            ([2, 2], "5"),
            ([2, 2], "1"),
            ([2, 2], "N5"),
            ([2, 2], "o"),
            ([2, 2], "1 3"),
            ([2, 2], "é"),
            ([2, 2], "oooooooooooooooooooo0"),
        ] {
            assert!(matches!(read(size, counts), Err(DrawnMaskError::Runs(_))), "{counts}");
        }
        assert!(matches!(read([11, 10], "0"), Err(DrawnMaskError::TooLarge { .. })));
        assert!(matches!(read([u32::MAX, u32::MAX], "0"), Err(DrawnMaskError::TooLarge { .. })));
        assert!(matches!(DrawnMask::from_picture(b"x", &Limits::default()), Err(DrawnMaskError::Picture(_))));
    }
}
