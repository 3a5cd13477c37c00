//! One number per patch, in few bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use half::f16;
use serde::Serialize;

use crate::transform::PatchGrid;

/// A map over the patch grid as a client reads it: in Python
/// `numpy.frombuffer(base64.b64decode(data), "<f2").reshape(size) * scale`.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Heatmap {
    /// `[rows, columns]` of patches. The grid covers the whole picture.
    pub size: [usize; 2],
    /// What the numbers are to be multiplied with: the largest absolute value of the map.
    pub scale: f32,
    /// Numbers between -1 and 1, row by row, as little-endian float16 in base64.
    pub data: String,
}

impl Heatmap {
    /// A map of one value per patch. Values that are not finite become 0.
    pub fn new(values: &[f32], grid: PatchGrid) -> Self {
        let finite = |value: &f32| if value.is_finite() { *value } else { 0.0 };
        let scale = values.iter().map(|value| finite(value).abs()).fold(0.0, f32::max);
        let by = if scale > 0.0 { scale } else { 1.0 };
        let bytes: Vec<u8> = values.iter().flat_map(|value| f16::from_f32(finite(value) / by).to_le_bytes()).collect();
        Self { size: [grid.rows, grid.columns], scale, data: STANDARD.encode(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::Heatmap;
    use crate::transform::PatchGrid;

    #[test]
    fn values_come_back_to_half_precision() {
        let values = [1e-6, -2e-6, 0.0, 5e-7, f32::NAN, 1.5e-6];
        let map = Heatmap::new(&values, PatchGrid { rows: 2, columns: 3 });
        assert_eq!(map.size, [2, 3]);
        assert!((map.scale - 2e-6).abs() < 1e-12);
        let bytes = STANDARD.decode(&map.data).unwrap();
        for (value, bytes) in values.iter().zip(bytes.as_chunks::<2>().0) {
            let read = half::f16::from_le_bytes(*bytes).to_f32() * map.scale;
            let expected = if value.is_nan() { 0.0 } else { *value };
            assert!((read - expected).abs() <= 1e-3 * expected.abs(), "{read} for {value}");
        }
        assert!(Heatmap::new(&[0.0], PatchGrid { rows: 1, columns: 1 }).scale < 1e-9);
    }
}
