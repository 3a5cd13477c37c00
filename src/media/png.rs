//! The chunks of a PNG: size, EXIF wherever it stands, and whether the file is whole.

use super::header::{Header, exif_orientation};
use super::{DecodeError, Format};

const SIGNATURE: usize = 8;

/// Walks the chunks to the end marker. `eXIf` may stand before or after the pixels (PNG third edition, 11.3.4.4).
pub(super) fn header(bytes: &[u8]) -> Result<Header, DecodeError> {
    let cut = || Format::Png.cut();
    let mut header: Option<Header> = None;
    let mut rest = bytes.get(SIGNATURE..).ok_or_else(cut)?;
    loop {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let (kind, after) = after.split_first_chunk::<4>().ok_or_else(cut)?;
        let (data, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or_else(cut)?;
        let (_checksum, after) = after.split_first_chunk::<4>().ok_or_else(cut)?;
        match (kind, &mut header) {
            (b"IHDR", _) => {
                let (width, data) = data.split_first_chunk::<4>().ok_or_else(cut)?;
                let (height, _) = data.split_first_chunk::<4>().ok_or_else(cut)?;
                header = Some(Header::plain(u32::from_be_bytes(*width), u32::from_be_bytes(*height)));
            }
            (b"eXIf", Some(header)) => header.orientation = exif_orientation(data),
            (b"IEND", Some(header)) => return Ok(*header),
            (_, Some(_)) => {}
            (_, None) => return Err(Format::Png.corrupt("its first chunk is not IHDR")),
        }
        rest = after;
    }
}
