//! The first page of a TIFF.
//!
//! Read are grey, RGB, CMYK, YCbCr that is not subsampled, and palettes, in strips or tiles, in one plane or several, from TIFF and `BigTIFF`,
//! with whole or floating samples. What is not read is refused by name, never guessed at.

mod directory;
mod samples;

use std::borrow::Cow;
use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer, Pixel, PixelWithColorType};
use tiff::TiffError;
use tiff::decoder::ifd::Value;
use tiff::decoder::{Decoder, DecodingResult, Limits as TiffLimits};
use tiff::tags::{CompressionMethod, Tag};

use super::colour::{PROFILE_BYTES, Pixels, Profile};
use super::header::Header;
use super::jpeg::ycbcr_to_rgb;
use super::{DecodeError, Format, Limits, RESULT_PIXEL, WIDEST_PIXEL};
use samples::{Depth, Samples, Shape};

type Reader<'a> = Decoder<Cursor<&'a [u8]>>;

/// Size and orientation of the first page.
pub(super) fn header(bytes: &[u8]) -> Result<Header, DecodeError> {
    let mut decoder = open(bytes)?;
    let (width, height) = decoder.dimensions().map_err(corrupt)?;
    let mut header = Header::plain(width, height);

    // Strips of JPEG carry sizes of their own, which the decoder would follow unchecked.
    if number::<u16>(&mut decoder, Tag::Compression)? == Some(CompressionMethod::ModernJPEG.to_u16()) {
        return Err(not_read("JPEG compression inside TIFF", "send the picture as JPEG"));
    }
    // Tiles may be larger than the picture.
    if let (Some(width), Some(height)) = (number(&mut decoder, Tag::TileWidth)?, number(&mut decoder, Tag::TileLength)?) {
        header.add_part((width, height));
    }
    let orientation = number::<u8>(&mut decoder, Tag::Orientation)?;
    header.orientation = orientation.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms);
    Ok(header)
}

/// Pixels and profile of the first page, whose header was checked.
pub(super) fn decode(bytes: &[u8], header: &Header, limits: &Limits) -> Result<(Pixels, Option<Profile<'static>>), DecodeError> {
    let mut decoder = open(bytes)?;
    let page = Page::read(&mut decoder)?;
    page.check(header, limits)?;
    let colour_map = if page.kind == Kind::Palette { Some(colour_map(&mut decoder, page.shape.bits)?) } else { None };
    let profile = profile(&mut decoder);
    let as_grey;
    if colour_map.is_some() {
        as_grey = palette_as_grey(bytes)?;
        decoder = open(&as_grey)?;
    }
    let samples = samples(decoder, &page.shape, limits)?;
    let pixels =
        page.pixels(samples, colour_map.as_deref()).ok_or_else(|| Format::Tiff.corrupt("it holds other samples than it declares"))?;
    Ok((pixels, profile))
}

/// What the samples stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Grey,
    GreyAlpha,
    Rgb,
    Rgba,
    Cmyk,
    YCbCr,
    Palette,
}

/// How the first page stores its pixels.
struct Page {
    kind: Kind,
    /// Alpha is multiplied into the colours already.
    is_associated: bool,
    shape: Shape,
}

