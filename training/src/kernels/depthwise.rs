//! Depthwise convolution, whose channels have windows of 7 x 7 of their own, as in `ConvNeXt`.
//!
//! Pictures are `[height, width, channels]`. Their channels are taken in blocks of [`LANES`]: a block is copied into a plane with a border
//! of zeros, so that no window reaches out of it, and the values that are read together lie together.
//!
//! ```
//! use dino_train::kernels::depthwise::{AREA, LANES, Size, blocked, convolve};
//!
//! // Windows of ones over a picture of ones: at a corner a window of 7 x 7 sees 4 x 4 pixels.
//! let size = Size { height: 8, width: 8, channels: 1 };
//! let (mut plane, mut out) = (size.plane(), [0.0; 64]);
//! size.fill(&[1.0; 64], 0, &mut plane);
//! convolve(size, &plane, &blocked(&[1.0; AREA], false), &[0.5; LANES], 0, &mut out);
//! assert_eq!((out[0], out[3 * 8 + 3]), (16.5, 49.5));
//! ```

use std::ops::Range;

use multiversion::multiversion;

/// Side of the windows.
pub const SIDE: usize = 7;
/// Pixels of a window.
pub const AREA: usize = SIDE * SIDE;
/// Channels of a block.
pub const LANES: usize = 16;
/// How far windows reach beyond the pixel in their middle.
const REACH: usize = SIDE / 2;
/// Windows that are computed at once, so that each value of a window is read once for all of them.
const ABREAST: usize = 4;

/// The values of a block's channels at one place.
pub type Lanes = [f32; LANES];

/// Size of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Values of a pixel.
    pub channels: usize,
}

impl Size {
    /// Values of a picture.
    pub fn len(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// True for pictures without values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Blocks of channels; the last may have fewer channels than lanes.
    pub fn blocks(&self) -> usize {
        self.channels.div_ceil(LANES)
    }

    /// Columns of a plane.
    fn columns(&self) -> usize {
        self.width + 2 * REACH
    }

    fn channels_of(&self, block: usize) -> Range<usize> {
        block * LANES..((block + 1) * LANES).min(self.channels)
    }

    /// A plane of zeros.
    pub fn plane(&self) -> Vec<Lanes> {
        vec![[0.0; LANES]; (self.height + 2 * REACH) * self.columns()]
    }

    /// Copies a block of a picture's channels into a plane whose border is zero. Lanes beyond the last channel stay as they are.
    pub fn fill(&self, picture: &[f32], block: usize, plane: &mut [Lanes]) {
        let channels = self.channels_of(block);
        let rows = plane.chunks_exact_mut(self.columns()).skip(REACH);
        for (row, out) in picture.chunks_exact(self.width * self.channels).zip(rows) {
            for (pixel, out) in row.chunks_exact(self.channels).zip(&mut out[REACH..]) {
                out[..channels.len()].copy_from_slice(&pixel[channels.clone()]);
            }
        }
    }
}

/// Where a channel's value of a window is among those of all blocks.
fn place(channel: usize, tap: usize) -> (usize, usize) {
    (channel / LANES * AREA + tap, channel % LANES)
}

/// Windows `[channels, AREA]` as `[blocks, AREA]` lanes; `turned` by half a circle for the gradient of the pictures.
pub fn blocked(weight: &[f32], turned: bool) -> Vec<Lanes> {
    let channels = weight.len() / AREA;
    let mut out = vec![[0.0; LANES]; channels.div_ceil(LANES) * AREA];
    for (channel, window) in weight.chunks_exact(AREA).enumerate() {
        for (tap, &value) in window.iter().enumerate() {
            let (at, lane) = place(channel, if turned { AREA - 1 - tap } else { tap });
            out[at][lane] = value;
        }
    }
    out
}

/// What [`blocked`] made of windows of so many channels, back.
pub fn unblocked(taps: &[Lanes], channels: usize) -> Vec<f32> {
    let value = |(channel, tap)| {
        let (at, lane) = place(channel, tap);
        taps[at][lane]
    };
    (0..channels).flat_map(|channel| (0..AREA).map(move |tap| (channel, tap))).map(value).collect()
}

/// One block of channels of `out`: `start`, plus the sum over the window around each pixel of `plane`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn convolve(size: Size, plane: &[Lanes], taps: &[Lanes], start: &Lanes, block: usize, out: &mut [f32]) {
    let (columns, channels) = (size.columns(), size.channels_of(block));
    for (y, out) in out.chunks_exact_mut(size.width * size.channels).enumerate() {
        let mut put = |x: usize, sums: &[Lanes]| {
            for (sums, pixel) in sums.iter().zip(out[x * size.channels..].chunks_exact_mut(size.channels)) {
                pixel[channels.clone()].copy_from_slice(&sums[..channels.len()]);
            }
        };
        let mut x = 0;
        while x + ABREAST <= size.width {
            put(x, &windows::<ABREAST>(&plane[y * columns + x..], columns, taps, start));
            x += ABREAST;
        }
        while x < size.width {
            put(x, &windows::<1>(&plane[y * columns + x..], columns, taps, start));
            x += 1;
        }
    }
}

