//! What a file declares of itself, read before any decoder is started.

use std::io::Cursor;

use image::ImageDecoder;
use image::codecs::bmp::BmpDecoder;
use image::metadata::Orientation;

use super::{DecodeError, Format, Limits, gif, jpeg, png, tiff, webp};

/// What a file declares of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Header {
    /// Stored width, before orientation.
    pub(super) width: u32,
    /// Stored height, before orientation.
    pub(super) height: u32,
    /// The largest part that a decoder would make room for: a frame inside the canvas, for example.
    pub(super) largest_part: (u32, u32),
    /// How the stored pixels have to be turned.
    pub(super) orientation: Orientation,
}

impl Header {
    /// A header of a picture without parts and without orientation.
    pub(super) fn plain(width: u32, height: u32) -> Self {
        Self { width, height, largest_part: (width, height), orientation: Orientation::NoTransforms }
    }

    pub(super) fn read(format: Format, bytes: &[u8]) -> Result<Self, DecodeError> {
        match format {
            Format::Jpeg => jpeg::Markers::read(bytes).map(|markers| markers.header()),
            Format::Png => png::Chunks::read(bytes).map(|chunks| chunks.header),
            Format::Gif => gif::header(bytes),
            Format::WebP => webp::header(bytes),
            Format::Tiff => tiff::header(bytes),
            Format::Bmp => {
                let decoder = BmpDecoder::new(Cursor::new(bytes)).map_err(|error| format.corrupt(error))?;
                let (width, height) = decoder.dimensions();
                Ok(Self::plain(width, height))
            }
        }
    }

    /// Makes room for a part of the file.
    pub(super) fn add_part(&mut self, (width, height): (u32, u32)) {
        let area = |(w, h): (u32, u32)| u64::from(w) * u64::from(h);
        if area((width, height)) > area(self.largest_part) {
            self.largest_part = (width, height);
        }
    }

    pub(super) fn check(&self, format: Format, limits: &Limits) -> Result<(), DecodeError> {
        if self.width == 0 || self.height == 0 {
            return Err(format.corrupt("it declares no pixels"));
        }
        limits.check((self.width, self.height))?;
        limits.check(self.largest_part)
    }

    /// Width and height after orientation.
    pub(super) fn upright(&self) -> (u32, u32) {
        match self.orientation {
            Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH => {
                (self.height, self.width)
            }
            _ => (self.width, self.height),
        }
    }
}

/// Orientation in an EXIF block, which may start with the `Exif\0\0` that JPEG puts in front of it (some writers
/// copy it into PNG and WebP). No or nonsensical orientation means none.
pub(super) fn exif_orientation(block: &[u8]) -> Orientation {
    let tiff = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
    Orientation::from_exif_chunk(tiff).unwrap_or(Orientation::NoTransforms)
}
