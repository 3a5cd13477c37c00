//! Windows of pictures as rows of a matrix, and back: what turns a convolution into a matrix product, and max pooling.
//!
//! Pictures are `[pictures, height, width, channels]`: the channels of a pixel lie side by side, so that a window is a few long runs.
//!
//! ```
//! use dino_train::kernels::windows::Windows;
//!
//! // Windows of 2 x 2 over a picture of 2 x 3 grey pixels.
//! let windows = Windows { height: 2, width: 3, channels: 1, side: 2, stride: 1, padding: 0 };
//! assert_eq!(windows.grid(), (1, 2));
//! let mut rows = [0.0; 8];
//! windows.gather(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0..2, &mut rows);
//! assert_eq!(rows, [1.0, 2.0, 4.0, 5.0, 2.0, 3.0, 5.0, 6.0]);
//! ```

use std::ops::Range;

use multiversion::multiversion;

/// Square windows over pictures of one size. Outside of a picture there are zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Rows of a picture.
    pub height: usize,
    /// Columns of a picture.
    pub width: usize,
    /// Values of a pixel.
    pub channels: usize,
    /// Side of a window.
    pub side: usize,
    /// Distance of neighbouring windows.
    pub stride: usize,
    /// How far the first window reaches out of the picture.
    pub padding: usize,
}

impl Windows {
    /// Rows and columns of windows in a picture. The padded picture must hold a window.
    pub fn grid(&self) -> (usize, usize) {
        let along = |length: usize| (length + 2 * self.padding - self.side) / self.stride + 1;
        (along(self.height), along(self.width))
    }

    /// Windows of a picture.
    pub fn per_picture(&self) -> usize {
        self.grid().0 * self.grid().1
    }

    /// Values of a window.
    pub fn len(&self) -> usize {
        self.side * self.side * self.channels
    }

    /// True for windows without values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values of a picture.
    pub fn picture_len(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// True where the windows are the pixels themselves, in order.
    pub fn are_pixels(&self) -> bool {
        (self.side, self.stride, self.padding) == (1, 1, 0)
    }

    /// The rows of window number `window`, counted over all pictures, that lie inside its picture: for each its place in the
    /// window, the place of its first pixel in the pictures, and its length.
    fn runs(&self, window: usize) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let this = *self;
        let columns = self.grid().1;
        let (picture, place) = (window / self.per_picture(), window % self.per_picture());
        let (top, left) = (place / columns * self.stride, place % columns * self.stride);
        // Columns of the window that lie inside.
        let from = self.padding.saturating_sub(left);
        let to = (self.width + self.padding).saturating_sub(left).min(self.side);
        (0..self.side).filter_map(move |row| {
            let y = (top + row).checked_sub(this.padding).filter(|y| *y < this.height)?;
            let x = left + from - this.padding;
            let start = ((picture * this.height + y) * this.width + x) * this.channels;
            (from < to).then(|| ((row * this.side + from) * this.channels, start, (to - from) * this.channels))
        })
    }

    /// Copies windows of `pictures` into the rows of `out`, `[windows, side * side * channels]`.
    pub fn gather(&self, pictures: &[f32], windows: Range<usize>, out: &mut [f32]) {
        for (window, out) in windows.zip(out.chunks_exact_mut(self.len())) {
            if self.padding > 0 {
                out.fill(0.0);
            }
            for (at, from, len) in self.runs(window) {
                out[at..at + len].copy_from_slice(&pictures[from..from + len]);
            }
        }
    }

    /// Adds the rows of `values` to the windows of `pictures` that they stand for.
    pub fn scatter(&self, values: &[f32], windows: Range<usize>, pictures: &mut [f32]) {
        for (window, values) in windows.zip(values.chunks_exact(self.len())) {
            for (at, to, len) in self.runs(window) {
                super::reduce::add(&mut pictures[to..to + len], &values[at..at + len]);
            }
        }
    }

    /// The largest value of each window and channel, `[windows, channels]`.
    pub fn largest(&self, pictures: &[f32], windows: Range<usize>, out: &mut [f32]) {
        for (window, out) in windows.zip(out.chunks_exact_mut(self.channels)) {
            out.fill(f32::NEG_INFINITY);
            for (_, from, len) in self.runs(window) {
                for pixel in pictures[from..from + len].chunks_exact(self.channels) {
                    keep_larger(out, pixel);
                }
            }
        }
    }

