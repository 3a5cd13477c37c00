//! Videos as Motion JPEG in an AVI file: what any player shows, without an encoder of video.
//!
//! ```
//! use dino_train::show::avi::Avi;
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("attention.avi");
//! let mut jpeg = Vec::new();
//! image::codecs::jpeg::JpegEncoder::new(&mut jpeg).encode_image(&image::RgbImage::new(64, 48))?;
//! let mut video = Avi::create(&path, (64, 48), 25.0)?;
//! video.add(&jpeg)?;
//! video.finish()?;
//! assert!(std::fs::read(path)?.starts_with(b"RIFF"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;

use fs_err::File;

/// Bytes of everything before the first frame.
const HEADER: u32 = 224;
/// Name of a chunk with a frame.
const FRAME: [u8; 4] = *b"00dc";
/// The file has an index; each of its frames stands by itself.
const HAS_INDEX: u32 = 0x10;
/// Sizes are numbers of 32 bits, some of them signed.
const MOST_BYTES: u64 = i32::MAX as u64;

/// A video that is being written.
pub struct Avi {
    file: File,
    size: (u32, u32),
    fps: f64,
    /// Place and length of each frame.
    index: Vec<(u32, u32)>,
    /// Bytes so far.
    length: u32,
}

impl Avi {
    /// Begins a file with frames of `size` (width, height), `fps` of them in a second.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path, size: (u32, u32), fps: f64) -> std::io::Result<Self> {
        let mut file = File::create(path)?;
        file.write_all(&[0; HEADER as usize])?;
        Ok(Self { file, size, fps, index: Vec::new(), length: HEADER })
    }

    /// Adds a frame, a JPEG file.
    ///
    /// # Errors
    /// When it cannot be written, or the file would be longer than the format allows.
    pub fn add(&mut self, jpeg: &[u8]) -> std::io::Result<()> {
        // The index needs 16 bytes for each frame.
        let length = u64::from(self.length) + 8 + jpeg.len() as u64 + 1;
        if length + 16 * (self.index.len() as u64 + 1) + 8 > MOST_BYTES {
            return Err(std::io::Error::other("an AVI file cannot be longer than 2 GiB: take fewer or smaller frames"));
        }
        self.file.write_all(&FRAME)?;
        self.file.write_all(&(jpeg.len() as u32).to_le_bytes())?;
        self.file.write_all(jpeg)?;
        // Chunks begin at even places.
        let padding = jpeg.len() % 2;
        self.file.write_all(&[0_u8][..padding])?;
        self.index.push((self.length, jpeg.len() as u32));
        self.length += 8 + (jpeg.len() + padding) as u32;
        Ok(())
    }

    /// Writes the index and what stands before the frames.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> std::io::Result<()> {
        let mut index = chunk_head(*b"idx1", 16 * self.index.len() as u32);
        for (place, length) in &self.index {
            index.extend(FRAME);
            // Places count from the name of the list of frames.
            index.extend([HAS_INDEX, place - (HEADER - 4), *length].map(u32::to_le_bytes).concat());
        }
        self.file.write_all(&index)?;
        let whole = self.length + index.len() as u32;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&self.header(whole))?;
        self.file.flush()
    }

    fn header(&self, whole: u32) -> Vec<u8> {
        let (frames, (width, height)) = (self.index.len() as u32, self.size);
        let largest = self.index.iter().map(|(_, length)| *length).max().unwrap_or(0);
        let mut header = [chunk_head(*b"RIFF", whole - 8), b"AVI ".to_vec()].concat();
        let numbers = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        header.extend([chunk_head(*b"LIST", 192), b"hdrl".to_vec(), chunk_head(*b"avih", 56)].concat());
        let per_frame = (1e6 / self.fps) as u32;
        header.extend(numbers(&[per_frame, 0, 0, HAS_INDEX, frames, 0, 1, largest, width, height, 0, 0, 0, 0]));
        header.extend([chunk_head(*b"LIST", 116), b"strl".to_vec(), chunk_head(*b"strh", 56), b"vidsMJPG".to_vec()].concat());
        // Frames in a second are a fraction of two numbers.
        let (scale, rate) = (1000, (1000.0 * self.fps).round() as u32);
        header.extend(numbers(&[0, 0, 0, scale, rate, 0, frames, largest, u32::MAX, 0, 0, width | height << 16]));
        header.extend(chunk_head(*b"strf", 40));
        header.extend(numbers(&[40, width, height, 1 | 24 << 16, u32::from_le_bytes(*b"MJPG"), 3 * width * height, 0, 0, 0, 0]));
        header.extend([chunk_head(*b"LIST", self.length - HEADER + 4), b"movi".to_vec()].concat());
        header
    }
}

fn chunk_head(name: [u8; 4], length: u32) -> Vec<u8> {
    [name, length.to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::{Avi, HEADER};

    #[test]
    fn chunks_follow_one_another_to_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("video.avi");
        let mut avi = Avi::create(&path, (64, 48), 12.5).unwrap();
        let frames: [&[u8]; 3] = [b"abc", b"defg", b"h"];
        for frame in &frames {
            avi.add(frame).unwrap();
        }
        avi.finish().unwrap();
        let file = fs_err::read(&path).unwrap();
        let number = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
        assert_eq!((&file[..4], number(4) + 8, &file[8..12]), (&b"RIFF"[..], file.len(), &b"AVI "[..]));
        // hdrl, movi, idx1
        let mut at = 12;
        let mut chunks = Vec::new();
        while at < file.len() {
            let name = if &file[at..at + 4] == b"LIST" { at + 8 } else { at };
            chunks.push((String::from_utf8(file[name..name + 4].to_vec()).unwrap(), at));
            at += 8 + number(at + 4).next_multiple_of(2);
        }
        assert_eq!(chunks.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["hdrl", "movi", "idx1"]);
        assert_eq!(chunks[1].1 + 12, HEADER as usize);
        for (frame, content) in frames.iter().enumerate() {
            let entry = chunks[2].1 + 8 + 16 * frame;
            let place = HEADER as usize - 4 + number(entry + 8);
            assert_eq!((&file[place..place + 4], number(place + 4)), (&b"00dc"[..], content.len()));
            assert_eq!((number(entry + 12), &file[place + 8..place + 8 + content.len()]), (content.len(), *content));
        }
    }
}
