//! The first directory of a TIFF.

use std::io::Cursor;

use image::metadata::Orientation;
use tiff::TiffError;
use tiff::decoder::Decoder;
use tiff::tags::{CompressionMethod, Tag};

use super::header::Header;
use super::{DecodeError, Format};

/// Size and orientation of the first page.
pub(super) fn header(bytes: &[u8]) -> Result<Header, DecodeError> {
    let corrupt = |error: TiffError| Format::Tiff.corrupt(error);
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(corrupt)?;
    let (width, height) = decoder.dimensions().map_err(corrupt)?;
    let mut header = Header::plain(width, height);

    // Strips of JPEG carry sizes of their own, which the decoder would follow unchecked.
    let compression = decoder.find_tag_unsigned::<u16>(Tag::Compression).map_err(corrupt)?;
    if compression == Some(CompressionMethod::ModernJPEG.to_u16()) {
        return Err(Format::Tiff.corrupt("JPEG compression inside TIFF is not read; send the picture as JPEG"));
    }
    // Tiles may be larger than the picture.
    let tile = |decoder: &mut Decoder<_>, tag| decoder.find_tag_unsigned::<u32>(tag).map_err(corrupt);
    if let (Some(width), Some(height)) = (tile(&mut decoder, Tag::TileWidth)?, tile(&mut decoder, Tag::TileLength)?) {
        header.add_part((width, height));
    }
    let orientation = decoder.find_tag_unsigned::<u8>(Tag::Orientation).map_err(corrupt)?;
    header.orientation = orientation.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms);
    Ok(header)
}
