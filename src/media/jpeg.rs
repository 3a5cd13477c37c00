//! JPEG: the walk over its markers, and colours as libjpeg and Pillow take them.

use image::RgbImage;
use image::metadata::Orientation;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::header::{Header, exif_orientation};
use super::{DecodeError, Format};

/// Pixels as they are stored, not yet upright. `markers` are those of `bytes`.
pub(super) fn decode(bytes: &[u8], markers: &Markers) -> Result<RgbImage, DecodeError> {
    let corrupt = |error| Format::Jpeg.corrupt(error);
    let colours = markers.colours()?;

    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options(ColorSpace::RGB));
    decoder.decode_headers().map_err(corrupt)?;
    let stored = decoder.input_colorspace().ok_or_else(|| Format::Jpeg.corrupt("no colour space"))?;
    // Where the decoder agrees about the colours it converts them, else it hands out what is stored.
    let agreed = matches!(
        (colours, stored),
        (Colours::Grey, ColorSpace::Luma) | (Colours::YCbCr, ColorSpace::YCbCr) | (Colours::Rgb, ColorSpace::RGB)
    );
    if !agreed {
        decoder.set_options(options(stored));
    }
    let info = decoder.info().ok_or_else(|| Format::Jpeg.corrupt("no frame header"))?;
    let mut pixels = decoder.decode().map_err(corrupt)?;
    if !agreed {
        pixels = match colours {
            Colours::Grey | Colours::Rgb => pixels,
            Colours::YCbCr => convert::<3>(&pixels, ycbcr_to_rgb),
            Colours::Cmyk => convert::<4>(&pixels, inverted_cmyk_to_rgb),
            Colours::Ycck => convert::<4>(&pixels, |[y, cb, cr, k]| {
                let [r, g, b] = ycbcr_to_rgb([y, cb, cr]);
                inverted_cmyk_to_rgb([255 - r, 255 - g, 255 - b, k])
            }),
        };
    }
    RgbImage::from_raw(u32::from(info.width), u32::from(info.height), pixels)
        .ok_or_else(|| Format::Jpeg.corrupt("the number of components changes inside the file"))
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

/// What the markers of a whole file say.
pub(super) struct Markers {
    /// Width and height of the first frame header.
    size: (u32, u32),
    /// The largest of all frame headers.
    largest: (u32, u32),
    /// Identifiers of the components of the first frame.
    components: Vec<u8>,
    has_jfif: bool,
    /// The colour transform of Adobe's APP14 segment.
    adobe: Option<u8>,
    /// Of the first EXIF segment.
    orientation: Option<Orientation>,
}

