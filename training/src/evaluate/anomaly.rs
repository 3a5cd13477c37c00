//! How well anomaly scores and maps tell good pictures from bad ones: AUROC over pictures and pixels, and PRO.
//!
//! PRO (per-region overlap; Bergmann et al., The `MVTec` Anomaly Detection Dataset, 2021) counts each drawn region alike, however large
//! it is: at each threshold the mean share of the regions that is found, integrated over the share of good pixels that are taken for
//! anomalous, up to a limit. The figures are those of `MVTec`'s evaluation as the public code of AnomalyDINO has it.
//!
//! ```
//! use dino_train::evaluate::anomaly::{Pixels, auroc};
//!
//! assert_eq!(auroc(&[(0.9, true), (0.2, false), (0.1, false)]), Some(1.0));
//! assert_eq!(auroc(&[(0.1, true), (0.2, false)]), Some(0.0));
//!
//! // A map of 2 x 2 pixels, of which the first is drawn as anomalous.
//! let mut pixels = Pixels::default();
//! pixels.add(&[0.9, 0.1, 0.2, 0.1], &[true, false, false, false], &[false; 4], 2);
//! assert_eq!(pixels.auroc(), Some(1.0));
//! ```

use dino_vision::anomaly::labels;
use rayon::slice::ParallelSliceMut as _;

/// Share of good pixels taken for anomalous up to which PRO is integrated.
pub const PRO_LIMIT: f64 = 0.3;

/// Scores, each with what it stands for.
#[derive(Clone, Debug, Default)]
pub struct Pixels {
    /// Score, and the share of its region that the pixel is; 0 for a good pixel.
    pixels: Vec<(f32, f32)>,
    regions: usize,
}

/// Area under the receiver operating characteristic of scores with "is anomalous"; equal scores count half. `None` unless there are both.
pub fn auroc(scores: &[(f32, bool)]) -> Option<f64> {
    area_under_curve(&mut scores.to_vec(), |&is_bad| is_bad)
}

/// The same of scores with anything that says whether they are of something anomalous. They are sorted, and not copied.
fn area_under_curve<T: Send>(scores: &mut [(f32, T)], is_bad: impl Fn(&T) -> bool) -> Option<f64> {
    scores.par_sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let (mut good, mut area, mut bad) = (0_u64, 0.0, 0_u64);
    for equal in scores.chunk_by(|a, b| a.0.total_cmp(&b.0).is_eq()) {
        let bad_here = equal.iter().filter(|(_, of)| is_bad(of)).count() as u64;
        let good_here = equal.len() as u64 - bad_here;
        area += bad_here as f64 * (good as f64 + good_here as f64 / 2.0);
        (good, bad) = (good + good_here, bad + bad_here);
    }
    (good > 0 && bad > 0).then(|| area / (good as f64 * bad as f64))
}

impl Pixels {
    /// Adds the map of a picture, what was drawn over it as anomalous, and what that leaves open, which is in no figure; all row by row.
    ///
    /// # Panics
    /// If they have not the same number of pixels.
    pub fn add(&mut self, map: &[f32], drawn: &[bool], void: &[bool], width: usize) {
        assert_eq!((map.len(), map.len()), (drawn.len(), void.len()), "flags for each pixel");
        let (labels, count) = labels(drawn, width);
        let mut sizes = vec![0_u32; count as usize + 1];
        for &label in &labels {
            sizes[label as usize] += 1;
        }
        self.regions += count as usize;
        let share = |label: u32| if label == 0 { 0.0 } else { 1.0 / sizes[label as usize] as f32 };
        let known = map.iter().zip(labels).zip(void).filter(|(_, is_void)| !**is_void);
        self.pixels.extend(known.map(|((&score, label), _)| (score, share(label))));
    }

    /// Area under the receiver operating characteristic of the pixels. `None` unless there are both kinds. They are sorted in place: there
    /// may be gigabytes of them.
    pub fn auroc(&mut self) -> Option<f64> {
        area_under_curve(&mut self.pixels, |share| *share > 0.0)
    }