    /// Adds the gradient of [`Self::largest`] to that of the pictures: all of it goes to the first of equal values, as in PyTorch.
    pub fn largest_backward(&self, pictures: &[f32], windows: Range<usize>, largest: &[f32], gradient: &[f32], to_pictures: &mut [f32]) {
        let mut left = vec![0.0; self.channels];
        let rows = largest.chunks_exact(self.channels).zip(gradient.chunks_exact(self.channels));
        for (window, (largest, gradient)) in windows.zip(rows) {
            left.copy_from_slice(gradient);
            for (_, from, len) in self.runs(window) {
                let pixels = pictures[from..from + len].chunks_exact(self.channels);
                for (pixel, to) in pixels.zip(to_pictures[from..from + len].chunks_exact_mut(self.channels)) {
                    hand_over(pixel, largest, &mut left, to);
                }
            }
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
fn keep_larger(largest: &mut [f32], pixel: &[f32]) {
    for (l, &p) in largest.iter_mut().zip(pixel) {
        // Written so that NaN is kept.
        *l = if p > *l || p.is_nan() { p } else { *l };
    }
}

/// Moves what is left of a gradient to the pixel where it holds the largest value.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
fn hand_over(pixel: &[f32], largest: &[f32], left: &mut [f32], to: &mut [f32]) {
    for (((&pixel, &largest), left), to) in pixel.iter().zip(largest).zip(left).zip(to) {
        let here = if pixel >= largest { *left } else { 0.0 };
        *to += here;
        *left -= here;
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "values are copied, and sums of small whole numbers are exact")]
mod tests {
    use super::*;

    const WINDOWS: Windows = Windows { height: 3, width: 2, channels: 2, side: 3, stride: 2, padding: 1 };

    fn pixel(pictures: &[f32], picture: usize, y: isize, x: isize, channel: usize) -> f32 {
        let inside = (0..WINDOWS.height as isize).contains(&y) && (0..WINDOWS.width as isize).contains(&x);
        if !inside {
            return 0.0;
        }
        pictures[((picture * WINDOWS.height + y as usize) * WINDOWS.width + x as usize) * WINDOWS.channels + channel]
    }

    #[test]
    fn gathered_windows_hold_the_pixels_and_zeros_outside() {
        let pictures: Vec<f32> = (1..=2 * WINDOWS.picture_len()).map(|i| i as f32).collect();
        assert_eq!(WINDOWS.grid(), (2, 1));
        let mut out = vec![9.0; 4 * WINDOWS.len()];
        WINDOWS.gather(&pictures, 0..4, &mut out);
        for (i, value) in out.iter().enumerate() {
            let (window, at) = (i / WINDOWS.len(), i % WINDOWS.len());
            let (row, column, channel) = (at / 6, at / 2 % 3, at % 2);
            let y = (window % 2 * 2 + row) as isize - 1;
            assert_eq!(*value, pixel(&pictures, window / 2, y, column as isize - 1, channel), "value {i}");
        }
    }

    #[test]
    fn scattering_is_the_transpose_of_gathering() {
        let pictures: Vec<f32> = (0..2 * WINDOWS.picture_len()).map(|i| (i * 7 % 11) as f32).collect();
        let values: Vec<f32> = (0..4 * WINDOWS.len()).map(|i| (i * 5 % 13) as f32).collect();
        let (mut gathered, mut scattered) = (vec![0.0; values.len()], vec![0.0; pictures.len()]);
        WINDOWS.gather(&pictures, 0..4, &mut gathered);
        WINDOWS.scatter(&values, 0..4, &mut scattered);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        assert_eq!(dot(&gathered, &values), dot(&pictures, &scattered));
    }

    #[test]
    fn the_gradient_of_the_largest_goes_to_the_first_of_equals_once() {
        let windows = Windows { channels: 1, ..WINDOWS };
        let pictures = [5.0, 5.0, -1.0, -3.0, -2.0, 5.0];
        let mut largest = [0.0; 2];
        windows.largest(&pictures, 0..2, &mut largest);
        assert_eq!(largest, [5.0, 5.0]);
        let mut gradient = [0.0; 6];
        windows.largest_backward(&pictures, 0..2, &largest, &[1.0, 2.0], &mut gradient);
        assert_eq!(gradient, [1.0, 0.0, 0.0, 0.0, 0.0, 2.0]);
    }
}
