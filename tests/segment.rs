//! From a picture through a model to masks at the picture's own size.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]

use std::path::Path;

use dino_server::model::{Device, Model, Session, SessionOptions};
use dino_server::segment::{Method, Object, Options, Patches, segment, structure};
use image::{Rgb, RgbImage};
use ndarray::Axis;

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
    let photos = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"]
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
