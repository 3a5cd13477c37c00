//! From a picture through a model to masks at the picture's own size.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]

use std::path::Path;

use dino_vision::model::{Device, Model, Session, SessionOptions};
use dino_vision::segment::{Head, Method, Object, Options, Patches, segment, structure};
use dino_vision::transform::PatchGrid;
use image::{Rgb, RgbImage};
use ndarray::{Array2, Axis};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// A model whose attention follows brightness, with a patch of 8.
fn model() -> (Model, Session) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny");
    let model = Model::open(&folder).unwrap();
    let options = SessionOptions { device: Device::Cpu, ..SessionOptions::default() };
    let session = model.sessions(&options, 1).unwrap().remove(0);
    (model, session)
}

fn objects(picture: &RgbImage, options: &Options) -> Vec<Object> {
    let (model, mut session) = model();
    let manifest = model.manifest();
    let (input, grid) = manifest.transform.whole_picture(picture, 480, manifest.patch_size);
    let outputs = session.run(input.view().insert_axis(Axis(0))).unwrap();
    segment(&Patches::of(&outputs, grid), picture.dimensions(), structure(input.view(), grid), options).unwrap().objects
}

#[test]
fn a_square_at_the_border_is_found_within_a_patch() {
    let mut picture = RgbImage::new(488, 427);
    for (x, y) in (483..488).flat_map(|x| (200..205).map(move |y| (x, y))) {
        picture.put_pixel(x, y, Rgb([255; 3]));
    }
    let found = objects(&picture, &Options { threshold: Some(0.0005), ..Options::default() });
    let [x, y, width, height] = found[0].mask.bbox();
    println!("{:?}", found[0].mask.bbox());
    assert_eq!(x + width, 488, "the last columns are covered");
    // A patch is 8.14 pixels of the picture.
    assert!(x >= 488 - 17 && y >= 200 - 17 && y + height <= 205 + 17);
    assert!((x..x + width).contains(&485) && (y..y + height).contains(&202));
}

#[test]
fn masks_have_the_pictures_size_whatever_its_shape() {
    for (width, height) in [(488, 427), (500, 17), (7, 7), (1000, 30), (1, 1), (17, 500)] {
        let picture = RgbImage::from_fn(width, height, |x, y| Rgb([if x + y < 5 { 255 } else { 0 }; 3]));
        for object in objects(&picture, &Options { max_objects: 3, ..Options::default() }) {
            let [x, y, wide, high] = object.mask.bbox();
            assert!(wide > 0 && high > 0 && x + wide <= width && y + high <= height);
            assert_eq!(object.mask.rle().size, [height, width]);
            let png = image::load_from_memory(&object.mask.png().unwrap()).unwrap().into_luma8();
            assert_eq!(png.dimensions(), (width, height));
            assert_eq!(png.pixels().filter(|pixel| pixel.0[0] == 255).count() as u64, object.mask.area());
        }
    }
}

#[test]
fn a_picture_without_an_object_scores_far_below_one_with_one() {
    let plain = RgbImage::from_pixel(320, 240, Rgb([128; 3]));
    let mut object = RgbImage::new(320, 240);
    for (x, y) in (100..220).flat_map(|x| (60..180).map(move |y| (x, y))) {
        object.put_pixel(x, y, Rgb([255; 3]));
    }
    let score = |picture| objects(picture, &Options::default())[0].score;
    let (plain, object) = (score(&plain), score(&object));
    println!("plain {plain:.4}, object {object:.4}");
    assert!(plain < 0.01 && object > 0.5);
}

/// Pixels of each mask.
fn pixels(object: &Object) -> Vec<bool> {
    let (width, height) = (object.mask.width(), object.mask.height());
    (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| object.mask.contains(x, y)).collect()
}

/// Intersection over union.
fn overlap(a: &[bool], b: &[bool]) -> f64 {
    let count = |of: fn(bool, bool) -> bool| a.iter().zip(b).filter(|(a, b)| of(**a, **b)).count() as f64;
    count(|a, b| a && b) / count(|a, b| a || b).max(1.0)
}

/// None empty, none twice, none that is the complement of what came before, and scores that do not rise.
fn assert_distinct(objects: &[Object], name: &str) {
    let masks: Vec<Vec<bool>> = objects.iter().map(pixels).collect();
    for at in 1..objects.len() {
        assert!(objects[at].score <= objects[at - 1].score, "{name}: the score of {at} rises");
        let found = |pixel: usize| masks[..at].iter().any(|mask| mask[pixel]);
        let left: Vec<bool> = (0..masks[at].len()).map(|pixel| !found(pixel)).collect();
        assert!(overlap(&masks[at], &left) <= 0.9, "{name}: {at} is what is left");
        for (earlier, mask) in masks[..at].iter().enumerate() {
            assert!(overlap(&masks[at], mask) <= 0.9, "{name}: {at} is {earlier} again");
            let complement: Vec<bool> = mask.iter().map(|inside| !inside).collect();
            assert!(overlap(&masks[at], &complement) <= 0.9, "{name}: {at} is the complement of {earlier}");
        }
    }
    assert!(objects.iter().all(|object| object.mask.area() > 0), "{name}");
}

