//! Colours that agree over many pictures: a basis that is fitted once, on the patches of all of them.
//!
//! As the public notebook of `DINOv2` draws its features: a first principal component tells foreground from background, and three
//! components of the foreground alone are red, green and blue. Signs and scales are part of the basis, so that the same part has the same
//! colour in every picture.

use ndarray::{Array1, Array2, ArrayView2, Axis};

use super::affinity::{centred, normalised};
use super::pca::directions;
use super::saliency::otsu;
use super::spread::spread;

/// Most patches that a basis is fitted on.
const MAX_FITTED: usize = 20_000;
/// Where this share of the patches or less is on one side of the cut, nothing was separated, and all are foreground.
const LEAST_SHARE: f64 = 0.05;
/// Share of the foreground that is below black and above full in each colour.
const TAIL: f64 = 0.02;

/// Patches as colours.
#[derive(Clone, Debug, PartialEq)]
pub struct ColourBasis {
    mean: Array1<f32>,
    /// A product with it is in standard deviations.
    separator: Array1<f32>,
    cut: f32,
    colours: Vec<Channel>,
}

/// One colour.
#[derive(Clone, Debug, PartialEq)]
struct Channel {
    direction: Array1<f32>,
    /// Products that are 0 and 1.
    low: f32,
    high: f32,
}

/// A picture in a basis.
#[derive(Clone, Debug, PartialEq)]
pub struct Coloured {
    /// How far each patch is on the foreground's side, in standard deviations of the patches that the basis was fitted on; above 0 it is
    /// foreground.
    pub heat: Vec<f32>,
    /// Red, green and blue of each patch, 0 to 1.
    pub colours: Vec<[f32; 3]>,
}

impl ColourBasis {
    /// Numbers of the patches, of `count`, that a basis is fitted on, ascending: of more than 20,000 as many, spread over all.
    pub fn rows(count: usize) -> impl Iterator<Item = usize> {
        spread(count, MAX_FITTED)
    }

    /// Fits a basis to `features` `[patches, D]`, whose lengths do not count. `is_border` says which of them lie at the border of their
    /// picture, where there is more background. `None` where they do not differ.
    pub fn fit(features: ArrayView2<'_, f32>, is_border: &[bool]) -> Option<Self> {
        let rows = normalised(features);
        let mean = rows.mean_axis(Axis(0))?;
        let all = centred(rows.view());
        let (variance, direction) = directions(&all, 1).pop()?;
        let deviation = (variance / rows.nrows() as f64).sqrt() as f32;
        let mut separator = direction / deviation;
        let mut values = all.dot(&separator);
        let side = |wanted: bool| {
            let of_side = values.iter().zip(is_border).filter(|(_, border)| **border == wanted).map(|(value, _)| f64::from(*value));
            let (sum, count) = of_side.fold((0.0, 0_u32), |(sum, count), value| (sum + value, count + 1));
            sum / f64::from(count)
        };
        if side(true) > side(false) {
            (separator, values) = (-separator, -values);
        }
        let cut = otsu(&values.to_vec());
        let above = values.iter().filter(|value| **value > cut).count() as f64 / values.len() as f64;
        let lowest = values.iter().copied().fold(f32::INFINITY, f32::min);
        // The lowest is at the cut itself; it is one of them all the same.
        let cut = if (LEAST_SHARE..=1.0 - LEAST_SHARE).contains(&above) { cut } else { lowest - 1e-3 };
        let foreground: Vec<usize> = (0..values.len()).filter(|&at| values[at] > cut).collect();
        let foreground = centred(all.select(Axis(0), &foreground).view());
        let colours: Vec<Channel> =
            directions(&foreground, 3).into_iter().map(|(_, direction)| Channel::of(direction, &all, &values, cut)).collect();
        let basis = Self { mean, separator, cut, colours };
        (!basis.colours.is_empty() && basis.is_finite()).then_some(basis)
    }

    fn is_finite(&self) -> bool {
        self.mean.iter().chain(&self.separator).chain(self.colours.iter().flat_map(|axis| &axis.direction)).all(|value| value.is_finite())
    }

    /// Dimension of the patches.
    pub fn dim(&self) -> usize {
        self.mean.len()
    }

    /// A picture's patches `[patches, D]` in the basis. Background is black.
    ///
    /// # Panics
    /// If the patches have another dimension.
    pub fn apply(&self, features: ArrayView2<'_, f32>) -> Coloured {
        let rows = normalised(features) - &self.mean;
        let heat: Vec<f32> = rows.dot(&self.separator).iter().map(|value| value - self.cut).collect();
        let products: Vec<Array1<f32>> = self.colours.iter().map(|axis| rows.dot(&axis.direction)).collect();
        let colour = |patch: usize| {
            std::array::from_fn(|at| match (self.colours.get(at), products.get(at)) {
                (Some(axis), Some(values)) if heat[patch] > 0.0 => axis.share(values[patch]),
                _ => 0.0,
            })
        };
        let colours = (0..heat.len()).map(colour).collect();
        Coloured { heat, colours }
    }
}

