//! The chunks of a PNG: size, EXIF wherever it stands, colours, whether the file is whole, and the part of it that a decoder needs.

use std::borrow::Cow;
use std::io::{self, BufRead, Read, Seek, SeekFrom};

use flate2::read::ZlibDecoder;

use super::colour::{PROFILE_BYTES, Profile};
use super::header::{Header, exif_orientation};
use super::{DecodeError, Format};

const SIGNATURE: usize = 8;

/// What the chunks of a whole file say.
pub(super) struct Chunks<'a> {
    /// Size and orientation.
    pub(super) header: Header,
    /// Signature, IHDR, PLTE, tRNS, the IDATs and the end: all that pixels are made of. Text, profiles and animations stay out of the
    /// decoder, which would keep them in memory.
    pixels: Pieces<'a>,
    cicp: Option<&'a [u8]>,
    iccp: Option<&'a [u8]>,
    is_srgb: bool,
    gamma: Option<&'a [u8]>,
    primaries: Option<&'a [u8]>,
}

impl<'a> Chunks<'a> {
    /// Walks the chunks to the end marker. `eXIf` may stand before or after the pixels (PNG third edition, 11.3.4.4).
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let cut = || Format::Png.cut();
        let (signature, mut rest) = bytes.split_at_checked(SIGNATURE).ok_or_else(cut)?;
        let mut found: Option<Self> = None;
        // The first palette and the first transparency count; a second run of IDAT does not.
        let (mut palette, mut transparency, mut data): (&[u8], &[u8], &[u8]) = (&[], &[], &[]);
        let mut last_kind = *b"    ";
        loop {
            let (length, after) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
            let (kind, after) = after.split_first_chunk::<4>().ok_or_else(cut)?;
            let (content, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or_else(cut)?;
            let (_checksum, after) = after.split_first_chunk::<4>().ok_or_else(cut)?;
            let chunk = &rest[..rest.len() - after.len()];
            match (kind, &mut found) {
                (b"IHDR", None) => {
                    let (width, sides) = content.split_first_chunk::<4>().ok_or_else(cut)?;
                    let (height, _) = sides.split_first_chunk::<4>().ok_or_else(cut)?;
                    found = Some(Self {
                        header: Header::plain(u32::from_be_bytes(*width), u32::from_be_bytes(*height)),
                        pixels: Pieces { pieces: [signature, chunk, &[], &[], &[], &[]] },
                        cicp: None,
                        iccp: None,
                        is_srgb: false,
                        gamma: None,
                        primaries: None,
                    });
                }
                (_, None) => return Err(Format::Png.corrupt("its first chunk is not IHDR")),
                (b"IHDR", Some(_)) => return Err(Format::Png.corrupt("it has two IHDR chunks")),
                (b"PLTE", _) if palette.is_empty() => palette = chunk,
                (b"tRNS", _) if transparency.is_empty() => transparency = chunk,
                (b"IDAT", _) if data.is_empty() => data = chunk,
                (b"IDAT", _) if last_kind == *b"IDAT" => data = &bytes[bytes.len() - rest.len() - data.len()..bytes.len() - after.len()],
                (b"IDAT", _) => return Err(Format::Png.corrupt("its IDAT chunks do not follow one another")),
                (b"eXIf", Some(found)) => found.header.orientation = exif_orientation(content),
                (b"IEND", Some(_)) => {
                    let mut found = found.ok_or_else(cut)?;
                    let [signature, header, ..] = found.pixels.pieces;
                    found.pixels.pieces = [signature, header, palette, transparency, data, chunk];
                    return Ok(found);
                }
                // Colours are told before the pixels.
                (_, Some(found)) if data.is_empty() => match kind {
                    b"cICP" => found.cicp = Some(content),
                    b"iCCP" => found.iccp = Some(content),
                    b"sRGB" => found.is_srgb = true,
                    b"gAMA" => found.gamma = Some(content),
                    b"cHRM" => found.primaries = Some(content),
                    _ => {}
                },
                _ => {}
            }
            last_kind = *kind;
            rest = after;
        }
    }

    /// The file without what no pixel is made of.
    pub(super) fn pixels(&self) -> impl BufRead + Seek + use<'a> {
        self.pixels.clone()
    }

    /// What the file says of its colours; what counts first comes first (PNG third edition, 4.3).
    pub(super) fn profiles(&self) -> Vec<Profile<'a>> {
        let mut profiles = Vec::new();
        if let Some(Ok(code_points)) = self.cicp.map(<[u8; 4]>::try_from) {
            profiles.push(Profile::Cicp(code_points));
        }
        if let Some(profile) = self.iccp.and_then(unpack) {
            profiles.push(Profile::Icc(Cow::Owned(profile)));
        }
        if !self.is_srgb {
            let number = |bytes: &[u8; 4]| u32::from_be_bytes(*bytes);
            let exponent = self.gamma.and_then(|content| content.first_chunk()).map(number);
            let primaries = self
                .primaries
                .and_then(|content| content.as_chunks().0.first_chunk::<8>())
                .map(|points| points.map(|point| number(&point)));
            if exponent.is_some() || primaries.is_some() {
                profiles.push(Profile::Gamma { exponent, primaries });
            }
        }
        profiles
    }
}

/// The profile of an `iCCP` chunk: a name, a zero, the method 0, then zlib. `None` if it is damaged or too long.
fn unpack(content: &[u8]) -> Option<Vec<u8>> {
    let name = memchr::memchr(0, content)?;
    let (&method, packed) = content.get(name + 1..)?.split_first()?;
    let mut profile = Vec::new();
    ZlibDecoder::new(packed).take(PROFILE_BYTES as u64 + 1).read_to_end(&mut profile).ok()?;
    (method == 0 && profile.len() <= PROFILE_BYTES).then_some(profile)
}

/// Slices one after another, as one reader.
#[derive(Clone)]
struct Pieces<'a> {
    pieces: [&'a [u8]; 6],
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Pieces<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(self.pieces.iter().find(|piece| !piece.is_empty()).copied().unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        if let Some(piece) = self.pieces.iter_mut().find(|piece| !piece.is_empty()) {
            *piece = &piece[count..];
        }
    }
}

/// The decoder asks for it, and never calls it.
impl Seek for Pieces<'_> {
    fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
