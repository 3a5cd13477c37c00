//! The entries of a TIFF's first directory, looked at before a decoder makes room for what they announce.

use super::{DecodeError, Format};

/// Most values of an entry that is read as a list: offsets of more strips and tiles than the largest picture has in any sensible size.
const MAX_VALUES: u64 = 1 << 20;
/// `BitsPerSample`, `StripOffsets`, `StripByteCounts`, `ColorMap`, tiles, `ExtraSamples`, `SampleFormat`, `JPEGTables`, and the tables of YCbCr.
const LISTS: [u16; 11] = [258, 273, 279, 320, 324, 325, 338, 339, 347, 529, 532];

/// An entry, and the place in the file of its value, or of the value's offset.
pub(super) struct Entry {
    pub(super) tag: u16,
    pub(super) value_at: usize,
    kind: u16,
    count: u64,
}

/// The entries of the first directory; `None` where they do not lie in the file.
pub(super) fn entries(bytes: &[u8]) -> Option<Vec<Entry>> {
    let is_little = bytes.starts_with(b"II");
    let number = |at: usize, length: usize| {
        let digits = bytes.get(at..at.checked_add(length)?)?;
        let join = |number: u64, digit: &u8| number << 8 | u64::from(*digit);
        Some(if is_little { digits.iter().rev().fold(0, join) } else { digits.iter().fold(0, join) })
    };
    let is_big_tiff = number(2, 2)? == 43;
    // Lengths of an offset or count, and of the number of entries.
    let (word, number_of_entries) = if is_big_tiff { (8, 8) } else { (4, 2) };
    let directory = usize::try_from(number(word, word)?).ok()?;
    let count = usize::try_from(number(directory, number_of_entries)?).ok()?;
    let first = directory + number_of_entries;
    let length = 4 + 2 * word;
    // Before a list of them is made.
    bytes.get(first..first.checked_add(count.checked_mul(length)?)?)?;
    let entry = |index: usize| {
        let at = first + index * length;
        Some(Entry { tag: number(at, 2)? as u16, kind: number(at + 2, 2)? as u16, count: number(at + 4, word)?, value_at: at + 4 + word })
    };
    (0..count).map(entry).collect()
}

/// Refuses entries that are longer than the file, or than there can be values of their kind.
pub(super) fn check(bytes: &[u8]) -> Result<(), DecodeError> {
    for entry in entries(bytes).ok_or_else(|| Format::Tiff.cut())? {
        let size = match entry.kind {
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16..=18 => 8,
            _ => 1,
        };
        if entry.count.saturating_mul(size) > bytes.len() as u64 || (LISTS.contains(&entry.tag) && entry.count > MAX_VALUES) {
            return Err(Format::Tiff.corrupt(format!("its tag {} announces {} values", entry.tag, entry.count)));
        }
    }
    Ok(())
}
