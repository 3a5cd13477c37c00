//! Following objects through videos, beside what the public functions give on the same (`tests/data/video/make.py`).
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::path::Path;

use dino_train::evaluate::video::frame;
use dino_train::evaluate::video::labels::{Numbers, Objects, nearest};
use dino_train::evaluate::video::measures::{Statistics, contour, region};
use dino_train::evaluate::video::propagation::{Propagation, Settings};
use dino_vision::transform::{PatchGrid, Transform};
use image::RgbImage;
use ndarray::{Array2, Array3, ArrayD, Axis, IxDyn};
use safetensors::SafeTensors;
use serde_json::Value;

const GRID: PatchGrid = PatchGrid { rows: 8, columns: 11 };
const PATCH: usize = 4;

struct Reference {
    file: Vec<u8>,
    config: Value,
}

impl Reference {
    fn open() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/video/reference.safetensors");
        let file = fs_err::read(path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&file).unwrap();
        let config = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["config"]).unwrap();
        Self { file, config }
    }

    fn floats(&self, name: &str) -> ArrayD<f32> {
        let tensors = SafeTensors::deserialize(&self.file).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        let numbers = tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        ArrayD::from_shape_vec(IxDyn(tensor.shape()), numbers).unwrap()
    }

    fn bytes(&self, name: &str) -> ArrayD<u8> {
        let tensors = SafeTensors::deserialize(&self.file).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        ArrayD::from_shape_vec(IxDyn(tensor.shape()), tensor.data().to_vec()).unwrap()
    }

    /// The masks of frames, eight pixels to a byte.
    fn masks(&self, name: &str) -> Vec<Vec<bool>> {
        let bits = |byte: u8| (0..8).map(move |at| byte >> (7 - at) & 1 == 1);
        self.bytes(name).outer_iter().map(|frame| frame.iter().flat_map(|byte| bits(*byte)).collect()).collect()
    }

    fn numbers(&self, key: &str) -> Vec<f64> {
        floats_of(&self.config[key])
    }
}