#[test]
fn objects_are_distinct_whatever_the_features() {
    let mut random = SmallRng::seed_from_u64(7);
    for round in 0..60 {
        let grid = PatchGrid { rows: random.random_range(1..9), columns: random.random_range(1..9) };
        let (dim, heads) = (12 * random.random_range(1..3_usize), random.random_range(1..5_usize));
        // Regions of a few colours with noise, from next to none to nothing else.
        let colours = Array2::from_shape_fn((random.random_range(1..5), dim), |_| random.random_range(-1.0..1.0_f32));
        let noise = [0.0, 0.05, 0.5, 5.0][round % 4];
        let region: Vec<usize> = (0..grid.len()).map(|_| random.random_range(0..colours.nrows())).collect();
        let block = |patch: usize| region[patch / grid.columns / 3 * grid.columns + patch % grid.columns / 3];
        let keys = Array2::from_shape_fn((grid.len(), dim), |(patch, axis)| {
            colours[[block(patch), axis]] + if noise > 0.0 { random.random_range(-noise..noise) } else { 0.0 }
        });
        let attention = Array2::from_shape_fn((heads, grid.len()), |(head, patch)| {
            (1 + (block(patch) + head) % 3) as f32 + if noise > 0.0 { random.random_range(0.0..noise) } else { 0.0 }
        });
        let patches = Patches::new(Some(attention.view()), Some(keys.view()), grid);
        let size = [(64, 48), (5, 3), (grid.columns as u32, grid.rows as u32)][round % 3];
        let guide = RgbImage::from_fn(size.0, size.1, |x, y| Rgb([if (x / 7 + y / 5) % 2 == 0 { 20 } else { 200 }; 3]));
        for method in Method::ALL {
            for head in if method == Method::Attention { vec![Head::Mean, Head::All] } else { vec![Head::Mean] } {
                let ask = |max_objects| segment(&patches, size, 1.0, &Options { method, head, max_objects, threshold: None }).unwrap();
                let mut found = ask(9);
                let name = format!("round {round}, {method}, head {head}, {grid:?}");
                assert_distinct(&found.objects, &name);
                // Asking for fewer gives the first of them.
                let fewer = ask(2).objects;
                assert_eq!(fewer, found.objects[..fewer.len()], "{name}");
                found.refine(&guide);
                assert_distinct(&found.objects, &format!("{name}, refined"));
            }
        }
    }
}

#[test]
fn objects_of_photos_are_distinct() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = Model::open(&root.join("models/demo")).unwrap();
    let options = SessionOptions { device: Device::Cpu, ..SessionOptions::default() };
    let mut session = model.sessions(&options, 1).unwrap().remove(0);
    for name in ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "flower.jpg"] {
        let picture = image::open(root.join("tests/photos").join(name)).unwrap().thumbnail(320, 320).into_rgb8();
        let (input, grid) = model.manifest().transform.whole_picture(&picture, 240, model.manifest().patch_size);
        let outputs = session.run(input.view().insert_axis(Axis(0))).unwrap();
        for method in Method::ALL {
            let options = Options { method, max_objects: 6, ..Options::default() };
            let found = segment(&Patches::of(&outputs, grid), picture.dimensions(), structure(input.view(), grid), &options).unwrap();
            let pixels = f64::from(picture.width() * picture.height());
            let shown: Vec<_> = found.objects.iter().map(|object| (object.mask.area() as f64 / pixels, object.score)).collect();
            println!("{name} {method}: {shown:.2?}");
            assert!(!found.objects.is_empty());
            assert_distinct(&found.objects, &format!("{name}, {method}"));
        }
    }
}

/// Of the demo model: all methods tell photos from pictures without an object, and do so the same each time.
#[test]
fn plain_surfaces_gradients_and_noise_score_far_below_photos() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = Model::open(&root.join("models/demo")).unwrap();
    let options = SessionOptions { device: Device::Cpu, ..SessionOptions::default() };
    let mut session = model.sessions(&options, 1).unwrap().remove(0);
    let mut best = |picture: &RgbImage, method| {
        let (input, grid) = model.manifest().transform.whole_picture(picture, 240, model.manifest().patch_size);
        let outputs = session.run(input.view().insert_axis(Axis(0))).unwrap();
        let options = Options { method, ..Options::default() };
        let found =
            |_| segment(&Patches::of(&outputs, grid), picture.dimensions(), structure(input.view(), grid), &options).unwrap().objects;
        let [once, again] = [0, 1].map(found);
        assert_eq!(once, again);
        once.first().map_or(0.0, |object| object.score)
    };
    let noise = |x: u32, y: u32| {
        (x.wrapping_mul(7919) ^ y.wrapping_mul(104_729)).wrapping_mul(2_654_435_761).rotate_left(9).wrapping_mul(0x85EB_CA6B) >> 24
    };
    let nothing = [
        RgbImage::from_pixel(320, 240, Rgb([128; 3])),
        RgbImage::new(320, 240),
        RgbImage::from_fn(320, 240, |x, y| Rgb([(100 + x * 60 / 320) as u8, (110 + y * 40 / 240) as u8, (120 + x * 30 / 320) as u8])),
        RgbImage::from_fn(320, 240, |x, y| Rgb([noise(x, y) as u8, noise(x + 400, y) as u8, noise(x, y + 400) as u8])),
        RgbImage::from_fn(320, 240, |x, y| Rgb([(118 + noise(x, y) % 20) as u8; 3])),
    ];
    let photos = ["astronaut.png", "chelsea.png", "china.jpg", "coffee.png", "rocket.jpg"]
        .map(|name| image::open(root.join("tests/photos").join(name)).unwrap().into_rgb8());
    for method in Method::ALL {
        let nothing: Vec<f32> = nothing.iter().map(|picture| best(picture, method)).collect();
        let photos: Vec<f32> = photos.iter().map(|picture| best(picture, method)).collect();
        println!("{method}: {nothing:.3?} against {photos:.3?}");
        let highest = nothing.iter().copied().fold(0.0, f32::max);
        let lowest = photos.iter().copied().fold(1.0, f32::min);
        assert!(highest < 0.1 && highest < lowest / 2.0, "{method}: {nothing:?} against {photos:?}");
    }
}
