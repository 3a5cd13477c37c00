//! The patches of one picture, and how they are stored.
//!
//! | bytes, all numbers little-endian | content |
//! | --- | --- |
//! | 1 | version of this form: 1, or 2 with a mask |
//! | 4, 4, 4 | rows and columns of the picture's grid; number of patches, those of its rotations included |
//! | rows · columns / 8, rounded up | which patches of the grid are foreground, lowest bit first |
//! | in version 2: rows · columns | share of each patch of the grid that the mask covers, 0 to 255 |
//! | patches · dim | whole numbers in -127..=127 that point where the patch's vector does |

use super::Rows;
use crate::transform::PatchGrid;

const VERSION: u8 = 1;
/// The version with a mask: earlier programs refuse it.
const MASK_VERSION: u8 = 2;
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
    /// Share of each patch of the grid that a mask covers, 0 to 255; where one came with the picture.
    pub coverage: Option<Vec<u8>>,
    /// First the patches of the grid, row by row; then those of rotations of the picture.
    pub rows: Rows,
}

/// The stored form, taken apart.
struct Parts<'a> {
    grid: PatchGrid,
    /// The foreground, eight patches in a byte.
    bits: &'a [u8],
    coverage: Option<&'a [u8]>,
    codes: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(bytes: &'a [u8], dim: usize) -> Result<Self, String> {
        let (header, rest) = bytes.split_at_checked(HEADER).ok_or("its patches are cut")?;
        if ![VERSION, MASK_VERSION].contains(&header[0]) {
            return Err(format!("its patches have the form {}, this program reads up to {MASK_VERSION}", header[0]));
        }
        let [rows, columns, patches] =
            [1, 5, 9].map(|at| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize);
        let own = rows.checked_mul(columns).filter(|&own| own > 0 && own <= patches).ok_or("its patches are no whole grid")?;
        let bits = own.div_ceil(8);
        let of_mask = if header[0] == MASK_VERSION { own } else { 0 };
        let wanted = patches.checked_mul(dim).and_then(|codes| codes.checked_add(bits)?.checked_add(of_mask));
        if wanted != Some(rest.len()) {
            return Err(format!("its patches have {} bytes, which is not what they say", bytes.len()));
        }
        let (bits, rest) = rest.split_at(bits);
        let (coverage, codes) = rest.split_at(of_mask);
        Ok(Self { grid: PatchGrid { rows, columns }, bits, coverage: (of_mask > 0).then_some(coverage), codes })
    }
}

impl PatchSet {
    /// The stored form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![if self.coverage.is_some() { MASK_VERSION } else { VERSION }];
        for number in [self.grid.rows, self.grid.columns, self.rows.len()] {
            bytes.extend((number as u32).to_le_bytes());
        }
        bytes.extend(self.foreground.chunks(8).map(|bits| bits.iter().rev().fold(0, |byte, &bit| byte << 1 | u8::from(bit))));
        bytes.extend(self.coverage.iter().flatten());
        bytes.extend(self.rows.all_codes().iter().map(|&code| code as u8));
        bytes
    }

    /// Length in bytes of the [stored form](Self::to_bytes) of `all` patches `[dim]`, of which `own` are those of the grid, with a mask.
    pub fn stored_length(own: usize, all: usize, dim: usize) -> usize {
        all.saturating_mul(dim).saturating_add(own + own.div_ceil(8) + HEADER)
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
        let Parts { grid, bits, coverage, codes } = Parts::of(bytes, dim)?;
        // -128 is never written, and its products could overflow the sums of the fast kernel.
        let codes = codes.iter().map(|&code| (code as i8).max(-127)).collect();
        let foreground = (0..grid.len()).map(|at| bits[at / 8] >> (at % 8) & 1 == 1).collect();
        Ok(Self { grid, foreground, coverage: coverage.map(<[u8]>::to_vec), rows: Rows::of_codes(dim, codes) })
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
        let set = PatchSet { grid, foreground: (0..12).map(|at| at % 3 == 0).collect(), coverage: None, rows };
        let bytes = set.to_bytes();
        assert_eq!(bytes.len() + 12, PatchSet::stored_length(12, 14, 3));
        assert_eq!(PatchSet::from_bytes(&bytes, 3).unwrap(), set);
        let with_mask = PatchSet { coverage: Some((0..12).map(|at| at * 20).collect()), ..set.clone() };
        assert_eq!(with_mask.to_bytes().len(), PatchSet::stored_length(12, 14, 3));
        assert_eq!(PatchSet::from_bytes(&with_mask.to_bytes(), 3).unwrap(), with_mask);
        assert!(PatchSet::from_bytes(&with_mask.to_bytes()[..50], 3).is_err());
        for cut in [0, 5, 12, 14, bytes.len() - 1] {
            assert!(PatchSet::from_bytes(&bytes[..cut], 3).is_err(), "{cut}");
        }
        assert!(PatchSet::from_bytes(&bytes, 4).is_err());
        let changed = |at: usize, byte: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            PatchSet::from_bytes(&bytes, 3)
        };
        assert!(
            changed(0, 2).is_err()
                && changed(0, 3).is_err()
                && changed(1, 0).is_err()
                && changed(4, 255).is_err()
                && changed(12, 255).is_err()
        );
    }
}
