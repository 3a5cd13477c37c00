//! Distances, scores, maps and masking against what AnomalyDINO's own functions give (`tests/data/anomaly/make.py`).

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]
#![expect(clippy::float_cmp, reason = "answers that should be equal are equal to the last bit")]

use std::path::Path;

use dino_vision::anomaly::{Bank, DEFAULT_TOP, PatchSet, Rows, distances_of_floats, enlarged, foreground, mean_of_largest};
use dino_vision::transform::PatchGrid;
use ndarray::{Array2, ArrayView2, Axis};
use safetensors::SafeTensors;

/// The grid and the size (width, height) that the script names.
const GRID: PatchGrid = PatchGrid { rows: 15, columns: 14 };
const SIZE: (u32, u32) = (61, 47);

fn reference() -> Vec<u8> {
    fs_err::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/anomaly/reference.safetensors")).unwrap()
}

fn floats(file: &[u8], name: &str) -> Vec<f32> {
    let tensors = SafeTensors::deserialize(file).unwrap();
    tensors.tensor(name).unwrap().data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// `[rows, 8]`.
fn matrix(file: &[u8], name: &str) -> Array2<f32> {
    let numbers = floats(file, name);
    Array2::from_shape_vec((numbers.len() / 8, 8), numbers).unwrap()
}

fn unit(mut rows: Array2<f32>) -> Array2<f32> {
    for mut row in rows.rows_mut() {
        let length = row.dot(&row).sqrt();
        row /= length;
    }
    rows
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{worst}");
}

fn set(features: ArrayView2<'_, f32>, grid: PatchGrid) -> PatchSet {
    let mut rows = Rows::new(features.ncols());
    features.rows().into_iter().for_each(|row| rows.push(row.iter().copied()));
    PatchSet { grid, foreground: vec![true; grid.len()], coverage: None, rows }
}

#[test]
fn distances_and_scores_are_those_of_the_public_code() {
    let file = reference();
    let (stored, features) = (unit(matrix(&file, "stored")), unit(matrix(&file, "features")));
    let (expected, scores) = (floats(&file, "distances"), floats(&file, "scores"));
    let exact = distances_of_floats(features.view(), stored.view()).unwrap();
    assert_close(&exact, &expected, 1e-5);

    // What a collection holds as bytes is near that.
    let mut bank = Bank::new(8, 1000);
    let grid = PatchGrid { rows: 1, columns: stored.nrows() };
    bank.add("good", 1, false, &set(stored.view(), grid)).unwrap();
    let (mut distances, mut found) = (Vec::new(), Vec::new());
    for picture in features.axis_chunks_iter(Axis(0), GRID.len()) {
        let nearest = bank.nearest(&set(picture, GRID).rows).unwrap();
        distances.extend(nearest.iter().map(|nearest| nearest.unwrap().distance()));
        found.push(mean_of_largest(&distances[distances.len() - GRID.len()..], DEFAULT_TOP));
    }
    assert_close(&distances, &expected, 6e-3);
    assert_close(&found, &scores, 6e-3);
    let exact: Vec<f32> = exact.chunks(GRID.len()).map(|distances| mean_of_largest(distances, DEFAULT_TOP)).collect();
    assert_close(&exact, &scores, 1e-5);
}

#[test]
fn maps_are_those_of_the_public_code() {
    let file = reference();
    let (distances, maps) = (floats(&file, "distances"), floats(&file, "maps"));
    let pixels = (SIZE.0 * SIZE.1) as usize;
    for picture in 0..2 {
        let map = enlarged(&distances[picture * GRID.len()..(picture + 1) * GRID.len()], GRID, SIZE);
        assert_close(&map.values, &maps[picture * pixels..(picture + 1) * pixels], 1e-5);
    }
    assert_close(&enlarged(&distances[..GRID.len()], GRID, (200, 9)).values, &floats(&file, "map_wide"), 1e-5);
}

#[test]
fn the_foreground_is_that_of_the_public_code() {
    let file = reference();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    for name in ["up", "down", "small"] {
        let expected: Vec<bool> = tensors.tensor(&format!("foreground_{name}")).unwrap().data().iter().map(|flag| *flag == 1).collect();
        let found = foreground(matrix(&file, &format!("masking_{name}")).view(), GRID);
        // Where the public code finds no patch at all, every patch counts.
        let expected = if expected.contains(&true) { expected } else { vec![true; GRID.len()] };
        assert_eq!(found, expected, "{name}");
        assert_eq!(found.contains(&false), name != "small");
    }
    // Features that are small have no component above the paper's threshold.
    assert!(foreground(unit(matrix(&file, "masking_up")).view(), GRID).iter().all(|set| *set));
}

/// Pictures of one kind: patches around few directions. One patch goes elsewhere by `extra`.
fn picture(number: usize, extra: f32) -> PatchSet {
    picture_with(number, |patch| if patch == 17 { extra } else { 0.0 })
}

fn picture_with(number: usize, extra: impl Fn(usize) -> f32) -> PatchSet {
    let grid = PatchGrid { rows: 10, columns: 12 };
    let mut rows = Rows::new(16);
    for patch in 0..grid.len() {
        let noise = |at: usize| (((number * 1000 + patch) * 16 + at) as f32 * 12.9898).sin() * 43758.547 % 1.0;
        let odd = extra(patch);
        rows.push((0..16).map(|at| f32::from(u8::from(at == patch % 5)) + 0.2 * noise(at) + if at == 15 { odd } else { 0.0 }));
    }
    PatchSet { grid, foreground: vec![true; grid.len()], coverage: None, rows }
}

/// The score of a picture, by the definition.
fn score(bank: &Bank, set: &PatchSet) -> f32 {
    let own = set.grid.len();
    let distances: Vec<f32> = bank.nearest(&set.rows).unwrap()[..own].iter().map(|nearest| nearest.unwrap().distance()).collect();
    mean_of_largest(&distances, DEFAULT_TOP)
}

/// The threshold of good pictures by its definition: each is asked of a bank of all the others.
fn by_definition(good: &[usize]) -> f32 {
    let others = |left_out: usize| {
        let mut bank = Bank::new(16, 10_000);
        good.iter()
            .filter(|&&number| number != left_out)
            .for_each(|&number| bank.add(&number.to_string(), 0, false, &picture(number, 0.0)).unwrap());
        bank
    };
    good.iter().map(|&number| score(&others(number), &picture(number, 0.0))).fold(0.0, f32::max)
}

#[test]
fn the_threshold_is_kept_as_pictures_come_and_go() {
    let mut bank = Bank::new(16, 10_000);
    let add = |bank: &mut Bank, number: usize| bank.add(&number.to_string(), number as u64, false, &picture(number, 0.0)).unwrap();
    assert_eq!(bank.threshold(DEFAULT_TOP, false).unwrap(), None);
    add(&mut bank, 0);
    assert_eq!((bank.threshold(DEFAULT_TOP, false).unwrap(), score(&bank, &picture(0, 0.0))), (None, 0.0));
    (1..6).for_each(|number| add(&mut bank, number));
    assert_eq!(bank.threshold(DEFAULT_TOP, false).unwrap(), Some(by_definition(&[0, 1, 2, 3, 4, 5])));
    bank.remove(["1", "4", "none"]).unwrap();
    assert_eq!(bank.threshold(DEFAULT_TOP, false).unwrap(), Some(by_definition(&[0, 2, 3, 5])));
    add(&mut bank, 7);
    let threshold = bank.threshold(DEFAULT_TOP, false).unwrap().unwrap();
    assert_eq!(threshold, by_definition(&[0, 2, 3, 5, 7]));
    assert_eq!((bank.len(), bank.stamp("7"), bank.stamp("1")), (5 * 120, Some(7), None));

    // Something odd scores above, and once it is known to be anomalous the line lies between; it is not compared with.
    let odd = picture(9, 3.0);
    let odd_score = score(&bank, &odd);
    assert!(odd_score > threshold, "{odd_score} {threshold}");
    bank.add("odd", 1, true, &odd).unwrap();
    assert_eq!((bank.len(), score(&bank, &odd)), (600, odd_score));
    let between = bank.threshold(DEFAULT_TOP, false).unwrap().unwrap();
    assert!((between - f32::midpoint(threshold, odd_score)).abs() < 1e-6);
    // A good picture that has the same odd patch takes it out of the anomalies.
    bank.add("good odd", 2, false, &picture(9, 3.0)).unwrap();
    assert_eq!(score(&bank, &odd), 0.0);
    bank.remove(["odd", "good odd"]).unwrap();
    assert_eq!(bank.threshold(DEFAULT_TOP, false).unwrap(), Some(threshold));
}

/// It keeps the distances that it came with, so what they are to stays, or all is made anew.
#[test]
fn what_an_anomalous_picture_without_a_place_for_its_patches_refers_to_is_not_removed() {
    let mut bank = Bank::new(16, 600);
    (0..4).for_each(|number| bank.add(&number.to_string(), 1, false, &picture(number, 0.0)).unwrap());
    (0..6).for_each(|number| bank.add(&format!("bad {number}"), 1, true, &picture(10 + number, 3.0)).unwrap());
    assert!(!bank.can_remove("0") && !bank.can_remove("bad 0") && bank.can_remove("bad 5") && bank.can_remove("none"));
    // One that came later is none of those that its distances are to.
    bank.add("late", 1, false, &picture(4, 0.0)).unwrap();
    assert!(bank.can_remove("late") && !bank.can_remove("0"));
    bank.remove(["late"]).unwrap();
    assert!(!bank.can_remove("0") && !bank.can_remove("bad 0"));
    bank.remove(["bad 5"]).unwrap();
    assert!(bank.can_remove("0") && bank.can_remove("bad 0"));
}

#[test]
fn a_bound_on_the_patches_is_kept_and_costs_little() {
    let (mut all, mut bounded) = (Bank::new(16, 100_000), Bank::new(16, 600));
    for number in 0..20 {
        for bank in [&mut all, &mut bounded] {
            bank.add(&number.to_string(), 1, false, &picture(number, 0.0)).unwrap();
            assert!(bank.len() <= 2400);
        }
        assert!(bounded.len() <= 600 && bounded.ids().count() == number + 1, "{}", bounded.len());
    }
    assert!(!bounded.can_remove("3") && all.can_remove("3") && all.len() == 2400);
    let (good, odd) = (picture(30, 0.0), picture(31, 3.0));
    let [of_all, of_bounded] =
        [&all, &bounded].map(|bank| (score(bank, &good), score(bank, &odd), bank.threshold(DEFAULT_TOP, false).unwrap().unwrap()));
    assert!(of_bounded.0 >= of_all.0 && of_bounded.0 < of_bounded.1 && of_bounded.2 < of_bounded.1, "{of_all:?} {of_bounded:?}");
    // The threshold is one for what is left: new good pictures are about as near as the stored ones are to each other.
    assert!(of_bounded.0 < 1.3 * of_bounded.2, "{of_bounded:?}");
}

/// Of what every picture has once, and nothing else is like, one patch is kept: the picture that it is of is no anomaly without it.
#[test]
fn beyond_the_bound_a_picture_is_not_missed_where_it_stands_for_others() {
    let (mut all, mut bounded) = (Bank::new(16, 100_000), Bank::new(16, 600));
    for number in 0..30 {
        for bank in [&mut all, &mut bounded] {
            bank.add(&number.to_string(), 1, false, &picture(number, 3.0)).unwrap();
        }
        let [of_all, of_bounded] = [&all, &bounded].map(|bank| bank.threshold(DEFAULT_TOP, false).unwrap());
        assert!(of_bounded >= of_all, "{number}: {of_all:?} {of_bounded:?}");
    }
    let threshold = bounded.threshold(DEFAULT_TOP, false).unwrap().unwrap();
    let [good, odd] = [3.0, -3.0].map(|extra| score(&bounded, &picture(40, extra)));
    assert!(good < 1.3 * threshold && threshold < 3.0 * good && 1.5 * threshold < odd, "{good} {threshold} {odd}");
}

/// The first picture of a new kind has several patches that are like each other: they are no anomaly any more when others have them too.
#[test]
fn beyond_the_bound_the_threshold_follows_what_becomes_usual() {
    let of_new_kind = |number: usize| picture_with(number, |patch| if (17..27).contains(&patch) { 3.0 } else { 0.0 });
    let (mut all, mut bounded) = (Bank::new(16, 100_000), Bank::new(16, 600));
    let add = |bank: &mut Bank, number: usize| {
        let set = if number < 15 { picture(number, 0.0) } else { of_new_kind(number) };
        bank.add(&number.to_string(), 1, false, &set).unwrap();
    };
    let threshold = |bank: &Bank| bank.threshold(DEFAULT_TOP, false).unwrap().unwrap();
    for number in 0..16 {
        add(&mut all, number);
        add(&mut bounded, number);
    }
    let (alone, alone_of_all) = (threshold(&bounded), threshold(&all));
    assert!(!bounded.can_remove("3") && alone > 0.4 && alone_of_all > 0.4, "{alone} {alone_of_all}");
    for number in 16..40 {
        add(&mut all, number);
        add(&mut bounded, number);
        assert!(threshold(&bounded) >= threshold(&all), "{number}");
    }
    let good = score(&bounded, &of_new_kind(50));
    assert!(good < 1.3 * threshold(&bounded) && threshold(&bounded) < 3.0 * good, "{good} {} {}", threshold(&bounded), threshold(&all));
}
