//! JPEG: its pixels, in colours as libjpeg and Pillow take them.

mod markers;

use image::{GrayImage, RgbImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

pub(super) use markers::Markers;

use super::colour::Pixels;
use super::{DecodeError, Format};

/// Ones, with the zero that is stuffed behind each 0xFF, in place of the end marker.
///
/// No Huffman code consists of ones alone (ITU-T T.81, annex C), so a decoder that goes on behind the data fails there, while at an end
/// marker it would fill the rest of the picture with grey. It is longer than what the decoder reads ahead.
const BEHIND_THE_DATA: [u8; 64] = {
    let mut ones = [0xFF; 64];
    let mut at = 1;
    while at < ones.len() {
        ones[at] = 0;
        at += 2;
    }
    ones
};

/// Pixels as they are stored, not yet upright. What the file holds behind its end marker is not looked at.
pub(super) fn decode(markers: &Markers<'_>) -> Result<Pixels, DecodeError> {
    let corrupt = |error| Format::Jpeg.corrupt(error);
    let colours = markers.colours()?;

    // Between progressive scans, and behind the last, this decoder looks for a marker; in sequential ones it would take the end marker for
    // a missing restart marker, and go on with grey.
    let end: &[u8] = if markers.is_progressive() { b"\xFF\xD9" } else { b"" };
    let bytes = [markers.content(), &BEHIND_THE_DATA, end].concat();
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options(ColorSpace::RGB));
    decoder.decode_headers().map_err(corrupt)?;
    let stored = decoder.input_colorspace().ok_or_else(|| Format::Jpeg.corrupt("no colour space"))?;
    // Where the decoder agrees about the colours it converts them, else it hands out what is stored.
    let agreed = matches!(
        (colours, stored),
        (Colours::Grey, ColorSpace::Luma) | (Colours::YCbCr, ColorSpace::YCbCr) | (Colours::Rgb, ColorSpace::RGB)
    );
    let is_grey = agreed && colours == Colours::Grey;
    let output = if is_grey || !agreed { stored } else { ColorSpace::RGB };
    // Headers may be odd; scans that break off or hold impossible codes are an error.
    decoder.set_options(options(output).set_strict_mode(true));
    let info = decoder.info().ok_or_else(|| Format::Jpeg.corrupt("no frame header"))?;
    let (width, height) = (u32::from(info.width), u32::from(info.height));
    let mut pixels = decoder.decode().map_err(corrupt)?;
    let misshapen = || Format::Jpeg.corrupt("the number of components changes inside the file");
    if is_grey {
        return GrayImage::from_raw(width, height, pixels).map(|grey| Pixels::Image(grey.into())).ok_or_else(misshapen);
    }
    match colours {
        // CMYK in JPEG is stored inverted (0 = full ink), with or without Adobe's marker: so do Photoshop's files, and so does Pillow read
        // them.
        Colours::Cmyk => {
            for ink in &mut pixels {
                *ink = !*ink;
            }
            return Ok(Pixels::Cmyk { width, height, inks: pixels });
        }
        Colours::Ycck => {
            let (inks, _) = pixels.as_chunks_mut::<4>();
            for [y, cb, cr, k] in inks {
                [*y, *cb, *cr] = ycbcr_to_rgb([*y, *cb, *cr]);
                *k = !*k;
            }
            return Ok(Pixels::Cmyk { width, height, inks: pixels });
        }
        Colours::YCbCr if !agreed => {
            let (stored, _) = pixels.as_chunks_mut::<3>();
            for pixel in stored {
                *pixel = ycbcr_to_rgb(*pixel);
            }
        }
        Colours::Grey | Colours::YCbCr | Colours::Rgb => {}
    }
    RgbImage::from_raw(width, height, pixels).map(|picture| Pixels::Image(picture.into())).ok_or_else(misshapen)
}

fn options(output: ColorSpace) -> DecoderOptions {
    // Sizes were checked already; real files hold far fewer scans than the decoder's own limit.
    DecoderOptions::default().jpeg_set_out_colorspace(output).set_strict_mode(false).set_max_width(usize::MAX).set_max_height(usize::MAX)
}

/// What the components stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colours {
    Grey,
    YCbCr,
    Rgb,
    Cmyk,
    Ycck,
}

impl Colours {
    /// The rules of libjpeg (`default_decompress_parms`): what is written in the file goes before custom.
    fn of(components: &[u8], has_jfif: bool, adobe: Option<u8>) -> Result<Self, DecodeError> {
        match (components, adobe) {
            ([_], _) => Ok(Self::Grey),
            ([_, _, _], _) if has_jfif => Ok(Self::YCbCr),
            ([_, _, _], Some(0)) | (b"RGB", None) => Ok(Self::Rgb),
            ([_, _, _], _) => Ok(Self::YCbCr),
            ([_, _, _, _], Some(2)) => Ok(Self::Ycck),
            ([_, _, _, _], _) => Ok(Self::Cmyk),
            (other, _) => Err(Format::Jpeg.corrupt(format!("{} components are not read", other.len()))),
        }
    }
}

/// ITU-R BT.601, full range (JFIF 1.02).
pub(super) fn ycbcr_to_rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (f32::from(y), f32::from(cb) - 128.0, f32::from(cr) - 128.0);
    [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb].map(|value| value.round() as u8)
}

#[cfg(test)]
mod tests {
    use super::{Colours, ycbcr_to_rgb};

    fn colours(components: &[u8], has_jfif: bool, adobe: Option<u8>) -> Option<Colours> {
        Colours::of(components, has_jfif, adobe).ok()
    }

    #[test]
    fn colours_follow_libjpeg() {
        assert_eq!(colours(&[1], false, None), Some(Colours::Grey));
        assert_eq!(colours(&[1, 2, 3], true, None), Some(Colours::YCbCr));
        assert_eq!(colours(&[1, 2, 3], false, Some(0)), Some(Colours::Rgb));
        assert_eq!(colours(&[1, 2, 3], true, Some(0)), Some(Colours::YCbCr));
        assert_eq!(colours(b"RGB", false, None), Some(Colours::Rgb));
        assert_eq!(colours(&[1, 2, 3, 4], false, None), Some(Colours::Cmyk));
        assert_eq!(colours(&[1, 2, 3, 4], false, Some(0)), Some(Colours::Cmyk));
        assert_eq!(colours(&[1, 2, 3, 4], false, Some(2)), Some(Colours::Ycck));
        assert_eq!(colours(&[1, 2], false, None), None);
    }

    #[test]
    fn known_colours_convert() {
        assert_eq!(ycbcr_to_rgb([76, 85, 255]), [254, 0, 0]);
    }
}
