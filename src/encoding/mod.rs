//! Number formats of embeddings.
//!
//! ```
//! use dino_server::encoding::{Dtype, Encoded, Values};
//!
//! let rows = ndarray::array![[[0.5, -1.0, 0.25, 0.0]]];
//! let encoded = Encoded::new(rows.view(), Dtype::Int8);
//! assert_eq!((encoded.shape, encoded.values), ([1, 1, 4], Values::Int8(vec![64, -127, 32, 0])));
//! assert_eq!(encoded.scales, [1.0 / 127.0]);
//! assert_eq!(Encoded::new(rows.view(), Dtype::Binary).values, Values::Binary(vec![0b1010_0000]));
//! ```

mod npy;

use std::fmt;
use std::str::FromStr;

use half::f16;
use ndarray::{ArrayView1, ArrayView3, Axis};
use serde::{Deserialize, Serialize};

use dino_vision::embedding::UnknownOption;

pub use npy::npy_header;

/// How a number of an embedding is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// 32-bit float.
    #[default]
    F32,
    /// 16-bit float, rounded to nearest.
    F16,
    /// `round(127 * x / max|x|)` with one scale per row, so that `x ≈ scale * value`.
    Int8,
    /// One bit per number, set where it is above zero; the first number is the highest bit of the first byte, and
    /// the last byte of a row is filled up with zeros.
    Binary,
}

impl Dtype {
    /// Its name, as options write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Binary => "binary",
        }
    }

    /// Stored values of a row of `dim` numbers; for [`Dtype::Binary`] its bytes.
    pub fn stored(self, dim: usize) -> usize {
        if self == Self::Binary { dim.div_ceil(8) } else { dim }
    }

    /// Bytes of a row of `dim` numbers.
    pub fn bytes(self, dim: usize) -> usize {
        let each = match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Int8 | Self::Binary => 1,
        };
        each * self.stored(dim)
    }

    /// NumPy's name of the stored type, little-endian.
    pub fn npy_descr(self) -> &'static str {
        match self {
            Self::F32 => "<f4",
            Self::F16 => "<f2",
            Self::Int8 => "|i1",
            Self::Binary => "|u1",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Dtype {
    type Err = UnknownOption;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::F32, Self::F16, Self::Int8, Self::Binary].into_iter().find(|dtype| dtype.as_str() == text).ok_or_else(|| UnknownOption {
            option: "dtype",
            text: text.into(),
            known: "f32, f16, int8, binary",
        })
    }
}

/// Numbers in their format, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// [`Dtype::F32`].
    F32(Vec<f32>),
    /// [`Dtype::F16`].
    F16(Vec<f16>),
    /// [`Dtype::Int8`].
    Int8(Vec<i8>),
    /// [`Dtype::Binary`]: eight numbers a byte.
    Binary(Vec<u8>),
}

/// Embeddings in one of the number formats.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// `[pictures, rows, stored values per row]`; for [`Dtype::Binary`] the last is in bytes.
    pub shape: [usize; 3],
    /// The numbers.
    pub values: Values,
    /// One per row for [`Dtype::Int8`], else empty.
    pub scales: Vec<f32>,
}

impl Encoded {
    /// Stores `[pictures, rows, D]` as `dtype`.
    pub fn new(rows: ArrayView3<'_, f32>, dtype: Dtype) -> Self {
        let (pictures, per_picture, dim) = rows.dim();
        let stored = dtype.stored(dim);
        let mut scales = Vec::new();
        let values = match dtype {
            Dtype::F32 => Values::F32(rows.iter().copied().collect()),
            Dtype::F16 => Values::F16(rows.iter().copied().map(f16::from_f32).collect()),
            Dtype::Int8 => {
                scales = rows.rows().into_iter().map(|row| largest(row) / 127.0).collect();
                Values::Int8(rows.rows().into_iter().flat_map(quantised).collect())
            }
            Dtype::Binary => Values::Binary(rows.rows().into_iter().flat_map(sign_bits).collect()),
        };
        Self { shape: [pictures, per_picture, stored], values, scales }
    }

    /// The numbers as bytes, little-endian and row-major.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.append_le_bytes(&mut bytes);
        bytes
    }

    /// The same at the end of `bytes`.
    pub fn append_le_bytes(&self, bytes: &mut Vec<u8>) {
        match &self.values {
            Values::F32(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Values::F16(values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Values::Int8(values) => bytes.extend(values.iter().map(|value| value.cast_unsigned())),
            Values::Binary(values) => bytes.extend_from_slice(values),
        }
    }
}

fn largest(row: ArrayView1<'_, f32>) -> f32 {
    row.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

fn quantised(row: ArrayView1<'_, f32>) -> Vec<i8> {
    // A row of zeros has no largest number to divide by, and stays zeros.
    let largest = largest(row).max(f32::MIN_POSITIVE);
    row.iter().map(|value| (127.0 * value / largest).round() as i8).collect()
}

fn sign_bits(row: ArrayView1<'_, f32>) -> Vec<u8> {
    row.axis_chunks_iter(Axis(0), 8)
        .map(|eight| eight.iter().enumerate().fold(0, |byte, (bit, value)| byte | u8::from(*value > 0.0) << (7 - bit)))
        .collect()
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, array};

    use super::{Dtype, Encoded, Values};

    fn encoded(rows: &Array3<f32>, dtype: Dtype) -> Encoded {
        Encoded::new(rows.view(), dtype)
    }

    #[test]
    fn floats_are_little_endian() {
        let rows = array![[[1.0, -2.0]]];
        assert_eq!(encoded(&rows, Dtype::F32).to_le_bytes(), [0, 0, 128, 63, 0, 0, 0, 192]);
        assert_eq!(encoded(&rows, Dtype::F16).to_le_bytes(), [0, 60, 0, 192]);
    }

    #[test]
    fn int8_uses_the_whole_range_of_each_row() {
        let rows = array![[[0.5, -1.0, 0.004]], [[0.0, 0.0, 0.0]], [[2.0, 1.0, -0.5]]];
        let encoded = encoded(&rows, Dtype::Int8);
        assert_eq!(encoded.values, Values::Int8(vec![64, -127, 1, 0, 0, 0, 127, 64, -32]));
        assert_eq!(encoded.scales, [1.0 / 127.0, 0.0, 2.0 / 127.0]);
        assert_eq!(encoded.to_le_bytes()[1], 0x81);
    }

    #[test]
    fn binary_puts_the_first_number_highest_and_fills_each_row_up() {
        let rows = array![[[1.0, -1.0, 0.0, 1.0, -1.0, -1.0, -1.0, 0.1, 5.0]], [[-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0]]];
        let encoded = encoded(&rows, Dtype::Binary);
        assert_eq!(encoded.values, Values::Binary(vec![0b1001_0001, 0b1000_0000, 0, 0]));
        assert_eq!(encoded.shape, [2, 1, 2]);
    }

    #[test]
    fn the_size_of_a_row_is_known_before() {
        let rows = Array3::zeros((2, 3, 9));
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Int8, Dtype::Binary] {
            assert_eq!(encoded(&rows, dtype).to_le_bytes().len(), 6 * dtype.bytes(9), "{dtype}");
        }
    }

    #[test]
    fn a_view_that_is_not_contiguous_keeps_its_order() {
        let rows = array![[[1.0, 2.0], [3.0, 4.0]]];
        let turned = rows.view().permuted_axes([0, 2, 1]);
        assert_eq!(Encoded::new(turned, Dtype::F32).values, Values::F32(vec![1.0, 3.0, 2.0, 4.0]));
    }
}
