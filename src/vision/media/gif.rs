//! The blocks of a GIF up to its first frame: what the screen and the frame declare.

use super::header::Header;
use super::{DecodeError, Format};

/// Size of the logical screen; the first frame, which may be larger, counts as a part.
pub(super) fn header(bytes: &[u8]) -> Result<Header, DecodeError> {
    let mut blocks = Blocks { rest: bytes };
    let screen = blocks.take(13)?;
    let mut header = Header::plain(u16_at(screen, 6), u16_at(screen, 8));
    blocks.take(colour_table(screen[10]))?;
    loop {
        match blocks.take(1)?[0] {
            // Extension: a label, then sub-blocks.
            0x21 => {
                blocks.take(1)?;
                blocks.skip_sub_blocks()?;
            }
            // Image descriptor, a colour table of its own, the code size, then sub-blocks.
            0x2C => {
                let frame = blocks.take(9)?;
                header.add_part((u16_at(frame, 4), u16_at(frame, 6)));
                blocks.take(colour_table(frame[8]))?;
                blocks.take(1)?;
                blocks.skip_sub_blocks()?;
                return Ok(header);
            }
            0x3B => return Err(Format::Gif.corrupt("it has no frame")),
            other => return Err(Format::Gif.corrupt(format!("unknown block 0x{other:02X}"))),
        }
    }
}

/// Bytes of the colour table that a packed field announces.
fn colour_table(packed: u8) -> usize {
    if packed & 0x80 == 0 { 0 } else { 3 << ((packed & 7) + 1) }
}

fn u16_at(block: &[u8], at: usize) -> u32 {
    u32::from(u16::from_le_bytes([block[at], block[at + 1]]))
}

struct Blocks<'a> {
    rest: &'a [u8],
}

impl<'a> Blocks<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(|| Format::Gif.cut())?;
        self.rest = rest;
        Ok(taken)
    }

    fn skip_sub_blocks(&mut self) -> Result<(), DecodeError> {
        loop {
            match self.take(1)?[0] {
                0 => return Ok(()),
                length => self.take(usize::from(length))?,
            };
        }
    }
}
