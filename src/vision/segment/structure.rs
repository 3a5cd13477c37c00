//! Whether there is anything to see in a picture: the part of a score that tells a photo from a plain surface.

use ndarray::{ArrayView3, Axis, s};

use crate::transform::PatchGrid;

/// Variance of patch colours at which half of them is believed, in units of the normalised input (about seven grey levels).
const HALF_VARIANCE: f64 = 0.015;

/// What photos have at least, before it counts as 1: among them it says nothing of how good a mask is.
const PHOTO: f64 = 0.6;

/// How much structure of the size of objects there is in a model's input `[3, H, W]`, 0 to 1.
///
/// Methods find *some* foreground in every picture, also in a grey one. What tells a picture with an object are its colours,
/// averaged over each patch, less the best fitting polynomial of second degree over the picture (so that light and shade
/// that change smoothly do not count): how far they vary, times how far neighbouring patches vary together (Moran's I, which
/// is 0 for noise). Near 0 for a plain surface, a gradient and noise; 1 for photos.
pub fn structure(input: ArrayView3<'_, f32>, grid: PatchGrid) -> f32 {
    let (channels, height, width) = input.dim();
    if grid.is_empty() || height < grid.rows || width < grid.columns {
        return 0.0;
    }
    let (mut square, mut pairs) = (0.0, 0.0);
    let mut neighbours = 0.0_f64;
    for channel in 0..channels {
        let mut values = patch_means(input, channel, grid);
        flatten(&mut values, grid);
        let at = |row: usize, column: usize| values[row * grid.columns + column];
        for row in 0..grid.rows {
            for column in 0..grid.columns {
                let value = at(row, column);
                square += value * value;
                if column + 1 < grid.columns {
                    pairs += value * at(row, column + 1);
                    neighbours += 1.0;
                }
                if row + 1 < grid.rows {
                    pairs += value * at(row + 1, column);
                    neighbours += 1.0;
                }
            }
        }
    }
    let variance = square / (channels * grid.len()) as f64;
    if variance <= 0.0 || neighbours == 0.0 {
        return 0.0;
    }
    let together = (pairs / neighbours / variance).clamp(0.0, 1.0);
    let structure = (together * variance / (variance + HALF_VARIANCE) / PHOTO).min(1.0);
    if structure.is_finite() { structure as f32 } else { 0.0 }
}

fn patch_means(input: ArrayView3<'_, f32>, channel: usize, grid: PatchGrid) -> Vec<f64> {
    let plane = input.index_axis(Axis(0), channel);
    let (height, width) = plane.dim();
    let (high, wide) = (height / grid.rows, width / grid.columns);
    let mut means = vec![0.0; grid.len()];
    for (y, row) in plane.slice(s![..high * grid.rows, ..wide * grid.columns]).rows().into_iter().enumerate() {
        for (x, value) in row.iter().enumerate() {
            means[y / high * grid.columns + x / wide] += f64::from(*value);
        }
    }
    for mean in &mut means {
        *mean /= (high * wide) as f64;
    }
    means
}

/// Takes away the best fitting polynomial of second degree in x and y.
fn flatten(values: &mut [f64], grid: PatchGrid) {
    let centred = |at: usize, of: usize| (2 * at + 1) as f64 / of as f64 - 1.0;
    let (x, y) = (|cell: usize| centred(cell % grid.columns, grid.columns), |cell: usize| centred(cell / grid.columns, grid.rows));
    let cells = || 0..grid.len();
    let terms: [Vec<f64>; 6] = [
        cells().map(|_| 1.0).collect(),
        cells().map(&x).collect(),
        cells().map(&y).collect(),
        cells().map(|cell| x(cell).powi(2)).collect(),
        cells().map(|cell| y(cell).powi(2)).collect(),
        cells().map(|cell| x(cell) * y(cell)).collect(),
    ];
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let subtract = |from: &mut [f64], times: f64, what: &[f64]| from.iter_mut().zip(what).for_each(|(from, what)| *from -= times * what);
    // Gram and Schmidt; terms that a narrow grid cannot tell apart vanish.
    let mut basis: Vec<Vec<f64>> = Vec::new();
    for mut term in terms {
        let before = dot(&term, &term);
        for earlier in &basis {
            let along = dot(&term, earlier);
            subtract(&mut term, along, earlier);
        }
        let length = dot(&term, &term);
        if length > 1e-9 * before {
            for value in &mut term {
                *value /= length.sqrt();
            }
            let along = dot(values, &term);
            subtract(values, along, &term);
            basis.push(term);
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::structure;
    use crate::transform::PatchGrid;

    const GRID: PatchGrid = PatchGrid { rows: 30, columns: 40 };

    fn of(pixel: impl Fn(usize, usize) -> f32) -> f32 {
        structure(Array3::from_shape_fn((3, 240, 320), |(_, y, x)| pixel(x, y)).view(), GRID)
    }

    #[test]
    fn surfaces_gradients_and_noise_have_none_and_objects_have() {
        let noise = |x: usize, y: usize| (((x * 7919 + y * 104_729) as u32).wrapping_mul(2_654_435_761) >> 20) as f32 / 1024.0 - 2.0;
        assert!(of(|_, _| 0.3) < 1e-9);
        for (name, nothing) in [
            ("slope", of(|x, y| x as f32 / 80.0 - y as f32 / 200.0)),
            ("bowl", of(|x, y| (x as f32 / 160.0 - 1.0).powi(2) + (y as f32 / 120.0 - 1.0).powi(2))),
            ("noise", of(noise)),
        ] {
            assert!(nothing < 0.05, "{name}: {nothing}");
        }
        let square = of(|x, y| if (100..180).contains(&x) && (80..160).contains(&y) { 2.0 } else { -1.0 });
        let in_noise = of(|x, y| noise(x, y) + if (100..180).contains(&x) && (80..160).contains(&y) { 2.0 } else { 0.0 });
        assert!(square > 0.6 && in_noise > 0.5, "{square} {in_noise}");
    }

    #[test]
    fn every_size_has_an_answer() {
        let square = |rows, columns| structure(Array3::from_elem((3, 8 * rows, 8 * columns), 1.0).view(), PatchGrid { rows, columns });
        for (rows, columns) in [(1, 1), (1, 2), (1, 30), (30, 1), (2, 2)] {
            assert!(square(rows, columns) < 1e-9);
        }
        assert!(structure(Array3::from_elem((3, 8, 8), f32::NAN).view(), PatchGrid { rows: 1, columns: 1 }) < 1e-9);
        assert!(structure(Array3::zeros((3, 0, 0)).view(), PatchGrid { rows: 0, columns: 0 }) < 1e-9);
    }
}