fn floats_of(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

fn integers_of(list: &Value) -> Vec<usize> {
    list.as_array().unwrap().iter().map(|value| value.as_u64().unwrap() as usize).collect()
}

/// The largest difference of the shares of the labels 0, 1 and 3 from the public ones, and whether all pixels are theirs. The first mask
/// is drawn at the size of the patches.
fn compare(reference: &Reference, settings: Settings, neighbourhood: usize) -> (f32, bool) {
    let features: Array3<f32> = reference.floats("features").into_dimensionality().unwrap();
    let first = Numbers { size: (GRID.columns as u32, GRID.rows as u32), values: reference.bytes("first").into_iter().collect() };
    let shares = reference.floats(&format!("soft.{neighbourhood}"));
    let labels = reference.bytes(&format!("labels.{neighbourhood}"));
    let objects = Objects::of(&first);
    let mut propagation = Propagation::new(settings, GRID, features.index_axis(Axis(0), 0), objects.shares(&first, GRID));
    let (mut largest, mut same) = (0.0_f32, true);
    for ((features, shares), labels) in features.outer_iter().skip(1).zip(shares.outer_iter()).zip(labels.outer_iter()) {
        let found = propagation.next(features);
        let expected: Array2<f32> = shares.to_shape((4, GRID.len())).unwrap().reversed_axes().select(Axis(1), &[0, 1, 3]);
        largest = found.iter().zip(&expected).fold(largest, |largest, (a, b)| largest.max((a - b).abs()));
        same &= objects.pixels(found, GRID, PATCH, (45, 30)).values.iter().eq(labels.iter());
    }
    (largest, same)
}

#[test]
fn labels_are_carried_on_as_by_the_public_script() {
    let reference = Reference::open();
    let usual = Settings::default();
    for neighbourhood in [12, 2, 0] {
        let (difference, same) = compare(&reference, Settings { neighbourhood, ..usual }, neighbourhood);
        assert!(difference < 1e-4 && same, "{neighbourhood}: {difference}, pixels are the same: {same}");
    }
    // Other settings give other labels: the comparison can fail.
    let others = [
        Settings { neighbourhood: 3, ..usual },
        Settings { neighbourhood: 2, top_k: 4, ..usual },
        Settings { neighbourhood: 2, last_frames: 6, ..usual },
    ];
    for settings in others {
        assert!(compare(&reference, settings, 2).0 > 1e-3, "{settings:?}");
    }
}

#[test]
fn masks_are_measured_as_davis_does() {
    let reference = Reference::open();
    let (truth, found) = (reference.masks("truth"), reference.masks("answer"));
    let close = |found: f64, expected: f64, what: &str| assert!((found - expected).abs() < 1e-9, "{what}: {found} is not {expected}");
    let (regions, contours) = (reference.numbers("j"), reference.numbers("f"));
    for (frame, (truth, found)) in truth.iter().zip(&found).enumerate() {
        close(region(truth, found), regions[frame], "J");
        close(contour(truth, found, 84), contours[frame], "F");
    }
    assert!((contour(&truth[0][84..], &found[0][..truth[0].len() - 84], 84) - contours[0]).abs() > 1e-3, "a row lower is another contour");
    // A larger frame has a larger tolerance.
    let enlarge = |mask: &[bool]| -> Vec<bool> { (0..300 * 420).map(|at| mask[at / 420 / 5 * 84 + at % 420 / 5]).collect() };
    for (frame, expected) in [0, 6].into_iter().zip(reference.numbers("f_of_large")) {
        close(contour(&enlarge(&truth[frame]), &enlarge(&found[frame]), 420), expected, "F of a large frame");
    }
    for case in reference.config["statistics"].as_array().unwrap() {
        let found = Statistics::of(&floats_of(&case["values"])).unwrap();
        let expected = floats_of(&case["expected"]);
        for (found, expected) in [found.mean, found.recall, found.decay].into_iter().zip(expected) {
            close(found, expected, "a statistic");
        }
    }
    assert_eq!(Statistics::of(&[]), None);
}

#[test]
fn frames_and_masks_are_resized_as_by_the_public_script() {
    let reference = Reference::open();
    for case in reference.config["sizes"].as_array().unwrap() {
        let (size, expected) = (integers_of(&case["size"]), integers_of(&case["expected"]));
        let (width, height) = frame::size((size[0] as u32, size[1] as u32), 480).unwrap();
        assert_eq!([width as usize, height as usize], expected[..], "{size:?}");
    }
    assert!(frame::size((5000, 10), 480).is_err());
    for case in reference.config["nearest"].as_array().unwrap() {
        let expected = integers_of(&case["expected"]);
        assert_eq!(nearest(case["source"].as_u64().unwrap() as usize, expected.len()), expected);
    }
    let picture = RgbImage::from_raw(90, 37, reference.bytes("picture").into_iter().collect()).unwrap();
    let small = frame::resize(&picture, (64, 20));
    assert!(small.iter().eq(reference.bytes("picture.20").iter()));
    // 90 x 37 becomes 128 x 64; every fourth row and column is in the file.
    let size = frame::size(picture.dimensions(), 64).unwrap();
    let (planes, grid) = frame::input(&picture, size, &Transform::evaluation(), 8).unwrap();
    assert_eq!((planes.dim(), grid), ((3, 64, 128), PatchGrid { rows: 8, columns: 16 }));
    let planes = planes.slice(ndarray::s![.., ..;4, ..;4]);
    let expected = reference.floats("picture.64");
    let largest = planes.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest < 1e-5, "{largest}");
}

#[test]
fn a_label_whose_shares_are_gone_is_nowhere() {
    let first = Numbers { size: (2, 1), values: vec![7, 0] };
    let objects = Objects::of(&first);
    let grid = PatchGrid { rows: 1, columns: 2 };
    assert_eq!(objects.pixels(objects.shares(&first, grid).view(), grid, 2, (4, 1)).values, [7, 7, 0, 0]);
    let gone = Array2::from_shape_fn((2, 2), |(_, label)| if label == 0 { 1.0 } else { 0.0 });
    assert_eq!(objects.pixels(gone.view(), grid, 2, (4, 1)).values, [0; 4]);
}

#[test]
fn numbers_of_masks_are_objects_and_255_is_one_only_by_itself() {
    let of = |values: &[u8]| Objects::of(&Numbers { size: (values.len() as u32, 1), values: values.to_vec() });
    assert_eq!(of(&[0, 2, 255, 1, 2]).numbers(), [1, 2]);
    assert_eq!(of(&[0, 255, 255]).numbers(), [255]);
    assert!(of(&[0, 0]).numbers().is_empty());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.png");
    let numbers = Numbers { size: (3, 2), values: vec![0, 1, 2, 255, 128, 9] };
    numbers.write(&path).unwrap();
    assert_eq!(Numbers::read(&path).unwrap(), numbers);
    // As a person sees them: VOC's colours.
    let seen = image::open(&path).unwrap().into_rgb8();
    let colours: Vec<[u8; 3]> = seen.pixels().map(|pixel| pixel.0).collect();
    assert_eq!(colours, [[0, 0, 0], [128, 0, 0], [0, 128, 0], [224, 224, 192], [0, 32, 0], [192, 0, 0]]);
    fs_err::write(&path, b"no picture").unwrap();
    assert!(Numbers::read(&path).is_err());
}