impl Page {
    fn read(decoder: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (width, height) = decoder.dimensions().map_err(corrupt)?;
        let count = usize::from(number::<u16>(decoder, Tag::SamplesPerPixel)?.unwrap_or(1));
        let bits = numbers(decoder, Tag::BitsPerSample)?.and_then(|bits| bits.first().copied()).unwrap_or(1);
        let format = numbers(decoder, Tag::SampleFormat)?.and_then(|formats| formats.first().copied()).unwrap_or(1);
        let extra = numbers(decoder, Tag::ExtraSamples)?.unwrap_or_default();
        let photometric = number::<u16>(decoder, Tag::PhotometricInterpretation)?;
        let is_planar = number::<u16>(decoder, Tag::PlanarConfiguration)? == Some(2);
        let has_predictor = number::<u16>(decoder, Tag::Predictor)?.is_some_and(|predictor| predictor != 1);

        let depth = match (format, bits) {
            (1, 1 | 2 | 4 | 8 | 16 | 32 | 64) => Depth::Whole,
            (3, 16 | 32 | 64) => Depth::Float,
            (2, _) => return Err(not_read("signed samples", AS_PNG)),
            (1, bits) => return Err(not_read(&format!("{bits} bits per sample"), AS_PNG)),
            (format, bits) => return Err(not_read(&format!("sample format {format} with {bits} bits"), AS_PNG)),
        };
        // The decoder takes the first pixel of a byte from its high bits.
        if bits < 8 && number::<u16>(decoder, Tag::FillOrder)? == Some(2) {
            return Err(not_read("fill order 2", AS_PNG));
        }
        // 1 is associated alpha, 2 unassociated.
        let alpha = extra.first().copied().filter(|kind| matches!(kind, 1 | 2));
        if extra.iter().skip(1).any(|kind| matches!(kind, 1 | 2)) {
            return Err(not_read("alpha that is not the first extra sample", AS_PNG));
        }
        // RGB with a fourth sample that nothing is said of has alpha there, as in Pillow and libtiff.
        let colours = if photometric == Some(2) && extra.is_empty() && count == 4 { 3 } else { count.saturating_sub(extra.len()) };
        let has_alpha = alpha.is_some() || colours + extra.len() < count;
        let (kind, used) = match (photometric, colours) {
            (Some(0), 1) if count > 1 => return Err(not_read("white-is-zero grey with more samples", AS_PNG)),
            (Some(0 | 1), 1) if has_alpha => (Kind::GreyAlpha, 2),
            (Some(0 | 1), 1) => (Kind::Grey, 1),
            (Some(2), 3) if has_alpha => (Kind::Rgba, 4),
            (Some(2), 3) => (Kind::Rgb, 3),
            (Some(3), 1) if count == 1 && bits <= 8 => (Kind::Palette, 1),
            (Some(3), _) => return Err(not_read("a palette with more than 8 bits or one sample", AS_PNG)),
            (Some(5), 4) if has_alpha => return Err(not_read("CMYK with alpha", AS_PNG)),
            (Some(5), 4) => (Kind::Cmyk, 4),
            (Some(6), 3) if bits == 8 => (Kind::YCbCr, 3),
            (Some(4), _) => return Err(not_read("a transparency mask", AS_PNG)),
            (Some(8..=10), _) => return Err(not_read("CIE L*a*b*", AS_PNG)),
            (photometric, count) => {
                let photometric = photometric.map_or("none".to_owned(), |number| number.to_string());
                return Err(not_read(&format!("photometric interpretation {photometric} with {count} samples"), AS_PNG));
            }
        };
        // The decoder takes differences between samples after dropping those that are not used.
        if used < count && has_predictor && !is_planar && !matches!(kind, Kind::Grey | Kind::GreyAlpha) {
            return Err(not_read("a predictor with extra samples", AS_PNG));
        }
        if kind == Kind::YCbCr {
            check_ycbcr(decoder)?;
        }
        // Grey comes with all of its samples, the others with those that are used.
        let stored = if matches!(kind, Kind::Grey | Kind::GreyAlpha) { count } else { used };
        let scale = kind != Kind::Palette;
        let shape =
            Shape { width: width as usize, height: height as usize, bits, stored, used, is_planar: is_planar && stored > 1, depth, scale };
        Ok(Self { kind, is_associated: alpha == Some(1), shape })
    }

    /// The samples as they are stored may take the memory that the widest pixels of other formats take, and together with those that are
    /// made of them no more than such pixels and the result do.
    fn check(&self, header: &Header, limits: &Limits) -> Result<(), DecodeError> {
        let most = |allowed: u64, bytes: u64| limits.max_pixels.saturating_mul(allowed) / bytes.max(allowed);
        let (stored, made) = (self.shape.stored_bytes(), self.shape.made_bytes());
        let max = most(WIDEST_PIXEL, stored).min(most(WIDEST_PIXEL + RESULT_PIXEL, stored + made));
        let (width, height) = (header.width, header.height);
        if u64::from(width) * u64::from(height) > max { Err(DecodeError::TooManyPixels { width, height, max }) } else { Ok(()) }
    }

