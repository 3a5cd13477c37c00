//! Untrusted bytes to RGB pixels.
//!
//! [`decode`] is the only way in. What it promises:
//!
//! - **Formats.** JPEG, PNG, GIF, WebP, BMP and TIFF, told apart by their first bytes, never by a name or a
//!   `Content-Type`. Everything else is refused by name where it is known.
//! - **Limits before memory.** The size that a file declares is read from its header, and so is the size of what
//!   a container hides (frames of a GIF or WebP, frames of a JPEG), before a decoder is started.
//! - **Cut files are refused**, in every format: a file has to hold all of the picture that is returned. For JPEG
//!   and PNG that means up to the end marker, since a progressive or interlaced picture is complete only there.
//!   Damage inside a complete file is an error where the format notices it (checksums, impossible codes), and
//!   otherwise shows as wrong pixels, as in every other decoder.
//! - **One look.** EXIF orientation is applied, transparency is composed on white, 16 bits and floats are scaled to
//!   8, CMYK is converted as Pillow does, animations give their first frame. Colour profiles are not applied.
//! - **No panic gets out**, whatever a decoder does with hostile bytes.

mod address;
mod error;
mod fetch;
mod flatten;
mod format;
mod gif;
mod guard;
mod header;
mod jpeg;
mod png;
mod thumbnail;
mod tiff;
mod webp;

use std::io::Cursor;

use image::codecs::{bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, tiff::TiffDecoder, webp::WebPDecoder};
use image::{DynamicImage, ImageDecoder, ImageResult, RgbImage};

pub use error::DecodeError;
pub use fetch::{FetchError, FetchOptions, Fetcher, Host, root_certificates};
pub use format::Format;
use header::Header;
pub use thumbnail::{THUMBNAIL_SIDE, thumbnail};

/// Bounds on what a file may declare. They are checked before memory is spent on pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most pixels (width times height) of a picture and of each part inside its file.
    pub max_pixels: u64,
    /// Longest side in pixels.
    pub max_side: u32,
}

impl Limits {
    /// 50 million pixels: more than today's cameras and scanners give (a 48-megapixel photo passes), while the
    /// worst case, 16-bit RGBA next to the RGB result, stays below 600 MB.
    pub const MAX_PIXELS: u64 = 50_000_000;
    /// The longest side that JPEG and GIF can express. It keeps the resampling weights of a picture one pixel high
    /// and millions wide from growing beyond all measure.
    pub const MAX_SIDE: u32 = 65_535;

    /// Limits with another number of pixels.
    pub fn with_max_pixels(max_pixels: u64) -> Self {
        Self { max_pixels, ..Self::default() }
    }

    fn check(&self, (width, height): (u32, u32)) -> Result<(), DecodeError> {
        if width.max(height) > self.max_side {
            return Err(DecodeError::SideTooLong { width, height, max: self.max_side });
        }
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(DecodeError::TooManyPixels { width, height, max: self.max_pixels });
        }
        Ok(())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_pixels: Self::MAX_PIXELS, max_side: Self::MAX_SIDE }
    }
}

/// Decodes one picture, upright, as 8-bit RGB.
///
/// This is CPU work (tens of milliseconds for a camera's photo): call it outside an async executor.
///
/// # Errors
/// Every kind of bad input has its variant of [`DecodeError`]; no input panics.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, DecodeError> {
    let format = Format::sniff(bytes)?;
    let reader = || Cursor::new(bytes);
    guard::quietly(|| match format {
        Format::Jpeg => {
            let markers = jpeg::Markers::read(bytes)?;
            let header = markers.header();
            header.check(format, limits)?;
            Ok(upright(jpeg::decode(bytes, &markers)?, header))
        }
        // This decoder takes its bounds when it is made, and counts metadata alone: the buffer of pixels is ours.
        Format::Png => decode_with(format, bytes, limits, || PngDecoder::with_limits(reader(), allowance(0))),
        Format::Gif => decode_with(format, bytes, limits, || GifDecoder::new(reader())),
        Format::WebP => decode_with(format, bytes, limits, || WebPDecoder::new(reader())),
        Format::Bmp => decode_with(format, bytes, limits, || BmpDecoder::new(reader())),
        Format::Tiff => decode_with(format, bytes, limits, || TiffDecoder::new(reader())),
    })
    .unwrap_or_else(|| Err(format.corrupt("the decoder could not cope with it")))
}

/// Width and height of a picture as it will be seen (orientation applied), from its header alone.
///
/// # Errors
/// Like [`decode`], for what the header shows.
pub fn dimensions(bytes: &[u8], limits: &Limits) -> Result<(u32, u32), DecodeError> {
    let format = Format::sniff(bytes)?;
    guard::quietly(|| {
        let header = Header::read(format, bytes)?;
        header.check(format, limits)?;
        Ok(header.upright())
    })
    .unwrap_or_else(|| Err(format.corrupt("its header could not be read")))
}

/// Reads and checks the header, and only then opens the decoder.
fn decode_with<D: ImageDecoder>(
    format: Format,
    bytes: &[u8],
    limits: &Limits,
    open: impl FnOnce() -> ImageResult<D>,
) -> Result<RgbImage, DecodeError> {
    let header = Header::read(format, bytes)?;
    header.check(format, limits)?;
    let pixels = u64::from(header.width) * u64::from(header.height);
    let picture = open()
        .and_then(|mut decoder| {
            decoder.set_limits(allowance(pixels))?;
            DynamicImage::from_decoder(decoder)
        })
        .map_err(|error| format.corrupt(error))?;
    Ok(upright(flatten::onto_white(picture), header))
}

/// Memory that a decoder may ask for.
fn allowance(pixels: u64) -> image::Limits {
    /// For tables, profiles and text next to the pixels; far more than real files hold.
    const METADATA: u64 = 32 << 20;
    /// RGBA of 16 bits.
    const WIDEST_PIXEL: u64 = 8;

    let mut allowance = image::Limits::no_limits();
    allowance.max_alloc = Some(METADATA + WIDEST_PIXEL * pixels);
    allowance
}

fn upright(picture: RgbImage, header: Header) -> RgbImage {
    let mut picture = DynamicImage::ImageRgb8(picture);
    picture.apply_orientation(header.orientation);
    picture.into_rgb8()
}