    /// Per-region overlap, integrated up to [`PRO_LIMIT`] and divided by it. `None` unless there are regions and good pixels.
    pub fn pro(mut self) -> Option<f64> {
        let good = self.pixels.iter().filter(|(_, share)| *share <= 0.0).count();
        if self.regions == 0 || good == 0 {
            return None;
        }
        self.pixels.par_sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        let (mut wrong, mut found, mut area) = (0_usize, 0.0_f64, 0.0);
        let mut before = (0.0, 0.0);
        for equal in self.pixels.chunk_by(|a, b| a.0.total_cmp(&b.0).is_eq()) {
            wrong += equal.iter().filter(|(_, share)| *share <= 0.0).count();
            found += equal.iter().map(|(_, share)| f64::from(*share)).sum::<f64>();
            let point = (wrong as f64 / good as f64, (found / self.regions as f64).min(1.0));
            if point.0 > PRO_LIMIT {
                let at_limit = before.1 + (point.1 - before.1) * (PRO_LIMIT - before.0) / (point.0 - before.0);
                return Some((area + f64::midpoint(before.1, at_limit) * (PRO_LIMIT - before.0)) / PRO_LIMIT);
            }
            area += f64::midpoint(before.1, point.1) * (point.0 - before.0);
            before = point;
        }
        Some((area + before.1 * (PRO_LIMIT - before.0)) / PRO_LIMIT)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use dino_vision::anomaly::{distances_of_floats, enlarged, mean_of_largest};
    use dino_vision::transform::PatchGrid;
    use ndarray::{Array2, Axis};
    use safetensors::SafeTensors;

    use super::{Pixels, auroc};

    #[test]
    fn equal_scores_count_half() {
        let is = |scores: &[(f32, bool)], expected: Option<f64>| {
            let found = auroc(scores);
            assert!(found.is_some() == expected.is_some() && (found.unwrap_or(0.0) - expected.unwrap_or(0.0)).abs() < 1e-12, "{found:?}");
        };
        is(&[(1.0, true), (0.0, false)], Some(1.0));
        is(&[(1.0, true), (1.0, false)], Some(0.5));
        is(&[(0.0, true), (1.0, false), (2.0, true), (1.0, true)], Some(0.5));
        is(&[(0.0, true)], None);
    }

    #[test]
    fn what_a_mask_leaves_open_is_in_no_figure() {
        let (map, drawn) = ([0.9, 0.8, 0.2, 0.1], [true, false, false, false]);
        let figures = |void: [bool; 4]| {
            let mut pixels = Pixels::default();
            pixels.add(&map, &[false; 4], &[false; 4], 4);
            pixels.add(&map, &drawn, &void, 4);
            (pixels.auroc().unwrap(), pixels.pro().unwrap())
        };
        let (all, known) = (figures([false; 4]), figures([false, true, false, false]));
        // Seven good pixels, of which one equals the anomalous one: six and a half are told apart; then five and a half of six.
        assert!((all.0 - 6.5 / 7.0).abs() < 1e-12 && (known.0 - 5.5 / 6.0).abs() < 1e-12, "{all:?} {known:?}");
        assert!((all.1 - known.1).abs() > 1e-3, "{all:?} {known:?}");
    }

    #[test]
    fn the_figures_of_pixels_do_not_depend_on_their_order() {
        let (map, drawn) = ([0.9, 0.1, 0.2, 0.1, 0.3, 0.8], [true, false, false, true, false, false]);
        let mut pixels = Pixels::default();
        pixels.add(&map, &drawn, &[false; 6], 2);
        let pro = pixels.clone().pro();
        let of_scores: Vec<(f32, bool)> = map.into_iter().zip(drawn).collect();
        assert!(pro.is_some() && pixels.auroc() == auroc(&of_scores));
        // Each of them sorts the pixels.
        assert!(pixels.auroc() == auroc(&of_scores) && pixels.pro() == pro);
    }

    /// From the features on: what the functions of the public code give on the same.
    #[test]
    fn the_figures_are_those_of_the_public_code() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/anomaly/reference.safetensors");
        let file = fs_err::read(path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&file).unwrap();
        let expected: serde_json::Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["config"]).unwrap();
        let tensors = SafeTensors::deserialize(&file).unwrap();
        let unit = |name: &str| {
            let bytes = tensors.tensor(name).unwrap().data().as_chunks::<4>().0;
            let numbers: Vec<f32> = bytes.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let mut rows = Array2::from_shape_vec((numbers.len() / 8, 8), numbers).unwrap();
            for mut row in rows.rows_mut() {
                let length = row.dot(&row).sqrt();
                row /= length;
            }
            rows
        };
        let (stored, features) = (unit("stored"), unit("features"));
        let (grid, size) = (PatchGrid { rows: 15, columns: 14 }, (61, 47));
        let masks: Vec<bool> = tensors.tensor("masks").unwrap().data().iter().map(|value| *value > 0).collect();
        let (mut pixels, mut scores) = (Pixels::default(), Vec::new());
        for (picture, mask) in features.axis_chunks_iter(Axis(0), grid.len()).zip(masks.chunks(61 * 47)) {
            let distances = distances_of_floats(picture, stored.view()).unwrap();
            scores.push((mean_of_largest(&distances, 0.01), mask.contains(&true)));
            pixels.add(&enlarged(&distances, grid, size).values, mask, &vec![false; mask.len()], 61);
        }
        for (name, found) in [("image_auroc", auroc(&scores)), ("pixel_auroc", pixels.auroc()), ("pro", pixels.pro())] {
            let (found, expected) = (found.unwrap(), expected[name].as_f64().unwrap());
            assert!((found - expected).abs() < 1e-4, "{name}: {found} is not {expected}");
        }
    }
}
