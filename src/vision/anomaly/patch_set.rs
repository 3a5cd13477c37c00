//! The patches of one picture, and how they are stored.
//!
//! | bytes, all numbers little-endian | content |
//! | --- | --- |
//! | 1 | version of this form, now 1 |
//! | 4, 4, 4 | rows and columns of the picture's grid; number of patches, those of its rotations included |
//! | rows · columns / 8, rounded up | which patches of the grid are foreground, lowest bit first |
//! | patches · dim | whole numbers in -127..=127 that point where the patch's vector does |

use super::Rows;
use crate::transform::PatchGrid;

const VERSION: u8 = 1;
const HEADER: usize = 13;

/// Largest stored form of a picture's patches, in bytes.
pub const MAX_STORED: usize = 64 << 20;

/// The patches of one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct PatchSet {
    /// Of the picture itself.
    pub grid: PatchGrid,
    /// Which patches of the grid are foreground, see [`foreground`](super::foreground()).
    pub foreground: Vec<bool>,
    /// First the patches of the grid, row by row; then those of rotations of the picture.
    pub rows: Rows,
}

/// The stored form, taken apart.
struct Parts<'a> {
    grid: PatchGrid,
    /// The foreground, eight patches in a byte.
    bits: &'a [u8],
    codes: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(bytes: &'a [u8], dim: usize) -> Result<Self, String> {
        let (header, rest) = bytes.split_at_checked(HEADER).ok_or("its patches are cut")?;
        if header[0] != VERSION {
            return Err(format!("its patches have the form {}, this program reads {VERSION}", header[0]));
        }
        let [rows, columns, patches] =
            [1, 5, 9].map(|at| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize);
        let own = rows.checked_mul(columns).filter(|&own| own > 0 && own <= patches).ok_or("its patches are no whole grid")?;
        let bits = own.div_ceil(8);
        let wanted = patches.checked_mul(dim).and_then(|codes| codes.checked_add(bits));
        if wanted != Some(rest.len()) {
            return Err(format!("its patches have {} bytes, which is not what they say", bytes.len()));
        }
        let (bits, codes) = rest.split_at(bits);
        Ok(Self { grid: PatchGrid { rows, columns }, bits, codes })
    }
}

impl PatchSet {
    /// The stored form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        for number in [self.grid.rows, self.grid.columns, self.rows.len()] {
            bytes.extend((number as u32).to_le_bytes());
        }
        bytes.extend(self.foreground.chunks(8).map(|bits| bits.iter().rev().fold(0, |byte, &bit| byte << 1 | u8::from(bit))));
        bytes.extend(self.rows.all_codes().iter().map(|&code| code as u8));
        bytes
    }

    /// Length in bytes of the [stored form](Self::to_bytes) of `all` patches `[dim]`, of which `own` are those of the grid.
    pub fn stored_length(own: usize, all: usize, dim: usize) -> usize {
        all.saturating_mul(dim).saturating_add(own.div_ceil(8) + HEADER)
    }

    /// Whether the bytes are the stored form of patches `[dim]`.
    ///
    /// # Errors
    /// Why they are not, in words.
    pub fn check(bytes: &[u8], dim: usize) -> Result<(), String> {
        Parts::of(bytes, dim).map(drop)
    }

    /// What is stored, or why it cannot be read. Its length is compared with what it says before memory is taken.
    ///
    /// # Errors
    /// In words.
    pub fn from_bytes(bytes: &[u8], dim: usize) -> Result<Self, String> {
        let Parts { grid, bits, codes } = Parts::of(bytes, dim)?;
        // -128 is never written, and its products could overflow the sums of the fast kernel.
        let codes = codes.iter().map(|&code| (code as i8).max(-127)).collect();
        let foreground = (0..grid.len()).map(|at| bits[at / 8] >> (at % 8) & 1 == 1).collect();
        Ok(Self { grid, foreground, rows: Rows::of_codes(dim, codes) })
    }

    /// The mean of the picture's own patches, each of length 1 before: the vector that stands for the picture where one is asked for.
    pub fn mean(&self) -> Vec<f32> {
        let mut mean = vec![0.0; self.rows.dim()];
        for row in 0..self.grid.len().min(self.rows.len()) {
            let scale = self.rows.scales()[row];
            mean.iter_mut().zip(self.rows.codes(row)).for_each(|(sum, &code)| *sum += f32::from(code) * scale);
        }
        mean
    }
}

#[cfg(test)]
mod tests {
    use super::PatchSet;
    use crate::anomaly::Rows;
    use crate::transform::PatchGrid;

    #[test]
    fn what_is_stored_comes_back_and_damage_is_refused() {
        let mut rows = Rows::new(3);
        (0..14_u8).for_each(|row| rows.push([f32::from(row), 1.0, -2.0].into_iter()));
        let grid = PatchGrid { rows: 3, columns: 4 };
        let set = PatchSet { grid, foreground: (0..12).map(|at| at % 3 == 0).collect(), rows };
        let bytes = set.to_bytes();
        assert_eq!(bytes.len(), PatchSet::stored_length(12, 14, 3));
        assert_eq!(PatchSet::from_bytes(&bytes, 3).unwrap(), set);
        for cut in [0, 5, 12, 14, bytes.len() - 1] {
            assert!(PatchSet::from_bytes(&bytes[..cut], 3).is_err(), "{cut}");
        }
        assert!(PatchSet::from_bytes(&bytes, 4).is_err());
        let changed = |at: usize, byte: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            PatchSet::from_bytes(&bytes, 3)
        };
        assert!(changed(0, 2).is_err() && changed(1, 0).is_err() && changed(4, 255).is_err() && changed(12, 255).is_err());
    }
}