    fn pixels(&self, samples: Samples, colour_map: Option<&[[u8; 3]]>) -> Option<Pixels> {
        let (width, height) = (self.shape.width as u32, self.shape.height as u32);
        let image = match (self.kind, samples) {
            (Kind::Cmyk, samples) => return Some(Pixels::Cmyk { width, height, inks: samples.into_8() }),
            (Kind::YCbCr, samples) => {
                let mut pixels = samples.into_8();
                let (stored, _) = pixels.as_chunks_mut::<3>();
                for pixel in stored {
                    *pixel = ycbcr_to_rgb(*pixel);
                }
                buffer(width, height, pixels).map(DynamicImage::ImageRgb8)
            }
            (Kind::Palette, samples) => {
                let colour_map = colour_map?;
                let colour = |index: u8| colour_map.get(usize::from(index)).copied().unwrap_or_default();
                buffer(width, height, samples.into_8().into_iter().flat_map(colour).collect()).map(DynamicImage::ImageRgb8)
            }
            (kind, Samples::Eight(mut samples)) => {
                if self.is_associated {
                    unassociate(&mut samples, self.shape.used);
                }
                match kind {
                    Kind::Grey => buffer(width, height, samples).map(DynamicImage::ImageLuma8),
                    Kind::GreyAlpha => buffer(width, height, samples).map(DynamicImage::ImageLumaA8),
                    Kind::Rgb => buffer(width, height, samples).map(DynamicImage::ImageRgb8),
                    _ => buffer(width, height, samples).map(DynamicImage::ImageRgba8),
                }
            }
            (kind, Samples::Sixteen(mut samples)) => {
                if self.is_associated {
                    unassociate(&mut samples, self.shape.used);
                }
                match kind {
                    Kind::Grey => buffer(width, height, samples).map(DynamicImage::ImageLuma16),
                    Kind::GreyAlpha => buffer(width, height, samples).map(DynamicImage::ImageLumaA16),
                    Kind::Rgb => buffer(width, height, samples).map(DynamicImage::ImageRgb16),
                    _ => buffer(width, height, samples).map(DynamicImage::ImageRgba16),
                }
            }
        };
        image.map(Pixels::Image)
    }
}

fn buffer<P: Pixel + PixelWithColorType>(width: u32, height: u32, samples: Vec<P::Subpixel>) -> Option<ImageBuffer<P, Vec<P::Subpixel>>> {
    ImageBuffer::from_raw(width, height, samples)
}

/// Divides the colours by the alpha that was multiplied into them.
fn unassociate<T: Copy + Into<u32> + TryFrom<u32>>(samples: &mut [T], channels: usize) {
    let max = if size_of::<T>() == 1 { u32::from(u8::MAX) } else { u32::from(u16::MAX) };
    for pixel in samples.chunks_exact_mut(channels) {
        let Some((alpha, colours)) = pixel.split_last_mut() else { continue };
        let alpha: u32 = (*alpha).into();
        for colour in colours {
            let value: u32 = (*colour).into();
            // What is clear has no colour. Products stay below 2^32.
            let value = (value * max + alpha / 2).checked_div(alpha).unwrap_or(0).min(max);
            *colour = T::try_from(value).unwrap_or(*colour);
        }
    }
}

fn samples(decoder: Reader<'_>, shape: &Shape, limits: &Limits) -> Result<Samples, DecodeError> {
    let mut tiff_limits = TiffLimits::default();
    tiff_limits.decoding_buffer_size = usize::try_from(limits.max_pixels.saturating_mul(WIDEST_PIXEL)).unwrap_or(usize::MAX).max(64);
    tiff_limits.intermediate_buffer_size = tiff_limits.decoding_buffer_size;
    let mut decoder = decoder.with_limits(tiff_limits);
    let mut stored = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut stored).map_err(corrupt)?;
    // Planes that do not fit the limits are left out by the decoder.
    if stored.as_buffer(0).byte_len() < layout.complete_len {
        return Err(Format::Tiff.corrupt("its planes take more memory than there is for a picture"));
    }
    shape.samples(stored, layout.planes).ok_or_else(|| Format::Tiff.corrupt("it holds other samples than it declares"))
}

