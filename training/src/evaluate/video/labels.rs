//! Masks of objects in a video: files of numbers, shares of patches, and the pixels that follow from them.
//!
//! ```
//! use dino_train::evaluate::video::labels::{Numbers, Objects, mask};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("00000.png");
//! Numbers { size: (4, 1), values: vec![0, 1, 2, 2] }.write(&path)?;
//! let numbers = Numbers::read(&path)?;
//! assert_eq!(Objects::of(&numbers).numbers(), [1, 2]);
//! assert_eq!(mask(&numbers, 2), [false, false, true, true]);
//! # Ok::<(), anyhow::Error>(())
//! ```

use std::path::Path;

use anyhow::{Context as _, ensure};
use dino_vision::transform::PatchGrid;
use ndarray::{Array2, ArrayView2};

use crate::evaluate::drawn::{self, Stored};
use crate::evaluate::input::bilinear;

/// What DAVIS leaves out; in masks without another number, the object.
const VOID: u8 = 255;

/// A number for each pixel, row by row; 0 is background.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// (width, height).
    pub size: (u32, u32),
    /// As they are stored: indices of a palette, or greys.
    pub values: Vec<u8>,
}

impl Numbers {
    /// Reads a PNG file with a palette or of greys.
    ///
    /// # Errors
    /// Where the file is none, is damaged or too large.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        drawn::stored(path).map(Self::from)
    }

    /// White and black alone, cut at half: what masks are whose greys are soft edges ([`drawn::Folder`]).
    #[must_use]
    pub fn cut(self) -> Self {
        let cut = |value: u8| if value < drawn::HALF { 0 } else { VOID };
        Self { values: self.values.into_iter().map(cut).collect(), ..self }
    }

    /// Writes a PNG file with the palette of PASCAL VOC, as DAVIS has them.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let write = || -> anyhow::Result<()> {
            let mut encoder = png::Encoder::new(fs_err::File::create(path)?, self.size.0, self.size.1);
            encoder.set_color(png::ColorType::Indexed);
            encoder.set_depth(png::BitDepth::Eight);
            encoder.set_palette((0..=255).flat_map(colour).collect::<Vec<u8>>());
            let mut writer = encoder.write_header()?;
            writer.write_image_data(&self.values)?;
            // Else a full disk shows at no place.
            writer.finish()?;
            Ok(())
        };
        write().with_context(|| path.display().to_string())
    }
}

impl From<Stored> for Numbers {
    fn from(stored: Stored) -> Self {
        Self { size: stored.size, values: stored.values }
    }
}

/// VOC's colour of a number: its bits, from the lowest, are dealt to red, green and blue, which fill from their highest bit.
fn colour(number: u8) -> [u8; 3] {
    let bit = |at: u8| number >> at & 1;
    std::array::from_fn(|channel| {
        let channel = channel as u8;
        let third = if channel < 2 { bit(channel + 6) << 5 } else { 0 };
        bit(channel) << 7 | bit(channel + 3) << 6 | third
    })
}

/// The objects of a sequence: the numbers in the mask of its first frame. What appears later has no label to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objects(Vec<u8>);

impl Objects {
    /// Those of a first mask. 255 is left out, unless it is the only number: then the mask is white on black.
    pub fn of(first: &Numbers) -> Self {
        let mut used = [false; 256];
        first.values.iter().for_each(|value| used[usize::from(*value)] = true);
        let numbers: Vec<u8> = (1..=VOID).filter(|number| used[usize::from(*number)]).collect();
        Self(if numbers == [VOID] { numbers } else { numbers.into_iter().filter(|number| *number != VOID).collect() })
    }

    /// Their numbers, in order.
    pub fn numbers(&self) -> &[u8] {
        &self.0
    }

    /// Shares `[patches, 1 + objects]` of a first mask, background first: 1 where the pixel in the middle of a patch has the label, when
    /// the mask is seen in `grid` by nearest neighbour.
    pub fn shares(&self, first: &Numbers, grid: PatchGrid) -> Array2<f32> {
        let (columns, rows) = (nearest(first.size.0 as usize, grid.columns), nearest(first.size.1 as usize, grid.rows));
        let mut shares = Array2::zeros((grid.len(), 1 + self.0.len()));
        let cells = rows.iter().flat_map(|row| columns.iter().map(move |column| row * first.size.0 as usize + column));
        for (patch, pixel) in cells.enumerate() {
            let label = self.0.iter().position(|number| *number == first.values[pixel]).map_or(0, |at| at + 1);
            shares[[patch, label]] = 1.0;
        }
        shares
    }

    /// The numbers of the pixels of a frame of `size` (width, height) that follow from shares `[patches, 1 + objects]`: each label's
    /// shares are enlarged bilinearly by `patch` and stretched to 0..1, the largest wins, and nearest neighbour brings the frame to its size.
    pub fn pixels(&self, shares: ArrayView2<'_, f32>, grid: PatchGrid, patch: usize, size: (u32, u32)) -> Numbers {
        let (width, height) = (grid.columns * patch, grid.rows * patch);
        let mut best = vec![(f32::NEG_INFINITY, 0_u8); width * height];
        let numbers = std::iter::once(&0).chain(&self.0);
        for (number, share) in numbers.zip(shares.columns()) {
            let cells = share.to_shape((grid.rows, grid.columns)).expect("a share for each patch");
            let mut enlarged = bilinear(cells.view(), (height, width), 1.0 / patch as f64).into_raw_vec_and_offset().0;
            stretch(&mut enlarged);
            for (best, value) in best.iter_mut().zip(enlarged) {
                if value > best.0 {
                    *best = (value, *number);
                }
            }
        }
        let (columns, rows) = (nearest(width, size.0 as usize), nearest(height, size.1 as usize));
        let pixels = rows.iter().flat_map(|row| columns.iter().map(move |column| row * width + column));
        let values = pixels.map(|pixel| best[pixel].1).collect();
        Numbers { size, values }
    }
}

/// Brings values to 0..1, unless none is above 0. Where all are the same nothing else has a share, and they win.
fn stretch(values: &mut [f32]) {
    let (low, high) = values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &value| (low.min(value), high.max(value)));
    if high > 0.0 {
        let range = high - low;
        for value in values.iter_mut() {
            *value = if range > 0.0 { (*value - low) / range } else { f32::INFINITY };
        }
    }
}

/// The source of each of `target` places by nearest neighbour. The places are added up as Pillow does, whose roundings decide where one
/// lies on the border of two pixels.
pub fn nearest(source: usize, target: usize) -> Vec<usize> {
    let step = source as f64 / target as f64;
    let places = std::iter::successors(Some(0.5 * step), |place| Some(place + step));
    places.take(target).map(|place| (place as usize).min(source - 1)).collect()
}

/// The mask of an object with this number.
pub fn mask(numbers: &Numbers, number: u8) -> Vec<bool> {
    numbers.values.iter().map(|value| *value == number).collect()
}

/// Checks that a mask has the size of its frame.
///
/// # Errors
/// Where it has another.
pub fn check_size(mask: &Numbers, path: &Path, frame: (u32, u32)) -> anyhow::Result<()> {
    ensure!(mask.size == frame, "{}: the mask is of {:?}, its frame of {frame:?} pixels", path.display(), mask.size);
    Ok(())
}