impl Markers {
    /// Walks from SOI to EOI (ITU-T T.81, annex B), over the entropy-coded data as well: only a file that has its
    /// end marker is whole.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let cut = || Format::Jpeg.cut();
        let mut found = Self { size: (0, 0), largest: (0, 0), components: Vec::new(), has_jfif: false, adobe: None, orientation: None };
        let mut rest = bytes.get(2..).ok_or_else(cut)?;
        loop {
            // Between segments and in entropy-coded data alike: up to the next 0xFF that starts a marker.
            let starts = |at: &usize| rest.get(at + 1).is_some_and(|byte| is_marker(*byte));
            let at = memchr::memchr_iter(0xFF, rest).find(starts).ok_or_else(cut)?;
            let marker = rest[at + 1];
            rest = &rest[at + 2..];
            if marker == EOI {
                return if found.components.is_empty() { Err(Format::Jpeg.corrupt("no frame header")) } else { Ok(found) };
            }
            let (length, after) = rest.split_first_chunk::<2>().ok_or_else(cut)?;
            let length = usize::from(u16::from_be_bytes(*length)).saturating_sub(2);
            let (segment, after) = after.split_at_checked(length).ok_or_else(cut)?;
            found.add(marker, segment).ok_or_else(|| Format::Jpeg.corrupt("a header segment is too short"))?;
            rest = after;
        }
    }

    /// Size and orientation; every frame header of the file counts as a part.
    pub(super) fn header(&self) -> Header {
        let (width, height) = self.size;
        let orientation = self.orientation.unwrap_or(Orientation::NoTransforms);
        Header { width, height, largest_part: self.largest, orientation }
    }

    /// `None` if the segment is too short for what it is.
    fn add(&mut self, marker: u8, segment: &[u8]) -> Option<()> {
        match marker {
            // Every start of frame; DHT, JPG and DAC share the range.
            0xC0..=0xCF if ![0xC4, 0xC8, 0xCC].contains(&marker) => {
                let (header, components) = segment.split_first_chunk::<6>()?;
                let height = u32::from(u16::from_be_bytes([header[1], header[2]]));
                let width = u32::from(u16::from_be_bytes([header[3], header[4]]));
                if self.components.is_empty() {
                    self.size = (width, height);
                    self.components = components.chunks_exact(3).map(|component| component[0]).collect();
                }
                if u64::from(width) * u64::from(height) > u64::from(self.largest.0) * u64::from(self.largest.1) {
                    self.largest = (width, height);
                }
            }
            0xE0 if segment.starts_with(b"JFIF\0") => self.has_jfif = true,
            0xE1 if segment.starts_with(b"Exif\0\0") => {
                self.orientation.get_or_insert_with(|| exif_orientation(segment));
            }
            0xEE if segment.starts_with(b"Adobe") => self.adobe = Some(*segment.get(11)?),
            _ => {}
        }
        Some(())
    }

    /// The rules of libjpeg (`default_decompress_parms`): what is written in the file goes before custom.
    fn colours(&self) -> Result<Colours, DecodeError> {
        match (self.components.as_slice(), self.adobe) {
            ([_], _) => Ok(Colours::Grey),
            ([_, _, _], _) if self.has_jfif => Ok(Colours::YCbCr),
            ([_, _, _], Some(0)) | (b"RGB", None) => Ok(Colours::Rgb),
            ([_, _, _], _) => Ok(Colours::YCbCr),
            ([_, _, _, _], Some(2)) => Ok(Colours::Ycck),
            ([_, _, _, _], _) => Ok(Colours::Cmyk),
            (other, _) => Err(Format::Jpeg.corrupt(format!("{} components are not read", other.len()))),
        }
    }
}

const EOI: u8 = 0xD9;

/// Whether this byte after 0xFF starts a segment or ends the file: not a stuffed zero, a fill byte, a restart
/// marker, or another marker without content.
fn is_marker(byte: u8) -> bool {
    !matches!(byte, 0x00..=0x01 | 0xD0..=0xD8 | 0xFF)
}

fn convert<const N: usize>(pixels: &[u8], to_rgb: impl Fn([u8; N]) -> [u8; 3]) -> Vec<u8> {
    let (pixels, _) = pixels.as_chunks::<N>();
    pixels.iter().flat_map(|pixel| to_rgb(*pixel)).collect()
}

/// ITU-R BT.601, full range (JFIF 1.02).
fn ycbcr_to_rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (f32::from(y), f32::from(cb) - 128.0, f32::from(cr) - 128.0);
    [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb].map(|value| value.round() as u8)
}

/// CMYK in JPEG is stored inverted (0 = full ink), with or without Adobe's marker: so do Photoshop's files, and so
/// does Pillow read them.
fn inverted_cmyk_to_rgb([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    [c, m, y].map(|ink| ((u32::from(ink) * u32::from(k) + 127) / 255) as u8)
}

#[cfg(test)]
mod tests {
    use super::{Colours, Markers, inverted_cmyk_to_rgb, ycbcr_to_rgb};

    fn colours(components: &[u8], has_jfif: bool, adobe: Option<u8>) -> Option<Colours> {
        let (size, largest, orientation) = ((1, 1), (1, 1), None);
        Markers { size, largest, components: components.to_vec(), has_jfif, adobe, orientation }.colours().ok()
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
        assert_eq!(inverted_cmyk_to_rgb([255, 255, 255, 255]), [255; 3]);
        assert_eq!(inverted_cmyk_to_rgb([255, 0, 128, 128]), [128, 0, 64]);
    }
}