/// The tables of ITU-R BT.601 with full range are read, which are those that count where nothing else is written.
fn check_ycbcr(decoder: &mut Reader<'_>) -> Result<(), DecodeError> {
    /// `YCbCrCoefficients` and `ReferenceBlackWhite`.
    const TABLES: [(u16, &[f64]); 2] = [(529, &[0.299, 0.587, 0.114]), (532, &[0.0, 255.0, 128.0, 255.0, 128.0, 255.0])];
    let subsampling = numbers(decoder, Tag::ChromaSubsampling)?.unwrap_or_else(|| vec![2, 2]);
    if subsampling != [1, 1] {
        return Err(not_read("subsampled YCbCr", "send the picture as JPEG"));
    }
    for (tag, usual) in TABLES {
        let Some(value) = decoder.find_tag(Tag::from_u16_exhaustive(tag)).map_err(corrupt)? else { continue };
        // A fraction of 0/0 is near nothing.
        let given = reals(value);
        let is_usual = given.len() == usual.len() && given.iter().zip(usual).all(|(given, usual)| (given - usual).abs() <= 0.002);
        if !is_usual {
            return Err(not_read("YCbCr with tables of its own", AS_PNG));
        }
    }
    Ok(())
}

/// Numbers of a tag that holds fractions.
fn reals(value: Value) -> Vec<f64> {
    match value {
        Value::List(values) => values.into_iter().flat_map(reals).collect(),
        Value::Rational(above, below) => vec![f64::from(above) / f64::from(below)],
        other => other.into_u32().map(f64::from).into_iter().collect(),
    }
}

/// The colours of a palette: all reds, all greens, all blues, of 16 bits.
fn colour_map(decoder: &mut Reader<'_>, bits: u16) -> Result<Vec<[u8; 3]>, DecodeError> {
    let map = numbers(decoder, Tag::ColorMap)?.unwrap_or_default();
    let length = 1_usize << bits;
    if map.len() != 3 * length {
        return Err(Format::Tiff.corrupt("its palette has not one colour for each value"));
    }
    // Some writers store 8 bits, as libtiff too takes them to have done where no number is larger.
    let shift = if map.iter().all(|value| *value < 256) { 0 } else { 8 };
    Ok((0..length).map(|index| [0, 1, 2].map(|channel| (map[channel * length + index] >> shift) as u8)).collect())
}

/// The file with its palette declared to be grey, since the decoder unpacks those alone.
fn palette_as_grey(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let entries = directory::entries(bytes).unwrap_or_default();
    let photometric = entries.iter().find(|entry| entry.tag == Tag::PhotometricInterpretation.to_u16());
    let at = photometric.ok_or_else(|| Format::Tiff.corrupt("its directory cannot be followed"))?.value_at;
    let black_is_zero = if bytes.starts_with(b"II") { 1_u16.to_le_bytes() } else { 1_u16.to_be_bytes() };
    let mut grey = bytes.to_vec();
    grey[at..at + 2].copy_from_slice(&black_is_zero);
    Ok(grey)
}

fn profile(decoder: &mut Reader<'_>) -> Option<Profile<'static>> {
    let mut directory = decoder.image_ifd();
    let count = directory.find_entry(Tag::IccProfile)?.count();
    let mut profile = vec![0; usize::try_from(count).ok().filter(|count| *count <= PROFILE_BYTES)?];
    let length = directory.find_tag_bytes(Tag::IccProfile, &mut profile, 0).ok()??;
    profile.truncate(length);
    Some(Profile::Icc(Cow::Owned(profile)))
}

fn open(bytes: &[u8]) -> Result<Reader<'_>, DecodeError> {
    directory::check(bytes)?;
    Decoder::new(Cursor::new(bytes)).map_err(corrupt)
}

fn number<T: TryFrom<u64>>(decoder: &mut Reader<'_>, tag: Tag) -> Result<Option<T>, DecodeError> {
    decoder.find_tag_unsigned::<T>(tag).map_err(corrupt)
}

fn numbers(decoder: &mut Reader<'_>, tag: Tag) -> Result<Option<Vec<u16>>, DecodeError> {
    decoder.find_tag_unsigned_vec::<u16>(tag).map_err(corrupt)
}

const AS_PNG: &str = "send the picture as PNG";

fn not_read(feature: &str, instead: &str) -> DecodeError {
    Format::Tiff.corrupt(format!("{feature} is not read; {instead}"))
}

fn corrupt(error: TiffError) -> DecodeError {
    Format::Tiff.corrupt(error)
}
