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
            Ok(other) => format!("the format {}", other.to_mime_type()),
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
