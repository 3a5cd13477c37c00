//! Samples as a TIFF stores them, to one of 8 or 16 bits behind the other, pixel by pixel.

use tiff::decoder::DecodingResult;

/// How samples are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// From 0 to the largest number that the bits hold.
    Whole,
    /// From 0 to 1.
    Float,
}

/// Where samples lie, and what they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) width: usize,
    pub(super) height: usize,
    /// Of one sample.
    pub(super) bits: u16,
    /// Samples of a pixel that the decoder gives out.
    pub(super) stored: usize,
    /// Samples of a pixel that are used: the first of those.
    pub(super) used: usize,
    /// Whether the samples of one kind lie together, one plane behind the other.
    pub(super) is_planar: bool,
    pub(super) depth: Depth,
    /// Whether fewer than 8 bits are spread over 0 to 255; indices of a palette are not.
    pub(super) scale: bool,
}

/// Samples, [`Shape::used`] of them to a pixel.
#[derive(Debug)]
pub(super) enum Samples {
    Eight(Vec<u8>),
    Sixteen(Vec<u16>),
}

impl Samples {
    /// Scaled to 8 bits.
    pub(super) fn into_8(self) -> Vec<u8> {
        match self {
            Self::Eight(samples) => samples,
            Self::Sixteen(samples) => samples.into_iter().map(|sample| ((u32::from(sample) + 128) / 257) as u8).collect(),
        }
    }
}

impl Shape {
    /// Bytes of a pixel as the decoder gives it out.
    pub(super) fn stored_bytes(&self) -> u64 {
        (self.stored * usize::from(self.bits)).div_ceil(8) as u64
    }

    /// Bytes of a pixel in what [`Shape::samples`] makes beside that.
    pub(super) fn made_bytes(&self) -> u64 {
        let unpacked = if self.bits < 8 { self.stored } else { 0 };
        let is_kept = self.is_in_order() && self.depth == Depth::Whole && self.bits <= 16;
        let gathered = if is_kept { 0 } else { self.used * if self.bits <= 8 { 1 } else { 2 } };
        (unpacked + gathered) as u64
    }

    /// Whether the samples that are used, and no others, are stored pixel by pixel.
    fn is_in_order(&self) -> bool {
        !self.is_planar && self.stored == self.used
    }

    /// `None` if they are other, or fewer, than they should be.
    pub(super) fn samples(&self, stored: DecodingResult, planes: usize) -> Option<Samples> {
        if self.is_planar != (planes > 1) {
            return None;
        }
        let stored = match stored {
            DecodingResult::U8(packed) if self.bits < 8 => DecodingResult::U8(self.unpack(&packed, planes)?),
            stored => stored,
        };
        Some(match (stored, self.depth) {
            (DecodingResult::U8(samples), Depth::Whole) if self.is_in_order() => Samples::Eight(samples),
            (DecodingResult::U8(samples), Depth::Whole) => Samples::Eight(self.gather(&samples, planes, |v| v)?),
            (DecodingResult::U16(samples), Depth::Whole) if self.is_in_order() => Samples::Sixteen(samples),
            (DecodingResult::U16(samples), Depth::Whole) => Samples::Sixteen(self.gather(&samples, planes, |v| v)?),
            (DecodingResult::U32(samples), Depth::Whole) => Samples::Sixteen(self.gather(&samples, planes, |v| (v >> 16) as u16)?),
            (DecodingResult::U64(samples), Depth::Whole) => Samples::Sixteen(self.gather(&samples, planes, |v| (v >> 48) as u16)?),
            (DecodingResult::F16(samples), Depth::Float) => Samples::Sixteen(self.gather(&samples, planes, |v| whole(v.to_f64()))?),
            (DecodingResult::F32(samples), Depth::Float) => Samples::Sixteen(self.gather(&samples, planes, |v| whole(f64::from(v)))?),
            (DecodingResult::F64(samples), Depth::Float) => Samples::Sixteen(self.gather(&samples, planes, whole)?),
            _ => return None,
        })
    }

    /// The samples that are used, pixel by pixel, from one plane or several.
    fn gather<S: Copy, T>(&self, stored: &[S], planes: usize, convert: impl Fn(S) -> T) -> Option<Vec<T>> {
        let area = self.width * self.height;
        if stored.len() < area * self.stored || (planes > 1 && planes < self.used) {
            return None;
        }
        let of_pixel = |pixel: usize| {
            let at = move |channel: usize| if planes > 1 { channel * area + pixel } else { pixel * self.stored + channel };
            (0..self.used).map(move |channel| stored[at(channel)])
        };
        // Its length is known: a vector that grows takes up to three times as much.
        let mut gathered = Vec::with_capacity(area * self.used);
        gathered.extend((0..area).flat_map(of_pixel).map(convert));
        Some(gathered)
    }

    /// One byte to a sample. Rows start at whole bytes.
    fn unpack(&self, packed: &[u8], planes: usize) -> Option<Vec<u8>> {
        let bits = usize::from(self.bits);
        let in_row = if planes > 1 { self.width } else { self.width * self.stored };
        let rows = if planes > 1 { self.height * self.stored } else { self.height };
        let row_bytes = (in_row * bits).div_ceil(8);
        let largest = (1_u16 << bits) - 1;
        if packed.len() < row_bytes * rows || row_bytes == 0 {
            return None;
        }
        let sample = |row: &[u8], index: usize| {
            let at = index * bits;
            let value = u16::from(row[at / 8]) >> (8 - bits - at % 8) & largest;
            (if self.scale { value * 255 / largest } else { value }) as u8
        };
        let mut unpacked = Vec::with_capacity(in_row * rows);
        unpacked.extend(packed.chunks_exact(row_bytes).take(rows).flat_map(|row| (0..in_row).map(move |index| sample(row, index))));
        Some(unpacked)
    }
}

/// 0 to 1 as 16 bits; what lies outside is cut off, and what is no number is 0.
fn whole(value: f64) -> u16 {
    (value.clamp(0.0, 1.0) * 65_535.0).round() as u16
}
