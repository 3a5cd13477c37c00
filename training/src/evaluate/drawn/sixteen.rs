//! Masks of 16 bits in a channel.

use anyhow::ensure;

use super::{HALF, Pixel, VOID_NUMBER, WHITE_OR_VOID, cut, number, of_colours};

/// Values of 8 bits that were stretched to 16 are multiples of this.
const STRETCHED: u16 = 257;

/// What pixels `[red, green, blue, alpha]` are: as in 8 bits where each value has one of 8 bits, else numbers of 16.
pub(super) fn pixels(pixels: &[[u16; 4]]) -> anyhow::Result<Vec<Pixel>> {
    let opaque = || pixels.iter().filter(|pixel| is_opaque(**pixel));
    if opaque().all(|pixel| pixel[..3].iter().all(|value| value.is_multiple_of(STRETCHED))) {
        let bytes: Vec<[u8; 4]> = pixels.iter().map(|pixel| pixel.map(byte)).collect();
        return of_colours(&bytes);
    }
    ensure!(opaque().all(|[r, g, b, _]| r == g && g == b), "its colours have 16 bits, which masks do not need: save it with 8");
    let lit = || opaque().map(|pixel| pixel[0]).filter(|value| *value > 0);
    let most = lit().max().unwrap_or(0);
    let largest = lit().filter(|value| *value == most).count();
    let others = lit().count() - largest;
    let meaning: fn(u16) -> Pixel = if most == u16::MAX {
        let has_bright = lit().any(|value| value < most && byte(value) >= HALF);
        ensure!(
            has_bright && largest > others,
            "it has 65535, which may be white or what is left out: save white objects with 8 bits, and write 255 for what is left out"
        );
        |value| cut(byte(value))
    } else if most == u16::from(VOID_NUMBER) && others == 0 {
        // White on black of 8 bits, in a file of 16.
        |value| cut(value.min(255) as u8)
    } else {
        ensure!(most != u16::from(VOID_NUMBER) || largest <= others, WHITE_OR_VOID);
        |value| number(value.into())
    };
    Ok(pixels.iter().map(|pixel| if is_opaque(*pixel) { meaning(pixel[0]) } else { Pixel::Background }).collect())
}

fn is_opaque(pixel: [u16; 4]) -> bool {
    byte(pixel[3]) >= HALF
}

/// Its higher half: the value of 8 bits where there is one.
fn byte(value: u16) -> u8 {
    (value >> 8) as u8
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, ImageBuffer};

    use super::super::{Truth, read};

    #[test]
    fn greys_of_sixteen_bits_are_read_exactly_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mask.png");
        let read_of = |values: &[u16]| {
            let width = values.len() as u32;
            DynamicImage::ImageLuma16(ImageBuffer::from_raw(width, 1, values.to_vec()).unwrap()).save(&path).unwrap();
            read(&path, (width, 1)).map_err(|error| format!("{error:#}"))
        };
        let is = |values: &[u16], pixels: &str, void: &str, objects: usize| {
            let found: Truth = read_of(values).unwrap();
            let flags = |flags: Vec<bool>| flags.into_iter().map(|flag| if flag { '#' } else { '.' }).collect::<String>();
            assert_eq!(
                (flags(found.pixels).as_str(), flags(found.void).as_str(), found.boxes.len()),
                (pixels, void, objects),
                "{values:?}"
            );
        };
        is(&[0, 1, 1, 255], ".##.", "...#", 1);
        is(&[0, 1, 128, 254], ".###", "....", 3);
        // Cityscapes.
        is(&[7, 26_001, 26_002, 33_000, 0], "####.", ".....", 4);
        is(&[0, 26_001, 255, 26_002], ".#.#", "..#.", 2);
        // Black and white, of 16 bits and of 8.
        is(&[0, 65_535, 65_535, 0], ".##.", "....", 1);
        is(&[0, 255, 255, 0], ".##.", "....", 1);
        // Soft edges, of 8 bits that were stretched and of 16.
        is(&[0, 40 * 257, 200 * 257, 65_535], "..##", "....", 1);
        is(&[0, 10_001, 50_001, 65_535, 65_535, 65_535], "..####", "......", 1);
        let unclear: [(&[u16], &str); 3] =
            [(&[0, 1, 255, 255], "white may be"), (&[0, 26_001, 33_001, 65_535], "65535"), (&[0, 1, 65_535, 65_535], "65535")];
        for (values, word) in unclear {
            let error = read_of(values).unwrap_err();
            assert!(error.contains("mask.png") && error.contains(word), "{error}");
        }
        DynamicImage::ImageRgb16(ImageBuffer::from_raw(2, 1, vec![0, 0, 0, 300, 200, 100]).unwrap()).save(&path).unwrap();
        assert!(format!("{:#}", read(&path, (2, 1)).unwrap_err()).contains("16 bits"));
    }
}
