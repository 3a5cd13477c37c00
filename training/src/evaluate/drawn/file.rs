//! What PNG files of masks hold, upright, before it means anything.

use std::io::Cursor;
use std::path::Path;

use anyhow::{Context as _, ensure};
use dino_vision::bulk;
use dino_vision::media::{self, Format, Limits};
use image::codecs::png::PngDecoder;
use image::{DynamicImage, GrayImage, ImageDecoder as _};

/// A number for each pixel, as a file stores them: indices of a palette, or greys of at most 8 bits.
pub struct Stored {
    /// (width, height).
    pub size: (u32, u32),
    /// Row by row.
    pub values: Vec<u8>,
    /// Colours of the palette with their alpha; `None` of greys.
    pub(super) palette: Option<Vec<[u8; 4]>>,
    has_eight_bits: bool,
}

impl Stored {
    /// Whether the numbers are what a person sees, too: greys of 8 bits, or a palette in which each index that is used is its own grey.
    pub(super) fn are_seen(&self) -> bool {
        match &self.palette {
            None => self.has_eight_bits,
            Some(palette) => {
                self.values.iter().all(|&value| palette.get(usize::from(value)).is_some_and(|colour| colour[..3] == [value; 3]))
            }
        }
    }
}

/// The numbers of a PNG file with a palette, or of greys of at most 8 bits.
///
/// # Errors
/// Where the file is none, is damaged or too large.
pub fn stored(path: &Path) -> anyhow::Result<Stored> {
    let read = || -> anyhow::Result<Stored> {
        let bytes = bulk::read(path)?;
        media::dimensions(&bytes, &Limits::default())?;
        let is_of_numbers = |info: &png::Info<'_>| match info.color_type {
            png::ColorType::Indexed => true,
            png::ColorType::Grayscale => info.bit_depth != png::BitDepth::Sixteen,
            _ => false,
        };
        let stored = if Format::sniff(&bytes)? == Format::Png { of_png(&bytes, is_of_numbers)? } else { None };
        stored.context("a mask of numbers is a PNG file with a palette, or of greys of 8 bits: save it as one")
    };
    read().with_context(|| path.display().to_string())
}

/// The indices of a PNG file with a palette, whose header was checked; `None` of others.
pub(super) fn indexed(bytes: &[u8]) -> anyhow::Result<Option<Stored>> {
    of_png(bytes, |info| info.color_type == png::ColorType::Indexed)
}

/// The pixels of a PNG file without a palette, whose header was checked.
pub(super) fn decoded(bytes: &[u8]) -> anyhow::Result<DynamicImage> {
    let decoder = PngDecoder::new(Cursor::new(bytes))?;
    ensure!(decoder.total_bytes() <= 8 * Limits::MAX_PIXELS, "the mask is too large");
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(media::orientation(bytes)?);
    Ok(picture)
}

fn of_png(bytes: &[u8], is_wanted: impl Fn(&png::Info<'_>) -> bool) -> anyhow::Result<Option<Stored>> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::IDENTITY);
    let mut reader = decoder.read_info()?;
    let info = reader.info();
    if !is_wanted(info) {
        return Ok(None);
    }
    let (width, height, has_eight_bits) = (info.width, info.height, info.bit_depth == png::BitDepth::Eight);
    let palette = if info.color_type == png::ColorType::Indexed { Some(palette(info)?) } else { None };
    let values = GrayImage::from_raw(width, height, unpacked(&mut reader)?).context("it has fewer pixels than it declares")?;
    let mut upright = DynamicImage::ImageLuma8(values);
    upright.apply_orientation(media::orientation(bytes)?);
    let upright = upright.into_luma8();
    Ok(Some(Stored { size: upright.dimensions(), values: upright.into_raw(), palette, has_eight_bits }))
}

fn palette(info: &png::Info<'_>) -> anyhow::Result<Vec<[u8; 4]>> {
    let colours = info.palette.clone().context("its palette is missing")?;
    let alphas = info.trns.clone().unwrap_or_default();
    let alpha = |index: usize| alphas.get(index).copied().unwrap_or(255);
    Ok(colours.as_chunks::<3>().0.iter().enumerate().map(|(index, &[r, g, b])| [r, g, b, alpha(index)]).collect())
}

/// The values of a picture of one channel of at most 8 bits.
fn unpacked(reader: &mut png::Reader<Cursor<&[u8]>>) -> anyhow::Result<Vec<u8>> {
    let (width, depth) = (reader.info().width as usize, reader.info().bit_depth as usize);
    let mut packed = vec![0; reader.output_buffer_size().context("the mask is too large")?];
    let frame = reader.next_frame(&mut packed)?;
    let of_row = |row: &[u8]| -> Vec<u8> {
        let at = |x: usize| row[x * depth / 8] >> (8 - depth - x * depth % 8) & ((1_u16 << depth) - 1) as u8;
        (0..width).map(at).collect()
    };
    Ok(packed[..frame.buffer_size()].chunks_exact(frame.line_size).flat_map(of_row).collect())
}

#[cfg(test)]
mod tests {
    use image::codecs::png::PngEncoder;
    use image::{DynamicImage, GrayImage, ImageBuffer, ImageEncoder as _};

    use super::super::{read, stored};

    /// An EXIF block with one entry, the orientation.
    fn exif(orientation: u8) -> Vec<u8> {
        let mut block = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
        block.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
        block
    }

    /// Two columns and three rows as they are stored; the object is on the upper left.
    const STORED: [u8; 6] = [7, 0, 0, 0, 0, 0];
    /// Orientation (6: to be turned clockwise; 3: upside down), size and box as they are seen.
    const SEEN: [(u8, (u32, u32), [u32; 4]); 3] = [(1, (2, 3), [0, 0, 1, 1]), (6, (3, 2), [2, 0, 1, 1]), (3, (2, 3), [1, 2, 1, 1])];

    #[test]
    fn masks_are_turned_as_their_orientation_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mask.png");
        let narrow = GrayImage::from_raw(2, 3, STORED.to_vec()).unwrap();
        let wide = ImageBuffer::from_raw(2, 3, STORED.map(u16::from).to_vec()).unwrap();
        for picture in [DynamicImage::ImageLuma8(narrow), DynamicImage::ImageLuma16(wide)] {
            for (orientation, size, corner) in SEEN {
                let mut file = Vec::new();
                let mut encoder = PngEncoder::new(&mut file);
                encoder.set_exif_metadata(exif(orientation)).unwrap();
                picture.write_with_encoder(encoder).unwrap();
                fs_err::write(&path, file).unwrap();
                assert_eq!(read(&path, size).unwrap().boxes, [corner], "{orientation}");
            }
        }
    }

    #[test]
    fn indices_are_turned_as_their_orientation_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mask.png");
        for (orientation, size, corner) in SEEN {
            let mut info = png::Info::with_size(2, 3);
            (info.color_type, info.bit_depth) = (png::ColorType::Indexed, png::BitDepth::Eight);
            info.palette = Some((0..24_u8).collect::<Vec<u8>>().into());
            info.exif_metadata = Some(exif(orientation).into());
            let mut file = Vec::new();
            png::Encoder::with_info(&mut file, info).unwrap().write_header().unwrap().write_image_data(&STORED).unwrap();
            fs_err::write(&path, file).unwrap();
            assert_eq!(read(&path, size).unwrap().boxes, [corner], "{orientation}");
            let found = stored(&path).unwrap();
            assert_eq!((found.size, found.values[(corner[1] * size.0 + corner[0]) as usize]), (size, 7), "{orientation}");
        }
    }
}
