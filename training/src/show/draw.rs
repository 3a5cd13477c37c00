//! Colours, discs and small text on pixels: what the pictures of an evaluation are drawn with.
//!
//! ```
//! use dino_train::show::draw::{LETTER, disc, text};
//! use image::{Rgb, RgbImage};
//!
//! let mut picture = RgbImage::new(64, 32);
//! disc(&mut picture, (10.0, 20.0), 4.0, Rgb([255, 0, 0]));
//! text(&mut picture, (0, 0), "ant", Rgb([255, 255, 255]));
//! assert_eq!(picture.get_pixel(10, 20), &Rgb([255, 0, 0]));
//! assert!((0..3 * LETTER).any(|x| picture.get_pixel(x, 4) == &Rgb([255, 255, 255])));
//! ```

use font8x8::UnicodeFonts;
use image::{Rgb, RgbImage};

/// Columns and rows of a letter.
pub const LETTER: u32 = 8;

/// The viridis colour map, as matplotlib shows heat maps: 0 is dark blue, 1 is yellow. Brightness rises all the way, so it reads in grey too.
///
/// A polynomial of degree six that Matt Zucker fitted to the map (public domain); it is off by at most five steps of 255.
pub fn viridis(share: f32) -> Rgb<u8> {
    const COEFFICIENTS: [[f32; 3]; 7] = [
        [0.277_727_34, 0.005_407_344_6, 0.334_099_8],
        [0.105_093_04, 1.404_613_5, 1.384_590_1],
        [-0.330_861_84, 0.214_847_56, 0.095_095_16],
        [-4.634_230_5, -5.799_101, -19.332_441],
        [6.228_27, 14.179_933, 56.690_55],
        [4.776_385, -13.745_145, -65.353_035],
        [-5.435_456, 4.645_852_6, 26.312_435],
    ];
    let t = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    Rgb(std::array::from_fn(|channel| {
        let value = COEFFICIENTS.iter().rev().fold(0.0, |sum, coefficients| sum * t + coefficients[channel]);
        (value * 255.0).round().clamp(0.0, 255.0) as u8
    }))
}

/// The colour of class `index` of `count`: up to eight are Okabe and Ito's, which differ for colour-blind eyes too; more go round the
/// circle of hues in three brightnesses.
pub fn category(index: usize, count: usize) -> Rgb<u8> {
    const FEW: [[u8; 3]; 8] =
        [[0, 114, 178], [230, 159, 0], [0, 158, 115], [213, 94, 0], [204, 121, 167], [86, 180, 233], [166, 150, 10], [70, 70, 70]];
    if count <= FEW.len() {
        return Rgb(FEW[index % FEW.len()]);
    }
    // The golden section of the circle: neighbours in number are far apart in hue.
    let hue = (index as f64 * 0.618_033_988_75).fract() * 6.0;
    let (light, saturation) = [(0.45, 0.75), (0.62, 0.65), (0.32, 0.7)][index % 3];
    let chroma = (1.0 - f64::abs(2.0 * light - 1.0)) * saturation;
    let x = chroma * (1.0 - (hue % 2.0 - 1.0).abs());
    let (r, g, b) = match hue as u8 {
        0 => (chroma, x, 0.0),
        1 => (x, chroma, 0.0),
        2 => (0.0, chroma, x),
        3 => (0.0, x, chroma),
        4 => (x, 0.0, chroma),
        _ => (chroma, 0.0, x),
    };
    Rgb([r, g, b].map(|v| ((v + light - chroma / 2.0) * 255.0).round() as u8))
}

/// `#rrggbb`.
pub fn hex(Rgb([r, g, b]): Rgb<u8>) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// `from` with a share of `to`.
pub fn blend(from: Rgb<u8>, to: Rgb<u8>, share: f32) -> Rgb<u8> {
    Rgb(std::array::from_fn(|channel| {
        let (from, to) = (f32::from(from.0[channel]), f32::from(to.0[channel]));
        (from + share * (to - from)).round() as u8
    }))
}

/// A filled disc with a smooth edge; what lies outside the picture is cut off.
pub fn disc(picture: &mut RgbImage, (x, y): (f32, f32), radius: f32, colour: Rgb<u8>) {
    let (width, height) = picture.dimensions();
    let range = |centre: f32, side: u32| (centre - radius - 1.0).max(0.0) as u32..((centre + radius + 2.0).max(0.0) as u32).min(side);
    for row in range(y, height) {
        for column in range(x, width) {
            let distance = (column as f32 + 0.5 - x).hypot(row as f32 + 0.5 - y);
            let share = (radius + 0.5 - distance).clamp(0.0, 1.0);
            let pixel = picture.get_pixel_mut(column, row);
            *pixel = blend(*pixel, colour, share);
        }
    }
}

/// A line of text with its upper left corner at `(x, y)`; letters that the font lacks become `?`.
pub fn text(picture: &mut RgbImage, (x, y): (u32, u32), line: &str, colour: Rgb<u8>) {
    let glyph = |letter| font8x8::BASIC_FONTS.get(letter).or_else(|| font8x8::LATIN_FONTS.get(letter));
    for (number, letter) in (0..).zip(line.chars()) {
        let rows = glyph(letter).or_else(|| glyph('?')).unwrap_or_default();
        for (row, bits) in (0..).zip(rows) {
            for column in (0..LETTER).filter(|column| bits >> column & 1 == 1) {
                let at = (x + number * LETTER + column, y + row);
                if let Some(pixel) = picture.get_pixel_mut_checked(at.0, at.1) {
                    *pixel = colour;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn viridis_has_its_ends_and_grows_brighter() {
        let near = |share, expected: [u8; 3]| viridis(share).0.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 5);
        assert!(near(0.0, [68, 1, 84]) && near(0.5, [33, 145, 140]) && near(1.0, [253, 231, 37]));
        assert_eq!(viridis(f32::NAN), viridis(0.0));
        let luma = |share| viridis(share).0.iter().zip([0.299, 0.587, 0.114]).map(|(v, w)| f64::from(*v) * w).sum::<f64>();
        assert!((1..=20).all(|i| luma(i as f32 / 20.0) > luma((i - 1) as f32 / 20.0)));
    }

    #[test]
    fn classes_have_colours_of_their_own() {
        for count in [1, 8, 9, 100] {
            let colours: std::collections::BTreeSet<_> = (0..count).map(|index| category(index, count).0).collect();
            assert_eq!(colours.len(), count);
        }
    }

    #[test]
    fn nothing_is_drawn_outside_and_text_shows() {
        let mut picture = RgbImage::from_pixel(20, 10, Rgb([255; 3]));
        disc(&mut picture, (-50.0, 400.0), 9.0, Rgb([0; 3]));
        assert!(picture.pixels().all(|pixel| pixel.0 == [255; 3]));
        disc(&mut picture, (19.0, 9.0), 3.0, Rgb([9, 0, 0]));
        text(&mut picture, (1, 1), "Aé✓", Rgb([0, 0, 9]));
        assert_eq!(picture.get_pixel(19, 9).0, [9, 0, 0]);
        assert!(picture.pixels().filter(|pixel| pixel.0 == [0, 0, 9]).count() > 20);
    }
}
