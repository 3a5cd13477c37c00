//! Untrusted bytes to RGB pixels.
//!
//! [`decode`] is the only way in. What it promises:
//!
//! - **Formats.** JPEG, PNG, GIF, WebP, BMP and TIFF, told apart by their first bytes, never by a name or a
//!   `Content-Type`. Everything else is refused by name where it is known, and so is what a format can do and is not read.
//! - **Limits before memory.** The size that a file declares is read from its header, and so is the size of what
//!   a container hides (frames of a GIF or WebP, frames of a JPEG), before a decoder is started.
//! - **Cut files are refused**, in every format: a file has to hold all of the picture that is returned. For JPEG
//!   and PNG that means up to the end marker, since a progressive or interlaced picture is complete only there; and
//!   a JPEG has to have data for every block of every scan, and scans for every coefficient, before it.
//! - **What stands behind the end of a picture is not looked at**: a second picture, a video, or padding.
//! - Damage inside a complete file is an error where the format notices it (checksums, impossible codes), and
//!   otherwise shows as wrong pixels, as in every other decoder.
//! - **One look.** Colours become sRGB: by the ICC profile of a JPEG, PNG, WebP or TIFF, by cICP, or by gAMA and cHRM of a
//!   PNG. A profile that is damaged, longer than 4 MiB or does not fit the picture is ignored. CMYK without a profile is
//!   converted as Pillow does. EXIF orientation is applied, transparency is composed on white, 16 bits and floats are
//!   scaled to 8, animations give their first frame.
//! - **No panic gets out**, whatever a decoder does with hostile bytes.
//!
//! ```
//! use dino_vision::media::{Limits, decode};
//!
//! let mut file = std::io::Cursor::new(Vec::new());
//! image::RgbImage::from_pixel(4, 3, image::Rgb([200, 10, 10])).write_to(&mut file, image::ImageFormat::Png)?;
//! assert_eq!(decode(file.get_ref(), &Limits::default())?.dimensions(), (4, 3));
//! assert!(decode(file.get_ref(), &Limits::with_max_pixels(11)).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod colour;
mod error;
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

use image::codecs::{bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageResult, RgbImage};

use colour::{Pixels, Profile};
pub use error::DecodeError;
pub use format::Format;
use header::Header;
pub use thumbnail::{THUMBNAIL_SIDE, thumbnail, within};

/// Bytes of the widest pixel that is kept as it is stored: RGBA of 16 bits.
const WIDEST_PIXEL: u64 = 8;
/// Bytes of a pixel of the result: RGB of 8 bits.
const RESULT_PIXEL: u64 = 3;

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
    /// worst case, 16-bit RGBA next to the RGB result, stays below 600 MB. A TIFF whose samples take more while they are
    /// put in order (planes of 16 bits, numbers of 32 and 64 bits, floats) may have as many fewer pixels.
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

/// Decodes one picture, upright, as 8-bit RGB, on white where it is transparent.
///
/// This is CPU work (tens of milliseconds for a camera's photo): call it outside an async executor.
///
/// # Errors
/// Every kind of bad input has its variant of [`DecodeError`]; no input panics.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, DecodeError> {
    decode_onto(255, bytes, limits)
}

/// [`decode`] on black, for masks: what was not drawn on is transparent, and does not belong to them.
///
/// # Errors
/// Those of [`decode`].
pub fn decode_mask(bytes: &[u8], limits: &Limits) -> Result<RgbImage, DecodeError> {
    decode_onto(0, bytes, limits)
}

fn decode_onto(background: u8, bytes: &[u8], limits: &Limits) -> Result<RgbImage, DecodeError> {
    let format = Format::sniff(bytes)?;
    let reader = || Cursor::new(bytes);
    guard::quietly(|| match format {
        Format::Jpeg => {
            let markers = jpeg::Markers::read(bytes)?;
            let header = checked(format, markers.header(), limits)?;
            finish(background, format, header, jpeg::decode(&markers)?, markers.profile().as_slice())
        }
        Format::Png => {
            let chunks = png::Chunks::read(bytes)?;
            let header = checked(format, chunks.header, limits)?;
            // This decoder takes its bounds when it is made, and counts metadata alone: the buffer of pixels is ours.
            let pixels = decode_with(format, header, || PngDecoder::with_limits(chunks.pixels(), allowance(0)))?;
            finish(background, format, header, pixels, &chunks.profiles())
        }
        Format::Tiff => {
            let header = checked(format, tiff::header(bytes)?, limits)?;
            let (pixels, profile) = tiff::decode(bytes, &header, limits)?;
            finish(background, format, header, pixels, profile.as_slice())
        }
        Format::Gif | Format::WebP | Format::Bmp => {
            let header = checked(format, Header::read(format, bytes)?, limits)?;
            let (pixels, profile) = match format {
                Format::Gif => (decode_with(format, header, || GifDecoder::new(reader()))?, None),
                Format::Bmp => (decode_with(format, header, || BmpDecoder::new(reader()))?, None),
                _ => (decode_with(format, header, || WebPDecoder::new(reader()))?, webp::profile(bytes)),
            };
            finish(background, format, header, pixels, profile.as_slice())
        }
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

/// How the stored pixels of a picture have to be turned to stand upright, for those who read them without [`decode`], which does so.
///
/// # Errors
/// Where the header cannot be read.
pub fn orientation(bytes: &[u8]) -> Result<Orientation, DecodeError> {
    let format = Format::sniff(bytes)?;
    guard::quietly(|| Header::read(format, bytes).map(|header| header.orientation))
        .unwrap_or_else(|| Err(format.corrupt("its header could not be read")))
}

fn checked(format: Format, header: Header, limits: &Limits) -> Result<Header, DecodeError> {
    header.check(format, limits)?;
    Ok(header)
}

/// Opens a decoder for a file whose header was checked.
fn decode_with<D: ImageDecoder>(format: Format, header: Header, open: impl FnOnce() -> ImageResult<D>) -> Result<Pixels, DecodeError> {
    let pixels = u64::from(header.width) * u64::from(header.height);
    open()
        .and_then(|mut decoder| {
            decoder.set_limits(allowance(pixels))?;
            DynamicImage::from_decoder(decoder)
        })
        .map(Pixels::Image)
        .map_err(|error| format.corrupt(error))
}

/// From stored pixels to the picture that is seen.
fn finish(background: u8, format: Format, header: Header, pixels: Pixels, profiles: &[Profile<'_>]) -> Result<RgbImage, DecodeError> {
    let picture = pixels.into_srgb(profiles).ok_or_else(|| format.corrupt("it holds fewer pixels than it declares"))?;
    Ok(upright(flatten::onto(background, picture), header))
}

/// Memory that a decoder may ask for.
fn allowance(pixels: u64) -> image::Limits {
    /// For tables, profiles and text next to the pixels; far more than real files hold.
    const METADATA: u64 = 32 << 20;

    let mut allowance = image::Limits::no_limits();
    allowance.max_alloc = Some(METADATA + WIDEST_PIXEL * pixels);
    allowance
}

fn upright(picture: RgbImage, header: Header) -> RgbImage {
    let mut picture = DynamicImage::ImageRgb8(picture);
    picture.apply_orientation(header.orientation);
    picture.into_rgb8()
}
