//! The short list of formats, told apart by their first bytes.

use std::fmt;

use image::ImageFormat;

use super::DecodeError;

/// A format that is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Baseline and progressive, grey, colour and CMYK.
    Jpeg,
    /// Every colour type; of an APNG the default image.
    Png,
    /// First frame.
    Gif,
    /// Lossy, lossless, and the first frame of an animation.
    WebP,
    /// Windows bitmap.
    Bmp,
    /// First page.
    Tiff,
}

impl Format {
    /// The list, for error messages.
    pub const OFFERED: &str = "JPEG, PNG, GIF, WebP, BMP or TIFF";

    /// The format that the first bytes name.
    ///
    /// # Errors
    /// [`DecodeError::Empty`] and [`DecodeError::NotOffered`].
    pub fn sniff(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.is_empty() {
            return Err(DecodeError::Empty);
        }
        let found = match image::guess_format(bytes) {
            Ok(ImageFormat::Jpeg) => return Ok(Self::Jpeg),
            Ok(ImageFormat::Png) => return Ok(Self::Png),
            Ok(ImageFormat::Gif) => return Ok(Self::Gif),
            Ok(ImageFormat::WebP) => return Ok(Self::WebP),
            Ok(ImageFormat::Bmp) => return Ok(Self::Bmp),
            Ok(ImageFormat::Tiff) => return Ok(Self::Tiff),
            Ok(ImageFormat::Avif) => return Err(DecodeError::PhoneFormat { name: "AVIF" }),
            Ok(other) => format!("the format {}", other.to_mime_type()),
            // Where offsets have 64 bits.
            Err(_) if bytes.starts_with(b"II\x2B\0") || bytes.starts_with(b"MM\0\x2B") => return Ok(Self::Tiff),
            Err(_) if let Some(name) = heif(bytes) => return Err(DecodeError::PhoneFormat { name }),
            Err(_) if bytes.starts_with(b"\xFF\x0A") || bytes.starts_with(b"\0\0\0\x0CJXL ") => "JPEG XL".to_owned(),
            Err(_) => match std::str::from_utf8(&bytes[..bytes.len().min(64)]) {
                Ok(_) => "text".to_owned(),
                Err(_) => "an unknown format".to_owned(),
            },
        };
        Err(DecodeError::NotOffered { found })
    }

    /// [`DecodeError::Corrupt`] of this format.
    pub(super) fn corrupt(self, reason: impl fmt::Display) -> DecodeError {
        DecodeError::Corrupt { format: self, reason: reason.to_string() }
    }

    /// The error of a file that ends too early.
    pub(super) fn cut(self) -> DecodeError {
        self.corrupt("the file ends before its picture does")
    }

    /// MIME type, for example `image/jpeg`.
    pub fn mime(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::Gif => "image/gif",
            Self::WebP => "image/webp",
            Self::Bmp => "image/bmp",
            Self::Tiff => "image/tiff",
        }
    }
}

/// The name of a picture in the container of ISO/IEC 23008-12, which is that of videos too.
fn heif(bytes: &[u8]) -> Option<&'static str> {
    let (length, brands) = bytes.split_first_chunk::<4>()?;
    let brands = brands.strip_prefix(b"ftyp")?;
    // The major brand, a version, and the brands that a reader of which the file would do as well.
    let length = (u32::from_be_bytes(*length) as usize).saturating_sub(8).clamp(4, 256);
    let (brands, _) = brands[..length.min(brands.len())].as_chunks::<4>();
    let holds = |wanted: &[&[u8; 4]]| brands.iter().any(|brand| wanted.contains(&brand));
    if holds(&[b"avif", b"avis"]) {
        Some("AVIF")
    } else if holds(&[b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"]) {
        Some("HEIC")
    } else {
        None
    }
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::Gif => "GIF",
            Self::WebP => "WebP",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
        })
    }
}
