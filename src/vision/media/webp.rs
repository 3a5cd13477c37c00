//! The chunks of a WebP: canvas, what its frames declare, and EXIF.

use std::borrow::Cow;

use super::colour::Profile;
use super::header::{Header, exif_orientation};
use super::{DecodeError, Format};

/// Walks the RIFF chunks. The canvas is the picture's size; bitstreams and frames inside count as parts.
pub(super) fn header(bytes: &[u8]) -> Result<Header, DecodeError> {
    let cut = || Format::WebP.cut();
    let (riff, chunks) = bytes.split_first_chunk::<12>().ok_or_else(cut)?;
    // The declared size counts from behind itself, `WEBP` included.
    let declared = u32_at(riff, 4).saturating_sub(4) as usize;
    let chunks = chunks.get(..declared).ok_or_else(cut)?;

    let mut header: Option<Header> = None;
    for Chunk { kind, data } in split(chunks)? {
        match &kind {
            b"VP8X" => {
                let canvas = data.get(4..10).ok_or_else(cut)?;
                header = Some(Header::plain(1 + u24_at(canvas, 0), 1 + u24_at(canvas, 3)));
            }
            b"EXIF" => {
                if let Some(header) = &mut header {
                    header.orientation = exif_orientation(data);
                }
            }
            b"ANMF" => {
                let (frame, parts) = data.split_first_chunk::<16>().ok_or_else(cut)?;
                let header = header.as_mut().ok_or_else(|| Format::WebP.corrupt("a frame without a canvas"))?;
                header.add_part((1 + u24_at(frame, 6), 1 + u24_at(frame, 9)));
                for Chunk { kind, data } in split(parts)? {
                    if let Some(size) = bitstream_size(kind, data) {
                        header.add_part(size);
                    }
                }
            }
            _ => {
                if let Some(size) = bitstream_size(kind, data) {
                    header.get_or_insert_with(|| Header::plain(size.0, size.1)).add_part(size);
                }
            }
        }
    }
    header.ok_or_else(|| Format::WebP.corrupt("it holds no picture"))
}

/// The ICC profile of a file whose header was read.
pub(super) fn profile(bytes: &[u8]) -> Option<Profile<'_>> {
    let (riff, chunks) = bytes.split_first_chunk::<12>()?;
    let chunks = split(chunks.get(..u32_at(riff, 4).saturating_sub(4) as usize)?).ok()?;
    let profile = chunks.into_iter().find(|chunk| &chunk.kind == b"ICCP")?.data;
    Some(Profile::Icc(Cow::Borrowed(profile)))
}

/// Size in the first bytes of a lossy (RFC 6386, 9.1) or lossless (RFC 9649, 3.4) bitstream.
fn bitstream_size(kind: [u8; 4], data: &[u8]) -> Option<(u32, u32)> {
    match &kind {
        b"VP8 " => {
            let size = u32_at(data.get(6..10)?, 0);
            Some((size & 0x3FFF, size >> 16 & 0x3FFF))
        }
        b"VP8L" => {
            let size = u32_at(data.get(1..5)?, 0);
            Some((1 + (size & 0x3FFF), 1 + (size >> 14 & 0x3FFF)))
        }
        _ => None,
    }
}

struct Chunk<'a> {
    kind: [u8; 4],
    data: &'a [u8],
}

/// The chunks one after another. One that runs over the end is an error.
fn split(mut rest: &[u8]) -> Result<Vec<Chunk<'_>>, DecodeError> {
    let cut = || Format::WebP.cut();
    let mut chunks = Vec::new();
    while let Some((&kind, after)) = rest.split_first_chunk::<4>() {
        let (length, after) = after.split_first_chunk::<4>().ok_or_else(cut)?;
        let (data, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(cut)?;
        chunks.push(Chunk { kind, data });
        // Chunks of odd length are padded; the last one's padding may be missing.
        rest = after.get(data.len() % 2..).unwrap_or_default();
    }
    Ok(chunks)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u24_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], 0])
}
