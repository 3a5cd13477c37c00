//! The main directions in which a picture's patches differ.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};

use super::affinity::centred;
use crate::lanczos::{largest, start};
use crate::transform::PatchGrid;

/// The three components of largest variance, one value per patch each, in standard deviations; fewer where the patches
/// differ in fewer directions.
///
/// `features` is `[patches, D]`. The first is turned so that it is positive on the object: where there is more `attention`
/// (`[heads, patches]`), or without it, away from the picture's border. The others are turned so that their largest value is positive.
pub fn principal_components(features: ArrayView2<'_, f32>, attention: Option<ArrayView2<'_, f32>>, grid: PatchGrid) -> Vec<Vec<f32>> {
    let features = centred(features);
    let components = directions(&features, 3).into_iter().enumerate().map(|(at, (value, direction))| {
        let deviation = (value / features.nrows() as f64).sqrt() as f32;
        let component = features.dot(&direction) / deviation;
        let turned = if at == 0 { is_background(&component, attention, grid) } else { has_negative_peak(component.view()) };
        if turned { (-component).to_vec() } else { component.to_vec() }
    });
    components.filter(|component| component.iter().all(|value| value.is_finite())).collect()
}

/// The directions of largest variance of `features` `[patches, D]`, whose mean is 0, each of length 1 and with the sum of the squares along
/// it: `most` of them, or fewer where the features differ in fewer.
pub(super) fn directions(features: &Array2<f32>, most: usize) -> Vec<(f64, Array1<f32>)> {
    // A product with it is much cheaper than two with the features.
    let covariance = features.t().dot(features);
    let mut found: Vec<(f64, Vec<f64>)> = Vec::new();
    while found.len() < most {
        let fixed: Vec<&[f64]> = found.iter().map(|(_, direction)| direction.as_slice()).collect();
        let next = largest(&fixed, start(features.ncols()), |direction, image| {
            let direction: Array1<f32> = direction.iter().map(|value| *value as f32).collect();
            let product = covariance.dot(&direction);
            image.iter_mut().zip(product).for_each(|(image, product)| *image = f64::from(product));
        });
        // Rounding alone is no direction.
        let floor = found.first().map_or(0.0, |(first, _)| first * 1e-5);
        match next.filter(|pair| pair.value > floor) {
            Some(pair) => found.push((pair.value, pair.vector)),
            None => break,
        }
    }
    found.into_iter().map(|(value, direction)| (value, direction.into_iter().map(|value| value as f32).collect())).collect()
}

fn is_background(component: &Array1<f32>, attention: Option<ArrayView2<'_, f32>>, grid: PatchGrid) -> bool {
    if let Some(attention) = attention {
        let along = attention.dot(component).sum();
        if along.is_finite() && along != 0.0 {
            return along < 0.0;
        }
    }
    component.iter().enumerate().filter(|(patch, _)| grid.is_border(*patch)).map(|(_, value)| value).sum::<f32>() > 0.0
}

fn has_negative_peak(component: ArrayView1<'_, f32>) -> bool {
    let (low, high) = component.iter().fold((0.0_f32, 0.0_f32), |(low, high), value| (low.min(*value), high.max(*value)));
    -low > high
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::principal_components;
    use crate::transform::PatchGrid;

    const GRID: PatchGrid = PatchGrid { rows: 3, columns: 4 };

    #[test]
    fn components_come_by_variance_and_the_first_lies_on_the_object() {
        let features = Array2::from_shape_fn((12, 3), |(patch, axis)| match axis {
            0 => {
                if patch == 5 || patch == 6 {
                    -10.0
                } else {
                    0.0
                }
            }
            1 => (patch % 2) as f32,
            _ => 7.0,
        });
        let components = principal_components(features.view(), None, GRID);
        assert_eq!(components.len(), 2);
        assert!((0..12).all(|patch| (components[0][patch] > 0.5) == (patch == 5 || patch == 6)), "{components:?}");
        for component in &components {
            let (mean, square) = component.iter().fold((0.0, 0.0), |(mean, square), value| (mean + value, square + value * value));
            assert!(mean.abs() < 1e-3 && (square / 12.0 - 1.0).abs() < 1e-3);
        }
        let mut attention = Array2::from_elem((2, 12), 1.0);
        attention[[1, 5]] = 0.0;
        let turned = principal_components(features.view(), Some(attention.view()), GRID);
        assert!(turned[0][5] < 0.0);
    }

    #[test]
    fn patches_that_do_not_differ_have_no_components() {
        for value in [0.0, 1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(principal_components(Array2::from_elem((12, 5), value).view(), None, GRID), [[0.0; 0]; 0]);
        }
        assert_eq!(principal_components(array![[1.0, 2.0]].view(), None, PatchGrid { rows: 1, columns: 1 }), [[0.0; 0]; 0]);
    }
}
