//! A mask on the patch grid, seen at the picture's own size.

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use super::Rle;
use super::polygons::polygons;
use super::rings::{self, OutlinePart};
use crate::transform::PatchGrid;

/// A set of patches, and the size of the picture they lie over.
///
/// A pixel belongs to the patch under its centre (nearest neighbour): the grid covers the whole picture, so its
/// borders are covered as well. Pixels are never stored; everything is computed from the columns and rows that a patch
/// covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    cells: Vec<bool>,
    grid: PatchGrid,
    width: u32,
    height: u32,
}

/// A mask that cannot be written as PNG, because memory ran out.
#[derive(Debug, thiserror::Error)]
#[error("the mask could not be written as PNG: {0}")]
pub struct PngError(#[from] image::ImageError);

impl Mask {
    /// A mask from one flag per patch, row by row; `size` is (width, height) of the picture.
    ///
    /// # Panics
    /// If the flags are not as many as the grid has patches.
    pub fn new(cells: Vec<bool>, grid: PatchGrid, (width, height): (u32, u32)) -> Self {
        assert_eq!(cells.len(), grid.len(), "one flag per patch");
        let mut mask = Self { cells, grid, width, height };
        // In a picture smaller than its grid, patches without a pixel would make masks differ that look the same.
        if grid.columns > width as usize || grid.rows > height as usize {
            let (columns, rows) = (mask.column_edges(), mask.row_edges());
            for (cell, set) in mask.cells.iter_mut().enumerate() {
                let (row, column) = (cell / grid.columns, cell % grid.columns);
                *set &= columns[column] < columns[column + 1] && rows[row] < rows[row + 1];
            }
        }
        mask
    }

    /// Width of the picture.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height of the picture.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Rows and columns of its patches, or of its guide's pixels where it was [refined](Self::refined).
    pub fn grid(&self) -> PatchGrid {
        self.grid
    }

    /// One flag per patch, row by row.
    pub fn cells(&self) -> &[bool] {
        &self.cells
    }

    /// Whether the pixel belongs to the mask.
    pub fn contains(&self, x: u32, y: u32) -> bool {
        self.cells[patch_at((x, y), self.grid, (self.width, self.height))]
    }

    /// Number of pixels.
    pub fn area(&self) -> u64 {
        let (widths, heights) = (self.column_edges(), self.row_edges());
        let length = |edges: &[u32], at: usize| u64::from(edges[at + 1] - edges[at]);
        self.set_cells().map(|(row, column)| length(&heights, row) * length(&widths, column)).sum()
    }

    /// The smallest box around it, `[x, y, width, height]` in pixels; zeros for an empty mask.
    pub fn bbox(&self) -> [u32; 4] {
        let (columns, rows) = (self.column_edges(), self.row_edges());
        // Patches that cover no pixel do not stretch the box.
        let seen = || {
            self.set_cells()
                .map(|(row, column)| (rows[row]..rows[row + 1], columns[column]..columns[column + 1]))
                .filter(|(rows, columns)| !rows.is_empty() && !columns.is_empty())
        };
        let left = seen().map(|(_, columns)| columns.start).min().unwrap_or(0);
        let top = seen().map(|(rows, _)| rows.start).min().unwrap_or(0);
        let right = seen().map(|(_, columns)| columns.end).max().unwrap_or(0);
        let bottom = seen().map(|(rows, _)| rows.end).max().unwrap_or(0);
        [left, top, right - left, bottom - top]
    }

    /// COCO's run lengths.
    pub fn rle(&self) -> Rle {
        Rle::new(self.width, self.height, &self.runs())
    }

    /// Lengths of runs down the columns, the first outside of the mask.
    pub(super) fn runs(&self) -> Vec<u32> {
        let (columns, rows) = (self.column_edges(), self.row_edges());
        let mut runs = Runs::default();
        for column in 0..self.grid.columns {
            for _pixel_column in columns[column]..columns[column + 1] {
                for row in 0..self.grid.rows {
                    let length = rows[row + 1] - rows[row];
                    runs.add(self.cells[row * self.grid.columns + column], length);
                }
            }
        }
        runs.finish()
    }

    /// The outlines in pixels, one per connected part, as COCO writes polygons: `[x1, y1, x2, y2, …]`, clockwise, corners only.
    /// Holes are part of the outline around them, to which cuts of no width join them.
    pub fn polygons(&self) -> Vec<Vec<u32>> {
        polygons(&self.cells, &self.column_edges(), &self.row_edges())
    }

    /// The same with holes apart, in rings that visit no point twice: polygons that geometry libraries take as valid.
    pub fn parts(&self) -> Vec<OutlinePart> {
        rings::parts(&self.cells, &self.column_edges(), &self.row_edges())
    }

    /// An 8-bit grey PNG of the picture's size, white on black.
    ///
    /// # Errors
    /// [`PngError`], which takes a full memory.
    pub fn png(&self) -> Result<Vec<u8>, PngError> {
        let columns: Vec<usize> = (0..self.width).map(|x| nearest(x, self.width, self.grid.columns)).collect();
        let mut pixels = Vec::with_capacity(self.width as usize * self.height as usize);
        for y in 0..self.height {
            let row = nearest(y, self.height, self.grid.rows) * self.grid.columns;
            pixels.extend(columns.iter().map(|column| if self.cells[row + column] { 255_u8 } else { 0 }));
        }
        let mut file = Vec::new();
        PngEncoder::new(&mut file).write_image(&pixels, self.width, self.height, ExtendedColorType::L8)?;
        Ok(file)
    }

    fn set_cells(&self) -> impl Iterator<Item = (usize, usize)> {
        let columns = self.grid.columns;
        self.cells.iter().enumerate().filter(|(_, set)| **set).map(move |(cell, _)| (cell / columns, cell % columns))
    }

    /// First pixel of each column of cells, and the width.
    pub(super) fn column_edges(&self) -> Vec<u32> {
        edges(self.width, self.grid.columns)
    }

    /// First pixel of each row of cells, and the height.
    pub(super) fn row_edges(&self) -> Vec<u32> {
        edges(self.height, self.grid.rows)
    }
}

/// The patch under the pixel (x, y) of a picture of `size` (width, height).
pub fn patch_at((x, y): (u32, u32), grid: PatchGrid, (width, height): (u32, u32)) -> usize {
    nearest(y, height, grid.rows) * grid.columns + nearest(x, width, grid.columns)
}

/// An RGB PNG of up to three maps over a patch grid, at the picture's size (width, height): each from its least value (0) to its
/// largest (255), one channel each; channels without a map are black.
///
/// # Errors
/// [`PngError`], which takes a full memory.
pub fn map_png(maps: &[Vec<f32>], grid: PatchGrid, (width, height): (u32, u32)) -> Result<Vec<u8>, PngError> {
    let mut colours = vec![[0_u8; 3]; grid.len()];
    for (channel, map) in maps.iter().take(3).enumerate() {
        let (low, high) = map.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), value| (low.min(*value), high.max(*value)));
        for (colour, value) in colours.iter_mut().zip(map) {
            colour[channel] = ((value - low) / (high - low).max(f32::MIN_POSITIVE) * 255.0).round() as u8;
        }
    }
    colours_png(&colours, grid, (width, height))
}

