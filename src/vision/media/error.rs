//! Why bytes did not become a picture.

use super::Format;

/// Why bytes did not become a picture. The first five say what the sender can do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There are no bytes at all.
    #[error("the picture is empty (0 bytes)")]
    Empty,
    /// The bytes are those of a format that is not offered, or of no picture.
    #[error("{found} is not read here; send {}", Format::OFFERED)]
    NotOffered {
        /// What the bytes look like, in words.
        found: String,
    },
    /// A format that phones store, for which decoders are not everywhere.
    #[error(
        "{name} is not read here; send JPEG, PNG or WebP: phones give JPEG where the camera is set to it (\"most compatible\"), and this \
         server's page converts {name} in browsers that show it"
    )]
    PhoneFormat {
        /// HEIC or AVIF.
        name: &'static str,
    },
    /// The picture, or a part inside its file, declares more pixels than allowed.
    #[error("the picture declares {width} x {height} pixels, more than the limit of {max}; send a smaller one")]
    TooManyPixels {
        /// Declared width.
        width: u32,
        /// Declared height.
        height: u32,
        /// [`Limits::max_pixels`](super::Limits::max_pixels).
        max: u64,
    },
    /// A side of the picture, or of a part inside its file, is longer than allowed.
    #[error("the picture declares {width} x {height} pixels, and no side may be longer than {max}; send a smaller one")]
    SideTooLong {
        /// Declared width.
        width: u32,
        /// Declared height.
        height: u32,
        /// [`Limits::max_side`](super::Limits::max_side).
        max: u32,
    },
    /// The file is cut, damaged, or uses a part of its format that is not read.
    #[error("the {format} cannot be read: {reason}")]
    Corrupt {
        /// The format that its first bytes name.
        format: Format,
        /// What is wrong with it.
        reason: String,
    },
}

impl DecodeError {
    /// Whether the picture is refused for its size alone (413), rather than for being no picture (422).
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::TooManyPixels { .. } | Self::SideTooLong { .. })
    }
}