/// The sums of `N` windows side by side, of which the first begins where `plane` does.
#[expect(clippy::inline_always, reason = "only what is inlined gets the vector width of its caller")]
#[inline(always)]
fn windows<const N: usize>(plane: &[Lanes], columns: usize, taps: &[Lanes], start: &Lanes) -> [Lanes; N] {
    let mut sums = [*start; N];
    for (row, taps) in taps.as_chunks::<SIDE>().0.iter().enumerate() {
        let pixels = &plane[row * columns..][..SIDE - 1 + N];
        for (column, tap) in taps.iter().enumerate() {
            for (sum, pixel) in sums.iter_mut().zip(&pixels[column..column + N]) {
                add_product(sum, tap, pixel);
            }
        }
    }
    sums
}

/// Adds the gradient of a block's windows, from a plane of the pictures and one of the gradient of what came out.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub fn window_gradient(size: Size, plane: &[Lanes], dout: &[Lanes], dtaps: &mut [Lanes]) {
    let columns = size.columns();
    for y in 0..size.height {
        let dout = &dout[(y + REACH) * columns + REACH..][..size.width];
        for (row, dtaps) in dtaps.as_chunks_mut::<SIDE>().0.iter_mut().enumerate() {
            let pixels = &plane[(y + row) * columns..][..columns];
            let mut sums = [[0.0; LANES]; SIDE];
            for (x, dout) in dout.iter().enumerate() {
                for (sum, pixel) in sums.iter_mut().zip(&pixels[x..x + SIDE]) {
                    add_product(sum, dout, pixel);
                }
            }
            for (dtap, sum) in dtaps.iter_mut().zip(&sums) {
                for (d, &s) in dtap.iter_mut().zip(sum) {
                    *d += s;
                }
            }
        }
    }
}

#[expect(clippy::inline_always, reason = "only what is inlined gets the vector width of its caller")]
#[inline(always)]
fn add_product(sum: &mut Lanes, a: &Lanes, b: &Lanes) {
    for ((sum, &a), &b) in sum.iter_mut().zip(a).zip(b) {
        *sum = a.mul_add(b, *sum);
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "values are copied, and sums of small whole numbers are exact")]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_every_value_once() {
        for channels in [1, 16, 19] {
            let weight: Vec<f32> = (0..channels * AREA).map(|i| i as f32).collect();
            assert_eq!(unblocked(&blocked(&weight, false), channels), weight);
            let turned: Vec<f32> = weight.chunks_exact(AREA).flat_map(|window| window.iter().rev().copied()).collect();
            assert_eq!(unblocked(&blocked(&weight, true), channels), turned);
        }
    }

    #[test]
    fn the_gradient_of_pictures_is_the_transpose_of_the_convolution() {
        let size = Size { height: 5, width: 6, channels: 19 };
        let values = |n: usize, seed: usize| (0..n).map(|i| ((i * 7 + seed) % 5) as f32 - 2.0).collect::<Vec<f32>>();
        let (weight, x, dout) = (values(size.channels * AREA, 1), values(size.len(), 2), values(size.len(), 3));
        let convolved = |picture: &[f32], turned| {
            let (mut plane, mut out) = (size.plane(), vec![0.0; size.len()]);
            for block in 0..size.blocks() {
                size.fill(picture, block, &mut plane);
                let taps = &blocked(&weight, turned)[block * AREA..][..AREA];
                convolve(size, &plane, taps, &[0.0; LANES], block, &mut out);
            }
            out
        };
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        assert_eq!(dot(&convolved(&x, false), &dout), dot(&x, &convolved(&dout, true)));
    }
}