/// An RGB PNG of the colours of patches, at the picture's size (width, height).
///
/// # Errors
/// [`PngError`], which takes a full memory.
pub fn colours_png(colours: &[[u8; 3]], grid: PatchGrid, (width, height): (u32, u32)) -> Result<Vec<u8>, PngError> {
    let columns: Vec<usize> = (0..width).map(|x| nearest(x, width, grid.columns)).collect();
    let mut pixels = Vec::with_capacity(3 * width as usize * height as usize);
    for y in 0..height {
        let row = nearest(y, height, grid.rows) * grid.columns;
        pixels.extend(columns.iter().flat_map(|column| colours[row + column]));
    }
    let mut file = Vec::new();
    PngEncoder::new(&mut file).write_image(&pixels, width, height, ExtendedColorType::Rgb8)?;
    Ok(file)
}

/// The cell under the centre of a pixel: floor((pixel + 1/2) * cells / side).
fn nearest(pixel: u32, side: u32, cells: usize) -> usize {
    ((2 * u64::from(pixel) + 1) * cells as u64 / (2 * u64::from(side))) as usize
}

/// First pixel of each cell, and the side as the last: cell `i` covers `edges[i]..edges[i + 1]`.
fn edges(side: u32, cells: usize) -> Vec<u32> {
    // The first pixel with (pixel + 1/2) * cells >= cell * side.
    let first = |cell: usize| {
        let doubled = 2 * cell as u64 * u64::from(side);
        (doubled.saturating_sub(cells as u64)).div_ceil(2 * cells as u64) as u32
    };
    (0..=cells).map(first).collect()
}