/// Shares from 0 to 1 of up to three channels, each with a value for every patch, as bytes of each patch.
pub fn bytes_of_shares(channels: &[Vec<f32>]) -> Vec<[u8; 3]> {
    let byte = |channel: usize, patch: usize| channels.get(channel).map_or(0, |values| (values[patch] * 255.0).round() as u8);
    (0..channels.first().map_or(0, Vec::len)).map(|patch| [0, 1, 2].map(|channel| byte(channel, patch))).collect()
}

impl Channel {
    /// `all` are the patches minus their mean, of which those above the cut are foreground.
    fn of(direction: Array1<f32>, all: &Array2<f32>, values: &Array1<f32>, cut: f32) -> Self {
        // As scikit-learn turns components.
        let peak = direction.iter().copied().reduce(|peak, value| if value.abs() > peak.abs() { value } else { peak });
        let direction = if peak.is_some_and(|peak| peak < 0.0) { -direction } else { direction };
        let products = all.dot(&direction);
        let mut products: Vec<f32> = products.iter().zip(values).filter(|(_, value)| **value > cut).map(|(product, _)| *product).collect();
        products.sort_by(f32::total_cmp);
        let at = |share: f64| products.get(((products.len().max(1) - 1) as f64 * share).round() as usize).copied().unwrap_or_default();
        Self { direction, low: at(TAIL), high: at(1.0 - TAIL) }
    }

    fn share(&self, product: f32) -> f32 {
        ((product - self.low) / (self.high - self.low).max(f32::MIN_POSITIVE)).clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, Axis, s};

    use super::ColourBasis;

    /// Pictures of 6 x 6 patches: background, and an object of two parts in the middle, each a little different from patch to patch.
    fn pictures(count: usize) -> (Array2<f32>, Vec<bool>) {
        let noise = |at: usize| ((at * 7919 % 1000) as f32 / 1000.0 - 0.5) * 0.2;
        let cell = |row: usize| (row % 36 % 6, row % 36 / 6);
        let part = |row: usize| match cell(row) {
            (2..=3, 1..=2) => 1,
            (2..=3, 3..=4) => 2,
            _ => 0,
        };
        let features = Array2::from_shape_fn((36 * count, 5), |(row, axis)| {
            let own = match (part(row), axis) {
                (0, 0) | (1, 1) | (2, 2) => 1.0,
                (1 | 2, 3) => 0.8,
                _ => 0.0,
            };
            own + noise(row * 5 + axis)
        });
        let is_border = (0..36 * count).map(|row| [cell(row).0, cell(row).1].iter().any(|at| [0, 5].contains(at))).collect();
        (features, is_border)
    }

    #[test]
    fn a_part_has_its_colour_in_every_picture_and_background_is_black() {
        let (features, is_border) = pictures(5);
        let basis = ColourBasis::fit(features.view(), &is_border).unwrap();
        let mut seen = [[f32::INFINITY; 2], [f32::NEG_INFINITY; 2]];
        for picture in features.axis_chunks_iter(Axis(0), 36) {
            let coloured = basis.apply(picture.view());
            for (patch, colour) in coloured.colours.iter().enumerate() {
                let (x, y) = (patch % 6, patch / 6);
                let is_object = (2..=3).contains(&x) && (1..=4).contains(&y);
                assert_eq!(coloured.heat[patch] > 0.0, is_object, "{patch}");
                assert!(is_object || colour.iter().sum::<f32>() < 1e-9);
                if is_object {
                    let part = usize::from(y > 2);
                    seen[0][part] = seen[0][part].min(colour[0]);
                    seen[1][part] = seen[1][part].max(colour[0]);
                }
            }
        }
        let [low, high] = seen;
        assert!(low[0] > high[1] + 0.3 || low[1] > high[0] + 0.3, "{seen:?}");
        // Length does not count, nor does how many others there are.
        assert_eq!(basis.apply((&features * 4.0).slice(s![..36, ..])).heat.len(), 36);
        let again = ColourBasis::fit(features.view(), &is_border).unwrap();
        assert_eq!(again, basis);
        let (more, borders) = pictures(9);
        let other = ColourBasis::fit(more.view(), &borders).unwrap();
        let [one, two] = [&basis, &other].map(|basis| basis.apply(features.slice(s![..36, ..])).colours);
        assert!(one.iter().zip(&two).all(|(a, b)| (a[0] - b[0]).abs() < 0.15), "{one:?} {two:?}");
    }

    #[test]
    fn patches_that_do_not_differ_have_no_basis() {
        for value in [0.0, 1.0, f32::NAN] {
            assert_eq!(ColourBasis::fit(Array2::from_elem((20, 4), value).view(), &[false; 20]), None);
        }
        assert_eq!(ColourBasis::fit(Array2::zeros((0, 4)).view(), &[]), None);
        let (features, _) = pictures(1);
        assert!(ColourBasis::fit(features.view(), &[true; 36]).is_some());
    }
}