/// Runs of equal pixels, the first of zeros.
#[derive(Default)]
struct Runs {
    lengths: Vec<u32>,
    current: bool,
    length: u32,
}

impl Runs {
    fn add(&mut self, value: bool, length: u32) {
        if length > 0 && value != self.current {
            self.lengths.push(self.length);
            (self.current, self.length) = (value, 0);
        }
        self.length += length;
    }

    fn finish(mut self) -> Vec<u32> {
        self.lengths.push(self.length);
        self.lengths
    }
}

#[cfg(test)]
mod tests {
    use super::{Mask, edges, nearest};
    use crate::transform::PatchGrid;

    fn mask(cells: &str, columns: usize, size: (u32, u32)) -> Mask {
        let cells: Vec<bool> = cells.bytes().map(|cell| cell == b'#').collect();
        let grid = PatchGrid { rows: cells.len() / columns, columns };
        Mask::new(cells, grid, size)
    }

    #[test]
    fn edges_agree_with_the_nearest_cell_of_every_pixel() {
        for side in 1..60 {
            for cells in 1..70 {
                let edges = edges(side, cells);
                assert_eq!((edges[0], edges[cells]), (0, side));
                for pixel in 0..side {
                    let cell = nearest(pixel, side, cells);
                    assert!((edges[cell]..edges[cell + 1]).contains(&pixel), "{pixel} of {side} in {cells} cells");
                }
            }
        }
    }

    #[test]
    fn area_box_png_and_pixels_agree() {
        for size in [(488, 427), (7, 7), (3, 2), (500, 17), (4, 3), (1, 1)] {
            let mask = mask("#..#.##.#..#", 4, size);
            let pixels = || (0..size.1).flat_map(|y| (0..size.0).map(move |x| (x, y)));
            let inside: Vec<_> = pixels().filter(|(x, y)| mask.contains(*x, *y)).collect();
            assert_eq!(mask.area(), inside.len() as u64);
            let bounds = |of: fn(&(u32, u32)) -> u32| {
                let (low, high) = (inside.iter().map(of).min(), inside.iter().map(of).max());
                low.map_or((0, 0), |low| (low, high.unwrap() + 1 - low))
            };
            let ((x, width), (y, height)) = (bounds(|at| at.0), bounds(|at| at.1));
            assert_eq!(mask.bbox(), [x, y, width, height]);
            let png = image::load_from_memory(&mask.png().unwrap()).unwrap().into_luma8();
            assert_eq!(png.dimensions(), size);
            assert!(pixels().all(|(x, y)| (png.get_pixel(x, y).0[0] == 255) == mask.contains(x, y)));
        }
    }

    #[test]
    fn the_last_patch_reaches_the_border() {
        let mask = mask("...#", 4, (487, 101));
        assert_eq!(mask.bbox(), [365, 0, 122, 101]);
        assert!(mask.contains(486, 100));
    }
}
